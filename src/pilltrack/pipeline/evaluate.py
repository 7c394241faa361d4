"""Stage `evaluate`: what the shipped int8 file does on pills it never saw, and the gate.

The rule comes from validation pills, the report from the test split; real, rendered and augmented
captures are reported apart. `seen` pills were trained on, `new` pills were not; both stand in the
gallery together. Real and rendered probes are photos that were neither trained on nor enrolled;
augmented ones are new captures of enrolled photos. What is promised and what is written:
docs/adr/0002-evaluation.md.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pilltrack.core.decide import Calibration, Decision, Evidence, Rule
from pilltrack.core.embedder import open_embedder
from pilltrack.core.errors import GateFailed
from pilltrack.core.files import write_atomically
from pilltrack.core.gallery import Gallery
from pilltrack.pipeline.cohorts import Cohort, require_captures
from pilltrack.pipeline.enroll import choose_references, enrol_rows
from pilltrack.pipeline.lookalikes import find_lookalikes, measure_pictures, write_lookalikes
from pilltrack.pipeline.outcomes import OutcomeRow, write_outcomes
from pilltrack.pipeline.params import EvaluateParams, Params
from pilltrack.pipeline.protocol import (
    Drawn,
    Measures,
    det_curve,
    drawn,
    first_references,
    measure,
    measure_decisions,
    measure_strangers,
    rounded,
    search,
    single_views,
    two_sided,
)
from pilltrack.pipeline.shots import Shot, embed_shots, shots_to_identify
from pilltrack.pipeline.table import CAPTURES, load_images, load_pills, write_csv
from pilltrack.pipeline.torch_embedder import open_torch_embedder
from pilltrack.pipeline.trial import Tried, calibrate_on, try_shots

log = logging.getLogger(__name__)
MATED: tuple[Cohort, ...] = ("seen", "new")
REFERENCE_COUNTS = (1, 3, 5)
N_LOOKALIKES = 50
HISTOGRAM_BINS = 50
Trial = dict[Cohort, Tried]


def main(params: Params, artifacts: Path) -> None:
    """Read `prepare/`, `distill/`, `convert/` and `enroll/`; write `evaluate/`, then gate."""
    settings, prepared, out = params.evaluate, artifacts / "prepare", artifacts / "evaluate"
    model = artifacts / "convert" / "model.tflite"
    rows = load_images(prepared)
    require_captures(rows, settings)
    shipped = open_embedder(model, threads=2)
    student = open_torch_embedder(artifacts / "distill" / "student.safetensors")

    def embed(split: str, captures: str) -> tuple[list[Shot], list[Any]]:
        shots = shots_to_identify(params, rows, split, captures)
        embedders = [shipped, student] if captures == settings.captures else [shipped]
        title = f"{split}, {captures}"
        return shots, embed_shots(embedders, shots, prepared, params.capture, title)

    with (
        Gallery.load(artifacts / "enroll" / "gallery.safetensors") as gallery,
        Gallery.create(student.space, student.dim) as student_gallery,
    ):
        gallery.require_space(shipped.space)
        references = choose_references(rows, params.enroll.references_per_side)
        enrol_rows(student_gallery, student, prepared, references)
        shots, (embedded, student_embedded) = embed("validation", settings.captures)
        rule, found = calibrate_on(gallery, shots, embedded, settings)
        student_rule, _ = calibrate_on(student_gallery, shots, student_embedded, settings)

        trials: dict[str, Trial] = {}
        for captures in (*CAPTURES, "augmented"):
            shots, embeddings = embed("test", captures)
            if not any(shot.row.role != "stranger" for shot in shots):
                continue  # strangers alone measure nothing
            trials[captures] = try_shots(gallery, rule, shots, embeddings[0], settings.seed)
            if captures == settings.captures:
                by_student = try_shots(
                    student_gallery, student_rule, shots, embeddings[1], settings.seed
                )
        gated = trials[settings.captures]
        metrics: Measures = {
            "gallery": {"pills": len(gallery.pills()), "references": len(gallery)},
            "model": {"int8_bytes": model.stat().st_size},
            "calibration": {
                "threshold": rounded(rule.threshold),
                "margin": rounded(rule.margin),
                "n_stranger_probes": len(found["strangers"]),
                "n_stranger_pills": len(set(found["strangers"].truth)),
                "n_mated_probes": len(found["new"]),
                "n_mated_pills": len(set(found["new"].truth)),
            },
            "test": {
                captures: _measure(trial, gallery, settings) for captures, trial in trials.items()
            },
        }
        metrics["test"][settings.captures]["parity"] = _parity(gated, by_student)
        flips = {cohort: _flips(gated[cohort], by_student[cohort]) for cohort in gated}
        alike = find_lookalikes(
            gallery.embeddings(),
            gallery.references(),
            load_pills(prepared),
            _confusions(gated),
            Counter(pill for cohort in MATED for pill in gated[cohort].pills),
            limit=N_LOOKALIKES,
        )
    text = json.dumps(metrics, indent=1, sort_keys=True)
    write_atomically(out / "metrics.json", text.encode())
    write_outcomes(out / "outcomes.csv", _outcome_rows(trials, settings.captures, flips))
    write_lookalikes(out / "lookalikes.csv", measure_pictures(prepared, alike))
    _write_plots(out, gated, metrics["test"][settings.captures])
    gate(metrics, settings)  # the figures above can be read either way
    calibration = _calibration(rule, metrics, settings, shipped.space)
    write_atomically(out / "calibration.json", calibration.model_dump_json(indent=1).encode())


def broken_limits(metrics: Mapping[str, Any], settings: EvaluateParams) -> list[str]:
    """Every measure that is outside its limit or promise, in words; empty when the gate holds.

    Measures that are absent or not numbers break their limit.
    """
    measured = metrics["test"][settings.captures]
    new, strangers = measured["new"], measured["strangers"]
    limits = [
        (
            f"{who} of unseen photos: upper bound, {settings.confidence:.0%} confidence,",
            bound,
            "<=",
            promised,
        )
        for who, bound, promised in (
            ("strangers accepted", strangers["fpir_upper"], settings.promised_fpir),
            (
                "enrolled pills misnamed",
                new["decisions"]["misnamed_upper"],
                settings.promised_misnamed,
            ),
        )
    ] + [
        (
            "recall@1 of seen pills",
            measured["seen"]["recall_at_1"]["value"],
            ">=",
            settings.min_recall_at_1_seen,
        ),
        (
            "recall@1 of new pills",
            new["recall_at_1"]["value"],
            ">=",
            settings.min_recall_at_1_new,
        ),
        ("FNIR of new pills", new["decisions"]["fnir"]["value"], "<=", settings.max_fnir),
        (
            "decisions flipped by int8",
            measured["parity"]["flips"],
            "<=",
            settings.max_flips,
        ),
    ]
    return [
        f"{name} is {value:.4f}, not {sign} {limit:.4f}"
        for name, value, sign, limit in limits
        if not (value >= limit if sign == ">=" else value <= limit)
    ]


def gate(metrics: Mapping[str, Any], settings: EvaluateParams) -> None:
    """Raise GateFailed naming every broken limit."""
    broken = broken_limits(metrics, settings)
    if broken:
        raise GateFailed(
            f"evaluate ({settings.captures} captures, test pills)",
            found="; ".join(broken),
            expected="every measure within the limits and promises of params.yaml",
            remedy="Look at the pictures: `pilltrack report`. Train longer, add photos, or "
            "promise less.",
        )


def _measure(trial: Trial, gallery: Gallery, settings: EvaluateParams) -> Measures:
    strangers = trial.get("strangers")
    foreign = strangers.drawn if strangers else None
    report: Measures = {}
    for cohort in (cohort for cohort in MATED if cohort in trial):
        tried = trial[cohort]
        report[cohort] = {
            **measure(tried.drawn, foreign),
            "decisions": measure_decisions(tried.drawn, tried.decisions, settings.confidence),
            "by_references": _by_references(gallery, tried, strangers, settings.seed),
        }
        pairs = _two_sided(gallery, tried, strangers, settings.seed)
        if pairs:
            report[cohort]["two_sided"] = pairs
    if strangers:
        report["strangers"] = measure_strangers(
            strangers.drawn, strangers.decisions, settings.confidence
        )
    return report


def _by_references(gallery: Gallery, tried: Tried, strangers: Tried | None, seed: int) -> Measures:
    embeddings, enrolled = gallery.embeddings(), gallery.references()
    most = max(Counter((r.pill, r.side) for r in enrolled).values())
    result: Measures = {}
    for per_side in (count for count in REFERENCE_COUNTS if count <= most):
        kept = first_references(enrolled, per_side)
        pills = [enrolled[index].pill for index in kept]

        def again(cohort: Tried, seed: int) -> Drawn:
            probes = single_views(cohort.embeddings, cohort.pills)
            return drawn(search(embeddings[kept], pills, probes), seed=seed)  # noqa: B023

        foreign = again(strangers, seed + 1) if strangers else None
        measured = measure(again(tried, seed), foreign)
        result[str(per_side)] = {k: v for k, v in measured.items() if not k.startswith("n_")}
    return result


def _two_sided(
    gallery: Gallery, tried: Tried, strangers: Tried | None, seed: int
) -> Measures | None:
    references, pills = gallery.embeddings(), [r.pill for r in gallery.references()]

    def pairs(cohort: Tried | None, seed: int) -> Drawn | None:
        sides = [shot.row.side for shot in cohort.shots] if cohort else []
        probes = two_sided(cohort.embeddings, cohort.pills, sides) if cohort else None
        return drawn(search(references, pills, probes), seed=seed) if probes else None

    mated = pairs(tried, seed)
    return measure(mated, pairs(strangers, seed + 1), with_map=False) if mated else None


def _same(one: Decision, other: Decision) -> bool:
    return (one.kind, one.pill) == (other.kind, other.pill)


def _flips(shipped: Tried, student: Tried) -> list[bool]:
    pairs = zip(shipped.decisions, student.decisions, strict=True)
    return [not _same(one, other) for one, other in pairs]


def _parity(shipped: Trial, student: Trial) -> Measures:
    """The errors of both, over seen and new pills together, and the share of flips."""
    flips = [flip for cohort in shipped for flip in _flips(shipped[cohort], student[cohort])]
    report: Measures = {"n_probes": len(flips), "flips": rounded(np.mean(flips))}
    for name, trial in (("int8", shipped), ("float", student)):
        mated = [
            not (decision.kind == "known" and decision.pill == pill)
            for cohort in MATED
            for pill, decision in zip(trial[cohort].pills, trial[cohort].decisions, strict=True)
        ]
        accepted = [decision.kind != "unknown" for decision in trial["strangers"].decisions]
        report[f"fnir_{name}"] = rounded(np.mean(mated))
        report[f"fpir_{name}"] = rounded(np.mean(accepted))
    return report


def _confusions(trial: Trial) -> Counter[tuple[str, str]]:
    return Counter(
        (pill, nearest)
        for cohort in MATED
        for pill, nearest, rank in zip(
            trial[cohort].pills,
            trial[cohort].outcomes.best_pill,
            trial[cohort].outcomes.rank,
            strict=True,
        )
        if rank > 1 and pill != nearest
    )


def _outcome_rows(
    trials: Mapping[str, Trial], gated: str, flips: Mapping[Cohort, Sequence[bool]]
) -> list[OutcomeRow]:
    rows = []
    for captures, trial in trials.items():
        for cohort, tried in trial.items():
            found = tried.outcomes
            for index, shot in enumerate(tried.shots):
                rows.append(
                    OutcomeRow(
                        captures=captures,
                        cohort=cohort,
                        image=shot.row.image,
                        capture_seed="" if shot.seed is None else str(shot.seed),
                        pill=shot.row.pill,
                        side=shot.row.side,
                        best_pill=found.best_pill[index],
                        best_score=rounded(found.best[index]),
                        second_pill=found.second_pill[index],
                        second_score=rounded(found.second[index]),
                        rank=int(found.rank[index]),
                        decision=tried.decisions[index].kind,
                        flipped=str(int(flips[cohort][index])) if captures == gated else "",
                    )
                )
    return rows


def _write_plots(out: Path, trial: Trial, measured: Measures) -> None:
    """DVC plots: DET curve, histogram of scores, recall@1 by references."""
    curve = det_curve([trial[cohort].outcomes for cohort in MATED], trial["strangers"].outcomes)
    write_csv(out / "det.csv", ("fpir", *MATED), curve)
    scores = {cohort: trial[cohort].outcomes.best for cohort in (*MATED, "strangers")}
    edges = np.histogram_bin_edges(np.concatenate(list(scores.values())), HISTOGRAM_BINS)
    shares = [np.histogram(best, edges)[0] / len(best) for best in scores.values()]
    write_csv(
        out / "scores.csv",
        ("score", *scores),
        [
            (rounded((low + high) / 2), *(rounded(column[bin_]) for column in shares))
            for bin_, (low, high) in enumerate(pairwise(edges))
        ],
    )
    write_csv(
        out / "references.csv",
        ("references", *MATED),
        [
            (count, *(measured[c]["by_references"][count]["recall_at_1"]["value"] for c in MATED))
            for count in measured["new"]["by_references"]
        ],
    )


def _calibration(
    rule: Rule, metrics: Measures, settings: EvaluateParams, space: str
) -> Calibration:
    measured = metrics["test"][settings.captures]
    new, strangers = measured["new"], measured["strangers"]
    return Calibration(
        threshold=rule.threshold,
        margin=rule.margin,
        space=space,
        fpir=settings.promised_fpir,
        misnamed=settings.promised_misnamed,
        confidence=settings.confidence,
        gallery_size=metrics["gallery"]["pills"],
        captures=settings.captures,
        evidence=Evidence(
            n_stranger_pills=strangers["n_pills"],
            n_stranger_photos=strangers["n_probes"],
            fpir=strangers["fpir"]["value"],
            fpir_upper=strangers["fpir_upper"],
            n_mated_pills=new["n_pills"],
            n_mated_photos=new["n_probes"],
            misnamed=new["decisions"]["misnamed"]["value"],
            misnamed_upper=new["decisions"]["misnamed_upper"],
            fnir=new["decisions"]["fnir"]["value"],
        ),
    )
