"""Releases and channels: what a publisher signs, and what a device makes of it.

    metadata/N.root.json  N.targets.json  N.snapshot.json  timestamp.json
    targets/<sha256>      the files of all bundles, each once

The metadata are those of The Update Framework. Every file of a bundle is a target whose path is its
SHA-256. A release is the target that is a bundle's manifest: its `custom` field holds a `Release`.
A channel is the order in which releases were assigned to it; the last one that is not yanked is
what devices of the channel run. So yanking a release brings back the one before.

A release of a newer format is never guessed at: it stops the reader with `NewerFormat`. Channels
that this version does not know may come without a new format: they are kept, and otherwise ignored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
)

from pilltrack.core.bundle import Sha256
from pilltrack.core.errors import BundleRejected

METADATA, TARGETS = "metadata", "targets"  # directories of a repository
FORMAT: Final = 1
MAX_REASON_LENGTH = 500
MAX_FILE_BYTES = 4 * 1024**3  # of a bundle: publishers send, and devices take, no longer one

Channel = Literal["stable", "beta"]
CHANNELS: tuple[Channel, ...] = get_args(Channel)


class NewerFormat(BundleRejected):
    """A release that only a newer version of PillTrack can read."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("control characters, which a terminal would obey")
    return text


Text = Annotated[str, AfterValidator(_printable)]
AnyChannel = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]


class Release(BaseModel):
    """The `custom` field of a manifest's target.

    `number` counts releases; `channels` maps each channel to the number of the assignment, which
    counts for all channels together; `yanked` is why no device shall run it, empty if devices may.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = FORMAT
    number: int = Field(ge=1)
    manifest: Sha256  # the target's own path
    name: Text = Field(min_length=1, max_length=200)
    time: AwareDatetime  # of publication
    channels: dict[AnyChannel, Annotated[int, Field(ge=1)]] = {}
    yanked: Text = Field(default="", max_length=MAX_REASON_LENGTH)


def releases_in(customs: Mapping[str, Mapping[str, Any] | None]) -> list[Release]:
    """The releases among targets, in order of number; `customs` maps paths to `custom` fields.

    Raises NewerFormat for a field of a newer format; BundleRejected for one that is no `Release`,
    one under another path than its manifest's, or a number or assignment given twice: the signer's
    own mistakes.

    >>> [release.number for release in releases_in({"ab" * 32: None})]
    []
    """
    found: list[Release] = []
    for path, custom in customs.items():
        if custom is None:
            continue
        _require_known_format(path, custom)
        try:
            release = Release.model_validate(custom)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            expected = f"a release of format {FORMAT}"
            raise _rejected(f"release {path}", f"{where}: {first['msg']}", expected) from error
        if release.manifest != path:
            raise _rejected(
                f"release {path}", f"the release of {release.manifest}", "that of this manifest"
            )
        found.append(release)
    numbers = [release.number for release in found]
    turns = [turn for release in found for turn in release.channels.values()]
    for what, given in (("number", numbers), ("assignment", turns)):
        twice = [one for one, n_times in Counter(given).items() if n_times > 1]
        if twice:
            raise _rejected(f"{what} {min(twice)}", "given twice", f"each {what} once")
    return sorted(found, key=lambda release: release.number)


def release_in(channel: str, releases: list[Release]) -> Release | None:
    """What devices of a channel run: its last assignment that is not yanked; None without one."""
    usable = [r for r in releases if channel in r.channels and not r.yanked]
    return max(usable, key=lambda release: release.channels[channel], default=None)


def _require_known_format(path: str, custom: object) -> None:
    found = custom.get("format") if isinstance(custom, Mapping) else None
    if type(found) is int and found > FORMAT:
        raise NewerFormat(
            f"release {path}",
            found=f"format {found}",
            expected=f"at most {FORMAT}, which this version reads",
            remedy="Install a newer PillTrack.",
        )


def _rejected(subject: str, found: str, expected: str) -> BundleRejected:
    return BundleRejected(
        subject,
        found=found,
        expected=expected,
        remedy="The publisher signed this by mistake: tell them.",
    )
