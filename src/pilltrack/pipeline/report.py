"""`pilltrack report`: what `evaluate` found, as a page for people and a comment for pull requests.

report.html stands alone: charts and pictures are inside, nothing is fetched, no script runs. Its
first screen answers a pharmacist's question, may I trust it; the rest is for who wants to know
why. report.md says the same figures in fewer than 80 lines. Apart from the latency, which is
measured now, the same artifacts give the same bytes.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from pilltrack.core.decide import RESERVE
from pilltrack.core.embedder import Embedder, open_embedder
from pilltrack.core.errors import StageFailed
from pilltrack.core.files import write_atomically
from pilltrack.core.gallery import Gallery
from pilltrack.pipeline import verdict, words
from pilltrack.pipeline.cohorts import COHORTS
from pilltrack.pipeline.params import Params
from pilltrack.pipeline.releases import load_metrics_at, shortened
from pilltrack.pipeline.report_examples import Album, example_groups, lookalike_pairs, worst_pills
from pilltrack.pipeline.report_facts import Facts, gather
from pilltrack.pipeline.report_figures import det_figure, references_figure, scores_figure
from pilltrack.pipeline.report_markdown import markdown
from pilltrack.pipeline.results import Results, load_results
from pilltrack.pipeline.table import load_images, load_pills

TEMPLATE = "report.html.j2"


def report(params: Params, artifacts: Path, out: Path, *, against: str | None) -> tuple[Path, Path]:
    """Write `out/report.html` and `out/report.md` from the artifacts of a run; return both paths.

    `against`: a git revision whose metrics stand beside today's, read through DVC; one without
    metrics of this schema is noted in both files. A run whose gate failed is reported too.

    Raises StageFailed when the pipeline has not run, its artifacts do not fit together or are of
    other parameters, or the revision is unknown; errors of damaged artifacts as they are read.
    """
    if against is not None and not against.strip():
        raise StageFailed(
            "--against",
            found="an empty revision",
            expected="a branch, tag or commit",
            remedy="Name one, or leave out --against.",
        )
    results = load_results(artifacts / "evaluate")
    metrics = artifacts / "evaluate" / "metrics.json"
    earlier = load_metrics_at(against, metrics) if against is not None else None
    embedder = open_embedder(artifacts / "convert" / "model.tflite")
    facts = gather(params, artifacts, results, embedder.space, earlier)
    page, comment = out / "report.html", out / "report.md"
    text = _html(params, artifacts, results, facts, embedder)
    write_atomically(page, text.encode())
    write_atomically(comment, markdown(facts).encode())
    return page, comment


def _html(
    params: Params, artifacts: Path, results: Results, facts: Facts, embedder: Embedder
) -> str:
    prepared = artifacts / "prepare"
    images = {row.image: row for row in load_images(prepared)}
    outcomes = [row for row in results.outcomes if row.captures == facts.captures]
    cohorts = {"seen": facts.seen, "new": facts.new}
    scores: dict[str, list[float]] = {
        cohort: [row.best_score for row in outcomes if row.cohort == cohort] for cohort in COHORTS
    }
    with Gallery.load(artifacts / "enroll" / "gallery.safetensors") as gallery:
        gallery.require_space(embedder.space)
        album = Album(prepared, images, load_pills(prepared), gallery)
        groups = example_groups(outcomes, params.capture, album, embedder)
        worst = worst_pills(outcomes, album)
        pairs = lookalike_pairs(results.lookalikes, album)
    promised_fpir = params.evaluate.promised_fpir
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = files("pilltrack.pipeline").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(template).render(
        facts=facts,
        groups=groups,
        worst=worst,
        pairs=pairs,
        n_pairs=len(results.lookalikes),
        # The three charts are our own drawings: the only text that is not escaped.
        det=det_figure(results.det, cohorts, facts.strangers, promised_fpir),
        scores=scores_figure(scores, facts.metrics.calibration.threshold),
        references=references_figure(results.references, cohorts),
        verdict=verdict,
        words=words,
        reserve=RESERVE,
        shortened=shortened,
    )
