"""The training loop: same seed same weights, killed and resumed, one process or two."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import pilltrack.pipeline.fit as fit_module
import pilltrack.pipeline.losses as losses_module
from pilltrack.core.errors import StageFailed
from pilltrack.pipeline import distill, train
from pilltrack.pipeline.models import EmbeddingNet, read_tensors
from pilltrack.pipeline.params import Params


def _copy(prepared: Path, to: Path) -> Path:
    to.mkdir(parents=True, exist_ok=True)
    (to / "prepare").symlink_to(prepared / "prepare")
    return to


def _weights(artifacts: Path, name: str = "train/teacher") -> dict[str, torch.Tensor]:
    return read_tensors(artifacts / f"{name}.safetensors")[0]


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class _Killed(BaseException):
    """Stands for a kill: not an Exception, so nothing may catch it."""


@pytest.fixture(scope="module")
def trained(
    tiny_artifacts: Path, tiny_params: Params, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    artifacts = _copy(tiny_artifacts, tmp_path_factory.mktemp("trained"))
    train.main(tiny_params, artifacts)
    distill.main(tiny_params, artifacts)
    return artifacts


def test_the_same_seed_gives_the_same_weights(
    trained: Path, tiny_artifacts: Path, tiny_params: Params, tmp_path: Path
) -> None:
    again = _copy(tiny_artifacts, tmp_path / "again")
    train.main(tiny_params, again)
    first, second = (a / "train" / "teacher.safetensors" for a in (trained, again))
    assert first.read_bytes() == second.read_bytes()


def test_another_seed_gives_other_weights(
    trained: Path, tiny_artifacts: Path, tiny_params: Params, tmp_path: Path
) -> None:
    other = tiny_params.model_copy(
        update={"train": tiny_params.train.model_copy(update={"seed": 99})}
    )
    artifacts = _copy(tiny_artifacts, tmp_path / "other")
    train.main(other, artifacts)
    assert not _same(_weights(trained), _weights(artifacts))


def test_proxies_alone_teach_too(
    trained: Path, tiny_artifacts: Path, tiny_params: Params, tmp_path: Path
) -> None:
    settings = tiny_params.train.model_copy(update={"loss": "none", "proxy_margin": 0.2})
    artifacts = _copy(tiny_artifacts, tmp_path / "proxies")
    train.main(tiny_params.model_copy(update={"train": settings}), artifacts)
    losses = [
        float(line.split(",")[2])
        for line in (artifacts / "train" / "history.csv").read_text("utf-8").splitlines()[1:]
    ]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert not _same(_weights(trained), _weights(artifacts))


def test_frozen_modules_end_as_they_began_with_their_statistics(
    trained: Path, tiny_artifacts: Path, tiny_params: Params, tmp_path: Path
) -> None:
    settings = tiny_params.train.model_copy(update={"frozen": ["conv_stem", "bn1", "blocks.0"]})
    artifacts = _copy(tiny_artifacts, tmp_path / "frozen")
    train.main(tiny_params.model_copy(update={"train": settings}), artifacts)
    torch.manual_seed(settings.seed)
    net = EmbeddingNet(
        settings.backbone, settings.embedding_dim, options={}, pixels=settings.pixels
    )
    start, end, free = net.state_dict(), _weights(artifacts), _weights(trained)
    kept = [k for k in start if k.startswith(("backbone.conv_stem", "backbone.bn1"))]
    assert len(kept) == 6  # weights, and the running statistics of the batch norm
    for key in kept:
        assert torch.equal(start[key], end[key]), key
        assert not torch.equal(start[key], free[key]), key
    assert not torch.equal(start["head.weight"], end["head.weight"])


@pytest.fixture(scope="module")
def twin_params(tiny_params: Params) -> Params:
    twin = {
        "weights": "teacher",
        "pixels": tiny_params.train.pixels,
        "int8_rounding": True,
        "learning_rate": 1e-4,
    }
    return tiny_params.model_copy(update={"distill": tiny_params.distill.model_copy(update=twin)})


def test_a_twin_starts_from_its_teacher_and_ends_on_the_codes_of_int8(
    trained: Path, tiny_artifacts: Path, twin_params: Params, tmp_path: Path
) -> None:
    artifacts = _copy(tiny_artifacts, tmp_path / "twin")
    shutil.copytree(trained / "train", artifacts / "train")
    distill.main(twin_params, artifacts)
    teacher, twin = _weights(artifacts), _weights(artifacts, "distill/student")
    assert teacher.keys() == twin.keys()
    for key in ("backbone.conv_stem.weight", "backbone.conv_head.weight", "head.weight"):
        before, after = teacher[key].flatten(1), twin[key].flatten(1)
        assert torch.cosine_similarity(before, after).min() > 0.99, key
        codes = after / (after.abs().amax(dim=1, keepdim=True) / 127)
        assert (codes - codes.round()).abs().max() < 1e-3, key


def test_a_student_unlike_its_teacher_cannot_start_from_it(
    trained: Path, tiny_artifacts: Path, twin_params: Params, tmp_path: Path
) -> None:
    artifacts = _copy(tiny_artifacts, tmp_path / "unlike")
    shutil.copytree(trained / "train", artifacts / "train")
    settings = twin_params.distill.model_copy(update={"backbone": "mobilenetv4_conv_small_050"})
    with pytest.raises(StageFailed, match=r"distill\.weights: teacher.*the same network"):
        distill.main(twin_params.model_copy(update={"distill": settings}), artifacts)


@pytest.mark.parametrize("stage", ["train", "distill"])
@pytest.mark.parametrize("kill_at_step", [2, 5])
def test_a_run_killed_at_any_step_resumes_to_the_same_weights(
    trained: Path,
    tiny_artifacts: Path,
    tiny_params: Params,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    kill_at_step: int,
) -> None:
    module, name = {"train": (train, "train/teacher"), "distill": (distill, "distill/student")}[
        stage
    ]
    section = getattr(tiny_params, stage).model_copy(update={"checkpoint_every_s": 1e-9})
    params = tiny_params.model_copy(update={stage: section})
    artifacts = _copy(tiny_artifacts, tmp_path / "killed")
    if stage == "distill":
        shutil.copytree(trained / "train", artifacts / "train")
    steps = 0
    learning_rate = fit_module.learning_rate

    def killing(step: int, *rest: object) -> float:
        nonlocal steps
        steps += 1
        if steps > kill_at_step:
            raise _Killed
        return learning_rate(step, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(fit_module, "learning_rate", killing)
    with pytest.raises(_Killed):
        module.main(params, artifacts)
    assert not (artifacts / f"{name}.safetensors").exists()
    monkeypatch.undo()
    resumed_from: list[int] = []

    def counting(step: int, *rest: object) -> float:
        resumed_from.append(step)
        return learning_rate(step, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(fit_module, "learning_rate", counting)
    module.main(params, artifacts)
    assert resumed_from[0] == kill_at_step
    assert _same(_weights(trained, name), _weights(artifacts, name))
    histories = [(a / stage / "history.csv").read_text() for a in (trained, artifacts)]
    assert histories[0] == histories[1]


def test_a_killed_run_with_dropout_resumes_to_the_same_weights(
    tiny_params: Params, tiny_artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = tiny_params.train.model_copy(
        update={"backbone_options": {"drop_rate": 0.3, "drop_path_rate": 0.3}, "epochs": 2}
    )
    params = tiny_params.model_copy(update={"train": section})
    monkeypatch.setattr(fit_module, "learning_rate", lambda *_: 1e-3)  # as in _interrupted
    whole = _copy(tiny_artifacts, tmp_path / "whole")
    train.main(params, whole)
    killed = _copy(tiny_artifacts, tmp_path / "killed")
    _interrupted(params, killed, monkeypatch, at_step=2)
    train.main(params, killed)
    assert _same(_weights(whole), _weights(killed))


def _interrupted(
    tiny_params: Params, artifacts: Path, monkeypatch: pytest.MonkeyPatch, at_step: int = 3
) -> Path:
    """Train until a step, die, and return the checkpoint left behind."""

    def killing(step: int, *rest: object) -> float:
        if step >= at_step:
            raise _Killed
        return 1e-3

    section = tiny_params.train.model_copy(update={"checkpoint_every_s": 1e-9})
    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "learning_rate", killing)
        with pytest.raises(_Killed):
            train.main(tiny_params.model_copy(update={"train": section}), artifacts)
    return artifacts / ".checkpoints" / "train.pt"


def test_a_finished_run_leaves_no_checkpoint_to_be_mistaken_for_the_next(trained: Path) -> None:
    assert not list((trained / ".checkpoints").iterdir())


@pytest.mark.parametrize("what", ["settings", "data", "code"])
def test_a_checkpoint_of_another_run_is_not_resumed(
    tiny_params: Params,
    tiny_artifacts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    artifacts = tmp_path / "artifacts"
    shutil.copytree(tiny_artifacts / "prepare", artifacts / "prepare")
    section = tiny_params.train.model_copy(update={"checkpoint_every_s": 1e-9})
    params = tiny_params.model_copy(update={"train": section})
    _interrupted(params, artifacts, monkeypatch)
    if what == "settings":
        params = params.model_copy(update={"train": section.model_copy(update={"seed": 5})})
    elif what == "data":
        audit = artifacts / "prepare" / "audit.json"
        audit.write_text(audit.read_text().replace('"archive_sha256": "', '"archive_sha256": "0'))
    else:
        edited = tmp_path / "losses.py"
        edited.write_text("# another version")
        monkeypatch.setattr(losses_module, "__file__", str(edited))
    steps: list[int] = []
    learning_rate = fit_module.learning_rate

    def counting(step: int, *rest: object) -> float:
        steps.append(step)
        return learning_rate(step, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(fit_module, "learning_rate", counting)
    train.main(params, artifacts)
    assert steps[0] == 0


def test_a_damaged_checkpoint_is_named_with_the_remedy(
    tiny_params: Params, tiny_artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = _copy(tiny_artifacts, tmp_path / "damaged")
    checkpoint = _interrupted(tiny_params, artifacts, monkeypatch)
    checkpoint.write_bytes(checkpoint.read_bytes()[:2000])
    with pytest.raises(StageFailed, match="Delete it to start anew"):
        train.main(tiny_params, artifacts)


def test_a_loss_that_is_not_finite_stops_the_run(
    tiny_params: Params, tiny_artifacts: Path, tmp_path: Path
) -> None:
    wild = tiny_params.train.model_copy(update={"learning_rate": 1e30})
    artifacts = _copy(tiny_artifacts, tmp_path / "wild")
    with pytest.raises(StageFailed, match="a finite loss"):
        train.main(tiny_params.model_copy(update={"train": wild}), artifacts)
    assert not (artifacts / "train" / "teacher.safetensors").exists()


def test_two_processes_train_what_one_would_have_trained(
    tiny_params: Params, tiny_artifacts: Path, tmp_path: Path
) -> None:
    frozen = tiny_params.train.model_copy(update={"batch_norm": "eval", "epochs": 1})
    params = tiny_params.model_copy(update={"train": frozen})
    alone = _copy(tiny_artifacts, tmp_path / "alone")
    train.main(params, alone)
    together = _copy(tiny_artifacts, tmp_path / "together")
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(params.model_dump(mode="json")))
    _torchrun(["train", "--params", str(file), "--artifacts", str(together)])
    # AdamW turns rounding noise of tiny gradients into whole steps: compare the direction taken.
    torch.manual_seed(frozen.seed)
    start = EmbeddingNet(
        frozen.backbone, frozen.embedding_dim, options={}, pixels=frozen.pixels
    ).state_dict()
    moves = [
        torch.cat([(w[key] - start[key]).flatten() for key, _ in start.items() if w[key].ndim > 1])
        for w in (_weights(alone), _weights(together))
    ]
    assert torch.cosine_similarity(moves[0], moves[1], dim=0) > 0.99
    assert moves[0].norm() > 0.1


def test_a_batch_that_cannot_be_shared_equally_is_refused(
    tiny_params: Params, tiny_artifacts: Path, tmp_path: Path
) -> None:
    odd = tiny_params.train.model_copy(update={"pills_per_batch": 3, "photos_per_pill": 3})
    file = tmp_path / "params.yaml"
    file.write_text(
        yaml.safe_dump(tiny_params.model_copy(update={"train": odd}).model_dump(mode="json"))
    )
    artifacts = _copy(tiny_artifacts, tmp_path / "odd")
    arguments = ["train", "--params", str(file), "--artifacts", str(artifacts)]
    with pytest.raises(subprocess.CalledProcessError) as caught:
        _torchrun(arguments)
    assert "divisible by the number of processes" in caught.value.stderr


def _torchrun(arguments: list[str]) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "pilltrack", *arguments),
        ],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
