"""A bundle is tried before it serves, and what fails is said in a sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pilltrack.cli import main
from pilltrack.core import bundle as bundle_module
from pilltrack.core.bundle import read_bundle
from pilltrack.core.identify import open_identifier
from pilltrack.core.local import LocalReferences
from pilltrack.core.probes import Probes, Promised, read_probes, save_probes
from pilltrack.edge import selftest
from pilltrack.edge.selftest import SelfTest, self_test, self_test_apart
from tests.tiny_bundle import COLOURED, MODEL, tiny_bundle

PROBES = "probes.safetensors"
SLOW_MS = 60_000.0  # that no frame takes
RED, DARK_RED, BLUE = (200, 30, 30), (190, 40, 40), (30, 30, 200)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("selftest")
    return tiny_bundle(
        directory, "red-pill", plain(RED), locator=COLOURED, threshold=0.9, frames=[tray()]
    )


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    """A bundle to spoil."""
    shutil.copytree(original, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_bundle_as_it_was_made_passes(original: Path) -> None:
    found = self_test(original, None, SLOW_MS)
    assert found.passed
    assert (found.failures, found.probes, found.references, found.collisions) == ((), 2, 0, ())
    assert found.frame_ms is not None
    assert 0 < found.frame_ms < SLOW_MS


def test_a_swapped_model_is_refused(bundle: Path) -> None:
    replace_file(bundle, "model.tflite", MODEL.with_name("tiny.tflite"))
    found = self_test(bundle, None, SLOW_MS)
    assert not found.passed
    assert found.frame_ms is None
    assert "model.tflite: embedding space" in found.failures[0]


def test_probes_that_promise_another_embedding_fail(bundle: Path) -> None:
    probes = read_probes(bundle / PROBES)
    promise_otherwise(bundle, replace(probes, embeddings=-probes.embeddings))
    found = self_test(bundle, None, SLOW_MS)
    assert found.failures == (
        "probe 1: its embedding has a cosine of -1.000 to the promised one, "
        "expected at least 0.98",
    )  # fmt: skip
    assert not found.passed


def test_a_decision_that_is_not_the_promised_one_fails(bundle: Path) -> None:
    probes = read_probes(bundle / PROBES)
    blue = Promised("known", "blue-pill", 1.0)
    promise_otherwise(bundle, replace(probes, decisions=(blue,)))
    found = self_test(bundle, None, SLOW_MS)
    assert found.failures == ("probe 1: decided as known, red-pill, promised known, blue-pill",)


def test_pills_that_are_not_found_where_promised_fail(bundle: Path) -> None:
    probes = read_probes(bundle / PROBES)
    promise_otherwise(bundle, replace(probes, boxes=(((0, 0, 9, 9),),)))
    assert "frame 1: the pill promised at" in self_test(bundle, None, SLOW_MS).failures[0]


def test_a_frame_that_takes_too_long_fails(original: Path) -> None:
    found = self_test(original, None, max_frame_ms=0)
    assert not found.passed
    assert len(found.failures) == 1
    assert "ms, at most 0 allowed" in found.failures[0]


def test_damaged_probes_fail(bundle: Path) -> None:
    os.truncate(bundle / PROBES, 100)
    assert "probes.safetensors: 100 bytes" in self_test(bundle, None, SLOW_MS).failures[0]


def test_what_the_device_enrolled_does_not_change_what_the_bundle_promised(
    original: Path, tmp_path: Path
) -> None:
    home = enrolled(tmp_path / "home", {"my own": plain(RED)})
    with open_identifier(original, local=home) as opened:
        names = {candidate.pill for candidate in opened.gallery.search(embedded(original), 2)[0]}
    assert names == {"red-pill", "my own"}
    assert self_test(original, home, SLOW_MS).failures == ()


def test_the_devices_references_are_embedded_and_remembered(original: Path, tmp_path: Path) -> None:
    home = enrolled(tmp_path / "home", {"noise": noise(1), "white": plain((255, 255, 255))})
    found = self_test(original, home, SLOW_MS)
    assert (found.passed, found.references) == (True, 2)
    with LocalReferences(home) as local:
        spaces = local._data.rows("SELECT DISTINCT space, count(*) FROM embedding")
    assert spaces == [(read_bundle(original).space, 2)]


def test_pills_that_the_bundle_takes_for_another_are_named_and_no_failure(
    original: Path, tmp_path: Path
) -> None:
    home = enrolled(
        tmp_path / "home",
        {"look-alike": plain(DARK_RED), "red-pill": plain((205, 30, 30)), "blue": plain(BLUE)},
    )
    found = self_test(original, home, SLOW_MS)
    assert found.passed
    (collision,) = found.collisions
    assert (collision.pill, collision.other) == ("look-alike", "red-pill")
    assert str(collision).startswith("look-alike (photo look-alike.png): 1 of 1 photos are taken")
    assert found.references == 3


def test_a_lost_photo_of_the_device_is_a_failure(original: Path, tmp_path: Path) -> None:
    home = enrolled(tmp_path / "home", {"lost": noise(1)})
    for photo in (home / "crops").iterdir():
        photo.unlink()
    assert "of the pill 'lost'" in self_test(original, home, SLOW_MS).failures[0]


def test_a_process_of_its_own_says_the_same(original: Path, tmp_path: Path) -> None:
    home = enrolled(tmp_path / "home", {"look-alike": plain(DARK_RED)})
    here, apart = (
        test(original, home, SLOW_MS).model_copy(update={"frame_ms": None})
        for test in (self_test, self_test_apart)
    )
    assert apart == here
    assert len(apart.collisions) == 1


def test_a_process_that_takes_too_long_is_a_failure(original: Path) -> None:
    found = self_test_apart(original, None, timeout_s=0.01)
    assert found.failures == ("the self-test did not end within 0.01 s",)
    assert not found.passed


@pytest.mark.parametrize(
    ("program", "failure"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV"),
        ("raise MemoryError('all used up')", "exit code 1: MemoryError: all used up"),
        ("print('{}')", "exit code 0: it said nothing"),
    ],
)
def test_a_process_that_dies_is_a_failure_that_says_how(
    program: str, failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\n{program}\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    found = self_test_apart(tmp_path, None)
    assert not found.passed
    assert len(found.failures) == 1
    assert found.failures[0].endswith(failure)


def test_the_process_has_low_priority(original: Path) -> None:
    program = (
        "import os, sys\nfrom pilltrack.edge import selftest\n"
        f"sys.argv = ['selftest', {str(original)!r}]\nselftest.main()\n"
        "sys.stderr.write(str(os.nice(0)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert SelfTest.model_validate_json(done.stdout).probes == 2
    assert int(done.stderr.splitlines()[-1].split()[-1]) >= selftest.NICENESS


def test_the_command_says_what_passed(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", f"--bundle={original}", f"--max-frame-ms={SLOW_MS}"]) == 0
    assert capsys.readouterr().out.startswith("passed: 2 probes, a frame in ")


def test_the_command_ends_with_3_when_it_fails(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = enrolled(tmp_path / "home", {"look-alike": plain(DARK_RED)})
    arguments = [f"--bundle={original}", f"--home={home}", "--max-frame-ms=0"]
    assert main(["selftest", *arguments]) == 3
    said = capsys.readouterr()
    assert "\nfailure: a frame takes" in said.out
    assert "\ncollision: look-alike (photo look-alike.png)" in said.out
    assert "gate failed" in said.err
    assert main(["selftest", "--json", *arguments]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is False
    assert found["collisions"][0]["other"] == "red-pill"


def enrolled(home: Path, photos: dict[str, NDArray[np.uint8]]) -> Path:
    with LocalReferences(home) as local:
        for pill, photo in photos.items():
            local.add(pill, [(f"{pill}.png", photo)])
    return home


def embedded(bundle: Path) -> NDArray[np.float32]:
    return read_probes(bundle / PROBES).embeddings


def promise_otherwise(bundle: Path, probes: Probes) -> None:
    path = bundle.parent / "otherwise"
    save_probes(probes, path)
    replace_file(bundle, PROBES, path)


def replace_file(bundle: Path, name: str, source: Path) -> None:
    """Swap a file and make its record in the manifest right again."""
    shutil.copyfile(source, bundle / name)
    manifest = json.loads((bundle / "manifest.json").read_text())
    record = {"sha256": bundle_module._sha256(source), "bytes": source.stat().st_size}
    manifest["files"][name] = record
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def plain(colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.full((40, 40, 3), colour, np.uint8)


def noise(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)


def tray() -> NDArray[np.uint8]:
    frame = np.full((120, 160, 3), 128, np.uint8)
    frame[30:70, 40:80] = RED
    return frame
