"""Every leak that can be planted in a written table is caught, each by its own check."""

import dataclasses

import cv2
import numpy as np
import pytest

from pilltrack.core.image import decode_image
from pilltrack.pipeline.audit import check_leaks
from pilltrack.pipeline.duplicates import Fingerprint, fingerprint
from pilltrack.pipeline.table import SPLITS, ImageRow, Role, Split
from tests.pipeline.pill_zips import Pixels, brighter, different, jpeg, picture

BITS = 20


def row(image: str, pill: str, group: str, session: str, role: Role, split: str) -> ImageRow:
    known = next(s for s in SPLITS if s == split)
    return ImageRow(image, pill, "", session, "real", group, known, role)


GOOD = [
    row("1", "a", "g1", "s1", "fit", "train"),
    row("2", "a", "g2", "s2", "probe", "train"),
    row("3", "b", "g3", "s3", "reference", "test"),
    row("4", "c", "g4", "s4", "stranger", "test"),
    row("5", "b", "g5", "s5", "probe", "test"),
    row("6", "d", "g6", "s6", "reference", "validation"),
]
PICTURES = {row.image: picture(row.image, 96) for row in GOOD}


def leaks_of(rows: list[ImageRow], new: Pixels | str) -> dict[str, int]:
    """The checks that fired; `new` are the pixels of image 9, or the image that it repeats."""
    pixels = PICTURES | {"9": PICTURES[new] if isinstance(new, str) else new}
    prints = {image: fingerprint(picture) for image, picture in pixels.items()}
    leaks, _ = check_leaks(rows, prints, BITS)
    return {check: n for check, n in leaks.items() if n}


def test_clean_table_has_no_leak() -> None:
    assert leaks_of(GOOD, picture("new")) == {}


@pytest.mark.parametrize(
    ("bad", "check"),
    [
        (row("9", "a", "g9", "s9", "probe", "test"), "pills in several splits"),
        (row("9", "a", "g1", "s9", "probe", "train"), "groups across splits or roles"),
        (row("9", "d", "g3", "s9", "reference", "validation"), "groups across splits or roles"),
        (row("9", "a", "g9", "s2", "fit", "train"), "sessions of a pill across splits or roles"),
        (row("9", "c", "g9", "s9", "reference", "test"), "strangers that are enrolled"),
        (row("9", "e", "g9", "s9", "probe", "test"), "sides with probes and no reference"),
        (row("9", "b", "g9", "s9", "fit", "test"), "images in a role their split does not have"),
        (row("9", "e", "g9", "s9", "stranger", "train"),
         "images in a role their split does not have"),
    ],
)  # fmt: skip
def test_leak_in_the_table_is_caught_by_its_own_check(bad: ImageRow, check: str) -> None:
    beside = {"pills in several splits": {"sides with probes and no reference"}}
    assert leaks_of([*GOOD, bad], picture("new")).keys() - beside.get(check, set()) == {check}


def test_session_of_a_pill_across_splits_is_caught() -> None:
    bad = row("9", "d", "g9", "s3", "reference", "validation")
    assert leaks_of([*GOOD, bad], picture("new")) == {}  # s3 of another pill: a shared background
    bad = dataclasses.replace(bad, pill="b")
    found = leaks_of([*GOOD, bad], picture("new"))
    assert found["sessions of a pill across splits or roles"] == 1


def test_equal_image_across_splits_is_caught_although_the_groups_differ() -> None:
    bad = row("9", "d", "g9", "s9", "reference", "validation")
    assert leaks_of([*GOOD, bad], "3") == {
        "equal images across splits": 1,
        "equal images under several pill names": 1,
    }


def test_probe_equal_to_a_reference_is_caught() -> None:
    bad = row("9", "b", "g9", "s9", "probe", "test")
    assert leaks_of([*GOOD, bad], "3") == {"equal images across roles of a split": 1}


def test_one_image_under_two_names_is_caught_within_one_split_and_role() -> None:
    bad = row("9", "d", "g9", "s9", "reference", "validation")
    assert leaks_of([*GOOD, bad], "6") == {}  # the same pill may have its photo twice
    bad = dataclasses.replace(bad, pill="e")
    assert leaks_of([*GOOD, bad], "6") == {"equal images under several pill names": 1}


def resized(image: Pixels) -> Pixels:
    copy: Pixels = cv2.resize(image, (60, 60), interpolation=cv2.INTER_AREA)
    return copy


def reencoded(image: Pixels) -> Pixels:
    return decode_image(jpeg(image, 75), name="copy")


@pytest.mark.parametrize("changed", [resized, reencoded, brighter])
@pytest.mark.parametrize(
    ("split", "role", "check"),
    [
        ("train", "fit", "near duplicates across splits"),
        ("test", "probe", "near duplicates across roles of a split"),
        ("test", "stranger", "near duplicates across roles of a split"),
    ],
)
def test_near_duplicate_is_caught_although_its_group_and_session_differ(
    changed: object, split: Split, role: Role, check: str
) -> None:
    assert callable(changed)
    pill = {"fit": "a", "probe": "b", "stranger": "c"}[role]
    bad = row("9", pill, "g9", "s9", role, split)
    assert leaks_of([*GOOD, bad], changed(PICTURES["3"])) == {check: 1}
    assert leaks_of([*GOOD, bad], picture("new")) == {}


def test_every_pair_of_copies_is_counted_and_none_within_one_place() -> None:
    copies = {f"c{n}": brighter(PICTURES["3"]) + np.uint8(n) for n in range(4)}
    rows = [
        *(row(f"c{n}", "b", "g3", f"x{n}", "reference", "test") for n in (0, 1)),
        *(row(f"c{n}", "a", "g1", f"x{n}", "fit", "train") for n in (2, 3)),
    ]
    prints = {image: fingerprint(pixels) for image, pixels in copies.items()}
    leaks, closest = check_leaks(rows, prints, BITS)
    assert leaks["near duplicates across splits"] == 4
    assert closest.pairs == ()
    assert closest.bits is None


def with_bits_flipped(print_: Fingerprint, digest: str, n_bits: int) -> Fingerprint:
    flipped = print_.bits ^ np.array([(1 << n_bits) - 1, 0, 0, 0], np.uint64)
    return Fingerprint(digest, flipped, print_.thumbnail, print_.aspect)


def test_closest_pairs_are_those_that_look_most_alike_not_those_with_the_closest_hash() -> None:
    # 1 and 2 have almost one hash and look different; 3 and 4 look the same beyond the limit.
    a, c = fingerprint(PICTURES["1"]), fingerprint(PICTURES["3"])
    b = dataclasses.replace(a, digest="b", thumbnail=fingerprint(PICTURES["2"]).thumbnail)
    prints = {"1": a, "2": b, "3": c, "4": with_bits_flipped(c, "d", BITS + 1)}
    rows = GOOD[:4]
    leaks, closest = check_leaks(rows, prints, BITS)
    assert not any(leaks.values())
    assert closest.bits == 0
    assert len(closest.pairs) == 6  # 1 train fit, 2 train probe, 3 test reference, 4 test stranger
    first = closest.pairs[0]
    assert (first.images, first.places) == (("3", "4"), ("test reference", "test stranger"))
    assert (first.bits, first.grey_levels, first.alike) == (BITS + 1, 0, True)
    assert not any(pair.alike for pair in closest.pairs[1:])
    prints["4"] = with_bits_flipped(c, "d", BITS)
    assert check_leaks(rows, prints, BITS)[0]["near duplicates across roles of a split"] == 1


def test_at_most_ten_closest_pairs_are_named_among_many() -> None:
    rows = [
        row(f"i{n}", f"p{n}", f"g{n}", f"s{n}", "fit" if n % 2 else "reference",
            "train" if n % 2 else "test")
        for n in range(3000)
    ]  # fmt: skip
    prints = {row.image: different(row.image) for row in rows}
    prints["i7"] = with_bits_flipped(prints["i2900"], "near", 25)
    leaks, closest = check_leaks(rows, prints, BITS)
    assert not any(leaks.values())
    assert (closest.bits, len(closest.pairs)) == (25, 10)
    assert closest.pairs[0].images == ("i7", "i2900")


def test_table_with_one_image_has_no_closest_pair() -> None:
    leaks, closest = check_leaks(GOOD[:1], {"1": different("1")}, BITS)
    assert not any(leaks.values())
    assert (closest.bits, closest.pairs) == (None, ())
