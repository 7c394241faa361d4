"""`pilltrack promote`: the challenger becomes champion, if `compare` lets it, and on record.

Both bundles are fetched from the registry, verified, and compared on this machine's test split;
no figure that was measured elsewhere counts. The alias moves last: whatever fails before leaves
the champion as it was.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pilltrack.core.bundle import read_bundle
from pilltrack.core.errors import InputRejected, StageFailed
from pilltrack.pipeline.compare import Comparison, compare, exit_code
from pilltrack.pipeline.comparison_text import conclusion, to_json
from pilltrack.pipeline.params import Params
from pilltrack.pipeline.tracking import CHALLENGER, CHAMPION, Registry, Version

MAX_TAG = 4000  # characters


@dataclass(frozen=True)
class Promotion:
    """What a promotion did; `over` is the champion before, None for the first one."""

    version: Version
    over: str | None
    comparison: Comparison | None


def promote(
    registry: Registry,
    params: Params,
    artifacts: Path,
    *,
    by: str,
    reason: str,
    now: datetime,
    number: str | None = None,
    first: bool = False,
    require_better: bool = False,
) -> Promotion:
    """Make a version champion: `number`, or the one that is challenger.

    `first`: there is no champion to compare with, and that is known. The version's tags tell who,
    when, why, over which version and with which verdict; the whole comparison is kept with its run.

    Raises InputRejected without a name or reason; StageFailed when the comparison does not let the
    version pass, a bundle is not what its version says, or the registry fails; BundleRejected and
    DatasetRejected as `compare`.
    """
    for what, text in (("--by", by), ("--reason", reason)):
        if not text.strip() or len(text) > MAX_TAG:
            raise InputRejected(
                what,
                found=f"{len(text.strip())} characters",
                expected=f"1 to {MAX_TAG}: who promotes, and why",
                remedy="Say it.",
            )
    aliases = registry.aliases()
    challenger = registry.version(number or _required(registry, aliases))
    champion = aliases.get(CHAMPION)
    if champion == challenger.number:
        raise _refused(challenger, "is the champion already", "another version", "Nothing to do.")
    if (champion is None) != first:
        found = f"version {champion} is champion" if champion else "nothing to be compared with"
        remedy = "Leave out --first." if champion else "Say --first, if this is the first champion."
        raise _refused(challenger, found, "a champion, or --first without one", remedy)
    with tempfile.TemporaryDirectory(prefix="pilltrack-promote-") as directory:
        new = _fetched(registry, challenger, Path(directory) / CHALLENGER)
        comparison = None
        if champion is not None:
            old = _fetched(registry, registry.version(champion), Path(directory) / CHAMPION)
            comparison = compare(params, artifacts, str(old), str(new))
            if exit_code(comparison, require_better):
                raise _refused(
                    challenger,
                    f"not promoted: {conclusion(comparison)}",
                    f"a version that may follow version {champion}",
                    f"Version {champion} stays champion. `pilltrack compare` shows the figures.",
                )
    if registry.aliases().get(CHAMPION) != champion:
        found = "another version became champion during the comparison"
        raise _refused(challenger, found, "one promotion at a time", "Promote again.")
    _keep(registry, challenger, champion, comparison, by=by, reason=reason, now=now)
    registry.name(CHAMPION, challenger)
    if aliases.get(CHALLENGER) == challenger.number:
        registry.unname(CHALLENGER)
    return Promotion(challenger, champion, comparison)


def as_text(promotion: Promotion) -> str:
    """What was promoted, in words."""
    version = promotion.version
    over = f"instead of version {promotion.over}" if promotion.over else "as the first"
    verdict = f": {conclusion(promotion.comparison)}" if promotion.comparison else "."
    return f"{version.model} version {version.number} is champion {over}{verdict}"


def _required(registry: Registry, aliases: dict[str, str]) -> str:
    if CHALLENGER not in aliases:
        raise StageFailed(
            f"model {registry.model}",
            found=f"no version is {CHALLENGER}",
            expected="a version that `dvc repro` registered",
            remedy="Run `dvc repro` and `pilltrack track sync`, or name a version.",
        )
    return aliases[CHALLENGER]


def _fetched(registry: Registry, version: Version, directory: Path) -> Path:
    """The verified bundle of a version, which must be the one that was registered."""
    bundle = registry.fetch(version, directory)
    manifest = read_bundle(bundle)
    found = {
        "git_commit": manifest.git_commit,
        "data_sha256": manifest.data_digest,
        "params_sha256": manifest.params_digest,
        "space": manifest.space,
    }
    for key, value in found.items():
        if version.tags.get(key) != value:
            raise _refused(
                version,
                f"its bundle has {key} {value[:20]}",
                f"{str(version.tags.get(key))[:20]}, as it was registered",
                "Do not use this version: register the bundle again with `dvc repro`.",
            )
    return bundle


def _keep(
    registry: Registry,
    version: Version,
    champion: str | None,
    comparison: Comparison | None,
    *,
    by: str,
    reason: str,
    now: datetime,
) -> None:
    tags = {
        "promoted_by": by,
        "promoted_at": now.isoformat(timespec="seconds"),
        "promoted_because": reason,
        "promoted_over": champion or "none",
        "promoted_verdict": comparison.verdict if comparison else "first champion",
    }
    text = to_json(comparison) if comparison else "null"
    registry.note(version, tags, f"promotions/{now:%Y%m%dT%H%M%S}.json", text)


def _refused(version: Version, found: str, expected: str, remedy: str) -> StageFailed:
    subject = f"{version.model} version {version.number}"
    return StageFailed(subject, found=found, expected=expected, remedy=remedy)
