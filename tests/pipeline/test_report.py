"""The report is one honest page: it stands alone, says the verdict first, and hides nothing."""

from __future__ import annotations

import doctest
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from pilltrack.core.embedder import open_embedder
from pilltrack.core.errors import PillTrackError, StageFailed
from pilltrack.core.gallery import Gallery
from pilltrack.pipeline import package, verdict
from pilltrack.pipeline.enroll import enrol_rows
from pilltrack.pipeline.lookalikes import LookAlike, write_lookalikes
from pilltrack.pipeline.outcomes import OutcomeRow, write_outcomes
from pilltrack.pipeline.params import Params, load_params
from pilltrack.pipeline.report import report
from pilltrack.pipeline.summary import summary
from pilltrack.pipeline.table import ImageRow, PillRow, write_csv, write_images, write_pills
from tests.imports import ROOT
from tests.tiny_bundle import MODEL, tiny_calibration

HOSTILE = '<script>alert("pill")</script>'
COLOURS = {"blue": "#2040c0", "green": "#20a040", "red": "#c02020", "white": "#e0e0e0"}
PILLS = {  # key -> (name, colour, split); the last is a stranger
    "p-blue": ("Blue & Co", "blue", "test"),
    "p-green": (HOSTILE, "green", "test"),
    "p-red": ("Redol", "red", "train"),
    "p-white": ("Whitol", "white", "test"),
}
STRANGER = "p-white"


@pytest.fixture(scope="module")
def params() -> Params:
    params = load_params(ROOT / "params.yaml")
    limits = {
        "captures": "rendered",
        "promised_fpir": 0.4,
        "promised_misnamed": 0.3,
        "confidence": 0.95,
        "min_recall_at_1_seen": 0.3,
        "min_recall_at_1_new": 0.25,
        "max_fnir": 0.9,
        "max_flips": 0.1,
    }
    return params.model_copy(update={"evaluate": params.evaluate.model_copy(update=limits)})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, params: Params) -> Path:
    """`artifacts/` of a run that passed its gate, made by hand around the golden model."""
    artifacts = tmp_path_factory.mktemp("finished") / "artifacts"
    rows = _draw_photos(artifacts / "prepare")
    (artifacts / "convert").mkdir()
    shutil.copy(MODEL, artifacts / "convert" / "model.tflite")
    embedder = open_embedder(MODEL)
    with Gallery.create(embedder.space, embedder.dim) as gallery:
        references = [row for row in rows if row.role in ("fit", "reference")]
        enrol_rows(gallery, embedder, artifacts / "prepare", references)
        gallery.save(artifacts / "enroll" / "gallery.safetensors")
    evaluate = artifacts / "evaluate"
    _write_metrics(evaluate, _metrics())
    write_outcomes(evaluate / "outcomes.csv", _outcomes())
    write_lookalikes(evaluate / "lookalikes.csv", _lookalikes())
    write_csv(evaluate / "det.csv", ("fpir", "seen", "new"), [(0, 0.9, 1), (0.25, 0.4, 0.6)])
    write_csv(evaluate / "references.csv", ("references", "seen", "new"), [(1, 0.6, 0.5)])
    calibration = tiny_calibration(embedder.space)  # package does not compare it with metrics
    (evaluate / "calibration.json").write_text(calibration.model_dump_json())
    package.main(params, artifacts)
    return artifacts


@pytest.fixture
def artifacts(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished` that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "repo" / "artifacts"))


def test_page_stands_alone(finished: Path, params: Params, tmp_path: Path) -> None:
    page, _ = _texts(params, finished, tmp_path)
    parsed = _parse(page)
    assert parsed.tags.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    assert parsed.sources, "pictures"
    assert all(source.startswith("data:image/jpeg;base64,") for source in parsed.sources)
    assert parsed.links, "contents"
    assert all(link.startswith("#") for link in parsed.links)
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert len(page) < 3_000_000


def test_links_and_references_of_charts_lead_somewhere(
    finished: Path, params: Params, tmp_path: Path
) -> None:
    page, _ = _texts(params, finished, tmp_path)
    parsed = _parse(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    targets = {link[1:] for link in parsed.links} | set(re.findall(r"url\(#([^)]+)\)", page))
    assert targets <= set(parsed.ids)


def test_page_can_be_read_without_eyes(finished: Path, params: Params, tmp_path: Path) -> None:
    page, _ = _texts(params, finished, tmp_path)
    parsed = _parse(page)
    assert parsed.headings[0] == "h1"
    assert parsed.headings.count("h1") == 1
    assert all(parsed.alts)
    assert len(parsed.alts) == len(parsed.sources)
    assert page.count('<svg role="img" aria-label=') == 3


def test_names_of_pills_are_text_whatever_they_say(
    finished: Path, params: Params, tmp_path: Path
) -> None:
    page, _ = _texts(params, finished, tmp_path)
    assert "script" not in _parse(page).tags
    assert "&lt;script&gt;alert(&#34;pill&#34;)&lt;/script&gt;" in page
    assert "Blue &amp; Co" in page


def test_first_screen_says_promises_in_natural_numbers(
    finished: Path, params: Params, tmp_path: Path
) -> None:
    page, comment = _texts(params, finished, tmp_path)
    text = _parse(page).text
    assert "✔ Both promises kept" in text
    assert "Not measured on real photos but on computer-rendered pictures." in text
    assert "Of 100 photos of pills that are not enrolled, 13 are accepted" in text
    assert "✔ refused: 87 ✘ accepted with a name: 6 ○ accepted without a name: 7" in text
    assert "✔ names the right pill: 40 ✘ gives a wrong name: 5 ○ abstains: 55" in text
    assert (
        "✔ Promise kept: at most 40 of 100 promised; the test proves at most 31.0 (95 % sure). "
        "Verified on 16 pills, 256 photos." in text
    )
    assert comment.startswith("# ✔ Both promises kept\n")
    assert (
        "- not enrolled, yet accepted: promise of at most 40.0 % **✔ kept**. Measured 12.5 %, "
        "at most 31.0 % with 95 % confidence, on 256 photos of 16 pills.\n" in comment
    )


def test_real_photos_need_no_caveat(artifacts: Path, params: Params, tmp_path: Path) -> None:
    evaluate = artifacts / "evaluate"
    metrics = _metrics()
    metrics["test"] = {"real": metrics["test"]["rendered"]}
    _write_metrics(evaluate, metrics)
    write_outcomes(
        evaluate / "outcomes.csv", [replace(row, captures="real") for row in _outcomes()]
    )
    settings = params.evaluate.model_copy(update={"captures": "real"})
    page, comment = _texts(params.model_copy(update={"evaluate": settings}), artifacts, tmp_path)
    assert "Not measured on real photos" not in page
    assert "real photos" in comment


def test_failed_gate_is_said_first_and_names_the_limit(
    artifacts: Path, params: Params, tmp_path: Path
) -> None:
    _fail_gate(artifacts)
    page, comment = _texts(params, artifacts, tmp_path)
    text = _parse(page).text
    assert "✘ GATE FAILED: no bundle was made" in text
    assert "✘ Promise broken: at most 40 of 100 promised; the test proves only at most 45.5" in text
    assert "0.4543, not <= 0.4000" in text
    assert comment.startswith("# ✘ GATE FAILED: no bundle was made\n")
    assert "promise of at most 40.0 % **✘ BROKEN**" in comment
    assert "0.4543, not <= 0.4000" in comment
    assert "not measured: there is no bundle of this run" in comment
    assert "none was made; the one in package/ is of an earlier run" in comment


def test_missing_calibration_without_a_broken_limit_asks_for_another_run(
    artifacts: Path, params: Params, tmp_path: Path
) -> None:
    (artifacts / "evaluate" / "calibration.json").unlink()
    shutil.rmtree(artifacts / "package")
    page, comment = _texts(params, artifacts, tmp_path)
    assert "GATE FAILED: no bundle was made" in page
    assert "calibration.json is missing: run `dvc repro`" in comment
    assert "not measured: there is no bundle |" in comment


def test_stricter_params_than_at_the_gate_are_not_called_a_pass(
    finished: Path, params: Params, tmp_path: Path
) -> None:
    settings = params.evaluate.model_copy(update={"promised_fpir": 0.3})
    stricter = params.model_copy(update={"evaluate": settings})
    _, comment = _texts(stricter, finished, tmp_path)
    assert comment.startswith("# ✘ LIMITS BROKEN: do not use the bundle\n")
    assert "not measured: the bundle is of other params" in comment


def test_unsupported_and_missing_intervals_are_said(
    finished: Path, params: Params, tmp_path: Path
) -> None:
    page, comment = _texts(params, finished, tmp_path)
    unsupported = "90.0 % (not supported: needs 2,995 stranger pills, there are 16)"
    assert f"| new | FNIR at FPIR 0.1 % | {unsupported} |" in comment
    assert "| seen | given a wrong name | 4.0 % (too few pills for an interval) |" in comment
    assert "| new | right pill is nearest (recall@1) | 81.9 % (74.1 to 91.2) |" in comment
    assert unsupported in _parse(page).text
    assert "4.0 % (too few pills for an interval)" in _parse(page).text


def test_equal_artifacts_give_equal_bytes(artifacts: Path, params: Params, tmp_path: Path) -> None:
    _fail_gate(artifacts)  # no bundle, so no latency is measured
    first = _texts(params, artifacts, tmp_path / "first")
    assert _texts(params, artifacts, tmp_path / "second") == first


def test_only_the_latency_differs_between_reports(
    finished: Path, params: Params, tmp_path: Path
) -> None:
    latency = re.compile(r"p50 [\d.]+ ms, p95 [\d.]+ ms")
    first, second = (_texts(params, finished, tmp_path / name) for name in ("first", "second"))
    assert all(latency.search(text) for text in first)
    assert [latency.sub("", text) for text in first] == [latency.sub("", text) for text in second]


def test_markdown_is_short_and_its_tables_are_whole(
    finished: Path, params: Params, tmp_path: Path
) -> None:
    _, comment = _texts(params, finished, tmp_path)
    lines = comment.splitlines()
    assert len(lines) < 80
    tables: list[list[str]] = []
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("|"):
            if not before.startswith("|"):
                tables.append([])
            tables[-1].append(line)
    assert len(tables) == 3
    for table in tables:
        assert re.fullmatch(r"\|(---\|)+", table[1])
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {table[0].count("|")}


def test_examples_show_the_worst_error_of_each_pill(
    finished: Path, params: Params, tmp_path: Path
) -> None:
    page, _ = _texts(params, finished, tmp_path)
    text = _parse(page).text
    assert "✘ Not enrolled, yet given a name: 2 of 3 photos" in text
    assert text.count("Shows Whitol (p-white) Answer: Redol (p-red)") == 0  # 0.95
    assert text.count("Shows Whitol (p-white) Answer: Blue & Co (p-blue)") == 1  # 0.97
    assert "✘ Enrolled, but given the name of another pill: 1 of 5 photos" in text
    assert f"Shows {HOSTILE} (p-green) Answer: Blue & Co (p-blue)" in text
    assert "Enrolled and named rightly: 2 of 5 photos" in text
    # The photo is a reference's own: its nearest is itself, at the highest score.
    assert "Answer: Redol (p-red) ✔ 1.000 Redol (p-red)" in text


def test_worst_pills_are_counted_with_their_confusions(
    finished: Path, params: Params, tmp_path: Path
) -> None:
    page, _ = _texts(params, finished, tmp_path)
    text = _parse(page).text
    assert f"{HOSTILE} (p-green) new 0 of 2 photos Blue & Co (p-blue) 2 of 2 photos" in text
    assert "Redol (p-red) seen" not in text, "a perfect pill is not among the worst"


def test_lookalikes_say_what_tells_them_apart(
    finished: Path, params: Params, tmp_path: Path
) -> None:
    page, _ = _texts(params, finished, tmp_path)
    text = _parse(page).text
    assert "⚠ same drug, other strength Confused in 2 of 3 photos; similarity 0.990" in text
    assert "Told apart by: colour, imprint. Colour difference ΔE 12.5." in text
    assert "Confused in 0 of 2 photos; similarity 0.500. Told apart by: nothing known." in text


def test_against_an_earlier_revision(artifacts: Path, params: Params, tmp_path: Path) -> None:
    earlier = _metrics()
    earlier["test"]["rendered"]["new"]["recall_at_1"] = {"value": 0.5}
    earlier["test"]["rendered"]["strangers"]["fpir"] = {"value": 0.12}
    earlier["gallery"]["pills"] = 2
    _write_metrics(artifacts / "evaluate", earlier)
    _commit(artifacts.parent, "v1")
    _write_metrics(artifacts / "evaluate", _metrics())
    page, comment = _texts(params, artifacts, tmp_path, against="v1")
    assert "| pills | figure | then | now | difference |" in comment
    assert (
        "| new | right pill is nearest (recall@1) | 50.0 % (too few pills for an interval) | "
        "81.9 % (74.1 to 91.2) | +31.9 points, better |" in comment
    )
    assert (
        "| strangers | accepted (FPIR) | 12.0 % (too few pills for an interval) | "
        "12.5 % (5.0 to 20.0) | +0.5 points, within chance |" in comment
    )
    assert "Then (v1) and now: the gallery had 2 pills then and has 3 now." in comment
    text = _parse(page).text
    assert "then: v1" in text
    assert "+31.9 points ✔ better" in text


def test_against_a_revision_whose_metrics_dvc_holds(
    artifacts: Path, params: Params, tmp_path: Path
) -> None:
    repo = artifacts.parent
    _commit(repo, "empty", files=())
    _dvc(repo, "add", "artifacts/evaluate/metrics.json")
    _git(repo, "add", "artifacts/evaluate/metrics.json.dvc")
    _git(repo, "commit", "-qm", "tracked by DVC")
    _git(repo, "tag", "tracked")
    (artifacts / "evaluate" / "metrics.json").unlink()
    _write_metrics(artifacts / "evaluate", _metrics())
    _, comment = _texts(params, artifacts, tmp_path, against="tracked")
    assert "+0.0 points, within chance" in comment


@pytest.mark.parametrize(
    ("revision", "message"),
    [
        ("nowhere", "--against nowhere: unknown Git revision"),
        ("empty", "--against empty: no artifacts/evaluate/metrics.json at that revision"),
        (
            "old",
            "--against old: artifacts/evaluate/metrics.json: another schema "
            "(test.rendered.seen.recall_at_1",
        ),
    ],
)
def test_revision_without_such_metrics_is_refused(
    artifacts: Path, params: Params, tmp_path: Path, revision: str, message: str
) -> None:
    _commit(artifacts.parent, "empty", files=())
    old = _metrics()
    old["test"]["rendered"]["seen"]["recall_at_1"] = 0.4
    _write_metrics(artifacts / "evaluate", old)
    _git(artifacts.parent, "add", "-f", "artifacts/evaluate/metrics.json")
    _git(artifacts.parent, "commit", "-qm", "old")
    _git(artifacts.parent, "tag", "old")
    _write_metrics(artifacts / "evaluate", _metrics())
    with pytest.raises(StageFailed, match=re.escape(message)):
        report(params, artifacts, tmp_path / "out", against=revision)
    assert not (tmp_path / "out").exists()


def test_comparison_outside_a_repository_is_refused(
    artifacts: Path, params: Params, tmp_path: Path
) -> None:
    with pytest.raises(StageFailed, match="is not inside a DVC repository"):
        report(params, artifacts, tmp_path / "out", against="v1")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a: (a / "evaluate" / "metrics.json").unlink(), "Run `dvc repro`"),
        (lambda a: (a / "evaluate" / "metrics.json").write_text("{}"), "another schema"),
        (lambda a: (a / "evaluate" / "det.csv").write_text("fpir,seen,new\n0,x,1\n"), "det.csv:2"),
        (lambda a: (a / "prepare" / "audit.json").write_text("{}"), "no digest of the data"),
    ],
)
def test_damaged_artifacts_are_named(
    artifacts: Path, params: Params, tmp_path: Path, damage: Any, message: str
) -> None:
    damage(artifacts)
    with pytest.raises(PillTrackError, match=message):
        report(params, artifacts, tmp_path / "out", against=None)


def test_captures_that_were_not_measured_are_named(
    finished: Path, params: Params, tmp_path: Path
) -> None:
    settings = params.evaluate.model_copy(update={"captures": "real"})
    with pytest.raises(StageFailed, match=r"test\.real"):
        report(params.model_copy(update={"evaluate": settings}), finished, tmp_path, against=None)


def test_photos_of_another_run_are_named(artifacts: Path, params: Params, tmp_path: Path) -> None:
    rows = [replace(row, image="images/gone.png") for row in _outcomes()]
    write_outcomes(artifacts / "evaluate" / "outcomes.csv", rows)
    with pytest.raises(StageFailed, match=r"images/gone\.png"):
        report(params, artifacts, tmp_path, against=None)


def test_summary_names_the_report_only_when_there_is_one(artifacts: Path, params: Params) -> None:
    before = summary(artifacts)
    assert "recall@1 new pills (rendered)" in before
    assert "81.9 % (74.1 to 91.2), 96 photos of 24 pills, gallery 3 pills" in before
    assert "report.html" not in before
    report(params, artifacts, artifacts / "report", against=None)
    assert str(artifacts / "report" / "report.html") in summary(artifacts)


def test_examples_in_the_docstrings_run() -> None:
    result = doctest.testmod(verdict)
    assert result.failed == 0
    assert result.attempted > 10


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=4).filter(any))
def test_natural_numbers_add_up_and_hide_no_share(weights: list[int]) -> None:
    shares = [weight / sum(weights) for weight in weights]
    counts = verdict.out_of(shares)
    assert sum(counts.parts) == counts.of
    for share, part in zip(shares, counts.parts, strict=True):
        assert abs(part - share * counts.of) < 1
        assert part > 0 or share * 10000 < 1


class _Page(HTMLParser):
    """What a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.sources: list[str] = []
        self.alts: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.headings: list[str] = []
        self._words: list[str] = []
        self._skip = 0

    @property
    def text(self) -> str:
        return " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._skip += tag in ("style", "svg", "title")
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{name} of {tag}"
            if name in ("src", "srcset", "data", "poster", "action"):
                self.sources.append(value or "")
            if name in ("href", "xlink:href"):
                self.links.append(value or "")
            if name == "alt":
                self.alts.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        self._skip -= tag in ("style", "svg", "title")

    def handle_data(self, data: str) -> None:
        if not self._skip:
            self._words.append(data)


def _parse(page: str) -> _Page:
    parsed = _Page()
    parsed.feed(page)
    parsed.close()
    return parsed


def _texts(
    params: Params, artifacts: Path, out: Path, against: str | None = None
) -> tuple[str, str]:
    page, comment = report(params, artifacts, out, against=against)
    assert (page, comment) == (out / "report.html", out / "report.md")
    return page.read_text(encoding="utf-8"), comment.read_text(encoding="utf-8")


def _draw_photos(prepared: Path) -> list[ImageRow]:
    rows = []
    for pill, (_, colour, split) in PILLS.items():
        for number in range(4):
            image = f"images/{pill}/{number}.png"
            path = prepared / image
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.new("RGB", (48, 48), "#101010")
            box = (6 + number, 8, 40 + number, 38)
            ImageDraw.Draw(picture).ellipse(box, fill=COLOURS[colour])
            picture.save(path)
            enrolled = "fit" if split == "train" else "reference"
            role = "stranger" if pill == STRANGER else enrolled if number < 2 else "probe"
            rows.append(
                ImageRow(
                    image=image,
                    pill=pill,
                    side="",
                    session=f"{pill}-{number}",
                    capture="rendered",
                    group=f"{pill}-{number}",
                    split=split,  # type: ignore[arg-type]
                    role=role,  # type: ignore[arg-type]
                )
            )
    write_images(prepared, rows)
    write_pills(prepared, [PillRow(pill, name=name) for pill, (name, _, _) in PILLS.items()])
    (prepared / "audit.json").write_text(json.dumps({"archive_sha256": "ab" * 32}))
    return rows


def _outcomes() -> list[OutcomeRow]:
    def row(
        cohort: str, pill: str, number: int, best: str, score: float, rank: int, decision: str
    ) -> OutcomeRow:
        return OutcomeRow(
            captures="rendered",
            cohort=cohort,
            image=f"images/{pill}/{number}.png",
            capture_seed="",
            pill=pill,
            side="",
            best_pill=best,
            best_score=score,
            second_pill="p-red",
            second_score=0.1,
            rank=rank,
            decision=decision,
            flipped="0",
        )

    return [
        row("seen", "p-red", 0, "p-red", 0.99, 1, "known"),
        row("new", "p-blue", 2, "p-blue", 0.96, 1, "known"),
        row("new", "p-blue", 3, "p-blue", 0.91, 1, "ambiguous"),
        row("new", "p-green", 2, "p-blue", 0.98, 2, "known"),
        row("new", "p-green", 3, "p-blue", 0.5, 3, "unknown"),
        row("strangers", "p-white", 0, "p-red", 0.95, 0, "known"),
        row("strangers", "p-white", 1, "p-blue", 0.97, 0, "known"),
        row("strangers", "p-white", 2, "p-blue", 0.4, 0, "unknown"),
    ]


def _lookalikes() -> list[LookAlike]:
    def pair(a: str, b: str, similarity: float, **more: Any) -> LookAlike:
        return LookAlike(
            pill_a=a,
            pill_b=b,
            image_a=f"images/{a}/0.png",
            image_b=f"images/{b}/1.png",
            similarity=similarity,
            **more,
        )

    return [
        pair(
            "p-blue",
            "p-green",
            0.99,
            n_probes=3,
            n_confused=2,
            confusion_rate=0.6667,
            told_apart_by="colour; imprint",
            same_drug_other_strength=True,
            colour_difference=12.5,
        ),
        pair(
            "p-blue",
            "p-red",
            0.5,
            n_probes=2,
            n_confused=0,
            confusion_rate=0.0,
            told_apart_by="",
            same_drug_other_strength=False,
        ),
    ]


def _metrics() -> dict[str, Any]:
    """metrics.json as docs/adr/0002-evaluation.md specifies it."""
    mated = {
        "recall_at_1": {"value": 0.8194, "low": 0.741, "high": 0.912},
        "recall_at_5": {"value": 0.95, "low": 0.9, "high": 0.99},
        "map": {"value": 0.7, "low": 0.6, "high": 0.8},
        "auroc": {"value": 0.9, "low": 0.85, "high": 0.95},
        "fnir_at_fpir_5pct": {"needs_stranger_pills": 59, "value": 0.5},
        "fnir_at_fpir_1pct": {"needs_stranger_pills": 299, "value": 0.7},
        "fnir_at_fpir_0.1pct": {"needs_stranger_pills": 2995, "value": 0.9},
    }
    by_references = {"1": {**mated}}
    two_sided = {key: value for key, value in mated.items() if key != "map"}
    return {
        "gallery": {"pills": 3, "references": 6},
        "calibration": {
            "threshold": 0.9,
            "margin": 0.01,
            "n_stranger_probes": 160,
            "n_stranger_pills": 10,
            "n_mated_probes": 56,
            "n_mated_pills": 14,
        },
        "model": {"int8_bytes": 3255152},
        "test": {
            "rendered": {
                "seen": {
                    "n_probes": 384,
                    "n_pills": 96,
                    **mated,
                    "decisions": {
                        "fnir": {"value": 0.5, "low": 0.4, "high": 0.6},
                        "misnamed": {"value": 0.04},
                        "misnamed_upper": 0.1,
                        "ambiguous": {"value": 0.01},
                    },
                    "by_references": by_references,
                },
                "new": {
                    "n_probes": 96,
                    "n_pills": 24,
                    **mated,
                    "decisions": {
                        "fnir": {"value": 0.6, "low": 0.5, "high": 0.7},
                        "misnamed": {"value": 0.05, "low": 0.01, "high": 0.1},
                        "misnamed_upper": 0.2,
                        "ambiguous": {"value": 0.1, "low": 0.05, "high": 0.15},
                    },
                    "by_references": by_references,
                    "two_sided": {"n_probes": 40, "n_pills": 20, **two_sided},
                },
                "strangers": {
                    "n_probes": 256,
                    "n_pills": 16,
                    "fpir": {"value": 0.125, "low": 0.05, "high": 0.2},
                    "fpir_upper": 0.31,
                    "named": {"value": 0.06, "low": 0.02, "high": 0.1},
                },
                "parity": {
                    "n_probes": 736,
                    "flips": 0.06,
                    "fpir_int8": 0.125,
                    "fpir_float": 0.12,
                    "fnir_int8": 0.6,
                    "fnir_float": 0.59,
                },
            }
        },
    }


def _write_metrics(evaluate: Path, metrics: dict[str, Any]) -> None:
    evaluate.mkdir(parents=True, exist_ok=True)
    (evaluate / "metrics.json").write_text(json.dumps(metrics))


def _fail_gate(artifacts: Path) -> None:
    metrics = _metrics()
    metrics["test"]["rendered"]["strangers"]["fpir_upper"] = 0.4543
    _write_metrics(artifacts / "evaluate", metrics)
    (artifacts / "evaluate" / "calibration.json").unlink()


def _commit(
    repo: Path, tag: str, files: tuple[str, ...] = ("artifacts/evaluate/metrics.json",)
) -> None:
    _git(repo, "init", "-q")
    _git(repo, "config", "user.email", "test@pilltrack")
    _git(repo, "config", "user.name", "test")
    _dvc(repo, "init", "-q")
    _git(repo, "add", ".dvc", ".dvcignore", *files)
    _git(repo, "commit", "-qm", tag)
    _git(repo, "tag", tag)


def _git(repo: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(repo), *arguments], check=True, capture_output=True)


def _dvc(repo: Path, *arguments: str) -> None:
    from dvc.cli import main

    assert main(["--cd", str(repo), *arguments]) == 0
