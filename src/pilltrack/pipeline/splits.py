"""Who is trained on, who is enrolled, who stays a stranger: pure functions on names.

Pills that share a group of duplicates look alike: they form a cluster, which stays in one split
and in one of the roles enrolled / stranger. Everything is drawn by hashing the seed with names,
so the result depends neither on the order of rows nor on the state of a random generator.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pilltrack.core.errors import DatasetRejected
from pilltrack.pipeline.duplicates import Unions
from pilltrack.pipeline.params import PrepareParams
from pilltrack.pipeline.table import SPLITS, Role, Side, Split

MIN_TRAIN_PILLS = 2
Cluster = tuple[str, ...]  # pills that look alike, sorted


@dataclass(frozen=True, slots=True)
class Member:
    """One image as the split sees it; `name` is unique, `group` joins duplicates and sessions."""

    name: str
    pill: str
    side: Side
    group: int
    given_split: Split | None


@dataclass(frozen=True, slots=True)
class Assignment:
    """`splits` of pills, `roles` of images by name, `strangers` among the pills, look-alikes."""

    splits: dict[str, Split]
    roles: dict[str, Role]
    strangers: frozenset[str]
    clusters: tuple[Cluster, ...]  # of two pills or more
    notes: tuple[str, ...]


def assign(members: Sequence[Member], params: PrepareParams) -> Assignment:
    """Assign every pill a split and every image a role.

    Shares count pills and are rounded half up; validation and test get at least two pills, one
    enrolled and one stranger. Look-alike clusters are never divided, so a share can be missed by
    the size of a cluster. With `zip_splits: respect` and splits given, these rule (docs/data.md).
    A probe_share of 0 means no probes; otherwise each side with two groups or more has a probe.

    Raises DatasetRejected with the numbers found and needed when there are too few pills.
    """
    clusters = _clusters(members)
    given: dict[str, set[Split]] = {}
    for member in members:
        if member.given_split is not None:
            given.setdefault(member.pill, set()).add(member.given_split)
    notes: list[str] = []
    if given and params.zip_splits == "respect":
        splits = _given_splits(clusters, given, notes)
        strangers = _strangers_within(clusters, splits, params)
        by_image = {pill for pill, found in given.items() if len(found) > 1 and "train" in found}
    else:
        splits, strangers = _drawn_splits(clusters, params)
        by_image = set()
    probes = _probe_groups(
        [member for member in members if member.pill not in strangers], by_image, params, notes
    )
    roles: dict[str, Role] = {}
    for member in members:
        if member.pill in strangers:
            roles[member.name] = "stranger"
        elif member.group in probes:
            roles[member.name] = "probe"
        else:
            roles[member.name] = "fit" if splits[member.pill] == "train" else "reference"
    alike = tuple(cluster for cluster in clusters if len(cluster) > 1)
    return Assignment(splits, roles, frozenset(strangers), alike, tuple(notes))


def _clusters(members: Sequence[Member]) -> list[Cluster]:
    pills = sorted({member.pill for member in members})
    index = {pill: number for number, pill in enumerate(pills)}
    unions = Unions(len(pills))
    first_in: dict[int, int] = {}
    for member in members:
        unions.unite(first_in.setdefault(member.group, index[member.pill]), index[member.pill])
    found: dict[int, list[str]] = {}
    for pill, label in zip(pills, unions.labels(), strict=True):
        found.setdefault(label, []).append(pill)
    return [tuple(cluster) for cluster in found.values()]


def _drawn_splits(
    clusters: Sequence[Cluster], params: PrepareParams
) -> tuple[dict[str, Split], set[str]]:
    n_pills = sum(map(len, clusters))
    n_validation = max(2, _rounded(n_pills * params.validation_share))
    n_test = max(2, _rounded(n_pills * params.test_share))
    n_train = n_pills - n_validation - n_test
    if n_train < MIN_TRAIN_PILLS:
        raise DatasetRejected(
            "the data set",
            found=f"{n_pills} pills, of which validation takes {n_validation} and test {n_test}, "
            f"so {max(0, n_train)} are left to train on",
            expected=f"at least {MIN_TRAIN_PILLS} to train on, and for validation and test each "
            "1 to enrol and 1 stranger (6 pills in all)",
            remedy="Add pills, or lower prepare.validation_share and prepare.test_share.",
        )
    sizes: dict[tuple[Split, bool], int] = {}  # (split, stranger) -> pills
    wanted: dict[Split, int] = {"test": n_test, "validation": n_validation}
    for split, n in wanted.items():
        n_strangers = _n_strangers(n, params)
        sizes[split, True] = n_strangers
        sizes[split, False] = n - n_strangers
    bins, rest = _fill(clusters, sizes, params.seed, MIN_TRAIN_PILLS)
    empty = [f"{split} ({_kind(stranger)})" for (split, stranger), b in bins.items() if not b]
    if empty:
        raise DatasetRejected(
            "the data set",
            found=f"{len(clusters)} clusters of look-alike pills out of {n_pills} pills, and none "
            f"left for {', '.join(empty)}",
            expected="1 cluster to enrol and 1 of strangers for validation and for test, and "
            f"{MIN_TRAIN_PILLS} pills to train on",
            remedy="Add pills that look different, or lower prepare.near_duplicate_bits.",
        )
    splits: dict[str, Split] = {pill: "train" for cluster in rest for pill in cluster}
    strangers: set[str] = set()
    for (split, stranger), content in bins.items():
        pills = [pill for cluster in content for pill in cluster]
        splits.update(dict.fromkeys(pills, split))
        strangers.update(pills if stranger else [])
    return dict(sorted(splits.items())), strangers


def _given_splits(
    clusters: Sequence[Cluster], given: Mapping[str, set[Split]], notes: list[str]
) -> dict[str, Split]:
    splits: dict[str, Split] = {}
    for cluster in clusters:
        wanted = set().union(*(given[pill] for pill in cluster))
        split: Split = wanted.pop() if len(wanted) == 1 else "train"
        for pill in cluster:
            splits[pill] = split
            if split not in given[pill]:
                alike = ", ".join(other for other in cluster if other != pill)
                notes.append(
                    f"{pill}: given as {', '.join(sorted(given[pill]))}, put into {split}"
                    + (f" with its look-alikes {alike}" if alike else ", being in several splits")
                )
    return dict(sorted(splits.items()))


def _strangers_within(
    clusters: Sequence[Cluster], splits: Mapping[str, Split], params: PrepareParams
) -> set[str]:
    counts = {split: sum(s == split for s in splits.values()) for split in SPLITS}
    drawn: set[str] = set()
    complete = counts["train"] >= MIN_TRAIN_PILLS
    for split in SPLITS[1:]:
        inside = [cluster for cluster in clusters if splits[cluster[0]] == split]
        complete = complete and len(inside) >= 2
        if complete:
            sizes = {(split, True): _n_strangers(counts[split], params)}
            bins, _ = _fill(inside, sizes, params.seed, 1)
            drawn |= {pill for cluster in bins[split, True] for pill in cluster}
            complete = bool(bins[split, True])
    if not complete:
        found = ", ".join(f"{n} {split}" for split, n in counts.items())
        raise DatasetRejected(
            "the splits in the zip",
            found=f"{found} pills (a pill in several splits counts as train, and so do its "
            "look-alikes)",
            expected=f"at least {MIN_TRAIN_PILLS} train pills, and 2 validation and 2 test pills "
            "that do not look alike, in no other split",
            remedy="Move pills between the folders, or set prepare.zip_splits to ignore.",
        )
    return drawn


def _fill(
    clusters: Sequence[Cluster],
    sizes: Mapping[tuple[Split, bool], int],
    seed: int,
    min_rest: int,
) -> tuple[dict[tuple[Split, bool], list[Cluster]], list[Cluster]]:
    """Deal clusters, in drawn order, to the first bin with room; the rest is returned too."""
    room = dict(sizes)
    bins: dict[tuple[Split, bool], list[Cluster]] = {name: [] for name in sizes}
    rest: list[Cluster] = []
    order = sorted(clusters, key=lambda cluster: _rank(seed, "pill", cluster[0]))
    for cluster in order:
        fitting = next((name for name, n in room.items() if n >= len(cluster)), None)
        if fitting is None:
            rest.append(cluster)
        else:
            bins[fitting].append(cluster)
            room[fitting] -= len(cluster)
    for name, content in bins.items():  # clusters too large for an empty bin: the smallest one
        n_rest = sum(map(len, rest))
        if not content and rest:
            smallest = min(rest, key=len)
            if n_rest - len(smallest) >= min_rest:
                rest.remove(smallest)
                bins[name].append(smallest)
    return bins, rest


def _probe_groups(
    members: Sequence[Member], by_image: set[str], params: PrepareParams, notes: list[str]
) -> set[int]:
    """Choose whole groups, so that every appearance keeps at least one group that is no probe."""
    names: dict[int, str] = {}
    touched: dict[int, set[tuple[str, Side]]] = {}
    groups: dict[tuple[str, Side], set[int]] = {}
    trained: set[int] = set()  # groups with an image that the zip says to train on
    for member in members:
        appearance = (member.pill, member.side)
        names[member.group] = min(names.get(member.group, member.name), member.name)
        touched.setdefault(member.group, set()).add(appearance)
        groups.setdefault(appearance, set()).add(member.group)
        if member.pill in by_image and member.given_split == "train":
            trained.add(member.group)
    probes: set[int] = set()
    refused: set[int] = set()
    for appearance, own in sorted(groups.items()):
        if appearance[0] in by_image:
            quota = len(own - trained)
        elif params.probe_share == 0 or len(own) == 1:
            quota = 0
        else:
            quota = min(len(own) - 1, max(1, math.floor(params.probe_share * len(own) + 1e-9)))
        for group in sorted(own - trained, key=lambda g: _rank(params.seed, "probe", names[g])):
            if len(own & probes) >= quota:
                break
            if all(len(groups[touch] - probes) > 1 for touch in touched[group]):
                probes.add(group)
            elif appearance[0] in by_image:
                refused.add(group)
    n_kept = sum(member.group in refused - probes for member in members)
    if n_kept:
        notes.append(
            f"{n_kept} images given as validation or test stay `fit`: no other photo of "
            "that side could be a reference"
        )
    return probes


def _n_strangers(n_pills: int, params: PrepareParams) -> int:
    return min(n_pills - 1, max(1, _rounded(n_pills * params.stranger_share)))


def _rank(seed: int, purpose: str, name: str) -> str:
    return hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).hexdigest()


def _rounded(value: float) -> int:
    return math.floor(value + 0.5 + 1e-9)


def _kind(stranger: bool) -> str:
    return "strangers" if stranger else "enrolled"
