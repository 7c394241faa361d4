"""What docs/device.md shows a programmer is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from pilltrack.edge.events import EVENT, CheckEvent
from pilltrack.edge.settings import Settings
from tests.drawn import BLUE, GREEN, pill_photo
from tests.edge.server import serving
from tests.imports import ROOT
from tests.tiny_bundle import COLOURED, tiny_bundle

TEXT = (ROOT / "docs" / "device.md").read_text(encoding="utf-8")


def blocks(language: str, heading: str) -> list[str]:
    """The blocks of code of a language in one section of the page."""
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def test_the_client_of_the_page_identifies_enrols_and_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [program] = blocks("python", "The API")
    crop = pill_photo(BLUE)[40:200, 80:240]
    bundle = tiny_bundle(tmp_path, "blue-pill", crop, locator=COLOURED)
    names = ("1.jpg", "2.jpg", "3.jpg", "tray.jpg")
    for name, place in zip(names, ((160, 120), (140, 118), (180, 122), (160, 120)), strict=True):
        Image.fromarray(pill_photo(GREEN, at=place)).save(tmp_path / name, quality=95)
    monkeypatch.chdir(tmp_path)
    with serving(Settings(bundle=bundle, home=tmp_path / "home")) as address:
        assert program.count("http://127.0.0.1:8000") == 1
        exec(program.replace("http://127.0.0.1:8000", address), {})
    *identified, checked = capsys.readouterr().out.splitlines()
    assert [line.endswith("] unknown None") for line in identified] == [True]  # and no fault
    assert checked.startswith("False [{'verdict': 'missing', 'pill': 'ibuprofen-200'")


def test_the_example_of_an_event_is_one() -> None:
    [example] = blocks("json", "Events over MQTT")
    event = EVENT.validate_json(example)
    assert isinstance(event, CheckEvent)
    assert set(type(event).model_fields) == set(event.model_fields_set)


def test_every_event_has_its_topic_and_fields_in_the_table() -> None:
    section = TEXT.split("## Events over MQTT\n")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `TOPIC/(\w+)` \| .* \| (.*) \|$", section, re.MULTILINE))
    schemas = EVENT.json_schema()["$defs"].values()
    events = {kind: schema["properties"] for schema in schemas
              if (kind := schema["properties"].get("event", {}).get("const"))}  # fmt: skip
    assert set(rows) == {*events, "status"}
    for kind, fields in events.items():
        documented = set(re.findall(r"`(\w+)`", rows[kind]))
        assert documented == set(fields) - {"id", "time", "bundle", "event"}, kind
