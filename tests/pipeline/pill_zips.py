"""Small pill photos and archives, built in code."""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pilltrack.pipeline.duplicates import Fingerprint
from pilltrack.pipeline.params import PrepareParams

Pixels = NDArray[np.uint8]


def picture(name: str, size: int = 32) -> Pixels:
    """(size, size, 3): a smooth pattern that depends on the name only."""
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    coarse = draw.integers(30, 190, (6, 6, 3), dtype=np.uint8)
    resized: Pixels = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return resized


def brighter(image: Pixels) -> Pixels:
    bright: Pixels = np.clip(image.astype(np.float32) * 1.08 + 3, 0, 255).astype(np.uint8)
    return bright


def png(image: Pixels) -> bytes:
    done, data = cv2.imencode(".png", image[:, :, ::-1])
    assert done
    return bytes(data)


def jpeg(image: Pixels, quality: int = 90) -> bytes:
    done, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return bytes(data)


def different(name: str) -> Fingerprint:
    """A fingerprint that is far from that of every other name."""
    bits = np.frombuffer(hashlib.sha256(name.encode()).digest(), np.uint64)
    return Fingerprint(name, bits, np.zeros((64, 64, 3), np.uint8), 1.0)


def photo(name: str) -> bytes:
    return png(picture(name))


def folders(n_pills: int, n_photos: int = 1, prefix: str = "") -> dict[str, bytes]:
    """Different photos, as `<pill>/<n>.png`."""
    return {
        f"{prefix}pill{pill:02d}/{n}.png": photo(f"{prefix}{pill}/{n}")
        for pill in range(n_pills)
        for n in range(n_photos)
    }


def zipped(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tree(root: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, data in files.items():
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data.encode() if isinstance(data, str) else data)
    return root


def zip_bytes(files: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def params(**changes: object) -> PrepareParams:
    values: dict[str, object] = {
        "seed": 7,
        "zip_splits": "ignore",
        "validation_share": 0.2,
        "test_share": 0.2,
        "stranger_share": 0.5,
        "probe_share": 0.25,
        "near_duplicate_bits": 20,
        "max_unreadable_share": 0.0,
        "max_unzipped_gb": 0.1,
    }
    return PrepareParams.model_validate(values | changes)


def snapshot(directory: Path) -> dict[str, bytes]:
    """Return every file below a directory, hidden ones too."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def yolo_set(photos: Sequence[str], pills: Sequence[str]) -> dict[str, bytes | str]:
    """Different photos, named `<split>/<name>`, with one box of every pill each."""
    files: dict[str, bytes | str] = {"data.yaml": f"names: {list(pills)}\n"}
    for name in photos:
        files[f"images/{name}.png"] = png(picture(name, 40))
        files[f"labels/{name}.txt"] = "".join(f"{n} .5 .5 .4 .4\n" for n in range(len(pills)))
    return files
