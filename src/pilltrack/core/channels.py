"""Releases and channels: what a publisher signs, and what a device makes of it.

    metadata/N.root.json  N.targets.json  N.snapshot.json  timestamp.json
    targets/<sha256>      the files of all bundles, each once

The metadata are those of The Update Framework. Every file of a bundle is a target whose path is its
SHA-256. A release is the target that is a bundle's manifest: its `custom` field holds a `Release`.
A channel is the order in which releases were assigned to it; the last one that is not yanked is
what devices of the channel run. So yanking a release brings back the one before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from pilltrack.core.bundle import Sha256
from pilltrack.core.errors import BundleRejected

METADATA, TARGETS = "metadata", "targets"  # directories of a repository
FORMAT: Final = 1
MAX_REASON_LENGTH = 500

Channel = Literal["stable", "beta"]
CHANNELS: tuple[Channel, ...] = get_args(Channel)


class Release(BaseModel):
    """The `custom` field of a manifest's target.

    `number` counts releases; `channels` maps each channel to the number of the assignment, which
    counts for all channels together; `yanked` is why no device shall run it, empty if devices may.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = FORMAT
    number: int = Field(ge=1)
    manifest: Sha256  # the target's own path
    name: str = Field(min_length=1, max_length=200)
    time: AwareDatetime  # of publication
    channels: dict[Channel, Annotated[int, Field(ge=1)]] = {}
    yanked: str = Field(default="", max_length=MAX_REASON_LENGTH)


def releases_in(customs: Mapping[str, Mapping[str, Any] | None]) -> list[Release]:
    """The releases among targets, in order of number; `customs` maps paths to `custom` fields.

    Raises BundleRejected for a field that is no `Release`, one under another path than its
    manifest's, or a number or assignment given twice: the signer's own mistake, or a newer format.

    >>> [release.number for release in releases_in({"ab" * 32: None})]
    []
    """
    found: list[Release] = []
    for path, custom in customs.items():
        if custom is None:
            continue
        try:
            release = Release.model_validate(custom)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise _rejected(path, f"{where}: {first['msg']}") from error
        if release.manifest != path:
            raise _rejected(path, f"the release of {release.manifest}")
        found.append(release)
    numbers = [release.number for release in found]
    turns = [turn for release in found for turn in release.channels.values()]
    for what, given in (("number", numbers), ("assignment", turns)):
        if len(set(given)) < len(given):
            raise _rejected("releases", f"a {what} given twice")
    return sorted(found, key=lambda release: release.number)


def release_in(channel: Channel, releases: list[Release]) -> Release | None:
    """What devices of a channel run: its last assignment that is not yanked; None without one."""
    usable = [r for r in releases if channel in r.channels and not r.yanked]
    return max(usable, key=lambda release: release.channels[channel], default=None)


def _rejected(path: str, found: str) -> BundleRejected:
    return BundleRejected(
        f"release {path}",
        found=found,
        expected=f"a release of format {FORMAT}",
        remedy="Install the PillTrack that published it.",
    )
