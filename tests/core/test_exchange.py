"""What one device has learnt comes to another whole, and nothing else does."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pilltrack.core import exchange
from pilltrack.core.errors import ArchiveRejected, InputRejected, StageFailed
from pilltrack.core.exchange import export_references, import_references
from pilltrack.core.image import decode_image
from pilltrack.core.local import LocalReferences


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    with LocalReferences(tmp_path / "home") as local:
        local.add("red", [("r.png", noise(1)), ("s.png", noise(2))], "front")
        local.add("red", [("t.png", noise(3))], "back")
        local.add("blue", [("b.png", noise(4))])
        assert export_references(local, tmp_path / "pills.zip") == 4
    return tmp_path / "pills.zip"


def test_another_device_has_the_same_pills_sides_and_pixels(exported: Path, tmp_path: Path) -> None:
    with LocalReferences(tmp_path / "other") as local:
        assert import_references(local, exported) == {"red": 3, "blue": 1}
        kept = [(k.pill, k.side, k.image) for k in local.kept()]
        assert sorted(kept) == [
            ("blue", "", "b.png"), ("red", "back", "t.png"),
            ("red", "front", "r.png"), ("red", "front", "s.png"),
        ]  # fmt: skip
        photos = {k.image: local.photo(k.crop) for k in local.kept()}
        assert (photos["t.png"] == noise(3)).all()
        assert import_references(local, exported) == {"red": 0, "blue": 0}


def test_the_same_pills_give_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    with LocalReferences(tmp_path / "home") as local:
        export_references(local, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == exported.read_bytes()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda files: files.pop("references.json"), "references.json"),
        (lambda files: files.update({"references.json": b"{}"}), "format"),
        (lambda files: files.update({"references.json": b"["}), "JSON"),
        (lambda files: rewrite(files, lambda rows: rows[0].update(photo="../x")), "photo"),
        (lambda files: rewrite(files, lambda rows: rows[0].update(photo="0" * 64)), "0000.png"),
        (lambda files: swap_photos(files), "other pixels than its name says"),
    ],
)
def test_a_zip_that_was_changed_is_refused_and_adds_nothing(
    change: Callable[[dict[str, bytes]], object], found: str, exported: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(exported) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(tmp_path / "changed.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with LocalReferences(tmp_path / "other") as local:
        with pytest.raises(ArchiveRejected, match=found):
            import_references(local, tmp_path / "changed.zip")
        assert local.pills() == {}


def test_any_damaged_byte_is_refused_or_harmless(exported: Path, tmp_path: Path) -> None:
    whole, damaged = exported.read_bytes(), tmp_path / "damaged.zip"
    with zipfile.ZipFile(exported) as archive:
        end_of_list = archive.infolist()[1].header_offset
    refused = 0
    with LocalReferences(tmp_path / "other") as local:
        for place in range(end_of_list):  # the list is deflated: its decoder has errors of its own
            data = bytearray(whole)
            data[place] ^= 0xFF
            damaged.write_bytes(bytes(data))
            try:
                import_references(local, damaged)
            except (ArchiveRejected, InputRejected):
                refused += 1
    assert refused > end_of_list // 2


def test_a_name_that_is_no_text_is_refused(exported: Path, tmp_path: Path) -> None:
    data = bytearray(exported.read_bytes())
    entry = data.rindex(b"PK\x01\x02")  # in the list at the end of the zip
    data[entry + 9] |= 0x08  # names are UTF-8, it says
    data[entry + 46] = 0xFF
    (tmp_path / "odd.zip").write_bytes(bytes(data))
    with LocalReferences(tmp_path / "other") as local, pytest.raises(ArchiveRejected, match="odd"):
        import_references(local, tmp_path / "odd.zip")


def test_only_one_side_of_one_pill_is_in_memory_at_a_time(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    add = LocalReferences.add

    def counted(self: LocalReferences, pill: str, photos: list[Any], side: str = "") -> int:
        held.append(len(photos))
        return add(self, pill, photos, side)

    monkeypatch.setattr(LocalReferences, "add", counted)
    with LocalReferences(tmp_path / "other") as local:
        import_references(local, exported)
    assert sorted(held) == [1, 1, 2]


def test_a_photo_that_is_named_often_is_decoded_once_and_added_once(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(exported) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    rewrite(files, lambda rows: rows.extend([rows[0]] * 50))
    with zipfile.ZipFile(tmp_path / "often.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    decoded: list[str] = []

    def counted(data: bytes, *, name: str) -> NDArray[np.uint8]:
        decoded.append(name)
        return decode_image(data, name=name)

    monkeypatch.setattr(exchange, "decode_image", counted)
    with LocalReferences(tmp_path / "other") as local:
        assert sum(import_references(local, tmp_path / "often.zip").values()) == 4
    assert len(decoded) == 8  # each to check it, and to add it


def test_a_full_disk_is_not_the_zips_fault(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalReferences, "add", full)
    with LocalReferences(tmp_path / "other") as local, pytest.raises(OSError, match="No space"):
        import_references(local, exported)


def test_what_is_no_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.zip").write_bytes(b"no zip")
    with LocalReferences(tmp_path / "home") as local:
        for name in ("no.zip", "absent.zip"):
            with pytest.raises(ArchiveRejected, match=name):
                import_references(local, tmp_path / name)


def test_a_list_larger_than_allowed_is_not_read(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "MAX_LIST_BYTES", 10)
    with (
        LocalReferences(tmp_path / "other") as local,
        pytest.raises(ArchiveRejected, match="more than 10 bytes"),
    ):
        import_references(local, exported)


def test_a_lost_photo_is_named_and_leaves_no_zip(exported: Path, tmp_path: Path) -> None:
    with LocalReferences(tmp_path / "home") as local:
        next((tmp_path / "home" / "crops").iterdir()).unlink()
        with pytest.raises(StageFailed, match="crops"):
            export_references(local, tmp_path / "second.zip")
    assert not list(tmp_path.glob("second*"))


def test_a_photo_of_no_reference_is_not_shown(tmp_path: Path) -> None:
    with LocalReferences(tmp_path / "home") as local, pytest.raises(InputRejected, match="photo"):
        local.photo("0" * 64)


def rewrite(files: dict[str, bytes], change: Callable[[list[dict[str, str]]], object]) -> None:
    listing = json.loads(files["references.json"])
    change(listing["references"])
    files["references.json"] = json.dumps(listing).encode()


def swap_photos(files: dict[str, bytes]) -> None:
    first, second, *_ = [name for name in files if name.startswith("photos/")]
    files[first], files[second] = files[second], files[first]


def noise(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
