"""`pilltrack bench`: what it reports, and which limits it finds broken. No test asks for speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pilltrack.core.bench import (
    FirstAnswer,
    Report,
    as_text,
    bench,
    broken_limits,
    fill_up,
    ratio_of_p50,
    read_first_answer,
    require_limits,
    this_machine,
)
from pilltrack.core.errors import BundleRejected, GateFailed, InputRejected, StageFailed
from pilltrack.core.gallery import Gallery, Reference
from pilltrack.core.timing import Percentiles
from tests.tiny_bundle import MODEL, tiny_bundle

FLOAT_MODEL = MODEL.with_name("tiny.tflite")
RED = np.full((40, 40, 3), (200, 30, 30), np.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bench"), "red-pill", RED)


@pytest.fixture(scope="module")
def report(bundle: Path) -> Report:
    return bench(bundle, against=FLOAT_MODEL, runs=30, references=40)


def _report(steps_ms: dict[str, float] | None = None, **changed: Any) -> Report:
    """A report that keeps all limits by a hair: at each limit, not below it."""
    at = {"total_p50": 4.0, "total_p99": 8.0, "embed_p50": 1.5} | (steps_ms or {})
    steps = {
        step: Percentiles(p50=0.5, p95=0.5, p99=0.5, max=0.5)
        for step in ("preprocess", "search", "decide")
    }
    steps["embed"] = Percentiles(p50=at["embed_p50"], p95=9.0, p99=9.0, max=9.0)
    steps["total"] = Percentiles(p50=at["total_p50"], p95=7.0, p99=at["total_p99"], max=99.0)
    start = {
        "references": 7, "starts": 5, "first_answer_s": 0.5, "slowest_s": 0.9, "imports_s": 0.2,
        "open_s": 0.1, "identify_s": 0.01, "peak_mb": 150.0,
    }  # fmt: skip
    return Report.model_validate(
        {
            "format": 1,
            "bundle": "tiny",
            "machine": this_machine(),
            "threads": changed.get("threads", 1),
            "cores": [0],
            "runs": changed.get("runs", 100),
            "crop_px": 300,
            "timing": {
                "model": "model.tflite", "model_bytes": 1, "input_size_px": 8, "embedding_dim": 4,
                "references": changed.get("references", 10_000), "steps_ms": steps,
            },
            "starts": [start | changed.get("start", {})],
            "against": None,
            "ratio": None,
        }
    )  # fmt: skip


def test_the_gallery_is_filled_up_exactly_and_keeps_its_own() -> None:
    own = np.eye(4, dtype=np.float32)[:3]
    with Gallery.create("space", 4) as gallery:
        gallery.enrol([Reference(f"own-{i}", "", "") for i in range(3)], own)
        fill_up(gallery, 10)
        assert len(gallery) == 10
        assert gallery.search(own, 1) == [gallery.search(row[None], 1)[0] for row in own]
        assert {found[0].pill for found in gallery.search(own, 1)} == {"own-0", "own-1", "own-2"}
        np.testing.assert_allclose(np.linalg.norm(gallery.embeddings(), axis=1), 1, atol=1e-6)
        assert len(np.unique(gallery.embeddings(), axis=0)) == 10


@pytest.mark.parametrize("references", [1, 2, 3])
def test_a_gallery_with_enough_references_is_left_alone(references: int) -> None:
    with Gallery.create("space", 4) as gallery:
        gallery.enrol([Reference(p, "", "") for p in "abc"], np.eye(4, dtype=np.float32)[:3])
        fill_up(gallery, references)
        assert gallery.pills() == ["a", "b", "c"]


def test_a_report_says_what_was_measured_on_what(report: Report, bundle: Path) -> None:
    assert (report.bundle, report.runs, report.threads) == ("tiny", 30, 1)
    assert report.timing.model == "model.tflite"
    assert report.timing.model_bytes == (bundle / "model.tflite").stat().st_size
    assert report.timing.references == 40
    assert report.against is not None
    assert (report.against.model, report.against.references) == ("tiny.tflite", 40)
    assert report.ratio == ratio_of_p50(report.against.steps_ms, report.timing.steps_ms)
    assert report.machine.versions["numpy"] == np.__version__


def test_processes_start_with_the_bundle_as_it_is_and_filled_up(report: Report) -> None:
    assert [start.references for start in report.starts] == [1, 40]
    for start in report.starts:
        for part_s in (start.imports_s, start.open_s, start.identify_s, start.first_answer_s):
            assert 0 < part_s <= start.slowest_s


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_is_that_of_the_fresh_process_not_of_this_one(bundle: Path) -> None:
    ballast = np.ones(300_000_000, np.uint8)
    small = bench(bundle, runs=1, references=1)
    assert ballast.sum() == 300_000_000
    assert len(small.starts) == 1
    assert small.starts[0].peak_mb is not None
    assert 20 < small.starts[0].peak_mb < 300


def test_the_json_can_be_read_back_and_has_only_the_described_keys(report: Report) -> None:
    text = report.model_dump_json()
    assert Report.model_validate_json(text) == report
    content = json.loads(text)
    assert set(content) == {
        "format", "bundle", "machine", "threads", "cores", "runs", "crop_px", "timing", "starts",
        "against", "ratio",
    }  # fmt: skip
    assert set(content["timing"]["steps_ms"]) == {
        "preprocess", "embed", "search", "decide", "total",
    }  # fmt: skip
    assert set(content["timing"]["steps_ms"]["total"]) == {"p50", "p95", "p99", "max"}


def test_the_text_has_a_row_per_step_for_both_models(report: Report) -> None:
    lines = as_text(report).splitlines()
    rows = [line.split()[0] for line in lines if line and len(line.split()) == 5]
    assert rows == ["ms", "preprocess", "embed", "search", "decide", "total"] * 2
    assert sum(line.startswith("start to first answer") for line in lines) == 2
    assert lines[-1].startswith("limits for one x86 core: measured with 40 references")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux pins a process to cores")
def test_the_process_may_use_all_its_cores_again(bundle: Path) -> None:
    before = os.sched_getaffinity(0)
    assert bench(bundle, runs=1, references=1).cores == [max(before)]
    assert os.sched_getaffinity(0) == before


def test_a_report_at_its_limits_keeps_them() -> None:
    assert broken_limits(_report()) == []
    require_limits(_report())
    assert as_text(_report()).endswith("limits for one x86 core: all kept")


@pytest.mark.parametrize(
    ("report", "named"),
    [
        (_report({"total_p50": 4.01}), "crop to decision p50 4.01 ms, limit 4 ms"),
        (_report({"total_p99": 8.5}), "crop to decision p99 8.5 ms, limit 8 ms"),
        (_report({"embed_p50": 1.6}), "embed p50 1.6 ms, limit 1.5 ms"),
        (_report(start={"first_answer_s": 0.51}), "start to first answer 0.51 s, limit 0.5 s"),
        (_report(start={"peak_mb": 150.1}), "peak memory 150.1 MB, limit 150 MB"),
        (_report(start={"peak_mb": None}), "peak memory is not measured on this system, "
         "limit 150 MB"),
        (_report(threads=2), "measured with 2 threads, the limits are for 1"),
        (_report(references=9_999), "measured with 9999 references, the limits are for at least "
         "10000"),
        (_report(runs=99), "measured with 99 crops, the limits are for at least 100"),
    ],
)  # fmt: skip
def test_a_broken_or_unproven_limit_is_named(report: Report, named: str) -> None:
    assert broken_limits(report) == [named]
    with pytest.raises(GateFailed, match="smaller student") as failed:
        require_limits(report)
    assert failed.value.found == named
    assert failed.value.exit_code == 3


def test_all_broken_limits_are_named_at_once() -> None:
    report = _report({"total_p50": 5.0, "embed_p50": 2.0}, threads=4)
    assert len(broken_limits(report)) == 3


def test_a_step_too_short_for_the_clock_has_no_ratio() -> None:
    def of(embed: float, decide: float) -> dict[str, Percentiles]:
        both = {"embed": embed, "decide": decide}
        return {s: Percentiles(p50=v, p95=v, p99=v, max=v) for s, v in both.items()}

    assert ratio_of_p50(of(3.0, 0.1), of(2.0, 0.0)) == {"embed": 1.5}


def test_the_line_of_a_fresh_process_is_read() -> None:
    line = '{"imports_s": 0.2, "open_s": 0.1, "identify_s": 0.01, "peak_bytes": 5000}\n'
    assert read_first_answer(line, "INFO: noise") == FirstAnswer(
        imports_s=0.2, open_s=0.1, identify_s=0.01, peak_bytes=5000
    )


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Hello\n",
        '{"imports_s": 0.2}\n',
        '{"imports_s": -1.0, "open_s": 0.1, "identify_s": 0.0, "peak_bytes": null}\n',
        '{"imports_s": 0.2, "open_s": 0.1, "identify_s": 0.0, "peak_bytes": 1, "more": 1}\n',
    ],
)
def test_anything_else_stops_with_what_the_process_complained_of(line: str) -> None:
    with pytest.raises(StageFailed, match="no space left"):
        read_first_answer(line, "Traceback ...\nOSError: no space left\n")


def test_a_fresh_process_prints_one_line_of_json(bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(RED).save(tmp_path / "crop.png")
    done = subprocess.run(
        [sys.executable, "-m", "pilltrack.core.first_answer", tmp_path / "crop.png", bundle],
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = done.stdout.splitlines()
    answer = read_first_answer(line, "")
    assert min(answer.imports_s, answer.open_s, answer.identify_s) > 0


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path, "red-pill", RED)
    (bundle / "model.tflite").write_bytes(b"")
    with pytest.raises(BundleRejected, match="0 bytes"):
        bench(bundle, runs=1, references=1)


def test_a_missing_model_to_compare_with_is_named(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleRejected, match=r"none\.tflite"):
        bench(bundle, against=tmp_path / "none.tflite", runs=1, references=1)


def test_more_references_than_a_gallery_takes_are_refused(bundle: Path) -> None:
    with pytest.raises(InputRejected, match="1000001"):
        bench(bundle, runs=1, references=1_000_001)


@pytest.mark.parametrize("wrong", ["runs", "references", "threads"])
def test_nothing_to_measure_is_an_error(bundle: Path, wrong: str) -> None:
    counts = {"runs": 1, "references": 1, "threads": 1, wrong: 0}
    with pytest.raises(ValueError, match=f"0 {wrong}"):
        bench(
            bundle,
            runs=counts["runs"],
            references=counts["references"],
            threads=counts["threads"],
        )
