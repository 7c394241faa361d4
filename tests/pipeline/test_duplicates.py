"""Copies are found, different pills are not, and groups hang together as they should."""

import itertools
import time

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilltrack.core.image import decode_image
from pilltrack.pipeline.duplicates import (
    MAX_BLOCK_DIFFERENCE,
    Fingerprint,
    Link,
    Unions,
    block_difference,
    find_copies,
    fingerprint,
)
from tests.pipeline.pill_zips import Pixels, brighter, jpeg, picture

BITS = 20


def tablet(imprint: str = "", colour: tuple[int, int, int] = (205, 205, 200)) -> Pixels:
    """A round tablet on black with an engraved imprint, 224 x 224."""
    image: Pixels = np.zeros((224, 224, 3), np.uint8)
    cv2.circle(image, (112, 112), 108, colour, -1, cv2.LINE_AA)
    cv2.circle(image, (112, 112), 92, tuple(c - 12 for c in colour), 3, cv2.LINE_AA)
    dark = tuple(c - 35 for c in colour)
    cv2.putText(image, imprint, (30, 140), cv2.FONT_HERSHEY_SIMPLEX, 2.2, dark, 8, cv2.LINE_AA)
    return image


def same(first: Pixels, second: Pixels, bits: int = BITS) -> bool:
    return bool(find_copies([fingerprint(first), fingerprint(second)], bits))


def reencoded(image: Pixels, quality: int) -> Pixels:
    return decode_image(jpeg(image, quality), name="copy")


def resized(image: Pixels, factor: float) -> Pixels:
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    copy: Pixels = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return copy


@pytest.mark.parametrize("original", [tablet("M10"), tablet(), picture("phone", 224)])
@pytest.mark.parametrize(
    "copied",
    [
        lambda image: reencoded(image, 85),
        lambda image: reencoded(image, 60),
        lambda image: resized(image, 0.5),
        lambda image: resized(image, 1.7),
        brighter,
        lambda image: (image * 0.88).astype(np.uint8),
        lambda image: reencoded(resized(brighter(image), 0.7), 80),
    ],
    ids=["q85", "q60", "half", "larger", "brighter", "darker", "all at once"],
)
def test_changed_copy_is_a_near_duplicate(original: Pixels, copied: object) -> None:
    assert callable(copied)
    links = find_copies([fingerprint(original), fingerprint(copied(original))], BITS)
    assert [(link.first, link.second, link.exact) for link in links] == [(0, 1, False)]


def test_same_pixels_from_different_files_are_exact_duplicates() -> None:
    image = picture("a")
    assert find_copies([fingerprint(image), fingerprint(image.copy())], 0) == [
        Link(0, 1, 0, exact=True)
    ]


def test_one_changed_pixel_is_no_exact_duplicate() -> None:
    image = picture("a", 64)
    other = image.copy()
    other[0, 0, 0] ^= 1
    assert [link.exact for link in find_copies([fingerprint(image), fingerprint(other)], 24)] == [
        False
    ]


def test_same_bytes_in_another_shape_are_no_exact_duplicate() -> None:
    flat = np.full((16, 32, 3), 9, np.uint8)
    assert fingerprint(flat).digest != fingerprint(flat.reshape(32, 16, 3)).digest


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (tablet("M10"), tablet("M20")),
        (tablet("M10"), tablet("")),
        (tablet("TV", (220, 200, 120)), tablet("TV", (220, 170, 175))),
        (tablet("", (205, 205, 200)), tablet("", (90, 90, 88))),
        (picture("a", 224), picture("b", 224)),
    ],
    ids=["imprint", "blank side", "colour", "brightness", "pattern"],
)
def test_different_pills_are_not_merged_even_if_every_hash_were_equal(
    first: Pixels, second: Pixels
) -> None:
    a, b = fingerprint(first), fingerprint(second)
    b = Fingerprint(b.digest, a.bits, b.thumbnail, b.aspect)
    assert find_copies([a, b], 0) == []


def test_round_and_oval_pill_are_not_merged_although_both_fill_their_photo() -> None:
    round_pill = tablet("M10")
    assert not same(round_pill, cv2.resize(round_pill, (224, 150), interpolation=cv2.INTER_AREA))


def test_hash_beyond_the_limit_keeps_alike_thumbnails_apart() -> None:
    a = fingerprint(tablet())
    flipped = a.bits ^ np.array([0b111, 0, 0, 0], np.uint64)
    b = Fingerprint("other", flipped, a.thumbnail, a.aspect)
    assert find_copies([a, b], 2) == []
    assert find_copies([a, b], 3) == [Link(0, 1, 3, exact=False)]


def test_block_difference_of_equal_images_is_zero() -> None:
    thumbnails = np.stack([fingerprint(picture(name)).thumbnail for name in "abc"])
    assert block_difference(thumbnails, thumbnails).tolist() == [0, 0, 0]


def test_block_difference_sees_one_changed_block() -> None:
    first = np.zeros((1, 64, 64, 3), np.uint8)
    first[:, :32] = 200  # contrast 100
    second = first.copy()
    second[:, 8:16, 8:16] -= 10
    # Evening out shifts both a little; the block itself differs by about 10 grey levels.
    assert block_difference(first, second)[0] == pytest.approx(10, abs=0.5)
    assert block_difference(first, second)[0] > MAX_BLOCK_DIFFERENCE


def test_unions_join_chains() -> None:
    unions = Unions(6)
    assert [unions.unite(*pair) for pair in [(0, 1), (4, 5), (1, 5), (0, 4)]] == [
        True, True, True, False,
    ]  # fmt: skip
    assert unions.labels() == [0, 0, 2, 3, 0, 0]


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=15))
def test_unions_agree_with_a_search_along_the_pairs(pairs: list[tuple[int, int]]) -> None:
    unions = Unions(12)
    for pair in pairs:
        unions.unite(*pair)
    reach = np.eye(12, dtype=bool)
    for a, b in pairs:
        reach[a, b] = reach[b, a] = True
    for _ in range(4):  # 2^4 steps reach everything
        reach = reach @ reach
    labels = unions.labels()
    for a, b in itertools.product(range(12), repeat=2):
        assert (labels[a] == labels[b]) == reach[a, b]
        assert labels[a] <= a


def groups(prints: list[Fingerprint]) -> set[frozenset[str]]:
    unions = Unions(len(prints))
    for link in find_copies(prints, BITS):
        unions.unite(link.first, link.second)
    found: dict[int, set[str]] = {}
    for print_, label in zip(prints, unions.labels(), strict=True):
        found.setdefault(label, set()).add(print_.digest)
    return {frozenset(names) for names in found.values()}


ORIGINALS = [tablet("M10"), tablet("A1"), tablet(), picture("x", 100), picture("y", 100)]
COPIES = [
    [fingerprint(copy) for copy in (image, reencoded(image, 70), resized(image, 0.6))]
    for image in ORIGINALS
]


@given(st.permutations([print_ for copies in COPIES for print_ in copies]))
def test_groups_are_the_originals_in_any_order(shuffled: list[Fingerprint]) -> None:
    expected = {frozenset(print_.digest for print_ in copies) for copies in COPIES}
    assert groups(shuffled) == expected


def test_nothing_has_no_copies() -> None:
    assert find_copies([], 24) == []
    assert find_copies([fingerprint(tablet())], 24) == []


def test_flat_images_have_a_fingerprint() -> None:
    grey, white = (np.full((20, 20, 3), value, np.uint8) for value in (10, 250))
    assert same(grey, grey + np.uint8(1))
    assert not same(grey, white)


def test_twenty_thousand_images_take_seconds() -> None:
    draw = np.random.default_rng(0)
    bits = draw.integers(0, 2**63, (20_000, 4), dtype=np.uint64)
    thumbnail = fingerprint(tablet()).thumbnail
    prints = [Fingerprint(str(n), row, thumbnail, 1.0) for n, row in enumerate(bits)]
    prints[19_999] = Fingerprint("copy", bits[0] ^ np.uint64(1), thumbnail, 1.0)
    start = time.perf_counter()
    assert find_copies(prints, 24) == [
        Link(0, 19_999, 4, exact=False)
    ]  # one bit in each of four words
    assert time.perf_counter() - start < 60
