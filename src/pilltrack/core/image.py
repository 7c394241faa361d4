"""Bytes of an image file -> upright RGB uint8 array.

Every limit on what an image may be stands here. The header is checked before a pixel is
decoded, so a hostile file cannot allocate more than `MAX_PIXELS`. The result is the same for
greyscale, palette, CMYK, 16-bit, transparent and EXIF-rotated files: what a person would see.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from pilltrack.core.errors import ImageRejected

MAX_BYTES = 64 * 1024 * 1024
MAX_PIXELS = 50_000_000
MIN_SIDE_PX = 16
STRIP_PX = 256  # rows that are copied at a time
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")  # a phone's MPO opens as its first JPEG
_TURNS = {  # EXIF orientation -> what makes it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file as an upright RGB array (H, W, 3) uint8.

    Raises ImageRejected when the file is missing, or `decode_image` refuses its content.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise _too_many_bytes(str(path), size)
        data = path.read_bytes()
    except OSError as error:
        raise ImageRejected(
            str(path),
            found=f"cannot be read ({error.strerror})",
            expected="a readable image file",
            remedy="Check the path and its permissions.",
        ) from error
    return decode_image(data, name=str(path))


def decode_image(data: bytes, *, name: str, max_side_px: int | None = None) -> NDArray[np.uint8]:
    """Decode one image to an upright RGB array (H, W, 3) uint8.

    Transparent pixels are laid over black, the background of studio reference photos; 16-bit
    values keep their upper 8 bits; EXIF orientation is applied; of several frames the first
    counts. `name` is used in messages only.

    Raises ImageRejected for anything that is not a whole image within the limits above, or has a
    side longer than `max_side_px`.
    """
    if len(data) > MAX_BYTES:
        raise _too_many_bytes(name, len(data))
    if not data:
        raise _unreadable(name, "the file is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the limits below are stricter than Pillow's warning
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(name, image.size, max_side_px)
                image.load()
                return _pixels(_as_rgb(_upright(image)))
    except (ImageRejected, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise _unreadable(name, "it is not an image in a known format") from error
    except Exception as error:  # Pillow's parsers raise many kinds on hostile bytes
        raise _unreadable(name, f"it is damaged or truncated ({error})") from error


def as_png(photo: NDArray[np.uint8]) -> bytes:
    """Encode an RGB array (H, W, 3) uint8 without loss, at a quarter of the usual time."""
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _upright(image: Image.Image) -> Image.Image:
    """Undo the camera's rotation; ImageOps would rewrite the EXIF data, and fail on odd tags."""
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit greyscale: Pillow would clip it
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        if image.mode != "F":
            values = values / 256
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Its pixels (H, W, 3); strip by strip, as Pillow would take three times the room at once."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, STRIP_PX):
        bottom = min(top + STRIP_PX, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


def _check_size(name: str, size: tuple[int, int], max_side_px: int | None) -> None:
    width, height = size
    if max_side_px is not None and max(size) > max_side_px:
        raise ImageRejected(
            name,
            found=f"{width} x {height} pixels",
            expected=f"at most {max_side_px} on a side",
            remedy="Scale the picture down; 640 x 480 is enough.",
        )
    if width * height > MAX_PIXELS:
        raise ImageRejected(
            name,
            found=f"{width} x {height} pixels ({width * height / 1e6:.0f} megapixels)",
            expected=f"at most {MAX_PIXELS / 1e6:.0f} megapixels",
            remedy="Scale the photo down; 12 megapixels are more than enough.",
        )
    if min(width, height) < MIN_SIDE_PX:
        raise ImageRejected(
            name,
            found=f"{width} x {height} pixels",
            expected=f"at least {MIN_SIDE_PX} pixels on each side",
            remedy="Use a photo in which the pill can be seen.",
        )


def _too_many_bytes(name: str, size: int) -> ImageRejected:
    return ImageRejected(
        name,
        found=f"{size} bytes",
        expected=f"at most {MAX_BYTES} bytes",
        remedy="Save the photo as JPEG.",
    )


def _unreadable(name: str, found: str) -> ImageRejected:
    return ImageRejected(
        name,
        found=found,
        expected="a whole JPEG, PNG, WebP, BMP or TIFF image",
        remedy="Replace or delete the file.",
    )
