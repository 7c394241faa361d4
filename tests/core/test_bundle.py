import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilltrack.core import bundle as module
from pilltrack.core.background import Background
from pilltrack.core.bundle import Manifest, read_bundle, write_bundle
from pilltrack.core.embedder import embedding_space
from pilltrack.core.errors import BundleRejected, SpaceMismatch
from pilltrack.core.gallery import Gallery, Reference
from tests.calibrations import calibration

GOLDEN = Path(__file__).parents[1] / "golden"
INT8 = GOLDEN / "tiny_int8.tflite"
FLOAT = GOLDEN / "tiny.tflite"
LOCATOR = GOLDEN / "whole_frame_locator.tflite"
FILES = ["locator.tflite", "model.tflite", "gallery.safetensors", "probes.safetensors"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written once: the gallery in it waits for the disk."""
    directory = tmp_path_factory.mktemp("original")
    write(directory / "bundle", work=directory / "work")
    return directory


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    """A bundle to spoil, alone in its directory but for the files it was made from."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return tmp_path / "bundle"


def test_written_bundle_reads_back_as_it_was(tmp_path: Path) -> None:
    written = write(tmp_path / "bundle", work=tmp_path / "work")
    assert read_bundle(tmp_path / "bundle") == written
    assert written.model.model_dump() == {
        "file": "model.tflite", "input_size_px": 32, "embedding_dim": 8, "quantisation": "int8"
    }  # fmt: skip
    assert written.space == embedding_space(INT8) == written.calibration.space
    assert written.pills == {"aspirin": {"ndc": "0001-0001", "name": "Aspirin®"}}
    assert written.locator.min_confidence == 0.3
    assert listing(tmp_path / "bundle") == [
        "gallery.safetensors", "locator.tflite", "manifest.json", "model.tflite",
        "probes.safetensors",
    ]  # fmt: skip
    assert (tmp_path / "bundle" / "model.tflite").read_bytes() == INT8.read_bytes()


def test_onnx_model_makes_a_bundle_too(tmp_path: Path) -> None:
    manifest = write(tmp_path / "bundle", work=tmp_path / "work", model=GOLDEN / "tiny.onnx")
    assert (manifest.model.file, manifest.model.quantisation) == ("model.onnx", "float32")
    assert read_bundle(tmp_path / "bundle") == manifest


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "first", work=tmp_path / "work")
    write(tmp_path / "second", work=tmp_path / "work")
    for name in listing(tmp_path / "first"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_writing_replaces_an_older_bundle_and_leaves_nothing_else(bundle: Path) -> None:
    write(bundle, work=bundle.parent / "work", name="newer")
    assert read_bundle(bundle).name == "newer"
    assert listing(bundle.parent) == ["bundle", "work"]


def test_failed_writing_keeps_the_older_bundle(bundle: Path) -> None:
    with pytest.raises(SpaceMismatch):
        write(bundle, work=bundle.parent / "work", calibration_space="f" * 64)
    assert read_bundle(bundle).name == "demo"
    assert listing(bundle.parent) == ["bundle", "work"]


def test_what_is_no_locator_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(BundleRejected, match=r"tiny_int8\.tflite: .* expected one input"):
        write(tmp_path / "bundle", work=tmp_path / "work", locator=INT8)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("occupied", ["directory", "file"])
def test_what_is_not_a_bundle_is_not_overwritten(occupied: str, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    if occupied == "directory":
        target.mkdir()
        (target / "diary.txt").write_text("dear diary")
    else:
        target.write_text("dear diary")
    with pytest.raises(BundleRejected, match=r"precious: .*not a bundle"):
        write(target, work=tmp_path / "work")
    assert "dear diary" in (target / "diary.txt" if target.is_dir() else target).read_text()


@pytest.mark.parametrize("name", FILES)
def test_one_changed_bit_is_found(name: str, bundle: Path) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleRejected, match=f"{name}: SHA-256 .* expected SHA-256"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", FILES)
def test_truncated_file_is_found_by_its_size(name: str, bundle: Path) -> None:
    os.truncate(bundle / name, 10)
    with pytest.raises(BundleRejected, match=rf"{name}: 10 bytes; expected \d+ bytes"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_missing_file_is_named(name: str, bundle: Path) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleRejected, match=f"{name}: (missing|cannot be read)"):
        read_bundle(bundle)


def test_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleRejected, match=r"manifest\.json: cannot be read"):
        read_bundle(tmp_path / "absent")


@pytest.mark.parametrize("kind", ["file", "directory", "hidden"])
def test_unlisted_entry_is_named(kind: str, bundle: Path) -> None:
    if kind == "directory":
        (bundle / "extra").mkdir()
    else:
        (bundle / (".extra" if kind == "hidden" else "extra")).write_bytes(b"x")
    with pytest.raises(BundleRejected, match="extra: a file the manifest does not list"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_link_is_refused_even_to_the_right_bytes(name: str, bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / name, tmp_path / "elsewhere")
    (bundle / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleRejected, match=f"{name}: a link"):
        read_bundle(bundle)


def test_gallery_of_another_space_is_refused_naming_both(bundle: Path, tmp_path: Path) -> None:
    foreign = save_gallery(tmp_path / "foreign", space=embedding_space(FLOAT))
    replace_file(bundle, "gallery.safetensors", foreign)
    both = f"gallery.*{embedding_space(FLOAT)}.*{embedding_space(INT8)}"
    with pytest.raises(SpaceMismatch, match=both):
        read_bundle(bundle)


def test_model_of_another_space_is_refused(bundle: Path) -> None:
    replace_file(bundle, "model.tflite", FLOAT)
    with pytest.raises(SpaceMismatch, match=r"model\.tflite"):
        read_bundle(bundle)


def test_a_rule_made_with_another_background_is_refused(bundle: Path) -> None:
    space = embedding_space(INT8)
    around = save_gallery(bundle.parent / "around", space=space, background=3)
    replace_file(bundle, "gallery.safetensors", around)
    with pytest.raises(BundleRejected, match="background of 3 embeddings; expected the 0 that"):
        read_bundle(bundle)
    edit(bundle, lambda manifest: manifest["calibration"].update(background_size=3))
    assert read_bundle(bundle).calibration.background_size == 3


def test_calibration_of_another_space_is_refused(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest["calibration"].update(space="f" * 64))
    with pytest.raises(SpaceMismatch, match="calibration"):
        read_bundle(bundle)


def test_another_input_size_is_another_space(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest["model"].update(input_size_px=64))
    with pytest.raises(SpaceMismatch, match=r"model\.tflite"):
        read_bundle(bundle)


def test_another_version_of_preprocessing_is_another_space(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilltrack.core.embedder.PREPROCESS_VERSION", "other")
    with pytest.raises(SpaceMismatch, match="preprocessing"):
        read_bundle(bundle)


def test_thresholds_of_smaller_galleries_are_read(bundle: Path) -> None:
    few = {"gallery_size": 1, "threshold": 0.1, "fpir_upper": 0.01, "misnamed_upper": 0.01}
    edit(bundle, lambda manifest: manifest["calibration"].update(smaller=[few]))
    assert read_bundle(bundle).calibration.rule_for(0).threshold == 0.1
    edit(bundle, lambda manifest: manifest["calibration"].pop("smaller"))
    assert read_bundle(bundle).calibration.smaller == ()


def test_a_bundle_of_format_8_has_the_agreement_of_its_time(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest["calibration"].update(agreement=0.12))
    assert read_bundle(bundle).calibration.agreement == 0.12

    def as_format_8(manifest: dict[str, Any]) -> None:
        manifest["format"] = 8
        del manifest["calibration"]["agreement"]

    edit(bundle, as_format_8)
    assert read_bundle(bundle).calibration.agreement == 0.3


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda m: m.update(format=7), "format 7; expected format 8 or 9"),
        (lambda m: m.update(format="1"), "format '1'"),
        (lambda m: m.update(format=True), "format True"),
        (lambda m: m.pop("format"), "format None"),
        (lambda m: m.update(surprise=1), "surprise: Extra inputs"),
        (lambda m: m.pop("calibration"), "calibration: Field required"),
        (lambda m: m["calibration"].update(threshold=float("nan")), "threshold"),
        (lambda m: m["calibration"]["evidence"].update(fpir_upper=0.5), "fpir of up to 0.5000"),
        (lambda m: m["calibration"].update(agreement=1.1), "agreement"),
        (lambda m: m["calibration"].pop("agreement"), "calibration.agreement: Field required"),
        (lambda m: m["calibration"].pop("evidence"), "calibration.evidence: Field required"),
        (lambda m: m["model"].update(input_size_px="32"), "input_size_px"),
        (lambda m: m["locator"].update(min_confidence=0.0), "locator.min_confidence"),
        (lambda m: m.pop("locator"), "locator: Field required"),
        (lambda m: m["model"].update(file="../model.tflite"), "model.file"),
        (lambda m: m.update(space="short"), "space"),
        (lambda m: m["pills"].update(b={"dose": 5}), "pills.b.dose"),
        (lambda m: add_file(m, "../../etc/passwd"), "files"),
        (lambda m: add_file(m, "/etc/passwd"), "files"),
        (lambda m: add_file(m, "a\\b"), "files"),
        (lambda m: add_file(m, ".hidden"), "files"),
        (lambda m: add_file(m, "name\n"), "files"),
        (lambda m: add_file(m, ""), "files"),
        (lambda m: add_file(m, *[f"f{i}" for i in range(100)]), "files"),
        (lambda m: m["files"]["model.tflite"].update(bytes=-1), "bytes"),
        (lambda m: m["files"]["model.tflite"].update(sha256="x"), "sha256"),
        (lambda m: m["files"].pop("model.tflite"), "model.tflite is not among its files"),
        (lambda m: m["files"].pop("gallery.safetensors"), "gallery.safetensors is not among"),
        (lambda m: m["files"].pop("locator.tflite"), "locator.tflite is not among"),
        (lambda m: m["files"].pop("probes.safetensors"), "probes.safetensors is not among"),
        (lambda m: add_file(m, "manifest.json"), "it lists itself"),
    ],
)
def test_wrong_manifest_is_refused_by_name(
    change: Callable[[dict[str, Any]], object], found: str, bundle: Path
) -> None:
    edit(bundle, change)
    with pytest.raises(BundleRejected, match=rf"manifest\.json: .*{found}"):
        read_bundle(bundle)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_manifest_that_is_not_an_object_is_refused(content: bytes, bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(content)
    with pytest.raises(BundleRejected, match=r"manifest\.json"):
        read_bundle(bundle)


def test_huge_manifest_is_not_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(BundleRejected, match="expected at most 100 bytes"):
        read_bundle(bundle)


def write(
    directory: Path,
    *,
    work: Path,
    name: str = "demo",
    model: Path = INT8,
    locator: Path = LOCATOR,
    calibration_space: str | None = None,
) -> Manifest:
    space = embedding_space(model)
    work.mkdir(exist_ok=True)
    return write_bundle(
        directory,
        name=name,
        locator=locator,
        min_confidence=0.3,
        model=model,
        gallery=save_gallery(work / "gallery", space=space),
        probe_crops=[np.full((40, 40, 3), 90, np.uint8)],
        probe_frames=[],
        calibration=calibration(calibration_space or space),
        pills={"aspirin": {"ndc": "0001-0001", "name": "Aspirin®"}},
        git_commit="abc123",
        data_digest="d" * 64,
        params_digest="e" * 64,
    )


def save_gallery(path: Path, *, space: str, background: int = 0) -> Path:
    with Gallery.create(space, 8) as gallery:
        gallery.background = Background(np.eye(background, 8, dtype=np.float32), ["b"] * background)
        gallery.enrol([Reference("aspirin", "front", "a.jpg")], np.eye(1, 8, dtype=np.float32))
        gallery.save(path)
    return path


def replace_file(bundle: Path, name: str, source: Path) -> None:
    """Swap a file and make its record in the manifest right again."""
    shutil.copyfile(source, bundle / name)
    record = {"sha256": module._sha256(source), "bytes": source.stat().st_size}
    edit(bundle, lambda manifest: manifest["files"].update({name: record}))


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def add_file(manifest: dict[str, Any], *names: str) -> None:
    for name in names:
        manifest["files"][name] = {"sha256": "0" * 64, "bytes": 0}


def listing(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())
