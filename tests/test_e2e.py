"""The whole pipeline as a user runs it: `dvc repro` on rendered pills in a fresh repository."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

from pilltrack.core import embedder
from pilltrack.core.bundle import PROBES_FILE, read_bundle
from pilltrack.core.decide import Rule, decide
from pilltrack.core.embedder import open_embedder
from pilltrack.core.errors import (
    BundleRejected,
    DatasetRejected,
    GateFailed,
    PillTrackError,
    SpaceMismatch,
    StageFailed,
)
from pilltrack.core.gallery import Gallery, Reference
from pilltrack.core.identify import open_identifier
from pilltrack.core.image import read_image
from pilltrack.core.preprocess import to_model_input
from pilltrack.core.probes import read_probes
from pilltrack.edge.selftest import self_test
from pilltrack.pipeline import evaluate, package, trial
from pilltrack.pipeline.agreement import embed_sets, measure_agreement, sets_of
from pilltrack.pipeline.calibrate import agreement_limit
from pilltrack.pipeline.evaluate_folder import evaluate_folder
from pilltrack.pipeline.models import EmbeddingNet, save_network
from pilltrack.pipeline.params import load_params
from pilltrack.pipeline.probe_pictures import N_RENDERED
from pilltrack.pipeline.results import load_metrics
from pilltrack.pipeline.table import load_images, write_images
from tests.clone import run

pytestmark = pytest.mark.e2e
BUNDLE = Path("artifacts/package/bundle")


def test_everything_is_up_to_date_after_repro(repository: Path) -> None:
    assert "up to date" in run(repository, "dvc", "status").stdout
    again = run(repository, "dvc", "repro")
    assert "Running stage" not in again.stdout


def test_metrics_and_plots_are_there_for_dvc(repository: Path) -> None:
    shown = json.loads(run(repository, "dvc", "metrics", "show", "--json").stdout)
    files = next(iter(shown.values()))["data"]
    recall = files["artifacts/evaluate/metrics.json"]["data"]["test"]["rendered"]["new"]
    assert 0 <= recall["recall_at_1"]["value"] <= 1
    assert files["artifacts/convert/parity.json"]["data"]["int8_mean_cosine"] > 0.8
    run(repository, "dvc", "plots", "show", "--out", "plots")
    page = (repository / "plots" / "index.html").read_text()
    for plot in ("train_history", "distill_history"):
        assert f"artifacts_{plot}_csv" in page
    for title in ("DET: enrolled pills missed", "Scores of the nearest pill", "recall@1 by"):
        assert title in page


def test_metrics_diff_shows_what_changed(repository: Path) -> None:
    path = repository / "artifacts" / "evaluate" / "metrics.json"
    committed = path.read_text()
    metrics = json.loads(committed)
    metrics["test"]["rendered"]["new"]["recall_at_1"]["value"] = 0.12345
    path.write_text(json.dumps(metrics))
    try:
        diff = json.loads(run(repository, "dvc", "metrics", "diff", "--json", "HEAD").stdout)
    finally:
        path.write_text(committed)
    changed = diff["artifacts/evaluate/metrics.json"]
    assert list(changed) == ["test.rendered.new.recall_at_1.value"]
    assert changed["test.rendered.new.recall_at_1.value"]["new"] == 0.12345


def test_the_same_seed_gives_the_same_metrics(repository: Path, tmp_path: Path) -> None:
    again = tmp_path / "artifacts"
    (again / "prepare").parent.mkdir()
    (again / "prepare").symlink_to(repository / "artifacts" / "prepare")
    for stage in ("train", "distill", "convert", "enroll", "evaluate"):
        run(repository, "pilltrack", stage, "--artifacts", str(again))
    for name in ("evaluate/metrics.json", "convert/model.tflite", "enroll/gallery.safetensors"):
        first = (repository / "artifacts" / name).read_bytes()
        assert first == (again / name).read_bytes(), name


def test_push_wipe_pull_brings_everything_back(repository: Path) -> None:
    run(repository, "dvc", "push")
    digest = read_bundle(repository / BUNDLE).space
    shutil.rmtree(repository / ".dvc" / "cache")
    shutil.rmtree(repository / "artifacts" / "package")
    (repository / "data" / "pills_dataset_resnet.zip").unlink()
    run(repository, "dvc", "pull")
    assert read_bundle(repository / BUNDLE).space == digest
    assert (repository / "data" / "pills_dataset_resnet.zip").is_file()


def test_identify_prints_one_json_object_per_image(repository: Path) -> None:
    rows = load_images(repository / "artifacts" / "prepare")
    images = [f"artifacts/prepare/{row.image}" for row in rows if row.role == "probe"][:3]
    done = run(
        repository, "pilltrack", "identify", "--json", "--crop", f"--bundle={BUNDLE}", *images
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["image"] for answer in answers] == images
    for answer in answers:
        (pill,) = answer["pills"]
        assert pill["box"] == [0, 0, 224, 224]
        assert pill["decision"] in ("known", "unknown", "ambiguous")
        assert (pill["pill"] is not None) == (pill["decision"] == "known")
        assert pill["candidates"][0]["score"] == pill["score"]


def test_what_is_evaluated_is_what_ships(repository: Path) -> None:
    metrics = json.loads((repository / "artifacts/evaluate/metrics.json").read_text())
    rows = load_images(repository / "artifacts" / "prepare")
    strangers = [r for r in rows if r.role == "stranger" and r.split == "test"]
    with open_identifier(repository / BUNDLE) as identifier:
        kinds = [
            identifier.identify_crop(read_image(repository / "artifacts" / "prepare" / row.image))[
                0
            ]
            for row in strangers
        ]
    accepted = sum(pill.decision.kind != "unknown" for pill in kinds) / len(kinds)
    measured = metrics["test"]["rendered"]["strangers"]["fpir"]["value"]
    assert accepted == pytest.approx(measured, abs=1e-5)
    assert decide([], identifier.calibration).kind == "unknown"


def test_fewer_pills_have_the_thresholds_that_test_pills_prove(repository: Path) -> None:
    metrics = load_metrics(repository / "artifacts" / "evaluate" / "metrics.json")
    settings = load_params(repository / "params.yaml").evaluate
    calibration = read_bundle(repository / BUNDLE).calibration
    found = metrics.smaller_galleries
    assert min(found) == 5
    proven = [
        size
        for size in sorted(found)
        if found[size].fpir_upper <= settings.promised_fpir
        and found[size].misnamed_upper <= settings.promised_misnamed
        and found[size].threshold < calibration.threshold
    ]
    assert [size.gallery_size for size in calibration.smaller] == proven
    for size in calibration.smaller:
        assert size.threshold == pytest.approx(found[size.gallery_size].threshold, abs=1e-5)


def test_photos_to_enrol_agree_as_those_of_validation_pills_do(repository: Path) -> None:
    prepared = repository / "artifacts" / "prepare"
    params, bundle = load_params(repository / "params.yaml"), read_bundle(repository / BUNDLE)
    embedder = open_embedder(repository / BUNDLE / bundle.model.file)
    rows, seed = load_images(prepared), params.evaluate.seed
    good, tested = (
        embed_sets(embedder, sets_of(params, rows, split), prepared, params.capture)
        for split in ("validation", "test")
    )
    limit = agreement_limit(good.agreements(), good.pills, params.evaluate.refused_sets)
    assert -1 < limit == pytest.approx(bundle.calibration.agreement, abs=1e-5)
    metrics = json.loads((repository / "artifacts" / "evaluate" / "metrics.json").read_text())
    assert metrics["enrolment"] == pytest.approx(measure_agreement(limit, tested, seed), abs=1e-4)


def test_evaluate_folder_gives_the_numbers_of_the_library_call(
    repository: Path, tmp_path: Path
) -> None:
    for row in load_images(repository / "artifacts" / "prepare"):
        folder = {"reference": "gallery", "probe": "probes", "stranger": "strangers"}.get(row.role)
        if row.split == "test" and folder:
            target = tmp_path / folder / row.pill / Path(row.image).name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / "artifacts" / "prepare" / row.image, target)
    arguments = [f"--{name}={tmp_path / name}" for name in ("gallery", "probes", "strangers")]
    command = ["pilltrack", "evaluate-folder", f"--bundle={BUNDLE}", *arguments]
    printed = json.loads(run(repository, *command, "--references=2", "--json").stdout)
    called = evaluate_folder(
        repository / BUNDLE,
        tmp_path / "gallery",
        tmp_path / "probes",
        tmp_path / "strangers",
        references=2,
    )
    assert printed == called
    assert called["gallery_references"] == 2 * called["gallery_pills"]
    assert {"recall_at_1", "recall_at_5", "auroc", "fnir_at_fpir_5pct"} <= called.keys()


@pytest.mark.parametrize(
    ("damage", "message"), [("delete", "model.tflite"), ("tamper", "model.tflite")]
)
def test_a_damaged_bundle_is_refused_and_the_file_named(
    repository: Path, tmp_path: Path, damage: str, message: str
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(repository / BUNDLE, bundle)
    model = bundle / "model.tflite"
    if damage == "delete":
        model.unlink()
    else:
        model.chmod(0o644)
        data = bytearray(model.read_bytes())
        data[len(data) // 2] ^= 1
        model.write_bytes(bytes(data))
    image = str(repository / "docs" / "img" / "synth_contact_sheet.jpg")
    done = run(repository, "pilltrack", "identify", image, f"--bundle={bundle}", check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_gate_stops_dvc_and_leaves_the_bundle_of_before(repository: Path) -> None:
    before = read_bundle(repository / BUNDLE)
    good = (repository / "params.yaml").read_text()
    params = yaml.safe_load(good)
    params["evaluate"] |= {"min_recall_at_1_new": 1.0, "promised_fpir": 0.01}
    (repository / "params.yaml").write_text(yaml.safe_dump(params))
    try:
        done = run(repository, "dvc", "repro", check=False)
        assert done.returncode != 0
        for reason in ("gate failed", "recall@1 of new pills", "strangers may be accepted"):
            assert reason in done.stderr
        assert (repository / "artifacts/evaluate/metrics.json").is_file()  # what to look at
        assert not (repository / "artifacts/evaluate/calibration.json").exists()
        assert read_bundle(repository / BUNDLE) == before
    finally:
        (repository / "params.yaml").write_text(good)
        run(repository, "dvc", "repro")
    assert read_bundle(repository / BUNDLE) == before


Spoil = Callable[[Path, pytest.MonkeyPatch], None]
Rows = NDArray[np.float32]


def shuffle_labels(artifacts: Path, _: pytest.MonkeyPatch) -> None:
    rows = load_images(artifacts / "prepare")
    probes = sorted((row for row in rows if row.role == "probe"), key=lambda row: row.image)
    pills = sorted({row.pill for row in probes})
    other = dict(zip(pills, [*pills[1:], pills[0]], strict=True))
    changed = [replace(row, pill=other[row.pill]) if row in probes else row for row in rows]
    write_images(artifacts / "prepare", changed)


def empty_the_test_set(artifacts: Path, _: pytest.MonkeyPatch) -> None:
    rows = load_images(artifacts / "prepare")
    write_images(artifacts / "prepare", [row for row in rows if row.split != "test"])


def truncate_the_gallery(artifacts: Path, _: pytest.MonkeyPatch) -> None:
    file = artifacts / "enroll" / "gallery.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def edit_gallery(
    artifacts: Path,
    references: Callable[[list[Reference]], list[Reference]] = list,
    embeddings: Callable[[Rows], Rows] = np.asarray,
    space: str | None = None,
) -> None:
    file = artifacts / "enroll" / "gallery.safetensors"
    with Gallery.load(file) as old, Gallery.create(space or old.space, old.dim) as new:
        new.background = old.background
        kept = references(old.references())
        rows = {reference: row for row, reference in enumerate(old.references())}
        new.enrol(kept, embeddings(old.embeddings())[[rows[reference] for reference in kept]])
        new.save(file)


def mix_up_the_gallery(artifacts: Path, _: pytest.MonkeyPatch) -> None:
    edit_gallery(artifacts, embeddings=lambda rows: np.roll(rows, 40, axis=0))


def forget_half_of_the_gallery(artifacts: Path, _: pytest.MonkeyPatch) -> None:
    edit_gallery(artifacts, lambda references: references[::2])


def enrol_the_probes(artifacts: Path, _: pytest.MonkeyPatch) -> None:
    probes = [row for row in load_images(artifacts / "prepare") if row.role == "probe"]
    images = [read_image(artifacts / "prepare" / row.image) for row in probes]
    embeddings = open_embedder(artifacts / "convert" / "model.tflite").embed(images)
    file = artifacts / "enroll" / "gallery.safetensors"
    with Gallery.load(file) as gallery:
        gallery.enrol([Reference(row.pill, row.side, row.image) for row in probes], embeddings)
        gallery.save(file)


def enrol_with_another_preprocessing(artifacts: Path, _: pytest.MonkeyPatch) -> None:
    edit_gallery(artifacts, space="f" * 64)


def swap_colours_on_the_device(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(embedder, "to_model_input", lambda crop, px: to_model_input(crop, px)[..., ::-1])


def accept_everything(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(trial, "calibrate", lambda *_, **__: Rule(threshold=0.0, margin=0.0))


@pytest.mark.parametrize(
    ("spoil", "error", "reason"),
    [
        (shuffle_labels, GateFailed, "recall@1 of seen pills"),
        (empty_the_test_set, DatasetRejected, "no such captures of new and strangers pills"),
        (truncate_the_gallery, BundleRejected, "gallery.safetensors"),
        (mix_up_the_gallery, GateFailed, "recall@1 of seen pills"),
        (forget_half_of_the_gallery, StageFailed, "the gallery.* others are missing"),
        (enrol_the_probes, StageFailed, "the gallery.* should not be there"),
        (enrol_with_another_preprocessing, SpaceMismatch, "embedding space"),
        (swap_colours_on_the_device, GateFailed, "recall@1 of seen pills"),
        (accept_everything, GateFailed, "strangers may be accepted"),
    ],
)
def test_what_is_wrong_fails_closed_and_says_why(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Spoil,
    error: type[PillTrackError],
    reason: str,
) -> None:
    artifacts = tmp_path / "artifacts"
    for stage in ("prepare", "distill", "convert", "enroll", "evaluate"):
        shutil.copytree(repository / "artifacts" / stage, artifacts / stage)
    assert (artifacts / "evaluate" / "calibration.json").exists()
    spoil(artifacts, monkeypatch)
    with pytest.raises(error, match=reason):
        evaluate.main(load_params(repository / "params.yaml"), artifacts)
    assert not (artifacts / "evaluate" / "calibration.json").exists()


@pytest.mark.parametrize(
    "change", [{"fpir": 0.95}, {"gallery_size": 7, "smaller": []}, {"captures": "real"}]
)
def test_a_calibration_of_another_run_is_not_packaged(
    repository: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    artifacts = tmp_path / "artifacts"
    for stage in ("prepare", "convert", "enroll", "evaluate", "locate"):
        shutil.copytree(repository / "artifacts" / stage, artifacts / stage)
    file = artifacts / "evaluate" / "calibration.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(StageFailed, match=r"calibration\.json"):
        package.main(load_params(repository / "params.yaml"), artifacts)
    assert not (artifacts / "package").exists()


def test_a_bundle_may_leave_all_enrolment_to_the_device(repository: Path, tmp_path: Path) -> None:
    artifacts = tmp_path / "artifacts"
    for stage in ("prepare", "convert", "enroll", "evaluate", "locate"):
        shutil.copytree(repository / "artifacts" / stage, artifacts / stage)
    params = load_params(repository / "params.yaml")
    packaged = params.package.model_copy(update={"gallery": "empty"})
    package.main(params.model_copy(update={"package": packaged}), artifacts)
    with (
        open_identifier(artifacts / "package" / "bundle") as empty,
        open_identifier(repository / BUNDLE) as full,
    ):
        assert empty.gallery.references() == []
        assert empty.manifest.pills == {}
        probes = read_probes(artifacts / "package" / "bundle" / PROBES_FILE)
        assert len(probes.crops) == N_RENDERED  # no photo leaves
        assert self_test(artifacts / "package" / "bundle", None, 60_000).failures == ()
        assert self_test(repository / BUNDLE, None, 60_000).failures == ()
        assert empty.manifest.space == full.manifest.space
        assert empty.calibration == full.calibration
        (pill,) = empty.identify_crop(np.zeros((64, 64, 3), np.uint8))
        assert pill.decision.kind == "unknown"


def test_report_and_compare_work_on_what_the_pipeline_left(
    repository: Path, tmp_path: Path
) -> None:
    run(repository, "pilltrack", "report", "--out", str(tmp_path), "--against", "HEAD")
    assert "://" not in (tmp_path / "report.html").read_text()
    assert "recall@1" in (tmp_path / "report.md").read_text()
    done = run(repository, "pilltrack", "compare", "HEAD", str(BUNDLE), "--json", check=False)
    comparison = json.loads(done.stdout)
    assert {change["difference"] for change in comparison["changes"]} == {0.0}


def test_a_teacher_that_learned_nothing_is_refused(repository: Path, tmp_path: Path) -> None:
    artifacts = tmp_path / "artifacts"
    shutil.copytree(repository / "artifacts" / "prepare", artifacts / "prepare")
    settings = load_params(repository / "params.yaml").train
    torch.manual_seed(0)
    net = EmbeddingNet(settings.backbone, settings.embedding_dim, options={}, pixels="imagenet")
    save_network(net, artifacts / "train" / "teacher.safetensors", input_size_px=64)
    done = run(repository, "pilltrack", "distill", f"--artifacts={artifacts}", check=False)
    assert done.returncode == 3
    assert "distill: the teacher: recall@1" in done.stderr
    assert not (artifacts / "distill").exists()


def test_bad_parameters_leave_existing_outputs_untouched(repository: Path) -> None:
    before = (repository / "artifacts/train/teacher.safetensors").read_bytes()
    good = (repository / "params.yaml").read_text()
    params = yaml.safe_load(good)
    params["train"]["epocs"] = 3
    (repository / "params.yaml").write_text(yaml.safe_dump(params))
    try:
        done = run(repository, "pilltrack", "train", check=False)
    finally:
        (repository / "params.yaml").write_text(good)
    assert done.returncode == 1
    assert "Did you mean epochs?" in done.stderr
    assert (repository / "artifacts/train/teacher.safetensors").read_bytes() == before


def test_ctrl_c_ends_training_quietly_and_leaves_no_output(
    repository: Path, tmp_path: Path
) -> None:
    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()
    (artifacts / "prepare").symlink_to(repository / "artifacts" / "prepare")
    process = subprocess.Popen(
        [sys.executable, "-m", "pilltrack", "train", "--artifacts", str(artifacts)],
        cwd=repository,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(repository / "src")},
    )
    deadline = time.monotonic() + 120
    while not (artifacts / ".checkpoints" / "train.pt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert not (artifacts / "train").exists() or not list((artifacts / "train").iterdir())
