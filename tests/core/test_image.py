"""Every limit and every kind of image; expected pixels are worked out by hand."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pilltrack.core import image as limits
from pilltrack.core.errors import ImageRejected
from pilltrack.core.image import decode_image, read_image

ORIENTATION = 0x0112


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def plain(colour: object, mode: str = "RGB", size: tuple[int, int] = (20, 16)) -> Image.Image:
    return Image.new(mode, size, colour)  # type: ignore[arg-type]


def decode(data: bytes) -> NDArray[np.uint8]:
    return decode_image(data, name="photo")


def refusal(data: bytes) -> ImageRejected:
    with pytest.raises(ImageRejected) as caught:
        decode_image(data, name="photo")
    return caught.value


def gradient() -> NDArray[np.uint8]:
    """(16, 20, 3): red counts columns, green counts rows, so every pixel is different."""
    rows, columns = np.mgrid[0:16, 0:20]
    return np.stack([columns * 10, rows * 10, np.full_like(rows, 7)], axis=2).astype(np.uint8)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF"])
def test_lossless_colour_image_keeps_every_pixel(file_format: str) -> None:
    decoded = decode(encoded(Image.fromarray(gradient()), file_format))
    np.testing.assert_array_equal(decoded, gradient())
    assert decoded.dtype == np.uint8
    assert decoded.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("strip_px", [8, 7])  # two strips; two, and two rows more
def test_an_image_higher_than_a_strip_keeps_every_pixel(
    strip_px: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STRIP_PX", strip_px)
    decoded = decode(encoded(Image.fromarray(gradient()), "PNG"))
    np.testing.assert_array_equal(decoded, gradient())


def test_lossless_webp_keeps_every_pixel() -> None:
    decoded = decode(encoded(Image.fromarray(gradient()), "WEBP", lossless=True))
    np.testing.assert_array_equal(decoded, gradient())


def test_jpeg_is_close_to_its_colour() -> None:
    decoded = decode(encoded(plain((200, 100, 50)), "JPEG", quality=95))
    assert decoded.shape == (16, 20, 3)
    assert np.abs(decoded.astype(int) - (200, 100, 50)).max() <= 3


def test_phone_photo_with_a_second_frame_shows_the_first() -> None:
    data = encoded(plain((200, 0, 0)), "MPO", save_all=True, append_images=[plain((0, 0, 200))])
    red, _, blue = decode(data)[8, 10]
    assert red > 190
    assert blue < 10


def test_animated_webp_shows_its_first_frame() -> None:
    frames = [plain((10, 20, 30)), plain((90, 90, 90))]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert decode(data)[0, 0].tolist() == [10, 20, 30]


def test_greyscale_repeats_its_value_in_three_channels() -> None:
    assert decode(encoded(plain(77, "L"), "PNG"))[3, 4].tolist() == [77, 77, 77]


def test_bilevel_is_black_and_white() -> None:
    assert decode(encoded(plain(1, "1"), "PNG"))[3, 4].tolist() == [255, 255, 255]


def test_palette_is_looked_up() -> None:
    image = plain(1, "P")
    image.putpalette([1, 2, 3, 40, 50, 60])
    assert decode(encoded(image, "PNG"))[0, 0].tolist() == [40, 50, 60]


def test_transparent_palette_entry_is_black() -> None:
    image = plain(1, "P")
    image.putpalette([1, 2, 3, 40, 50, 60])
    assert decode(encoded(image, "PNG", transparency=1))[0, 0].tolist() == [0, 0, 0]


def test_cmyk_without_ink_is_white_and_full_cyan_takes_the_red() -> None:
    assert decode(encoded(plain((0, 0, 0, 0), "CMYK"), "TIFF"))[0, 0].tolist() == [255, 255, 255]
    assert decode(encoded(plain((255, 0, 0, 0), "CMYK"), "TIFF"))[0, 0].tolist() == [0, 255, 255]


def test_cmyk_jpeg_is_not_inverted() -> None:
    decoded = decode(encoded(plain((255, 0, 0, 0), "CMYK"), "JPEG", quality=95))
    assert np.abs(decoded.astype(int) - (0, 255, 255)).max() <= 4


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bit_greyscale_keeps_its_upper_eight_bits(file_format: str) -> None:
    values = np.zeros((16, 16), np.uint16)
    values[0, :3] = [0x1234, 0xFFFF, 0x00FF]
    decoded = decode(encoded(Image.fromarray(values), file_format))
    assert decoded[0, :3, 0].tolist() == [0x12, 0xFF, 0x00]


def test_sixteen_bit_colour_keeps_its_upper_eight_bits() -> None:
    values = np.full((16, 16, 3), (0x1234, 0x80FF, 0xFE00), np.uint16)
    done, data = cv2.imencode(".png", values[:, :, ::-1])
    assert done
    assert decode(data.tobytes())[5, 5].tolist() == [0x12, 0x80, 0xFE]


def test_float_tiff_is_clipped_and_not_a_number_is_black() -> None:
    values = np.zeros((16, 16), np.float32)
    values[0, :4] = [300.0, -5.0, 17.0, np.nan]
    decoded = decode(encoded(Image.fromarray(values), "TIFF"))
    assert decoded[0, :4, 0].tolist() == [255, 0, 17, 0]


def test_transparent_pixels_lie_over_black() -> None:
    image = plain((255, 255, 255, 0), "RGBA")
    image.putpixel((1, 0), (255, 100, 0, 128))
    decoded = decode(encoded(image, "PNG"))
    assert decoded[0, 0].tolist() == [0, 0, 0]
    assert decoded[0, 1].tolist() == [128, 50, 0]  # 255 * 128 / 255 and 100 * 128 / 255


def test_grey_with_alpha_lies_over_black() -> None:
    assert decode(encoded(plain((200, 0), "LA"), "PNG"))[0, 0].tolist() == [0, 0, 0]


# Where the upright image's pixel [0, 0] lies in the stored one, as (row, column) of 16 x 20.
ORIGIN = {
    1: (0, 0),
    2: (0, 19),
    3: (15, 19),
    4: (15, 0),
    5: (0, 0),
    6: (15, 0),
    7: (15, 19),
    8: (0, 19),
}


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_photo_is_shown_upright(orientation: int, file_format: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = gradient()
    decoded = decode(encoded(Image.fromarray(stored), file_format, exif=exif))
    assert decoded.shape == ((16, 20, 3) if orientation < 5 else (20, 16, 3))
    assert decoded[0, 0].tolist() == stored[ORIGIN[orientation]].tolist()
    row, column = ORIGIN[orientation]
    next_in_row = (row, abs(column - 1)) if orientation < 5 else (abs(row - 1), column)
    assert decoded[0, 1].tolist() == stored[next_in_row].tolist()


def test_unknown_orientation_changes_nothing() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 99
    np.testing.assert_array_equal(
        decode(encoded(Image.fromarray(gradient()), "PNG", exif=exif)), gradient()
    )


def test_text_is_not_an_image() -> None:
    error = refusal(b"pill,name\nadvil,Advil\n")
    assert "not an image" in error.found
    assert "JPEG" in error.expected


def test_empty_file_is_refused() -> None:
    assert "0 bytes" in refusal(b"").found


def test_gif_is_refused_by_format() -> None:
    assert "known format" in refusal(encoded(plain(1, "P"), "GIF")).found


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_truncated_image_is_refused(file_format: str, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), file_format)
    assert decode(data).shape == (64, 64, 3)
    assert refusal(data[: int(len(data) * kept)]).subject == "photo"


def test_one_pixel_is_refused() -> None:
    error = refusal(encoded(plain((1, 2, 3), size=(1, 1)), "PNG"))
    assert error.found == "1 x 1 pixels"
    assert "16" in error.expected


def test_smallest_and_one_pixel_less() -> None:
    assert decode(encoded(plain(0, "L", (16, 16)), "PNG")).shape == (16, 16, 3)
    assert "15" in refusal(encoded(plain(0, "L", (16, 15)), "PNG")).found


def test_sixty_megapixels_in_a_small_file_are_refused_before_decoding() -> None:
    data = encoded(plain(0, "1", (8000, 7500)), "PNG")
    assert len(data) < 100_000
    assert "60 megapixels" in refusal(data).found
    # All but the header cut off: the same answer, so no pixel was needed for it.
    assert "60 megapixels" in refusal(data[:60]).found


def test_a_side_longer_than_asked_for_is_refused_before_decoding() -> None:
    data = encoded(plain(0, "L", (20, 30)), "PNG")
    assert decode_image(data, name="x", max_side_px=30).shape == (30, 20, 3)
    with pytest.raises(ImageRejected) as refused:
        decode_image(data[:60], name="x", max_side_px=29)
    assert (refused.value.found, refused.value.expected) == (
        "20 x 30 pixels",
        "at most 29 on a side",
    )


def test_too_many_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(plain(0, "L"), "PNG")
    monkeypatch.setattr(limits, "MAX_BYTES", len(data) - 1)
    assert f"{len(data)} bytes" in refusal(data).found


def test_reading_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ImageRejected, match=r"nowhere\.png: cannot be read \(No such file"):
        read_image(tmp_path / "nowhere.png")


EXIF = Image.Exif()
EXIF[ORIENTATION] = 6
EXIF[0x010E] = "a pill"
SEEDS = [
    encoded(Image.fromarray(gradient()), "JPEG", exif=EXIF),
    encoded(Image.fromarray(gradient()), "PNG", exif=EXIF),
    encoded(Image.fromarray(gradient()), "WEBP", exif=EXIF.tobytes()),
    encoded(Image.fromarray(gradient()), "TIFF", exif=EXIF, compression="tiff_lzw"),
    encoded(Image.fromarray(gradient()), "BMP"),
]


@settings(max_examples=400, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
    length=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_damaged_bytes_give_an_image_or_a_refusal(
    seed: bytes, changes: list[tuple[float, int]], length: float
) -> None:
    data = bytearray(seed)
    for place, value in changes:
        data[int(place**2 * (len(data) - 1))] = value  # headers come first
    try:
        decoded = decode(bytes(data[: int(len(data) * length)]))
    except ImageRejected:
        return
    assert decoded.dtype == np.uint8
    assert decoded.ndim == 3
    assert decoded.shape[2] == 3
