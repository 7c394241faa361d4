"""The bundle: everything a device needs to name pills, in one directory that proves itself.

    bundle/
      manifest.json         what it is, what made it, and size and SHA-256 of every other file
      locator.tflite        finds the pills in a frame
      model.tflite          (or model.onnx) the exported student
      gallery.safetensors   the enrolled pills
      probes.safetensors    pictures, and what these parts answered to them

Model, gallery and calibration must belong to one embedding space. `write_bundle` swaps a finished
and verified directory into place; `read_bundle` accepts a directory only as a whole: nothing
missing, changed or added, no links. Who wrote it is not proven here; that is the signature's task.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pilltrack.core.decide import Calibration
from pilltrack.core.embedder import open_embedder, space_of
from pilltrack.core.errors import BundleRejected, SpaceMismatch
from pilltrack.core.files import replaced_directory
from pilltrack.core.gallery import Gallery, read_background, read_space
from pilltrack.core.locate import Locator, LocatorCard
from pilltrack.core.probes import Picture, promise, read_probes, save_probes

FORMAT: Final = 9
READABLE = (8, 9)  # up to 7 thresholds were set on other scores (`core.looks`)
AGREEMENT_OF_8 = 0.3  # all bundles of format 8 have it, and none says so
MANIFEST_FILE = "manifest.json"
GALLERY_FILE = "gallery.safetensors"
LOCATOR_FILE = "locator.tflite"
PROBES_FILE = "probes.safetensors"
MAX_MANIFEST_BYTES = 64 * 1024 * 1024
MAX_FILES = 64

# No separators, no leading dot: a name cannot leave the bundle.
PlainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelCard(_Part):
    """The model: which file, and what it takes and gives."""

    file: PlainName
    input_size_px: int = Field(ge=1)
    embedding_dim: int = Field(ge=1)
    quantisation: str


class FileRecord(_Part):
    """What a file must be."""

    sha256: Sha256
    bytes: int = Field(ge=0)


class Manifest(_Part):
    """The content of manifest.json; `pills` maps each pill to its metadata (NDC, name, ...)."""

    format: Literal[8, 9]
    name: str = Field(min_length=1)
    git_commit: str
    data_digest: str
    params_digest: str
    locator: LocatorCard
    model: ModelCard
    space: Sha256
    calibration: Calibration
    pills: dict[str, dict[str, str]]
    files: dict[PlainName, FileRecord] = Field(max_length=MAX_FILES)


def write_bundle(
    directory: Path,
    *,
    name: str,
    locator: Path,
    min_confidence: float,
    model: Path,
    gallery: Path,
    probe_crops: Sequence[Picture],
    probe_frames: Iterable[Picture],
    calibration: Calibration,
    pills: Mapping[str, Mapping[str, str]],
    git_commit: str,
    data_digest: str,
    params_digest: str,
) -> Manifest:
    """Write a bundle of copies of the three files to `directory`; return its manifest.

    It is built and verified beside `directory` and takes its place, and that of an older bundle
    there, by renaming. What it promises for the pictures to probe it with, `core.probes.promise`
    finds out by asking these very files. The same input gives the same bytes.

    Raises BundleRejected or SpaceMismatch as `read_bundle`, or when `directory` holds anything
    but a bundle; ValueError as `promise`. What was there then stays.
    """
    if not _may_hold_bundle(directory):
        raise BundleRejected(
            str(directory),
            found="something that is not a bundle",
            expected="a bundle to replace, an empty directory, or nothing",
            remedy="Choose another directory.",
        )
    embedder = open_embedder(model)
    opened = Locator(locator, min_confidence=min_confidence)
    model_file = f"model{model.suffix}"
    with replaced_directory(directory) as new:
        shutil.copyfile(locator, new / LOCATOR_FILE)
        shutil.copyfile(model, new / model_file)
        shutil.copyfile(gallery, new / GALLERY_FILE)
        with Gallery.load(gallery) as pills_of_bundle:
            probes = promise(
                probe_crops,
                probe_frames,
                locator=opened,
                embedder=embedder,
                gallery=pills_of_bundle,
                rule=calibration,
            )
        save_probes(probes, new / PROBES_FILE)
        manifest = Manifest(
            format=FORMAT,
            name=name,
            git_commit=git_commit,
            data_digest=data_digest,
            params_digest=params_digest,
            locator=LocatorCard(min_confidence=min_confidence),
            model=ModelCard(
                file=model_file,
                input_size_px=embedder.input_size_px,
                embedding_dim=embedder.dim,
                quantisation=embedder.quantisation,
            ),
            space=embedder.space,
            calibration=calibration,
            pills={pill: dict(metadata) for pill, metadata in pills.items()},
            files={
                file: FileRecord(sha256=_sha256(new / file), bytes=(new / file).stat().st_size)
                for file in (LOCATOR_FILE, model_file, GALLERY_FILE, PROBES_FILE)
            },
        )
        (new / MANIFEST_FILE).write_text(_manifest_json(manifest), encoding="utf-8")
        read_bundle(new)
    return manifest


def read_bundle(directory: Path) -> Manifest:
    """Verify a bundle and return its manifest.

    Checked: the manifest's schema and format number; that exactly the listed files exist, as
    regular files under plain names, with their size and SHA-256; that the model's bytes, the
    gallery, the calibration and the probes name one embedding space; that the rule was set with a
    background as large as the gallery's; every value of the probes. Whether their promises are
    kept is not: that takes running the models.

    Raises BundleRejected, or SpaceMismatch for another space, naming the file, what was found
    and what was expected.
    """
    manifest = _read_manifest(directory)
    _check_listing(directory, manifest)
    for file, record in sorted(manifest.files.items()):
        _check_file(directory / file, record)
    _check_spaces(directory, manifest)
    _check_background(directory, manifest)
    return manifest


def calibration_in(manifest: Mapping[str, Any]) -> Any:
    """The calibration of a manifest as parsed, unchecked, with what format 8 leaves unsaid."""
    calibration = manifest.get("calibration")
    if manifest.get("format") == 8 and isinstance(calibration, dict):
        return {"agreement": AGREEMENT_OF_8, **calibration}
    return calibration


def _may_hold_bundle(directory: Path) -> bool:
    if not directory.exists():
        return True
    if not directory.is_dir():
        return False
    return (directory / MANIFEST_FILE).is_file() or not any(directory.iterdir())


def _read_manifest(directory: Path) -> Manifest:
    path = directory / MANIFEST_FILE
    expected = "the manifest of a PillTrack bundle"
    try:
        _check_regular(path)
        size = path.stat().st_size
        if size > MAX_MANIFEST_BYTES:
            raise _rejected(path, f"{size} bytes", f"at most {MAX_MANIFEST_BYTES} bytes")
        raw = path.read_bytes()
        content = json.loads(raw)
    except OSError as error:
        raise _rejected(path, f"cannot be read ({error.strerror})", expected) from error
    except (ValueError, RecursionError) as error:
        raise _rejected(path, f"not JSON ({error})", expected) from error
    found_format = content.get("format") if isinstance(content, dict) else None
    if type(found_format) is not int or found_format not in READABLE:
        raise BundleRejected(
            str(path),
            found=f"format {found_format!r}",
            expected=f"format {' or '.join(map(str, READABLE))}",
            remedy="A newer format needs a newer PillTrack on this device; an older bundle "
            "has to be built again.",
        )
    if found_format == 8 and "calibration" in content:
        raw = json.dumps(content | {"calibration": calibration_in(content)}).encode()
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _rejected(path, f"{where}: {first['msg']}", expected) from error


def _check_listing(directory: Path, manifest: Manifest) -> None:
    listed = set(manifest.files)
    for needed in (LOCATOR_FILE, manifest.model.file, GALLERY_FILE, PROBES_FILE):
        if needed not in listed:
            found = f"{needed} is not among its files"
            expected = "locator, model, gallery and probes listed"
            raise _rejected(directory / MANIFEST_FILE, found, expected)
    if MANIFEST_FILE in listed:
        raise _rejected(directory / MANIFEST_FILE, "it lists itself", "only other files listed")
    present = {entry.name for entry in directory.iterdir()}
    for extra in sorted(present - listed - {MANIFEST_FILE}):
        raise _rejected(directory / extra, "a file the manifest does not list", "no such file")
    for missing in sorted(listed - present):
        raise _rejected(directory / missing, "missing", "the file the manifest lists")


def _check_file(path: Path, record: FileRecord) -> None:
    _check_regular(path)
    size = path.stat().st_size
    if size != record.bytes:
        raise _rejected(path, f"{size} bytes", f"{record.bytes} bytes")
    digest = _sha256(path)
    if digest != record.sha256:
        raise _rejected(path, f"SHA-256 {digest}", f"SHA-256 {record.sha256}")


def _check_regular(path: Path) -> None:
    if not stat.S_ISREG(path.lstat().st_mode):
        raise _rejected(path, "a link, directory or device", "a regular file")


def _check_spaces(directory: Path, manifest: Manifest) -> None:
    model, probes = directory / manifest.model.file, read_probes(directory / PROBES_FILE)
    spaces = {
        model: space_of(model.read_bytes(), manifest.model.input_size_px),
        directory / GALLERY_FILE: read_space(directory / GALLERY_FILE),
        directory / f"{MANIFEST_FILE} (calibration)": manifest.calibration.space,
        directory / PROBES_FILE: probes.space,
    }
    for part, space in spaces.items():
        if space != manifest.space:
            raise SpaceMismatch(
                str(part),
                found=f"embedding space {space}",
                expected=f"embedding space {manifest.space} of the manifest",
                remedy="Build the bundle again: model, gallery, calibration and probes belong "
                "together, and to this version of PillTrack's preprocessing.",
            )
    if (dim := probes.embeddings.shape[1]) != manifest.model.embedding_dim:
        raise _rejected(
            directory / PROBES_FILE,
            f"embeddings of length {dim}",
            f"those of the manifest, {manifest.model.embedding_dim}",
        )


def _check_background(directory: Path, manifest: Manifest) -> None:
    """A rule set with a background names almost anything without it."""
    gallery = directory / GALLERY_FILE
    found = len(read_background(gallery, manifest.model.embedding_dim))
    expected = manifest.calibration.background_size
    if found != expected:
        raise BundleRejected(
            str(gallery),
            found=f"a background of {found} embeddings",
            expected=f"the {expected} that the calibration was made with",
            remedy="Run `dvc repro` to build the bundle again.",
        )


def _manifest_json(manifest: Manifest) -> str:
    content = manifest.model_dump(mode="json")
    return json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rejected(path: Path, found: str, expected: str) -> BundleRejected:
    return BundleRejected(
        str(path), found=found, expected=expected, remedy="Fetch or build the bundle again."
    )
