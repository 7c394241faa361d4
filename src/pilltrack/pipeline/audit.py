"""The report of the prepare stage: what was found, what was decided, and that nothing leaks.

`check_leaks` starts again from the written `images.csv` and the photos' fingerprints, and compares
every photo with every photo of another split or role: it neither believes the groups that prepare
formed nor shares code with the assignment. Nothing in the report depends on time or place: equal
input, equal report.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pilltrack.core.errors import StageFailed
from pilltrack.pipeline.duplicates import HASH_BITS, Fingerprint, compare_apart
from pilltrack.pipeline.table import ROLES, SPLITS, ImageRow

AUDIT_JSON = "audit.json"

N_CLOSEST = 10  # pairs that a person should look at


@dataclass(frozen=True, slots=True)
class Alike:
    """Pills that share a near-duplicate photo, with one such pair: one pill under two names?"""

    pills: tuple[str, ...]
    first: str
    second: str
    bits: int


@dataclass(frozen=True, slots=True)
class Close:
    """Two images of different splits or roles that were let through as different photos.

    `places` are split and role of the two; `bits` of the 256 of the hash differ, and `grey_levels`
    in the worst block of the thumbnails (None: too differently lit to be copies). `alike` pairs
    are kept apart by the hash alone, that is by `near_duplicate_bits`.
    """

    images: tuple[str, str]
    places: tuple[str, str]
    bits: int
    grey_levels: float | None
    alike: bool


@dataclass(frozen=True, slots=True)
class Closest:
    """How close photos of different splits or roles come to being copies.

    `bits`: the smallest number of different hash bits (None: all photos lie in one place).
    `pairs`: of the 1,000 pairs with the closest hashes, the 10 whose thumbnails differ least.
    """

    bits: int | None
    pairs: tuple[Close, ...]


@dataclass(frozen=True, slots=True)
class Audit:
    """Everything a person should know about a prepared data set; lists are sorted."""

    archive: str
    archive_sha256: str
    layout: str
    n_images: int
    n_pills: int
    captures: dict[str, int]  # real and rendered images
    splits: dict[str, dict[str, int]]  # split -> pills, strangers, images, and images per role
    unreadable: tuple[tuple[str, str], ...]  # file, reason
    exact_duplicates: tuple[tuple[str, ...], ...]  # sources with the same pixels
    near_duplicates: tuple[tuple[str, ...], ...]  # sources that look the same
    alike: tuple[Alike, ...]
    single_image_pills: tuple[str, ...]
    sides_without_probe: int
    divided_by_zip: tuple[tuple[str, ...], ...]  # sources of one group in several given splits
    shared_sessions: tuple[str, ...]  # sessions that show pills of several splits
    skipped: tuple[str, ...]  # junk in the archive
    ignored: tuple[str, ...]  # documents in the archive
    notes: tuple[str, ...]
    leaks: dict[str, int]  # all zero
    near_duplicate_bits: int
    closest: Closest


def count_splits(rows: Sequence[ImageRow]) -> dict[str, dict[str, int]]:
    """Count pills, stranger pills, images and images per role of every split."""
    table: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        inside = [row for row in rows if row.split == split]
        roles = Counter(row.role for row in inside)
        table[split] = {
            "pills": len({row.pill for row in inside}),
            "strangers": len({row.pill for row in inside if row.role == "stranger"}),
            "images": len(inside),
            **{role: roles[role] for role in ROLES},
        }
    return table


def check_leaks(
    rows: Sequence[ImageRow], prints: Mapping[str, Fingerprint], near_duplicate_bits: int
) -> tuple[dict[str, int], Closest]:
    """Count violations of the contract in a written table, and name the closest pairs let through.

    `prints` maps each image to the fingerprint of its pixels. Returns check -> violations, which
    must all be 0, and the pairs that were no copies but came closest.
    """
    in_splits: dict[str, set[str]] = {}
    in_roles: dict[tuple[str, str], set[str]] = {}
    names: dict[str, set[str]] = {}
    for row in rows:
        digest = prints[row.image].digest
        in_splits.setdefault(digest, set()).add(row.split)
        in_roles.setdefault((digest, row.split), set()).add(row.role)
        names.setdefault(digest, set()).add(row.pill)
    copies, others = compare_apart(
        [prints[row.image] for row in rows],
        [_place(row) for row in rows],
        near_duplicate_bits,
    )
    near = [
        (rows[pair.first], rows[pair.second])
        for pair in copies
        if prints[rows[pair.first].image].digest != prints[rows[pair.second].image].digest
    ]
    compared = {(row.pill, row.side) for row in rows if row.role == "probe"}
    backed = {(row.pill, row.side) for row in rows if row.role in ("fit", "reference")}
    strange = {row.pill for row in rows if row.role == "stranger"}
    enrolled = {row.pill for row in rows if row.role != "stranger"}
    wrong_role = sum(
        (row.role == "fit") != (row.split == "train" and row.role not in ("probe",)) for row in rows
    )
    leaks = {
        "pills in several splits": _several(_values(rows, "pill", ("split",))),
        "groups across splits or roles": _several(_values(rows, "group", ("split", "role"))),
        "sessions of a pill across splits or roles": _several(
            _values(rows, "session", ("split", "role"))
        ),
        "equal images across splits": _several(in_splits),
        "equal images across roles of a split": _several(in_roles),
        "equal images under several pill names": _several(names),
        "near duplicates across splits": sum(a.split != b.split for a, b in near),
        "near duplicates across roles of a split": sum(a.split == b.split for a, b in near),
        "strangers that are enrolled": len(strange & enrolled),
        "sides with probes and no reference": len(compared - backed),
        "images in a role their split does not have": wrong_role,
    }
    others.sort(key=lambda pair: (pair.grey_levels, pair.bits, pair.first, pair.second))
    pairs = tuple(
        Close(
            images=(rows[pair.first].image, rows[pair.second].image),
            places=(_place(rows[pair.first]), _place(rows[pair.second])),
            bits=pair.bits,
            grey_levels=round(pair.grey_levels, 1) if math.isfinite(pair.grey_levels) else None,
            alike=pair.alike,
        )
        for pair in others[:N_CLOSEST]
    )
    return leaks, Closest(min((pair.bits for pair in others), default=None), pairs)


def write_audit(directory: Path, audit: Audit) -> None:
    """Write `audit.json` and `audit.md`."""
    text = json.dumps(asdict(audit), indent=2, sort_keys=True, ensure_ascii=False)
    (directory / AUDIT_JSON).write_text(f"{text}\n", encoding="utf-8")
    (directory / "audit.md").write_text(as_markdown(audit), encoding="utf-8")


def archive_digest(directory: Path) -> str:
    """SHA-256 of the zip that a prepared directory came from; reads its `audit.json`.

    Raises StageFailed when there is no such audit.
    """
    path = directory / AUDIT_JSON
    try:
        return str(json.loads(path.read_bytes())["archive_sha256"])
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise StageFailed(
            str(path),
            found=f"no digest of the data ({error})",
            expected="the audit of a finished prepare stage",
            remedy="Run `dvc repro prepare`.",
        ) from error


def as_markdown(audit: Audit) -> str:
    """Render an audit for people; long lists are cut after 50 entries, `audit.json` has all."""
    captures = ", ".join(f"{n} {capture}" for capture, n in audit.captures.items())
    columns = list(audit.splits["train"])
    parts = [
        "# Audit of the data set",
        f"{audit.n_images} images ({captures}) of {audit.n_pills} pills, from `{audit.archive}` "
        f"(layout: {audit.layout}).",
        "## Splits",
        "\n".join(
            [
                f"| split | {' | '.join(columns)} |",
                f"|---|{'---:|' * len(columns)}",
                *(
                    f"| {split} | {' | '.join(str(n) for n in counts.values())} |"
                    for split, counts in audit.splits.items()
                ),
            ]
        ),
        f"{audit.sides_without_probe} sides of enrolled pills have a single group of photos: "
        "their probes can only be simulated.",
        "## Leak checks",
        "Counted in the written images.csv; every number must be 0.",
        "\n".join(
            ["| check | found |", "|---|---:|", *(f"| {k} | {n} |" for k, n in audit.leaks.items())]
        ),
        _section(
            "Closest pairs across splits or roles",
            _about_closest(audit),
            [_as_line(close) for close in audit.closest.pairs],
        ),
        _section(
            "Copies divided by the zip's own splits",
            "The folders of the zip put these copies, or photos of one session, into several "
            "splits. All of a line now share one split and one role.",
            [" ~ ".join(group) for group in audit.divided_by_zip],
        ),
        _section(
            "Look-alike pills to check",
            "These pills share a near-duplicate photo, so they stay in one split and one role. "
            "Is it one pill under two names, or a blank side that several pills have?",
            [
                f"{', '.join(alike.pills)}: {alike.first} and {alike.second} "
                f"({alike.bits} of 256 bits differ)"
                for alike in audit.alike
            ],
        ),
        _section(
            "Unreadable images",
            "Left out.",
            [f"{name}: {reason}" for name, reason in audit.unreadable],
        ),
        _section(
            "Exact duplicates",
            "Same pixels, same pill; each group shares one role.",
            [" = ".join(group) for group in audit.exact_duplicates],
        ),
        _section(
            "Near duplicates",
            "Re-encoded, resized or slightly brightened copies; each group shares one role.",
            [" ~ ".join(group) for group in audit.near_duplicates],
        ),
        _section(
            "Pills with a single image",
            "They can be trained on or enrolled, but have no real probe.",
            list(audit.single_image_pills),
        ),
        _section("Skipped junk", "Left out of the archive.", list(audit.skipped)),
        _section("Ignored documents", "Not photos.", list(audit.ignored)),
        _section(
            "Sessions that show pills of several splits",
            "Splits go by pill, so this is allowed: a background can be known from training "
            "although the pill is not.",
            list(audit.shared_sessions),
        ),
        _section("Notes", "", list(audit.notes)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _about_closest(audit: Audit) -> str:
    return (
        "Let through as different photos; of the pairs with the closest hashes (from "
        f"{audit.closest.bits} of {HASH_BITS} bits) those whose thumbnails differ least. Look at "
        "them: is one a copy of the other? Then raise prepare.near_duplicate_bits "
        f"(now {audit.near_duplicate_bits}), or give the two one session in images.csv."
    )


def _as_line(close: Close) -> str:
    images = " and ".join(
        f"{image} ({place})" for image, place in zip(close.images, close.places, strict=True)
    )
    if close.grey_levels is None:
        block = "lit differently"
    else:
        block = f"{close.grey_levels} grey levels in the worst block"
    hash_only = ", kept apart by the hash alone" if close.alike else ""
    return f"{images}: {close.bits} bits, {block}{hash_only}"


def _section(title: str, text: str, entries: list[str]) -> str:
    shown = [f"- {entry}" for entry in entries[:50]]
    if len(entries) > 50:
        shown.append(f"- and {len(entries) - 50} more, see audit.json")
    blocks = [f"## {title} ({len(entries)})", text if entries else "", "\n".join(shown)]
    return "\n\n".join(block for block in blocks if block)


def _place(row: ImageRow) -> str:
    return f"{row.split} {row.role}"


def _values(
    rows: Sequence[ImageRow], key: str, columns: tuple[str, ...]
) -> dict[tuple[str, str], set[tuple[str, ...]]]:
    """Collect the values of columns per key; a session counts per pill."""
    found: dict[tuple[str, str], set[tuple[str, ...]]] = {}
    for row in rows:
        owner = row.pill if key == "session" else ""
        values = tuple(str(getattr(row, column)) for column in columns)
        found.setdefault((owner, str(getattr(row, key))), set()).add(values)
    return found


def _several(found: Mapping[Any, set[Any]]) -> int:
    return sum(len(values) > 1 for values in found.values())
