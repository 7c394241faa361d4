"""The report of the prepare stage: what was found, what was decided, and that nothing leaks.

`check_leaks` starts again from the written `images.csv`; it shares no code with the assignment
of splits and roles. Nothing in the report depends on time or place: equal input, equal report.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pilltrack.pipeline.table import ROLES, SPLITS, ImageRow


@dataclass(frozen=True, slots=True)
class Alike:
    """Pills that share a near-duplicate photo, with one such pair: one pill under two names?"""

    pills: tuple[str, ...]
    first: str
    second: str
    bits: int


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
    shared_photos: int  # photos that show pills of different splits
    skipped: tuple[str, ...]  # junk in the archive
    ignored: tuple[str, ...]  # documents in the archive
    notes: tuple[str, ...]
    leaks: dict[str, int]  # all zero


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


def check_leaks(rows: Sequence[ImageRow], digests: Mapping[str, str]) -> dict[str, int]:
    """Count violations of the contract in a written table; every number must be 0.

    `digests` maps each image to the SHA-256 of its pixels.
    """
    by_group = _values(rows, "group", ("split", "role"))
    by_session = _values(rows, "session", ("split", "role"))
    by_pill = _values(rows, "pill", ("split",))
    pixels: dict[str, set[tuple[str, ...]]] = {}
    names: dict[str, set[str]] = {}
    for row in rows:
        pixels.setdefault(digests[row.image], set()).add((row.split, row.role))
        names.setdefault(digests[row.image], set()).add(row.pill)
    compared = {(row.pill, row.side) for row in rows if row.role == "probe"}
    backed = {(row.pill, row.side) for row in rows if row.role in ("fit", "reference")}
    strange = {row.pill for row in rows if row.role == "stranger"}
    enrolled = {row.pill for row in rows if row.role != "stranger"}
    wrong_role = sum(
        (row.role == "fit") != (row.split == "train" and row.role not in ("probe",)) for row in rows
    )
    return {
        "pills in several splits": _several(by_pill),
        "groups across splits or roles": _several(by_group),
        "sessions of a pill across splits or roles": _several(by_session),
        "equal images across splits or roles": _several(pixels),
        "equal images under several pill names": sum(len(found) > 1 for found in names.values()),
        "strangers that are enrolled": len(strange & enrolled),
        "sides with probes and no reference": len(compared - backed),
        "images in a role their split does not have": wrong_role,
    }


def write_audit(directory: Path, audit: Audit) -> None:
    """Write `audit.json` and `audit.md`."""
    text = json.dumps(asdict(audit), indent=2, sort_keys=True, ensure_ascii=False)
    (directory / "audit.json").write_text(f"{text}\n", encoding="utf-8")
    (directory / "audit.md").write_text(as_markdown(audit), encoding="utf-8")


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
        _section("Notes", "", [*audit.notes, *_about_shared_photos(audit)]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _about_shared_photos(audit: Audit) -> list[str]:
    if not audit.shared_photos:
        return []
    return [
        f"{audit.shared_photos} photos show pills of different splits: a background can be known "
        "from training although the pill is not"
    ]


def _section(title: str, text: str, entries: list[str]) -> str:
    shown = [f"- {entry}" for entry in entries[:50]]
    if len(entries) > 50:
        shown.append(f"- and {len(entries) - 50} more, see audit.json")
    blocks = [f"## {title} ({len(entries)})", text if entries else "", "\n".join(shown)]
    return "\n\n".join(block for block in blocks if block)


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


def _several(found: Mapping[Any, set[tuple[str, ...]]]) -> int:
    return sum(len(values) > 1 for values in found.values())
