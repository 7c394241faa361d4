"""Stage `evaluate`: what the shipped int8 file does on pills it never saw, and the gate.

The rule comes from validation pills, the report from the test split, which also raises thresholds
of smaller galleries that it does not prove; real, rendered and augmented
captures are reported apart. `seen` pills were trained on, `new` pills were not; both stand in the
gallery together. Real and rendered probes are photos that were neither trained on nor enrolled;
augmented ones are new captures of enrolled photos. What is promised and what is written:
docs/adr/0002-evaluation.md.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.decide import Calibration, Evidence, Rule, SmallerGallery
from pilltrack.core.embedder import open_embedder
from pilltrack.core.files import write_atomically
from pilltrack.core.gallery import Gallery
from pilltrack.pipeline.agreement import embed_sets, measure_agreement, sets_of
from pilltrack.pipeline.audit import archive_digest
from pilltrack.pipeline.background import background_of
from pilltrack.pipeline.calibrate import agreement_limit, pills_for_aim
from pilltrack.pipeline.cohorts import (
    ALL_CAPTURES,
    Cohort,
    choose_references,
    cohort_of,
    require_captures,
)
from pilltrack.pipeline.enroll import enrol_rows, require_prescribed
from pilltrack.pipeline.gallery_sizes import (
    Ranking,
    measure_sizes,
    raised_until_proven,
    rank_pills,
    thresholds_by_size,
)
from pilltrack.pipeline.gate import gate
from pilltrack.pipeline.lookalikes import find_lookalikes, measure_pictures, write_lookalikes
from pilltrack.pipeline.outcomes import OutcomeRow, write_outcomes
from pilltrack.pipeline.params import EvaluateParams, Params
from pilltrack.pipeline.protocol import (
    Drawn,
    Measures,
    Outcomes,
    accepted,
    det_curve,
    drawn,
    first_references,
    measure,
    measure_decisions,
    measure_strangers,
    named_rightly,
    rounded,
    rounded_up,
    search,
    single_views,
    two_sided,
)
from pilltrack.pipeline.results import Metrics
from pilltrack.pipeline.shots import Shot, embed_shots, shots_to_identify
from pilltrack.pipeline.table import Split, load_images, load_pills, write_csv
from pilltrack.pipeline.torch_embedder import open_torch_embedder
from pilltrack.pipeline.trial import Tried, calibrate_on, of_cohort, try_shots

log = logging.getLogger(__name__)
MATED: tuple[Cohort, ...] = ("seen", "new")
REFERENCE_COUNTS = (1, 3, 5)
N_LOOKALIKES = 50
HISTOGRAM_BINS = 50
Trial = dict[Cohort, Tried]
Embeddings = NDArray[np.float32]


def main(params: Params, artifacts: Path) -> None:
    """Read `prepare/`, `distill/`, `convert/` and `enroll/`; write `evaluate/`, then gate.

    Raises GateFailed for a broken limit or promise: figures and tables are then there to look at,
    a calibration is not.
    """
    settings, prepared, out = params.evaluate, artifacts / "prepare", artifacts / "evaluate"
    (out / "calibration.json").unlink(missing_ok=True)  # no failure may leave an older one
    model = artifacts / "convert" / "model.tflite"
    rows = load_images(prepared)
    require_captures(rows, settings)
    shipped = open_embedder(model, threads=2)
    student = open_torch_embedder(artifacts / "distill" / "student.safetensors")

    def embed(split: Split, captures: str) -> tuple[list[Shot], list[Embeddings]]:
        shots = shots_to_identify(params, rows, split, captures)
        embedders = [shipped, student] if captures == settings.captures else [shipped]
        title = f"{split}, {captures}"
        return shots, embed_shots(embedders, shots, prepared, params.capture, title)

    with (
        Gallery.load(artifacts / "enroll" / "gallery.safetensors") as gallery,
        Gallery.create(student.space, student.dim) as student_gallery,
    ):
        gallery.require_space(shipped.space)
        require_prescribed(gallery, rows, params.enroll)
        references = choose_references(rows, params.enroll.references_per_side)
        enrol_rows(student_gallery, student, prepared, references, params)
        student_gallery.background = background_of(student, prepared, references, params)
        shots, (embedded, by_student) = embed("validation", settings.captures)
        rule, found = calibrate_on(gallery, shots, embedded, settings)
        pool = {row.pill for row in references if cohort_of(row) == "new"}
        strangers, new = (
            _ranked(gallery, pool, *of_cohort(shots, embedded, cohort))
            for cohort in ("strangers", "new")
        )
        aimed = thresholds_by_size(strangers, new, settings)
        student_rule, _ = calibrate_on(student_gallery, shots, by_student, settings)
        good, tested = (
            embed_sets(shipped, sets_of(params, rows, split), prepared, params.capture)
            for split in ("validation", "test")
        )
        agreement = agreement_limit(good.agreements(), good.pills, settings.refused_sets)
        if agreement == -1:
            log.warning(
                "no limit to how unlike photos to enrol may be: %d validation pills with a set of "
                "photos of one side, expected %d",
                len(set(good.pills)),
                pills_for_aim(settings.refused_sets),
            )

        trials: dict[str, Trial] = {}
        for captures in ALL_CAPTURES:
            shots, embeddings = embed("test", captures)
            if not any(shot.row.role != "stranger" for shot in shots):
                continue  # strangers alone measure nothing
            trials[captures] = try_shots(gallery, rule, shots, embeddings[0], settings.seed)
            if captures == settings.captures:
                float_trial = try_shots(
                    student_gallery, student_rule, shots, embeddings[1], settings.seed
                )
        gated = trials[settings.captures]
        metrics: Measures = {
            "origin": {
                "data": archive_digest(prepared),
                "settings": params.digest("capture", "enroll", "evaluate"),
            },
            "gallery": {
                "pills": len(gallery.pills()),
                "references": len(gallery),
                "background": len(gallery.background),
            },
            "model": {"int8_bytes": model.stat().st_size},
            "calibration": _calibration_facts(rule, found),
            "test": {
                captures: measure_trial(trial, gallery, settings)
                for captures, trial in trials.items()
            },
        }
        if len(set(tested.pills)) > 1:
            metrics["enrolment"] = measure_agreement(agreement, tested, settings.seed)
        metrics["test"][settings.captures]["parity"] = parity(gated, float_trial)
        strangers, new = (
            _ranked(gallery, pool, gated[cohort].embeddings, gated[cohort].pills)
            for cohort in ("strangers", "new")
        )
        thresholds = raised_until_proven(aimed, strangers, new, settings)
        metrics["smaller_galleries"] = measure_sizes(
            aimed, thresholds, rule.margin, strangers, new, settings.confidence
        )
        alike = find_lookalikes(
            gallery.embeddings(),
            gallery.references(),
            load_pills(prepared),
            _confusions(gated),
            _wrong_names(gated),
            Counter(pill for cohort in MATED for pill in gated[cohort].pills),
            limit=N_LOOKALIKES,
        )
    text = json.dumps(metrics, indent=1, sort_keys=True)
    write_atomically(out / "metrics.json", text.encode())
    flips = {cohort: flipped(gated[cohort], float_trial[cohort]) for cohort in gated}
    write_outcomes(out / "outcomes.csv", _outcome_rows(trials, settings.captures, flips))
    write_lookalikes(out / "lookalikes.csv", measure_pictures(prepared, alike))
    _write_plots(out, gated, metrics["test"][settings.captures])
    gate(Metrics.model_validate(metrics), settings)
    calibration = calibration_of(rule, thresholds, agreement, metrics, settings, shipped.space)
    write_atomically(out / "calibration.json", calibration.model_dump_json(indent=1).encode())


def _ranked(
    gallery: Gallery, pool: Collection[str], embeddings: Embeddings, pills: Sequence[str]
) -> Ranking:
    """Rank the pool for strangers, or for photos of it.

    A photo that is called new and bears the name of a trained pill is mislabelled: it is left out
    here, and recall, which the gate looks at, tells of it.
    """
    kept = [n for n, pill in enumerate(pills) if pill in pool] or list(range(len(pills)))
    return rank_pills(gallery, pool, embeddings[kept], [pills[n] for n in kept])


def flipped(shipped: Tried, student: Tried) -> list[bool]:
    """Which probes the two decide differently, in kind or in name."""
    pairs = zip(shipped.decisions, student.decisions, strict=True)
    return [(a.kind, a.pill) != (b.kind, b.pill) for a, b in pairs]


def parity(shipped: Trial, student: Trial) -> Measures:
    """How the shipped file decides against the float student, both on the same shots.

    `flips`: share of all photos decided differently. `flips_of_accepted`: the same of those that
    either accepts, since two models that refuse everything agree on everything. Error rates and
    recall, each in its own gallery, are over photos, seen and new pills together.
    """
    flips = [flip for cohort in shipped for flip in flipped(shipped[cohort], student[cohort])]
    either = [
        a.kind != "unknown" or b.kind != "unknown"
        for cohort in shipped
        for a, b in zip(shipped[cohort].decisions, student[cohort].decisions, strict=True)
    ]
    report: Measures = {
        "n_probes": len(flips),
        "n_accepted": sum(either),
        "flips": rounded_up(float(np.mean(flips))),
        "flips_of_accepted": rounded_up(sum(flips) / max(1, sum(either))),
    }
    for name, trial in (("int8", shipped), ("float", student)):
        right = [named_rightly(trial[c].pills, trial[c].decisions) for c in MATED]
        let_in = accepted(trial["strangers"].decisions)
        report[f"fnir_{name}"] = rounded(1 - np.mean(np.concatenate(right)))
        report[f"fpir_{name}"] = rounded(np.mean(let_in))
        nearest = np.concatenate([trial[c].outcomes.rank == 1 for c in MATED])
        report[f"recall_at_1_{name}"] = rounded(nearest.mean())
    return report


def _calibration_facts(rule: Rule, found: Mapping[Cohort, Outcomes]) -> Measures:
    return {
        "threshold": rounded(rule.threshold),
        "margin": rounded(rule.margin),
        "n_stranger_probes": len(found["strangers"]),
        "n_stranger_pills": len(set(found["strangers"].truth)),
        "n_mated_probes": len(found["new"]),
        "n_mated_pills": len(set(found["new"].truth)),
    }


def measure_trial(trial: Trial, gallery: Gallery, settings: EvaluateParams) -> Measures:
    """All measures of one kind of captures, as in metrics.json; absent cohorts are left out."""
    strangers = trial.get("strangers")
    by_references = _by_references(trial, gallery, settings.seed)
    pairs = _two_sided(trial, gallery, settings.seed)
    report: Measures = {}
    for cohort in (cohort for cohort in MATED if cohort in trial):
        tried = trial[cohort]
        report[cohort] = {
            **measure(tried.drawn, strangers.drawn if strangers else None),
            "decisions": measure_decisions(tried.drawn, tried.decisions, settings.confidence),
            "by_references": by_references[cohort],
        }
        if cohort in pairs:
            report[cohort]["two_sided"] = measure(
                pairs[cohort], pairs.get("strangers"), with_map=False
            )
    if strangers:
        report["strangers"] = measure_strangers(
            strangers.drawn, strangers.decisions, settings.confidence
        )
    return report


def _by_references(trial: Trial, gallery: Gallery, seed: int) -> dict[Cohort, Measures]:
    """Each mated cohort against 1, 3 and 5 references a side; the keys are "1", "3" and "5"."""
    embeddings, enrolled = gallery.embeddings(), gallery.references()
    most = max(Counter((r.pill, r.side) for r in enrolled).values())
    report: dict[Cohort, Measures] = {cohort: {} for cohort in MATED if cohort in trial}
    for per_side in (count for count in REFERENCE_COUNTS if count <= most):
        kept = first_references(enrolled, per_side)
        pills = [enrolled[index].pill for index in kept]
        sides = [enrolled[index].side for index in kept]
        found: dict[Cohort, Drawn] = {}
        for cohort, tried in trial.items():
            probes = single_views(tried.embeddings, tried.pills)
            outcomes = search(embeddings[kept], pills, probes, gallery.background, sides)
            found[cohort] = drawn(outcomes, seed=_seed(cohort, seed))
        for cohort, measures in report.items():
            measured = measure(found[cohort], found.get("strangers"))
            measures[str(per_side)] = {k: v for k, v in measured.items() if not k.startswith("n_")}
    return report


def _two_sided(trial: Trial, gallery: Gallery, seed: int) -> dict[Cohort, Drawn]:
    """Each cohort seen from front and back; absent where no pill has photos of both."""
    references, enrolled = gallery.embeddings(), gallery.references()
    pills, sides = [r.pill for r in enrolled], [r.side for r in enrolled]
    found: dict[Cohort, Drawn] = {}
    for cohort, tried in trial.items():
        probes = two_sided(tried.embeddings, tried.pills, [shot.row.side for shot in tried.shots])
        if probes:
            outcomes = search(references, pills, probes, gallery.background, sides)
            found[cohort] = drawn(outcomes, seed=_seed(cohort, seed))
    return found


def _seed(cohort: Cohort, seed: int) -> int:
    """Strangers are drawn apart from the pills they are compared with."""
    return seed + 1 if cohort == "strangers" else seed


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


def _wrong_names(trial: Trial) -> Counter[tuple[str, str]]:
    return Counter(
        (pill, decision.pill)
        for cohort in MATED
        for pill, decision in zip(trial[cohort].pills, trial[cohort].decisions, strict=True)
        if decision.pill is not None and decision.pill != pill
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


def calibration_of(
    rule: Rule,
    thresholds: Mapping[int, float],
    agreement: float,
    metrics: Measures,
    settings: EvaluateParams,
    space: str,
) -> Calibration:
    """The rule with the promises of `settings` and the evidence in `metrics`.

    Of the `thresholds` for smaller galleries those are left out that are no lower than the rule's,
    or that so few test pills cannot prove: the next larger size stands in.

    Raises ValidationError when the evidence does not bear out a promise.
    """
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
        background_size=metrics["gallery"]["background"],
        captures=settings.captures,
        agreement=agreement,
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
        smaller=tuple(
            SmallerGallery(
                gallery_size=size,
                threshold=threshold,
                fpir_upper=proven["fpir_upper"],
                misnamed_upper=proven["misnamed_upper"],
            )
            for size, threshold in thresholds.items()
            if (proven := metrics["smaller_galleries"][str(size)])
            and threshold < rule.threshold
            and proven["fpir_upper"] <= settings.promised_fpir
            and proven["misnamed_upper"] <= settings.promised_misnamed
        ),
    )
