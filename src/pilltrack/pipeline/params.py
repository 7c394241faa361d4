"""Typed params.yaml: one section per stage, frozen, no hidden defaults, unknown keys refused.

Every key must be present, so that the file alone tells what ran. A section that two stages
share (`capture`) is named in the `params:` list of each of them in dvc.yaml.
"""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pilltrack.core.errors import ParamsRejected

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Inner = Annotated[float, Field(gt=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Size = Annotated[float, Field(gt=0.0, le=4.0)]
Quality = Annotated[int, Field(ge=5, le=100)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class PrepareParams(_Section):
    """zip -> checked images and splits by pill identity."""

    seed: Seed
    zip_splits: Literal["respect", "ignore"]  # what train|val|test folders in the zip mean
    validation_share: Share  # of all pills
    test_share: Share  # of all pills
    stranger_share: Share  # of the validation and of the test pills: never enrolled
    probe_share: Share  # of an enrolled pill's photo groups, per side, kept out of the gallery
    near_duplicate_bits: Annotated[int, Field(ge=0, le=32)]  # of 256 hash bits that may differ
    max_unreadable_share: Share  # of all images
    max_unzipped_gb: Positive


class CaptureParams(_Section):
    """How hard a simulated counter-top photo of a studio crop is; shares and ranges."""

    background_share: Share  # of captures laid on a new surface (studio crops only)
    scale: tuple[Size, Size]  # longer side of the pill relative to the frame
    perspective: Share  # corner shift relative to the pill's size
    shadow: Share  # darkness of the deepest shadow
    light: Share  # unevenness of the light across the frame
    colour_cast: Share  # largest relative gain of a channel
    blur_px: Annotated[float, Field(ge=0.0)]  # largest blur sigma at 224 px
    noise: Share  # largest sensor noise sigma, of full scale
    jpeg_quality: tuple[Quality, Quality]
    clip: Share  # largest share of the pill pushed out of the frame
    distant: Share  # of captures: few pixels, as of a pill far away
    body: Share  # of captures (studio crops only): a body lit anew and seen at a slant

    @field_validator("scale", "jpeg_quality")
    @classmethod
    def _in_order(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if ends[0] > ends[1]:
            raise ValueError("the smaller end of the range first")
        return ends


class _FitParams(_Section):
    seed: Seed
    backbone: str  # a timm model name
    backbone_options: dict[str, Any]  # handed to timm.create_model
    weights: str  # imagenet | none | starter | path to a .safetensors file
    frozen: list[str]  # modules of the backbone that keep their starting weights
    pixels: Literal["imagenet", "minus_one_to_one"]  # normalisation the weights were trained with
    input_size_px: Annotated[int, Field(ge=32, le=512)]
    epochs: Count
    pills_per_batch: Annotated[int, Field(ge=2)]
    photos_per_pill: Annotated[int, Field(ge=2)]
    variants_per_pill: Count  # looks of each pill: its own, and recoloured ones as other pills
    views_per_photo: Count  # of each capture, taken on the training device
    learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0.0)]
    warmup_share: Share  # of all steps
    batch_norm: Literal["train", "eval"]  # eval keeps the running statistics of the weights file
    precision: Literal["auto", "fp32", "bf16"]  # auto: bf16 autocast on a GPU, else fp32
    workers: Annotated[int, Field(ge=0)]
    checkpoint_every_s: Positive


class TrainParams(_FitParams):
    """The teacher."""

    embedding_dim: Annotated[int, Field(ge=8, le=1024)]
    loss: Literal["none", "supcon", "multi_similarity"]  # of the pairs in a batch
    proxy_weight: Annotated[float, Field(ge=0.0)]  # of the proxy loss beside `loss`
    proxy_margin: Annotated[float, Field(ge=0.0, lt=1.0)]  # how much nearer the own proxy must be

    @model_validator(mode="after")
    def _proxies_that_teach(self) -> TrainParams:
        if self.loss == "none" and self.proxy_weight == 0:
            raise ValueError("loss none and proxy_weight 0 leave nothing to learn from")
        if self.proxy_margin and self.proxy_weight == 0:
            raise ValueError("proxy_margin needs proxies: set proxy_weight, or proxy_margin to 0")
        return self


class DistillParams(_FitParams):
    """The student; its embedding dimension is the teacher's. `weights` may also be `teacher`."""

    int8_rounding: bool  # train with the rounding of the exported file
    temperature: Positive  # of the similarity distributions
    alpha: Share  # weight of the embedding loss; 1 - alpha goes to the similarity loss
    min_teacher_recall_at_1: Share  # on validation pills; a worse teacher is refused


class ConvertParams(_Section):
    """torch -> int8 LiteRT and fp32 ONNX, with a parity gate."""

    seed: Seed
    calibration_images: Count
    parity_images: Count
    min_mean_cosine: Share


class EnrollParams(_Section):
    """The gallery."""

    seed: Seed
    references_per_side: Count
    captures_per_photo: Annotated[int, Field(ge=0)]  # new captures that a reference also averages
    background_photos: Annotated[int, Field(ge=0)]  # of train pills, kept as the background


class EvaluateParams(_Section):
    """Calibration on validation pills, report on test pills, gate."""

    seed: Seed
    captures: Literal["real", "rendered", "augmented"]  # what calibration and gate look at
    augmented_per_photo: Annotated[int, Field(ge=0)]
    fpir: Inner  # strangers accepted: the aim that sets the threshold
    misnamed: Inner  # enrolled pills given another name: the aim that sets the margin
    refused_sets: Inner  # good sets of photos refused: the aim that sets their agreement
    promised_fpir: Inner  # upper bound that test pills must prove
    promised_misnamed: Inner
    confidence: Inner  # of these bounds
    min_recall_at_1_seen: Share
    min_recall_at_1_new: Share
    max_fnir: Share  # of new pills
    max_flips: Share  # decisions that differ between the int8 file and the float student


class LocateParams(_Section):
    """The locator."""

    seed: Seed
    weights: str  # none | starter | path to a .safetensors file
    input_size_px: Annotated[int, Field(ge=64, le=1024, multiple_of=32)]
    rendered_pills: Annotated[int, Field(ge=0)]  # cut out beside the fit pills
    steps: Annotated[int, Field(ge=0)]  # 0 takes the weights as they are
    scenes_per_step: Count
    views_per_scene: Annotated[int, Field(ge=1, le=8)]  # turned, mirrored, in other light
    learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0.0)]
    warmup_share: Share  # of all steps
    precision: Literal["auto", "fp32", "bf16"]  # auto: bf16 autocast on a GPU, else fp32
    workers: Annotated[int, Field(ge=0)]
    checkpoint_every_s: Positive
    look_weights: Literal["none", "starter"]  # of the second look's first layers; they then stay
    look_scenes: Annotated[int, Field(ge=0)]  # whose finds the second look learns from
    look_steps: Annotated[int, Field(ge=0)]  # 0 takes its weights as they are
    look_learning_rate: Positive
    calibration_scenes: Count
    validation_scenes: Count  # with pills; and as many without
    false_finds: Share  # of scenes without pills: the aim that sets the least confidence
    min_ap50: Share  # on scenes with validation pills, finds of any confidence
    min_recall: Share  # there, of the finds that are sure enough
    max_false_finds: Share  # of scenes without pills

    @model_validator(mode="after")
    def _scenes_to_learn_from(self) -> LocateParams:
        if self.look_steps and not self.look_scenes:
            raise ValueError("look_steps needs look_scenes to learn from; set both, or both to 0")
        return self


class PackageParams(_Section):
    """The bundle."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    gallery: Literal["enrolled", "empty"]  # empty: the device's user enrols all pills


class Params(_Section):
    """The whole of params.yaml."""

    prepare: PrepareParams
    capture: CaptureParams
    train: TrainParams
    distill: DistillParams
    convert: ConvertParams
    enroll: EnrollParams
    evaluate: EvaluateParams
    locate: LocateParams
    package: PackageParams

    def digest(self, *sections: str) -> str:
        """SHA-256 of the values of these sections, of all without names."""
        text = self.model_dump_json(include=set(sections) or None)
        return hashlib.sha256(text.encode()).hexdigest()


def load_params(path: Path) -> Params:
    """Read and check a params file.

    Raises ParamsRejected naming the file, the key, and the nearest known key for a misspelling.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParamsRejected(
            str(path),
            found=f"cannot be read ({error.strerror})",
            expected="the parameters of all stages",
            remedy="Run from the root of the repository, or name the file.",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParamsRejected(
            str(path),
            found=f"is not YAML ({' '.join(str(error).split())})",
            expected="a YAML mapping",
            remedy="Mend the line named above.",
        ) from error
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise _explain(path, error) from error


def _explain(path: Path, error: ValidationError) -> ParamsRejected:
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _known_keys(problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        return ParamsRejected(
            f"{path}: {key}",
            found="unknown key",
            expected=f"one of {', '.join(known)}",
            remedy=f"{hint}Correct or delete it.",
        )
    if problem["type"] == "missing":
        return ParamsRejected(
            f"{path}: {key}",
            found="missing",
            expected="a value (there are no hidden defaults)",
            remedy="Add it; params/full.yaml shows every key.",
        )
    return ParamsRejected(
        f"{path}: {key}" if key else str(path),
        found=repr(problem["input"])[:80],
        expected=problem["msg"],
        remedy="Correct the value.",
    )


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Params
    for part in location:
        model = model.model_fields[str(part)].annotation
    return list(model.model_fields)
