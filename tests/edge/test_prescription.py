"""A list is read as it was meant, or refused with its place; it is never read as another one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilltrack.core.errors import InputRejected
from pilltrack.edge import prescription
from pilltrack.edge.prescription import Expected, read_expected

PILLS: dict[str, dict[str, str]] = {
    "ibuprofen-200": {"ndc": "0573-0154-20"},  # 4-4-2
    "ibuprofen-400": {"ndc": "12345-678-90"},  # 5-3-2
    "aspirin 81": {"ndc": "54321-9876-5"},  # 5-4-1
    "vitamin d": {},
}


def read(text: str | bytes, pills: dict[str, dict[str, str]] | None = None) -> list[Expected]:
    data = text if isinstance(text, bytes) else text.encode()
    return read_expected(data, name="list", pills=PILLS if pills is None else pills)


def pairs(text: str | bytes, pills: dict[str, dict[str, str]] | None = None) -> dict[str, int]:
    return {expected.pill: expected.count for expected in read(text, pills)}


@pytest.mark.parametrize(
    ("line", "pill", "count"),
    [
        ("2 ibuprofen-200", "ibuprofen-200", 2),
        ("2 x ibuprofen-200", "ibuprofen-200", 2),
        ("2x ibuprofen-200", "ibuprofen-200", 2),
        ("2 × ibuprofen-200", "ibuprofen-200", 2),
        ("ibuprofen-200, 2", "ibuprofen-200", 2),
        ("ibuprofen-200 x 2", "ibuprofen-200", 2),
        ("ibuprofen-200", "ibuprofen-200", 1),
        ("  12   Ibuprofen-200\t", "ibuprofen-200", 12),
        ("aspirin 81", "aspirin 81", 1),  # the number is part of the name
        ("81 aspirin 81", "aspirin 81", 81),
        ("aspirin 81, 3", "aspirin 81", 3),
        ("VITAMIN D", "vitamin d", 1),
    ],
)
def test_typed_line_gives_pill_and_count(line: str, pill: str, count: int) -> None:
    assert read(line) == [Expected(pill, count)]


def test_typed_lines_add_up_in_order_of_first_appearance() -> None:
    text = "vitamin d\r\n\r\n2 ibuprofen-200\nvitamin d, 3\n\n"
    assert read(text) == [Expected("vitamin d", 4), Expected("ibuprofen-200", 2)]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("0 ibuprofen-200", "count '0';"),
        ("-1 ibuprofen-200", "count '-1';"),
        ("ibuprofen-200, 0.5", r"count '0\.5';"),
        ("1,5 ibuprofen-200", "count '1,5';"),
        ("2.0 ibuprofen-200", r"count '2\.0';"),
        ("10001 ibuprofen-200", "count '10001';"),
        ("99999999999999999999 ibuprofen-200", "count '99999999999999999999';"),
    ],
)
def test_count_that_is_no_whole_number_is_refused(line: str, found: str) -> None:
    with pytest.raises(InputRejected, match=rf"^list:1: {found} expected a whole number"):
        read(line)


def test_unknown_pill_is_refused_with_its_line_and_the_names_that_are_alike() -> None:
    with pytest.raises(InputRejected) as refused:
        read("vitamin d\n2 x ibuprofen 200")
    assert refused.value.subject == "list:2"
    assert refused.value.found == "pill 'ibuprofen 200'"
    assert refused.value.remedy.startswith("Did you mean ibuprofen-200 or ibuprofen-400?")


def test_pill_that_is_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(InputRejected, match=r"enrolled\. A pill must be enrolled"):
        read("zzz")


def test_line_with_two_meanings_is_refused() -> None:
    pills: dict[str, dict[str, str]] = {"2 a": {}, "a": {}}
    with pytest.raises(InputRejected, match="one meaning, not 1 of 2 a or 2 of a"):
        read("2 a", pills)
    assert pairs("2 a, 3\n3 a", pills) == {"2 a": 3, "a": 3}


def test_names_that_differ_by_case_only_must_be_written_exactly() -> None:
    pills: dict[str, dict[str, str]] = {"Adol": {}, "adol": {}}
    assert pairs("2 Adol\nadol", pills) == {"Adol": 2, "adol": 1}
    with pytest.raises(InputRejected, match="one of Adol, adol"):
        read('[{"pill": "ADOL", "count": 1}]', pills)


def test_name_in_another_unicode_form_is_the_same_name() -> None:
    assert pairs("2 cafe\u0301", {"caf\u00e9": {}}) == {"caf\u00e9": 2}


@pytest.mark.parametrize(
    "text",
    [
        "pill,count\nibuprofen-200,2\nvitamin d,1\nibuprofen-200,3\n",
        "\ufeffCount , Pill\r\n2,ibuprofen-200\r\n\r\n1,vitamin d\r\n3,Ibuprofen-200\r\n",
        '"pill","count"\n"ibuprofen-200","5"\n"vitamin d","1"',
    ],
)
def test_csv_is_read_in_either_order_of_columns(text: str) -> None:
    assert read(text) == [Expected("ibuprofen-200", 5), Expected("vitamin d", 1)]


def test_csv_value_may_hold_a_comma() -> None:
    assert pairs('pill,count\n"a, b",2', {"a, b": {}}) == {"a, b": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pill,count\nvitamin d,two", r"list:2: count 'two'; .*whole number"),
        ("pill,count\nvitamin d,", r"list:2: count ''; "),
        ("pill,count\n\nvitamin d", r"list:3: 1 values; expected a pill and a count"),
        ("pill,count\nvitamin d,1,2", r"list:2: 3 values"),
        ("pill,count,note\nvitamin d,1,x", r"list:1: columns .*'note'.*expected pill,count"),
        ("pill,count,count\nvitamin d,1,2", r"list:1: columns "),
        ('pill,count\n"vitamin d"x,1', r"list:2: not CSV"),
        ("pill,count\nvitamin e,1", r"list:2: pill 'vitamin e'.*vitamin d"),
        ("pill,count\n", r"list: no pill;"),
    ],
)
def test_bad_csv_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(InputRejected, match=message):
        read(text)


def test_json_list_is_read() -> None:
    text = ' [{"pill": "vitamin d", "count": 2}, {"count": 3.0, "pill": "ibuprofen-200"}]'
    assert read(text) == [Expected("vitamin d", 2), Expected("ibuprofen-200", 3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"pill": "vitamin d", "count": true}]', r"list: item 1: 'count"),
        ('[{"pill": "vitamin d", "count": "2"}]', r"list: item 1: 'count"),
        ('[{"pill": "vitamin d", "count": 1.5}]', r"list: item 1: count '1\.5'"),
        ('[{"pill": "vitamin d", "count": 1e999999999}]', r"list: item 1: count '1E\+999999999'"),
        ('[{"pill": "vitamin d", "count": 1e9999999999999999999}]', "not JSON"),
        ('[{"pill": "vitamin d", "count": NaN}]', "not JSON .*NaN"),
        ('[{"pill": "vitamin d", "count": 1, "count": 2}]', "not JSON .*'count' twice"),
        (
            '[{"pill": "vitamin d", "count": 1}, {"pill": "vitamin d"}]',
            r"item 2: 'count': Field req",
        ),
        ('[{"pill": "vitamin d", "count": 1, "side": "front"}]', "item 1: 'side': Extra"),
        ('[{"pill": 7, "count": 1}]', "item 1: 'pill'"),
        ("[3]", "item 1: 'object'"),
        ("[]", "list: no pill"),
        ("[" * 100_000, "not JSON"),
        ('[{"pill"', "not JSON"),
        ('{"pill": "vitamin d", "count": 1}', "without a resourceType"),
        ("[" + '{"pill": "vitamin d", "count": 1},' * 1000 + "{}]", "item 1001"),
    ],
)
def test_bad_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputRejected, match=message):
        read(text)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no pill"),
        (b" \n\t\n", "no pill"),
        (b"\xff\xfev\x00", "not UTF-8"),
        (b"x" * (1024 * 1024 + 1), "1048577 bytes"),
        (b"x" * 401, "401 characters; expected at most 400"),
        (b"vitamin d\n" * 1001, "1001 entries; expected at most 1000"),
        (b"6000 vitamin d\n" * 2, "list:2: count '12000'"),
        (b"vitamin d\x00", "pill 'vitamin d\\\\x00'"),
    ],
)
def test_list_beyond_the_limits_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(InputRejected, match=message):
        read(data)


NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), min_size=1, max_size=12
).filter(lambda name: name == name.strip())
LISTS = st.dictionaries(NAMES, st.integers(1, 9999), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(LISTS)
def test_any_list_comes_back_from_json_exactly(counts: dict[str, int]) -> None:
    items = [{"pill": pill, "count": count} for pill, count in counts.items()]
    found = read(json.dumps(items), {pill: {} for pill in counts})
    assert found == [Expected(pill, count) for pill, count in counts.items()]


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)), LISTS)
def test_whatever_is_read_is_enrolled_and_whole_else_refused(
    data: bytes, counts: dict[str, int]
) -> None:
    try:
        found = read(data, {pill: {} for pill in counts})
    except InputRejected:
        return
    assert {expected.pill for expected in found} <= set(counts)
    assert all(1 <= expected.count <= prescription.MAX_COUNT for expected in found)
