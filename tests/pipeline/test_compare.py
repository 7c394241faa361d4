"""A challenger replaces a champion only on evidence, and never when it does more harm."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dvc.repo import Repo
from hypothesis import given
from hypothesis import strategies as st

from pilltrack.core.background import Background
from pilltrack.core.bundle import FORMAT, write_bundle
from pilltrack.core.decide import REJECT_EVERYTHING, RESERVE, SmallerGallery
from pilltrack.core.embedder import open_embedder
from pilltrack.core.errors import (
    BundleRejected,
    DatasetRejected,
    GateFailed,
    PillTrackError,
    StageFailed,
)
from pilltrack.core.gallery import Gallery, Reference
from pilltrack.core.image import read_image
from pilltrack.core.metrics import auroc
from pilltrack.pipeline.compare import (
    METRICS,
    Change,
    Comparison,
    Verdict,
    auroc_difference,
    check_promise,
    compare,
    exit_code,
    overall,
    paired_change,
    verdict_of,
)
from pilltrack.pipeline.comparison_text import conclusion, to_json, to_markdown, to_text
from pilltrack.pipeline.intervals import Resamples, mean_interval, resample_pills
from pilltrack.pipeline.params import Params
from pilltrack.pipeline.prepare import prepare
from pilltrack.pipeline.releases import BUNDLE, opened_bundle
from pilltrack.pipeline.synth import synth
from pilltrack.pipeline.table import load_images
from tests.pipeline.pill_zips import picture
from tests.tiny_bundle import LOCATOR, MODEL, tiny_bundle, tiny_calibration

FPIR, MISNAMED, FNIR, RECALL_NEW, RECALL_SEEN, RECALL_5, NAMED = METRICS
FLOAT_MODEL = MODEL.with_name("tiny.tflite")
ACCEPT_EVERYTHING = -1.0


def draws(n_pills: int, photos: int = 1) -> Resamples:
    return resample_pills([f"pill {n}" for n in range(n_pills) for _ in range(photos)], seed=0)


def ones(count: int, of: int) -> list[int]:
    return [1] * count + [0] * (of - count)


# --- one metric ----------------------------------------------------------------------------------


def test_more_pills_found_is_better_and_more_strangers_accepted_is_worse() -> None:
    few, many = ones(10, of=40), ones(25, of=40)
    better = paired_change(RECALL_NEW, few, many, draws(40))
    worse = paired_change(FPIR, few, many, draws(40))
    assert (better.verdict, worse.verdict) == ("better", "worse")
    assert (better.a, better.b, better.difference) == (0.25, 0.625, 0.375)
    assert better.low is not None
    assert better.high is not None
    assert 0.2 < better.low < 0.375 < better.high < 0.6


def test_the_challengers_loss_is_worse_and_its_care_is_better() -> None:
    assert paired_change(RECALL_NEW, ones(25, 40), ones(10, 40), draws(40)).verdict == "worse"
    assert paired_change(FPIR, ones(25, 40), ones(10, 40), draws(40)).verdict == "better"


def test_equal_answers_differ_by_exactly_zero() -> None:
    change = paired_change(FPIR, ones(13, 40), ones(13, 40), draws(40))
    assert (change.difference, change.low, change.high) == (0.0, 0.0, 0.0)
    assert change.verdict == "no difference"


def test_a_few_changed_answers_in_both_directions_are_no_difference() -> None:
    first, second = np.array(ones(20, 40)), np.array(ones(20, 40))
    second[:5], second[-3:] = 0, 1
    assert paired_change(RECALL_NEW, first, second, draws(40)).verdict == "no difference"


def test_nine_pills_cannot_tell_however_large_the_difference() -> None:
    nine = paired_change(RECALL_NEW, [0] * 90, [1] * 90, draws(9, photos=10))
    assert (nine.verdict, nine.low, nine.high) == ("cannot tell", None, None)
    assert paired_change(RECALL_NEW, [0] * 10, [1] * 10, draws(10)).verdict == "better"


def test_pairs_tell_what_two_separate_intervals_cannot() -> None:
    champion = ones(40, of=100)
    of_the_same = ones(30, of=100)  # ten of the champion's forty errors are mended
    of_others = ones(30, of=100)[::-1]  # as many errors, on other pills
    unpaired = [mean_interval(values, draws(100)) for values in (champion, of_the_same)]
    assert unpaired[0] is not None
    assert unpaired[1] is not None
    assert unpaired[0][0] < unpaired[1][1]  # they overlap
    assert paired_change(MISNAMED, champion, of_the_same, draws(100)).verdict == "better"
    assert paired_change(MISNAMED, champion, of_others, draws(100)).verdict == "no difference"


def test_many_photos_of_one_pill_are_one_vote() -> None:
    first, second = np.zeros(20 * 50), np.zeros(20 * 50)
    second[:50] = 1  # all photos of one pill of twenty
    assert paired_change(FPIR, first, second, draws(20, photos=50)).verdict == "no difference"
    assert paired_change(FPIR, first, second, draws(1000)).verdict == "worse"  # of fifty pills


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_a_number_is_an_error_and_no_verdict(bad: float) -> None:
    with pytest.raises(StageFailed, match=r"strangers accepted .*not numbers"):
        paired_change(FPIR, [0.0] * 20, [*[0.0] * 19, bad], draws(20))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=10, max_size=40))
def test_swapping_champion_and_challenger_mirrors_the_verdict(
    answers: list[tuple[bool, bool]],
) -> None:
    first, second = zip(*answers, strict=True)
    there = paired_change(FPIR, first, second, draws(len(answers)))
    back = paired_change(FPIR, second, first, draws(len(answers)))
    mirror: dict[Verdict, Verdict] = {"better": "worse", "worse": "better"}
    assert back.verdict == mirror.get(there.verdict, there.verdict)
    assert back.difference == -there.difference


# --- AUROC ---------------------------------------------------------------------------------------


def scores(seed: int, shift: float) -> tuple[list[float], list[float]]:
    """25 photos each of new pills and of strangers, hard for every model in the same way."""
    hard = np.random.default_rng(0).normal(size=(2, 25))
    own = np.random.default_rng(seed).normal(scale=0.3, size=(2, 25))
    mated, strangers = hard + own
    return list(mated + shift), list(strangers)


def test_auroc_difference_is_that_of_resampled_photos() -> None:
    mated, foreign = resample_pills(list("aabbbccddeeffgghhiijjkkll"), seed=1), draws(25)
    one, other = scores(1, shift=0.2), scores(2, shift=0.9)

    def again(found: tuple[list[float], list[float]], resample: int) -> float:
        mated_scores = np.repeat(found[0], mated.weights(resample).astype(int))
        return auroc(mated_scores, np.repeat(found[1], foreign.weights(resample).astype(int)))

    slowly = [again(other, r) - again(one, r) for r in range(len(mated.counts))]
    assert auroc_difference(one, other, mated, foreign) == pytest.approx(
        tuple(np.quantile(slowly, [0.025, 0.975]))
    )


def test_auroc_of_the_same_scores_differs_by_exactly_zero() -> None:
    found = scores(1, shift=0.2)
    assert auroc_difference(found, found, draws(25), draws(25)) == (0.0, 0.0)


def test_auroc_of_nine_strangers_cannot_tell() -> None:
    one, other = ([1.0] * 20, [0.0] * 9), ([0.0] * 20, [1.0] * 9)
    assert auroc_difference(one, other, draws(20), draws(9)) is None
    assert verdict_of(None, "higher") == "cannot tell"


# --- the whole -----------------------------------------------------------------------------------


def changes(*verdicts: Verdict, gate: bool = True) -> list[Change]:
    plain = paired_change(FPIR, ones(5, 20), ones(5, 20), draws(20))
    return [
        replace(plain, verdict=verdict, label=f"{number} {verdict}", gate=gate)
        for number, verdict in enumerate(verdicts)
    ]


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("better", "no difference", "better"), ("better", ["0 better", "2 better"])),
        (("better", "worse", "better"), ("worse", ["1 worse"])),
        (("worse", "cannot tell"), ("worse", ["0 worse"])),
        (("better", "cannot tell"), ("cannot tell", ["1 cannot tell"])),
        (("no difference", "no difference"), ("no difference", [])),
    ],
)
def test_one_worse_metric_outweighs_all_better_ones(
    verdicts: Sequence[Verdict], expected: tuple[Verdict, list[str]]
) -> None:
    assert overall(changes(*verdicts)) == expected


def test_metrics_that_evaluate_does_not_gate_do_not_count() -> None:
    found = [*changes("no difference"), *changes("worse", gate=False)]
    assert overall(found) == ("no difference", [])


def test_two_equally_good_models_are_seldom_told_apart() -> None:
    random = np.random.default_rng(0)
    cohorts = {"new": draws(30, photos=4), "seen": draws(60, 4), "strangers": draws(30, 4)}
    verdicts = []
    for _ in range(100):
        hard = {cohort: random.normal(size=found.n_pills) for cohort, found in cohorts.items()}

        def errs(cohort: str) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
            by_pill = hard[cohort] + random.normal(scale=0.5, size=len(hard[cohort]))  # noqa: B023
            photos = by_pill[cohorts[cohort].pill_of]
            shown: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = (
                photos + random.normal(scale=0.7, size=len(photos)) > 1.5
            )
            return shown

        found = []
        for metric in (FPIR, MISNAMED, FNIR, RECALL_NEW, RECALL_SEEN):
            first, second = errs(metric.cohort), errs(metric.cohort)
            found.append(paired_change(metric, first, second, cohorts[metric.cohort]))
        verdicts.append(overall(found)[0])
    assert verdicts.count("worse") <= 20
    assert verdicts.count("better") <= 20
    assert verdicts.count("no difference") >= 60


@pytest.mark.parametrize(
    ("errors", "promised", "state"),
    [(0, 0.1, "kept"), (0, 0.09, "not proven here"), (3, 0.09, "broken here")],
)
def test_a_promise_is_kept_unproven_or_broken(errors: int, promised: float, state: str) -> None:
    pills = [f"pill {n}" for n in range(30)]  # thirty clean ones prove 9.5 %
    found = check_promise(
        "harm", promised, [bool(e) for e in ones(errors, 30)], pills, confidence=0.95
    )
    assert found.state == state


# --- two bundles, one test set -------------------------------------------------------------------


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory, tiny_params: Params) -> Path:
    """`artifacts/` with 10 new, 24 seen and 11 stranger pills in the test split."""
    artifacts = tmp_path_factory.mktemp("frozen")
    synth(artifacts / "pills.zip", pills=60, photos=4, seed=11, workers=1)
    prepare(artifacts / "pills.zip", tiny_params.prepare, artifacts / "prepare", workers=1)
    return artifacts


def enrolled_pills(artifacts: Path) -> list[str]:
    rows = load_images(artifacts / "prepare")
    return sorted({row.pill for row in rows if row.role != "stranger"})


def bundle(
    directory: Path,
    artifacts: Path,
    *,
    threshold: float,
    model: Path = MODEL,
    pills: Sequence[str] | None = None,
    data_digest: str | None = None,
    gallery_size: int | None = None,
    background: Sequence[str] = (),
    smaller: Sequence[SmallerGallery] = (),
    git_commit: str = "0123456789abcdef",
    params_digest: str = "p",
) -> str:
    """A bundle made from the data of `artifacts`, with this rule."""
    audit = json.loads((artifacts / "prepare" / "audit.json").read_bytes())
    embedder = open_embedder(model)
    pills = enrolled_pills(artifacts) if pills is None else pills
    directory.mkdir(parents=True, exist_ok=True)
    gallery_file = directory.with_name(f"{directory.name}.safetensors")
    with Gallery.create(embedder.space, embedder.dim) as gallery:
        gallery.enrol([Reference("x", "", "x.png")], embedder.embed([picture("x")]))
        if background:
            around = embedder.embed([picture(name) for name in background])
            gallery.background = Background(around, background)
        gallery.save(gallery_file)
    write_bundle(
        directory,
        name="tiny",
        locator=LOCATOR,
        min_confidence=0.5,
        model=model,
        gallery=gallery_file,
        probe_crops=[picture("x")],
        probe_frames=[],
        calibration=tiny_calibration(
            embedder.space,
            threshold=threshold,
            gallery_size=gallery_size or len(pills),
            background_size=len(background),
        ).model_copy(update={"smaller": tuple(smaller)}),
        pills={pill: {} for pill in pills},
        git_commit=git_commit,
        data_digest=data_digest or audit["archive_sha256"],
        params_digest=params_digest,
    )
    gallery_file.unlink()
    return str(directory)


@pytest.fixture(scope="module")
def careful(tmp_path_factory: pytest.TempPathFactory, frozen: Path) -> str:
    """It accepts nothing at all."""
    directory = tmp_path_factory.mktemp("careful") / "bundle"
    return bundle(directory, frozen, threshold=REJECT_EVERYTHING)


@pytest.fixture(scope="module")
def careless(tmp_path_factory: pytest.TempPathFactory, frozen: Path) -> str:
    """It accepts everything."""
    directory = tmp_path_factory.mktemp("careless") / "bundle"
    return bundle(directory, frozen, threshold=ACCEPT_EVERYTHING)


@pytest.fixture(scope="module")
def worse(tiny_params: Params, frozen: Path, careful: str, careless: str) -> Comparison:
    return compare(tiny_params, frozen, careful, careless)


def by_metric(comparison: Comparison) -> dict[tuple[str, str], Change]:
    return {(change.cohort, change.metric): change for change in comparison.changes}


def test_accepting_every_stranger_is_worse_and_fails_the_gate(worse: Comparison) -> None:
    fpir = by_metric(worse)["strangers", "fpir"]
    assert (fpir.a, fpir.b, fpir.verdict) == (0.0, 1.0, "worse")
    assert (fpir.n_pills, fpir.n_photos) == (11, 44)
    assert worse.verdict == "worse"
    assert worse.because[0] == "strangers accepted (FPIR)"
    assert exit_code(worse, require_better=False) == GateFailed.exit_code == 3
    broken, kept = worse.b.promises[0], worse.a.promises[0]
    assert (broken.promised, broken.measured, broken.state) == (0.05, 1.0, "broken here")
    assert (kept.measured, kept.state) == (0.0, "not proven here")  # 11 pills prove 23.8 %
    assert kept.upper == pytest.approx(1 - 0.05 ** (1 / 11), abs=1e-5)


def test_the_same_model_finds_the_same_whatever_its_rule(worse: Comparison) -> None:
    found = by_metric(worse)
    for key in (("new", "recall_at_1"), ("seen", "recall_at_1"), ("new", "auroc")):
        assert (found[key].difference, found[key].verdict) == (0.0, "no difference")
        assert 0.1 < found[key].a < 1
    assert "A and B have the same model: only their rules and backgrounds can differ" in worse.notes


def test_undoing_harm_is_better_and_passes_the_strictest_gate(
    tiny_params: Params, frozen: Path, careful: str, careless: str
) -> None:
    comparison = compare(tiny_params, frozen, careless, careful)
    assert comparison.verdict == "better"
    assert comparison.because == ("strangers accepted (FPIR)", "new pills given a wrong name")
    assert exit_code(comparison, require_better=True) == 0
    assert conclusion(comparison).endswith("Nothing is shown to be worse.")


def test_a_bundle_against_itself_shows_no_difference_at_all(
    tiny_params: Params, frozen: Path, careless: str
) -> None:
    comparison = compare(tiny_params, frozen, careless, careless, captures="augmented")
    assert comparison.verdict == "no difference"
    for change in comparison.changes:
        assert (change.difference, change.low, change.high) == (0.0, 0.0, 0.0), change.label
        assert change.verdict == "no difference"
    assert exit_code(comparison, require_better=False) == 3  # it accepts every stranger
    kept = replace(comparison, b=replace(comparison.b, promises=()))
    assert exit_code(kept, require_better=False) == 0
    assert exit_code(kept, require_better=True) == 3
    few = replace(kept, verdict="cannot tell")
    assert exit_code(few, require_better=False) == 3


def test_each_bundle_answers_with_its_own_model_and_rule(
    tmp_path: Path, tiny_params: Params, frozen: Path, careless: str
) -> None:
    threshold = 0.97
    other = bundle(tmp_path / "float", frozen, threshold=threshold, model=FLOAT_MODEL)
    fpir = by_metric(compare(tiny_params, frozen, careless, other))["strangers", "fpir"]

    embedder = open_embedder(FLOAT_MODEL)
    rows = load_images(frozen / "prepare")

    def embedded(
        role: str, split: str = ""
    ) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
        chosen = [row for row in rows if row.role == role and row.split.startswith(split)]
        return list(embedder.embed([read_image(frozen / "prepare" / row.image) for row in chosen]))

    references = np.array([*embedded("fit"), *embedded("reference")])  # all: fewer than 5 a side
    strangers = np.array(embedded("stranger", "test"))
    accepted = (strangers @ references.T).max(axis=1) >= threshold
    assert 0 < accepted.mean() < 1
    assert fpir.b == pytest.approx(accepted.mean(), abs=1e-5)
    assert fpir.a == 1.0


def test_each_bundle_is_held_against_its_own_background(
    tiny_params: Params, frozen: Path, tmp_path: Path
) -> None:
    plain = bundle(tmp_path / "plain", frozen, threshold=0.7)
    held = bundle(tmp_path / "held", frozen, threshold=0.7, background=["y", "z"])
    fpir = by_metric(compare(tiny_params, frozen, plain, held))["strangers", "fpir"]
    assert (fpir.a, fpir.b) == (1.0, 0.0)  # of an untrained model all cosines are near 1


@pytest.mark.parametrize(("short", "accepted"), [(0, 1.0), (1, 0.0)])
def test_each_bundle_takes_its_threshold_for_as_many_pills_as_are_enrolled_here(
    tiny_params: Params, frozen: Path, careless: str, tmp_path: Path, short: int, accepted: float
) -> None:
    size = RESERVE * len(enrolled_pills(frozen)) - short
    few = SmallerGallery(
        gallery_size=size, threshold=ACCEPT_EVERYTHING, fpir_upper=0.0487, misnamed_upper=0.0487
    )
    other = bundle(
        tmp_path / "few",
        frozen,
        threshold=REJECT_EVERYTHING,
        gallery_size=size + 1,
        smaller=[few],
    )
    fpir = by_metric(compare(tiny_params, frozen, careless, other))["strangers", "fpir"]
    assert (fpir.a, fpir.b) == (1.0, accepted)


def test_what_makes_the_comparison_uneven_is_noted(
    tmp_path: Path, tiny_params: Params, frozen: Path, careless: str
) -> None:
    elsewhere = bundle(tmp_path / "a", frozen, threshold=0.9, data_digest="0" * 64, gallery_size=1)
    rows = load_images(frozen / "prepare")
    otherwise = bundle(
        tmp_path / "b", frozen, threshold=0.9, pills=sorted({row.pill for row in rows})
    )
    comparison = compare(tiny_params, frozen, elsewhere, otherwise, captures="augmented")
    may = "pills of this test set may have been in its training, in favour of"
    assert comparison.notes[:5] == (
        f"A was trained on other data: {may} A",
        "A's rule and promises are for rendered captures, these are augmented",
        "A's rule and promises are for a gallery of 1 pills, here are 41",
        f"B comes from another split of the same data: {may} B",
        "B's rule and promises are for rendered captures, these are augmented",
    )
    assert comparison.b.trained_elsewhere
    fair = replace(comparison, verdict="better", b=replace(comparison.b, promises=()))
    assert exit_code(fair, require_better=False) == 3
    here = replace(fair, b=replace(fair.b, trained_elsewhere=False))
    assert exit_code(here, require_better=False) == 0


def test_captures_that_the_test_set_lacks_are_refused(
    tiny_params: Params, frozen: Path, careful: str, careless: str
) -> None:
    with pytest.raises(DatasetRejected, match=r"real captures: none of new and seen and strangers"):
        compare(tiny_params, frozen, careful, careless, captures="real")


def test_a_test_set_without_its_audit_is_refused(
    tmp_path: Path, tiny_params: Params, frozen: Path, careful: str
) -> None:
    (tmp_path / "prepare").mkdir()
    (tmp_path / "prepare" / "images.csv").write_bytes(
        (frozen / "prepare" / "images.csv").read_bytes()
    )
    with pytest.raises(StageFailed, match="audit"):
        compare(tiny_params, tmp_path, careful, careful)


# --- in words ------------------------------------------------------------------------------------


def test_the_text_is_a_table_that_ends_with_the_verdict(worse: Comparison) -> None:
    lines = to_text(worse).splitlines()
    fpir = next(line for line in lines if line.startswith("strangers accepted"))
    assert fpir.split("  ")[0] == "strangers accepted (FPIR)"
    assert "0.0 %" in fpir
    assert "+100.00 points (the same for every pill)" in fpir
    start = next(line for line in lines if line.endswith("B is")).index("B is")
    assert fpir[start:] == "worse"
    assert lines[-1] == conclusion(worse)
    assert lines[-1].startswith("B is worse than A: strangers accepted (FPIR)")
    assert lines[-1].endswith("B breaks its promise: strangers accepted; enrolled pills misnamed.")
    assert any(line.endswith("with 95 % confidence: broken here") for line in lines)


def test_bounds_are_rounded_up_in_words(worse: Comparison) -> None:
    (promise, *others) = worse.a.promises
    barely = replace(promise, upper=0.30001)
    changed = replace(worse, a=replace(worse.a, promises=(barely, *others)))
    assert "at most 30.1 % with 95 % confidence" in to_text(changed)
    assert "at most 30.1 % with 95 % confidence" in to_markdown(changed)


def test_names_are_plain_text_in_markdown(worse: Comparison) -> None:
    named = replace(worse, a=replace(worse.a, source="a|b`c`\n<!--", name="*x*"))
    line = next(line for line in to_markdown(named).splitlines() if line.startswith("- A "))
    assert "a\\|b\\`c\\` \\<!-- (\\*x\\*, made at commit" in line


def test_json_holds_every_field(worse: Comparison) -> None:
    found = json.loads(to_json(worse))
    assert (found["verdict"], found["captures"], found["gallery_pills"]) == (
        "worse",
        "rendered",
        41,
    )
    assert found["changes"][0]["metric"] == "fpir"
    assert found["b"]["promises"][0]["state"] == "broken here"
    assert "\n" not in to_json(worse)


def test_markdown_is_the_verdict_and_a_table(worse: Comparison) -> None:
    lines = to_markdown(worse).splitlines()
    assert lines[0] == f"**{conclusion(worse)}**"
    assert {line.count("|") for line in lines if line.startswith("|")} == {6}
    assert sum(line.startswith("|") for line in lines) == 2 + len(worse.changes) + 1


# --- where bundles come from ---------------------------------------------------------------------


def git(*arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: Path) -> tuple[Path, Path]:
    """A repository with tags `empty`, `careless`, `careful`, its cache and its remote folder."""
    root, remote = tmp_path / "repository", tmp_path / "remote"
    root.mkdir()
    monkeypatch.chdir(root)
    git("init", "--quiet")
    Repo.init(".")
    (root / ".dvc" / "config").write_text(
        "[core]\n    analytics = false\n    remote = local\n['remote \"local\"']\n"
        "    url = ../../remote\n"
    )
    git("add", "--all")
    git("commit", "--quiet", "--message", "Start")
    git("tag", "empty")
    for tag, threshold in (("careless", ACCEPT_EVERYTHING), ("careful", REJECT_EVERYTHING)):
        bundle(root / BUNDLE, frozen, threshold=threshold)
        Repo(".").add([BUNDLE])
        Repo(".").push()
        git("add", "--all")
        git("commit", "--quiet", "--message", tag)
        git("tag", tag)
    return root, remote


def empty_the_cache(root: Path) -> None:
    (root / ".dvc" / "cache").rename(root.parent / "cache of another machine")


def test_two_revisions_are_compared_wherever_their_files_are(
    repository: tuple[Path, Path], tiny_params: Params, frozen: Path
) -> None:
    root, _ = repository
    (root / BUNDLE / "model.tflite").unlink()  # the working tree plays no part
    empty_the_cache(root)
    comparison = compare(tiny_params, frozen, "careful", "careless")
    assert (comparison.verdict, comparison.because[0]) == ("worse", "strangers accepted (FPIR)")
    assert (comparison.a.source, comparison.b.source) == ("careful", "careless")
    assert compare(tiny_params, frozen, "careful", "HEAD").verdict == "no difference"


def test_a_directory_wins_over_a_revision_of_the_same_name(
    repository: tuple[Path, Path], frozen: Path
) -> None:
    root, _ = repository
    bundle(root / "careful", frozen, threshold=0.5)
    with opened_bundle("careful") as (_, manifest):
        assert manifest.calibration.threshold == 0.5
    with opened_bundle("careful~0") as (directory, manifest):
        assert manifest.calibration.threshold == REJECT_EVERYTHING
    assert not directory.exists()  # what was fetched is gone


def refusal(source: str) -> PillTrackError:
    with pytest.raises(PillTrackError) as caught, opened_bundle(source):
        pass
    assert caught.value.subject.startswith(source)
    assert caught.value.remedy.endswith((".", "`."))
    return caught.value


def test_what_is_neither_directory_nor_revision_is_refused(
    repository: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no such revision (unknown Git revision 'v9')" in refusal("v9").found
    monkeypatch.chdir(tmp_path)
    assert "no repository here" in refusal("careful").found


@pytest.mark.parametrize(
    "source",
    ["", "careful^{tree}", "careful:artifacts", "x" * 5000, "-n", "careful..empty", "a\0b"],
)
def test_what_names_no_commit_is_refused_in_one_line(
    repository: tuple[Path, Path], source: str
) -> None:
    with pytest.raises(StageFailed, match="unknown Git revision") as caught, opened_bundle(source):
        pass
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


def test_a_revision_without_a_bundle_is_refused(repository: tuple[Path, Path]) -> None:
    assert refusal("empty").found == f"no {BUNDLE} at that revision"


def test_a_bundle_that_was_planned_and_never_made_is_refused(
    repository: tuple[Path, Path],
) -> None:
    git("rm", "--quiet", f"{BUNDLE}.dvc")
    Path("dvc.yaml").write_text(f"stages: {{p: {{cmd: 'true', outs: [{BUNDLE}]}}}}\n")
    git("add", "--all")
    git("commit", "--quiet", "--message", "Planned")
    assert f"its {BUNDLE} cannot be fetched" in refusal("HEAD").found


def test_a_bundle_that_nobody_pushed_is_refused(repository: tuple[Path, Path]) -> None:
    root, remote = repository
    empty_the_cache(root)
    remote.rename(root.parent / "gone")
    error = refusal("careful")
    assert "cannot be fetched" in error.found
    assert "dvc push" in error.remedy


def test_a_bundle_of_another_format_is_refused_by_its_revision(
    repository: tuple[Path, Path],
) -> None:
    root, _ = repository
    manifest = root / BUNDLE / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"format": {FORMAT}', '"format": 99'))
    Repo(".").add([BUNDLE])
    git("commit", "--quiet", "--all", "--message", "From the future")
    error = refusal("HEAD")
    assert isinstance(error, BundleRejected)
    assert error.subject == f"HEAD: {BUNDLE}/manifest.json"


def test_a_damaged_directory_is_refused(tmp_path: Path) -> None:
    directory = tiny_bundle(tmp_path, "x", picture("x"))
    (directory / "model.tflite").unlink()
    assert "missing" in refusal(str(directory)).found
