"""The locator's targets, loss, scores and stage, on scenes small enough for seconds."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import pilltrack
from pilltrack.core.bundle import read_bundle
from pilltrack.core.errors import GateFailed, StageFailed
from pilltrack.core.identify import STARTER_BUNDLE
from pilltrack.core.locate import STRIDE, Found, Locator, find_pills
from pilltrack.pipeline.detections import average_precision, boxes_of, score_frame, summary
from pilltrack.pipeline.locate import (
    CLUTTER_EVERY,
    CONFIDENCES,
    STARTER,
    TwoLooks,
    _Scenes,
    _scenes,
    calibration_images,
    check,
    choose_confidence,
    export_locator,
    gate,
    load_locator,
    main,
    save_locator,
    train,
)
from pilltrack.pipeline.locator_data import example, rendered_cut_outs, scene_of
from pilltrack.pipeline.locator_net import LocatorNet, locator_loss, targets_of
from pilltrack.pipeline.params import LocateParams, Params
from pilltrack.pipeline.placing import Photo
from pilltrack.pipeline.second_look import Finds
from pilltrack.pipeline.starter import renew

STUDENT = Path(pilltrack.__file__).parent / "starter" / "student.safetensors"
SETTINGS = LocateParams(
    seed=3,
    weights="none",
    input_size_px=96,
    rendered_pills=4,
    steps=4,
    scenes_per_step=2,
    views_per_scene=2,
    learning_rate=0.002,
    weight_decay=0.0001,
    warmup_share=0.25,
    precision="fp32",
    workers=0,
    checkpoint_every_s=0.001,
    look_weights="none",
    look_scenes=6,
    look_steps=2,
    look_learning_rate=0.001,
    calibration_scenes=2,
    validation_scenes=2,
    false_finds=1.0,
    min_ap50=0.0,
    min_recall=0.0,
    max_false_finds=1.0,
)


@pytest.fixture
def found_both_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first look found a pill and something else: so untrained a net finds nothing right."""

    def gather(model: Path, cutouts: object, settings: object, kept: Path, identity: str) -> Finds:
        assert model.is_file()
        kept.mkdir(parents=True)
        (kept / "0000000.safetensors").touch()
        return Finds(np.zeros((2, 96, 96, 3), np.uint8), np.arange(2) == 0, np.zeros(2, np.float32))

    monkeypatch.setattr("pilltrack.pipeline.locate.gather", gather)


@pytest.fixture(scope="module")
def cutouts() -> list[Photo]:
    return rendered_cut_outs(SETTINGS.rendered_pills, SETTINGS.seed)


@pytest.mark.parametrize("number", range(10))
def test_perfect_answers_are_read_back_as_the_scene(cutouts: list[Photo], number: int) -> None:
    scene = scene_of(cutouts, 320, (1, number), 12)
    height, width = scene.labels.shape
    _, maps, _ = example(scene, 320)
    found = find_pills(maps, height, width, 0.3)
    score = score_frame(*boxes_of(found), scene.boxes.astype(np.float64))
    assert score.right.all()
    assert len(found) >= score.n_pills - 1  # of two in a heap, one may hide the other's middle


def test_targets_of_a_square_pill_are_as_computed_by_hand() -> None:
    labels = np.zeros((32, 32), np.uint8)
    labels[8:20, 4:16] = 1
    maps, weights = targets_of(labels, np.array([[4, 8, 12, 12]]))
    assert maps[3, 2, 0] == 1
    assert (maps[..., 0] == 1).sum() == 1
    assert maps[..., 1].sum() == 9
    assert (maps[3, 2, 2:] ** 2 * 32).tolist() == pytest.approx([6, 6, 6, 6], abs=1e-4)
    assert weights.sum() == pytest.approx(1)


def test_every_pill_has_exactly_the_weight_of_one(cutouts: list[Photo]) -> None:
    scene = scene_of(cutouts, 160, (2, 0), 8)
    _, _, weights = example(scene, 160)
    assert weights.sum() == pytest.approx(len(scene.boxes), abs=0.5)


def test_loss_falls_towards_the_right_answer(cutouts: list[Photo]) -> None:
    _, maps, weights = example(scene_of(cutouts, 96, (4, 1), 5), 96)
    targets, shares = torch.from_numpy(maps)[None], torch.from_numpy(weights)[None]
    right = torch.logit(targets.clamp(1e-3, 1 - 1e-3)).permute(0, 3, 1, 2)
    half_right = 0.5 * right
    losses = [float(locator_loss(x, targets, shares)) for x in (right, half_right, 0 * right)]
    assert losses == sorted(losses)
    assert losses[0] < 0.3 * losses[2]


def test_loss_is_finite_without_pills() -> None:
    logits = torch.zeros(1, 6, 8, 8, requires_grad=True)
    loss = locator_loss(logits, torch.zeros(1, 8, 8, 6), torch.zeros(1, 8, 8))
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_maps_are_a_quarter_of_the_input_and_between_0_and_1() -> None:
    with torch.no_grad():
        maps = LocatorNet().eval()(torch.full((2, 64, 64, 3), 255.0))
    assert maps.shape == (2, 64 // STRIDE, 64 // STRIDE, 6)
    assert maps.min() >= 0
    assert maps.max() <= 1


def test_stopped_training_goes_on_to_the_same_weights(cutouts: list[Photo], tmp_path: Path) -> None:
    whole, halted = seeded_net(), seeded_net()
    history = train(whole, cutouts, SETTINGS, tmp_path / "whole.pt", "run")

    class Stopped(Exception):
        pass

    calls = 0
    forward = halted.logits

    def stopping(images: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Stopped
        return forward(images)

    halted.logits = stopping  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        train(halted, cutouts, SETTINGS, tmp_path / "halted.pt", "run")
    resumed = seeded_net()
    again = train(resumed, cutouts, SETTINGS, tmp_path / "halted.pt", "run")
    assert again == history
    for some, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(some, other)


def test_a_checkpoint_of_another_run_is_left_alone(cutouts: list[Photo], tmp_path: Path) -> None:
    train(seeded_net(), cutouts, SETTINGS, tmp_path / "a.pt", "one")
    history = train(seeded_net(), cutouts, SETTINGS, tmp_path / "a.pt", "another")
    assert history[-1]["step"] == SETTINGS.steps


def test_training_without_pills_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="rendered_pills"):
        train(LocatorNet(), [], SETTINGS, tmp_path / "a.pt", "run")


def test_exported_locator_answers_like_the_network_and_survives_any_frame(
    cutouts: list[Photo], tmp_path: Path
) -> None:
    nets, model = TwoLooks().eval(), tmp_path / "locator.tflite"
    load_locator(nets, STARTER)
    export_locator(nets, calibration_images(nets.first, cutouts, SETTINGS), model)
    assert model.stat().st_size < 2_000_000
    locator = Locator(model, min_confidence=0.3)
    scene = scene_of(cutouts, 96, (9, 9), 4)
    pixels, _, _ = example(scene, 96)
    with torch.no_grad():
        wanted = nets.first(torch.from_numpy(pixels)[None].float())[0].numpy()
    answers = locator.maps(scene.frame)
    assert np.corrcoef(answers.ravel(), wanted.ravel())[0, 1] > 0.98  # 8 bits of noise
    rng = np.random.default_rng(0)
    for shape in ((1, 1, 3), (1, 5000, 3), (3000, 4000, 3), (37, 11, 3)):
        for frame in (
            np.zeros(shape, np.uint8),
            np.full(shape, 255, np.uint8),
            rng.integers(0, 256, shape, dtype=np.uint8),
        ):
            some, other = locator.locate(frame), locator.locate(frame)
            assert [pill.box for pill in some] == [pill.box for pill in other]
    with pytest.raises(ValueError, match="crop has shape"):
        locator.locate(np.zeros((0, 4, 3), np.uint8))
    metrics = check(locator, cutouts, SETTINGS)
    assert metrics["scenes"] == 2
    assert 0 <= metrics["ap50"] <= 1


@pytest.mark.usefixtures("found_both_kinds")
def test_stage_writes_model_history_and_metrics(tiny_artifacts: Path, tiny_params: Params) -> None:
    main(tiny_params.model_copy(update={"locate": SETTINGS}), tiny_artifacts)
    out = tiny_artifacts / "locate"
    assert json.loads((out / "locator.json").read_text())["min_confidence"] in CONFIDENCES
    assert (
        Locator(out / "locator.tflite", min_confidence=0.3).input_size_px == SETTINGS.input_size_px
    )
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["int8_bytes"] == (out / "locator.tflite").stat().st_size
    assert (out / "history.csv").read_text().splitlines()[-1].startswith("4,")
    assert (out / "look_history.csv").read_text().splitlines()[-1].startswith("2,")
    assert not list((tiny_artifacts / ".checkpoints").glob("locate*"))


@pytest.mark.usefixtures("found_both_kinds")
def test_a_gate_that_fails_leaves_no_model_and_no_finds(
    tiny_artifacts: Path, tiny_params: Params
) -> None:
    settings = SETTINGS.model_copy(update={"min_ap50": 1.0})
    with pytest.raises(GateFailed):
        main(tiny_params.model_copy(update={"locate": settings}), tiny_artifacts)
    assert not (tiny_artifacts / ".checkpoints" / "locate_finds").exists()
    assert sorted(file.name for file in (tiny_artifacts / "locate").iterdir()) == ["metrics.json"]


def test_scenes_are_developed_to_train_the_first_look_alone(cutouts: list[Photo]) -> None:
    shown = _Scenes(cutouts, SETTINGS)
    differ = 0
    for number in range(12):
        seed = (SETTINGS.seed, 0, number)
        scene = scene_of(cutouts, 96, seed, None if number % 4 else 0)
        pixels, maps, _ = example(scene, 96)
        assert np.array_equal(shown[number][1], maps)
        differ += not np.array_equal(shown[number][0], pixels)
    assert differ >= 6
    (checked,) = _scenes(cutouts, SETTINGS, "check, clutter", 1)
    assert np.array_equal(checked.frame, scene_of(cutouts, 96, (SETTINGS.seed, 5, 0), 0).frame)


def test_saved_weights_come_back_and_others_are_refused(tmp_path: Path) -> None:
    some, other = seeded_nets(), TwoLooks()
    save_locator(some, tmp_path / "locator.safetensors")
    load_locator(other, tmp_path / "locator.safetensors")
    for a, b in zip(some.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-3)
    with pytest.raises(StageFailed, match=r"(?s)student.*: not a locator.*none, starter"):
        load_locator(other, STUDENT)
    with pytest.raises(StageFailed, match=r"absent\.safetensors"):
        load_locator(other, tmp_path / "absent.safetensors")


def test_no_steps_take_the_weights_as_they_are(
    cutouts: list[Photo], tiny_artifacts: Path, tiny_params: Params, tmp_path: Path
) -> None:
    save_locator(seeded_nets(), tmp_path / "start.safetensors")
    update = {"weights": str(tmp_path / "start.safetensors"), "steps": 0, "look_steps": 0}
    settings = SETTINGS.model_copy(update=update)
    main(tiny_params.model_copy(update={"locate": settings}), tiny_artifacts)
    written = (tiny_artifacts / "locate" / "locator.safetensors").read_bytes()
    assert written == (tmp_path / "start.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("aim", "chosen"), [(1.0, CONFIDENCES[0]), (0.5, 0.375), (0.25, 0.625), (0.0, CONFIDENCES[-1])]
)
def test_the_confidence_is_the_least_that_keeps_the_aim(aim: float, chosen: float) -> None:
    class Ghosts(Locator):
        """Finds a ghost in three of four scenes, each time surer of it."""

        def __init__(self) -> None:
            self.sure = iter([0.0, 0.36, 0.61, 0.99])

        def find(self, frame: np.ndarray, min_confidence: float, sure: float = 1.0) -> list[Found]:
            confidence = next(self.sure)
            ghost = Found((0, 0, 1, 1), np.ones((1, 1), bool), confidence)
            return [ghost] if confidence >= min_confidence else []

    settings = SETTINGS.model_copy(update={"false_finds": aim, "validation_scenes": 4})
    assert choose_confidence(Ghosts(), settings) == chosen


def test_a_locator_that_finds_nothing_fails_the_gate() -> None:
    limits = {"min_ap50": 0.9, "min_recall": 0.8, "max_false_finds": 0.02}
    strict = SETTINGS.model_copy(update=limits)
    good = {"ap50": 0.9, "recall": 0.8, "false_finds": 0.02}
    gate(good, strict)
    for key, value, said in (
        ("ap50", 0.4, r"AP50 0\.400"),
        ("recall", 0.3, r"recall 30\.0%"),
        ("false_finds", 0.05, r"5\.0%"),
    ):
        with pytest.raises(GateFailed, match=said):
            gate(good | {key: value}, strict)


def test_average_precision_as_computed_by_hand() -> None:
    pills = np.array([[0.0, 0, 10, 10], [20, 0, 10, 10]])
    found = np.array([[0.0, 0, 10, 10], [50, 50, 10, 10], [20, 0, 10, 10]])
    frame = score_frame(found, [0.9, 0.8, 0.7], pills)
    assert frame.right.tolist() == [True, False, True]
    assert average_precision([frame]) == pytest.approx((1 + 2 / 3) / 2)
    assert summary([frame])["false_finds"] == 1


def test_a_pill_found_twice_counts_once() -> None:
    pills = np.array([[0.0, 0, 10, 10]])
    frame = score_frame(np.repeat(pills, 2, axis=0), [0.5, 0.5], pills)
    assert frame.right.tolist() == [True, False]


def seeded_net() -> LocatorNet:
    return seeded_nets().first


def seeded_nets() -> TwoLooks:
    torch.manual_seed(0)
    return TwoLooks()


def test_ap50_counts_every_find_and_the_rest_only_the_sure_ones() -> None:
    pills = np.array([[0.0, 0, 10, 10], [20, 0, 10, 10]])
    sure, every = score_frame(pills[:1], [0.9], pills), score_frame(pills, [0.9, 0.1], pills)
    found = summary([sure], [every])
    assert (found["recall"], found["ap50"], found["exact_count"]) == (0.5, 1.0, 0.0)


def test_every_fourth_scene_of_a_training_has_no_pills(cutouts: list[Photo]) -> None:
    scenes = _Scenes(cutouts, SETTINGS)
    covered = [float(scenes[number][1][..., 1].sum()) for number in range(24)]
    assert not any(covered[::CLUTTER_EVERY])
    assert sum(map(bool, covered)) >= 10


def test_the_starter_takes_the_locator_of_a_run(tmp_path: Path) -> None:
    bundle, found = tmp_path / "bundle", tmp_path / "locate"
    shutil.copytree(STARTER_BUNDLE, bundle)
    found.mkdir()
    shutil.copy(bundle / "locator.tflite", found)
    (found / "locator.json").write_text('{"min_confidence": 0.45}')
    before = read_bundle(bundle)
    after = renew(bundle, found)
    assert after.locator.min_confidence == 0.45 != before.locator.min_confidence
    assert after.model == before.model
    assert renew(bundle).locator == after.locator
