"""What a publisher signed is read as it was meant, or refused with what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from pilltrack.core.channels import NewerFormat, Release, release_in, releases_in
from pilltrack.core.errors import BundleRejected


def path_of(number: int) -> str:
    return f"{number:064x}"


def custom(number: int, /, **changed: Any) -> dict[str, Any]:
    """What is signed with the manifest of a release."""
    return {
        "format": 1,
        "number": number,
        "manifest": path_of(number),
        "name": "pills",
        "time": "2026-11-26T09:30:00Z",
        "channels": {"stable": number},
        "yanked": "",
        **changed,
    }


def read(*customs: dict[str, Any]) -> list[Release]:
    return releases_in({path_of(one["number"]): one for one in customs})


def test_releases_come_in_order_of_number_and_other_files_are_none() -> None:
    found = releases_in({path_of(2): custom(2), path_of(9): None, path_of(1): custom(1)})
    assert [release.number for release in found] == [1, 2]


def test_a_channel_runs_what_was_assigned_to_it_last() -> None:
    one = custom(1, channels={"stable": 4, "beta": 1})
    releases = read(one, custom(2, channels={"stable": 2}), custom(3, channels={"beta": 3}))
    assert release_in("stable", releases) == releases[0]
    assert release_in("beta", releases) == releases[2]


def test_yanking_goes_back_in_the_order_of_assignment_not_of_number() -> None:
    last = {"channels": {"stable": 5}, "yanked": "wrong"}
    releases = read(
        custom(1, channels={"stable": 4}), custom(2, channels={"stable": 3}), custom(3, **last)
    )
    assert release_in("stable", releases) == releases[0]
    assert release_in("stable", releases[1:]) == releases[1]
    assert release_in("stable", releases[2:]) is None


def test_an_empty_channel_runs_nothing() -> None:
    assert release_in("beta", read(custom(1))) is None
    assert release_in("stable", []) is None


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"number": 1}, "number 1: given twice"),
        ({"channels": {"beta": 1}}, "assignment 1: given twice"),
        ({"channels": {"nightly": 1}}, "assignment 1: given twice"),
        ({"manifest": path_of(3)}, "the release of 0"),
        ({"manifest": "../x"}, "manifest: "),
        ({"number": 0}, "number: "),
        ({"channels": {"stable": 0}}, "channels.stable: "),
        ({"channels": {"\x1b[2J": 2}}, "channels"),
        ({"name": ""}, "name: "),
        ({"name": "pills\x1b[2J"}, "name: Value error, control characters"),
        ({"yanked": "wrong\nrelease 9"}, "yanked: Value error, control characters"),
        ({"time": "2026-11-26T09:30:00"}, "time: "),
        ({"unknown": 1}, "unknown: "),
        ({"format": 0}, "format: "),
        ({"format": "2"}, "format: "),
    ],
)
def test_the_signers_mistakes_are_named(second: dict[str, Any], said: str) -> None:
    with pytest.raises(BundleRejected, match=said) as caught:
        releases_in({path_of(1): custom(1), path_of(2): custom(2, **second)})
    assert type(caught.value) is BundleRejected


@pytest.mark.parametrize("field", ["pills", ["pills"], {}])
def test_what_is_no_release_at_all_is_refused(field: Any) -> None:
    with pytest.raises(BundleRejected, match="expected a release of format 1"):
        releases_in({path_of(1): field})


def test_a_newer_format_asks_for_a_newer_pilltrack() -> None:
    newer = {"format": 2, "number": "a", "whatever": []}
    with pytest.raises(NewerFormat, match="format 2; expected at most 1"):
        releases_in({path_of(1): custom(1), path_of(2): newer})


def test_a_channel_that_is_not_known_here_is_kept_and_changes_nothing() -> None:
    releases = read(custom(1), custom(2, channels={"nightly": 2}))
    assert release_in("stable", releases) == releases[0]
    assert releases[1].model_dump()["channels"] == {"nightly": 2}
