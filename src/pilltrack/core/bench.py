"""Is a bundle fast and small enough on this machine?

    bundle -> gallery filled up to 10,000 references -> crops through all steps -> percentiles
           -> fresh processes, each to its first answer                         -> time and memory

Runs on the device install. The limits are PillTrack's promise for one x86 core; on another machine
they are a yardstick.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pilltrack.core.background import Background
from pilltrack.core.bundle import LOCATOR_FILE, PROBES_FILE, write_bundle
from pilltrack.core.embedder import open_embedder
from pilltrack.core.errors import GateFailed, InputRejected, StageFailed
from pilltrack.core.gallery import MAX_REFERENCES, Gallery, Reference
from pilltrack.core.identify import Identifier, open_identifier
from pilltrack.core.probes import read_probes
from pilltrack.core.timing import CROP_PX, STEPS, Percentiles, Subject, measure, noise_crops, pinned

MAX_TOTAL_P50_MS = 4.0
MAX_TOTAL_P99_MS = 8.0
MAX_EMBED_P50_MS = 1.5
MAX_FIRST_ANSWER_S = 0.5  # of the bundle as it is
MAX_PEAK_MB = 150.0  # of the same process
# What the limits are promised for, and the fewest crops that have a 99th percentile.
LIMITS_THREADS, LIMITS_REFERENCES, LIMITS_RUNS = 1, 10_000, 100

FORMAT: Final = 1
N_STARTS = 5
N_PER_PILL = 6  # references of a random pill
RUNTIMES = ("pilltrack", "ai-edge-litert", "numpy", "opencv-python-headless", "qdrant-edge-py")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Timing(_Part):
    """One model: what it is, and ms for each step of `timing.STEPS` and for "total"."""

    model: str
    model_bytes: int
    input_size_px: int
    embedding_dim: int
    references: int
    steps_ms: dict[str, Percentiles]


class FirstAnswer(_Part):
    """What a fresh process says of itself (see `core.first_answer`)."""

    imports_s: float = Field(ge=0)
    open_s: float = Field(ge=0)
    identify_s: float = Field(ge=0)
    peak_bytes: int | None


class Start(_Part):
    """Fresh processes with a gallery of `references`: medians, the largest peak of memory.

    `first_answer_s` is from before the process exists until its answer has arrived; the other
    times are its parts, what is missing from their sum is the interpreter's start.
    """

    references: int
    starts: int
    first_answer_s: float
    slowest_s: float
    imports_s: float
    open_s: float
    identify_s: float
    peak_mb: float | None


class Machine(_Part):
    """Where it was measured; `load_average`, of the last minute, was taken before measuring."""

    cpu: str
    architecture: str
    system: str
    cores: int
    governor: str | None
    load_average: float | None
    python: str
    versions: dict[str, str]


class Report(_Part):
    """All of one `pilltrack bench`.

    `cores` are those the steps were pinned to, none where the system does not pin. The first of
    `starts` is with the bundle as it is, the second with its gallery filled up. `ratio` is p50 of
    `against` by p50 of the bundle, for each step and the total: 3 means the other takes three
    times as long.
    """

    format: Literal[1]
    bundle: str
    machine: Machine
    threads: int
    cores: list[int]
    runs: int
    crop_px: int
    timing: Timing
    starts: list[Start] = Field(min_length=1, max_length=2)
    against: Timing | None
    ratio: dict[str, float] | None


def bench(
    bundle: Path,
    *,
    against: Path | None = None,
    runs: int = 500,
    references: int = 10_000,
    threads: int = 1,
) -> Report:
    """Measure a bundle over `runs` crops and `N_STARTS` fresh processes.

    The gallery is filled up with random pills to `references`; one that has more stays as it is.
    The steps run pinned to as many cores as `threads`; the processes start unpinned, as on a
    device. `against` is another model file, measured in the same run, in turns, in a gallery of as
    many random references.

    Raises InputRejected for more references than a gallery takes, ValueError for runs,
    references or threads below 1, BundleRejected or SpaceMismatch for a damaged bundle or model,
    StageFailed when a fresh process fails.
    """
    if min(runs, references, threads) < 1:
        raise ValueError(f"{runs} runs, {references} references, {threads} threads; expected >= 1")
    if references > MAX_REFERENCES:
        raise InputRejected(
            "references",
            found=str(references),
            expected=f"at most {MAX_REFERENCES}",
            remedy="Ask for fewer.",
        )
    machine = this_machine()
    with tempfile.TemporaryDirectory(prefix="pilltrack-bench-") as directory:
        # Pinned before anything is opened: thread pools that come up later stay on these cores.
        with pinned(threads) as cores, open_identifier(bundle, threads) as identifier:
            galleries = {len(identifier.gallery): bundle}
            fill_up(identifier.gallery.bundled, references)
            n_references = len(identifier.gallery)
            if n_references not in galleries:
                galleries[n_references] = _write_filled(identifier, bundle, Path(directory))
            timing, rival = _time_models(identifier, bundle, against, runs, threads)
            name = identifier.manifest.name
        photo = Path(directory) / "crop.jpg"
        Image.fromarray(next(noise_crops(1))).save(photo)
        starts = [_start(photo, path, count) for count, path in galleries.items()]
    return Report(
        format=FORMAT,
        bundle=name,
        machine=machine,
        threads=threads,
        cores=cores,
        runs=runs,
        crop_px=CROP_PX,
        timing=timing,
        starts=starts,
        against=rival,
        ratio=ratio_of_p50(rival.steps_ms, timing.steps_ms) if rival else None,
    )


def fill_up(gallery: Gallery, references: int) -> None:
    """Enrol random pills, six references of one side each, until the gallery has `references`.

    So they have fifteen looks each: no other number has more looks for as many references. A
    gallery that has as many or more is left alone.
    """
    n_missing = max(0, references - len(gallery))
    pills = np.arange(n_missing) // N_PER_PILL
    around = _random_unit_rows(n_missing // N_PER_PILL + 1, gallery.dim, seed=0)[pills]
    rows = around + 0.5 * _random_unit_rows(n_missing, gallery.dim, seed=2)
    gallery.enrol(
        [Reference(f"random-{pill:07}", "", f"{n}") for n, pill in enumerate(pills)],
        _unit(rows),
    )


def random_background(size: int, dim: int) -> Background:
    """A background as large as another model's: comparing with it takes as long."""
    names = [f"random-{i:07}" for i in range(size)]
    return Background(_random_unit_rows(size, dim, seed=1), names)


def _random_unit_rows(n: int, dim: int, *, seed: int) -> NDArray[np.float32]:
    return _unit(np.random.default_rng(seed).standard_normal((n, dim), np.float32))


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def ratio_of_p50(other: dict[str, Percentiles], own: dict[str, Percentiles]) -> dict[str, float]:
    """How many times as long `other` takes, by step; a step too short for the clock is left out.

    >>> def of(p50): return {"embed": Percentiles(p50=p50, p95=9.0, p99=9.0, max=9.0)}
    >>> ratio_of_p50(of(3.0), of(1.5))
    {'embed': 2.0}
    """
    return {step: round(other[step].p50 / own[step].p50, 2) for step in own if own[step].p50 > 0}


def broken_limits(report: Report) -> list[str]:
    """Name each limit that a report breaks or cannot prove; an empty list means all are kept."""
    steps, start = report.timing.steps_ms, report.starts[0]
    conditions = [
        (report.threads == LIMITS_THREADS, f"{report.threads} threads", f"{LIMITS_THREADS}"),
        (
            report.timing.references >= LIMITS_REFERENCES,
            f"{report.timing.references} references",
            f"at least {LIMITS_REFERENCES}",
        ),
        (report.runs >= LIMITS_RUNS, f"{report.runs} crops", f"at least {LIMITS_RUNS}"),
    ]
    broken = [
        f"measured with {found}, the limits are for {wanted}"
        for kept, found, wanted in conditions
        if not kept
    ]
    for what, found, limit, unit in (
        ("crop to decision p50", steps["total"].p50, MAX_TOTAL_P50_MS, "ms"),
        ("crop to decision p99", steps["total"].p99, MAX_TOTAL_P99_MS, "ms"),
        ("embed p50", steps["embed"].p50, MAX_EMBED_P50_MS, "ms"),
        ("start to first answer", start.first_answer_s, MAX_FIRST_ANSWER_S, "s"),
        ("peak memory", start.peak_mb, MAX_PEAK_MB, "MB"),
    ):
        if found is None:
            broken.append(f"{what} is not measured on this system, limit {limit:g} {unit}")
        elif found > limit:
            broken.append(f"{what} {found:g} {unit}, limit {limit:g} {unit}")
    return broken


def require_limits(report: Report) -> None:
    """Raise GateFailed, naming each limit that a report breaks or cannot prove."""
    broken = broken_limits(report)
    if broken:
        raise GateFailed(
            f"bundle {report.bundle}",
            found="; ".join(broken),
            expected="all limits kept",
            remedy="Measure again on an idle machine (docs/bench.md); if it stays so, choose a "
            "smaller student or input.",
        )


def as_text(report: Report) -> str:
    """A report for people: the table of steps, the starts, the comparison, the limits."""
    machine, timing = report.machine, report.timing
    where = f"pinned to {', '.join(f'core {core}' for core in report.cores)}"
    lines = [
        f"{report.bundle}: {_in_words(timing)}",
        f"{machine.cpu}, {machine.architecture}, {machine.cores} cores, {machine.system}",
        f"load average {_or_unknown(machine.load_average)} before, "
        f"governor {_or_unknown(machine.governor)}",
        f"{report.runs} crops of {report.crop_px} px, {timing.references:,} references, "
        f"{report.threads} thread{'s' if report.threads > 1 else ''}, "
        f"{where if report.cores else 'not pinned (the system cannot or may not)'}",
        "",
        *_table(timing),
        "",
    ]
    for start in report.starts:
        memory = "not measured" if start.peak_mb is None else f"{start.peak_mb:.0f} MB"
        lines.append(
            f"start to first answer {start.first_answer_s:.2f} s with {start.references:,} "
            f"references (imports {start.imports_s:.2f}, bundle {start.open_s:.2f}, photo "
            f"{start.identify_s:.3f}; slowest of {start.starts}: {start.slowest_s:.2f}), "
            f"peak memory {memory}"
        )
    if report.against and report.ratio:
        ratio = ", ".join(f"{step} {report.ratio[step]:.2f}" for step in ("embed", "total"))
        lines += ["", f"against {_in_words(report.against)}", *_table(report.against)]
        lines.append(f"times as long as the bundle (p50): {ratio}")
    broken = broken_limits(report)
    lines += ["", f"limits for one x86 core: {'; '.join(broken) if broken else 'all kept'}"]
    return "\n".join(lines)


def this_machine() -> Machine:
    """Describe the machine and the runtimes installed on it."""
    return Machine(
        cpu=cpu_name(_text("/proc/cpuinfo"), _text("/proc/device-tree/model")),
        architecture=platform.machine(),
        system=platform.platform(),
        cores=os.cpu_count() or 1,
        governor=_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None,
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        python=platform.python_version(),
        versions={package: version(package) for package in RUNTIMES},
    )


def cpu_name(cpuinfo: str, device_tree_model: str) -> str:
    """Name the processor, or the board where the processor has no name (most ARM kernels).

    >>> cpu_name("processor : 0\\nmodel name : AMD EPYC\\n", "")
    'AMD EPYC'
    >>> cpu_name("processor : 0\\n", "Raspberry Pi 5 Model B Rev 1.0\\0")
    'Raspberry Pi 5 Model B Rev 1.0'
    """
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return device_tree_model.strip("\0\n ") or platform.processor() or platform.machine()


def read_first_answer(line: str, complaint: str) -> FirstAnswer:
    """Read the line of a fresh process; `complaint` is what it wrote to standard error.

    Raises StageFailed for anything but the line that `core.first_answer` writes.
    """
    try:
        return FirstAnswer.model_validate_json(line)
    except ValidationError as error:
        last = (complaint.strip().splitlines() or ["it said nothing"])[-1]
        raise StageFailed(
            "a fresh process of this Python",
            found=f"{line.strip() or 'no answer'!r} ({last})",
            expected="the times of its first answer",
            remedy="Run `python -m pilltrack.core.first_answer PHOTO BUNDLE` to see why.",
        ) from error


def _time_models(
    identifier: Identifier, bundle: Path, against: Path | None, runs: int, threads: int
) -> tuple[Timing, Timing | None]:
    n_references, rule = len(identifier.gallery), identifier.calibration
    own = Subject(identifier.embedder, identifier.gallery, rule)
    own_file = bundle / identifier.manifest.model.file
    if against is None:
        (steps,) = measure([own], runs)
        return _timing(own_file, own, steps), None
    embedder = open_embedder(against, threads)
    with Gallery.create(embedder.space, embedder.dim) as gallery:
        fill_up(gallery, n_references)
        gallery.background = random_background(len(identifier.gallery.background), embedder.dim)
        rival = Subject(embedder, gallery, rule)
        own_steps, rival_steps = measure([own, rival], runs)
        return _timing(own_file, own, own_steps), _timing(against, rival, rival_steps)


def _timing(file: Path, subject: Subject, steps_ms: dict[str, Percentiles]) -> Timing:
    return Timing(
        model=file.name,
        model_bytes=file.stat().st_size,
        input_size_px=subject.embedder.input_size_px,
        embedding_dim=subject.embedder.dim,
        references=len(subject.gallery),
        steps_ms=steps_ms,
    )


def _write_filled(identifier: Identifier, bundle: Path, directory: Path) -> Path:
    """The bundle once more, with the references that its open gallery has now."""
    gallery, manifest = directory / "gallery.safetensors", identifier.manifest
    identifier.gallery.bundled.save(gallery)
    probes = read_probes(bundle / PROBES_FILE)
    write_bundle(
        directory / "bundle",
        name=manifest.name,
        locator=bundle / LOCATOR_FILE,
        min_confidence=manifest.locator.min_confidence,
        model=bundle / manifest.model.file,
        gallery=gallery,
        probe_crops=probes.crops,
        probe_frames=probes.frames,
        calibration=manifest.calibration,
        pills=manifest.pills,
        git_commit=manifest.git_commit,
        data_digest=manifest.data_digest,
        params_digest=manifest.params_digest,
    )
    return directory / "bundle"


def _start(photo: Path, bundle: Path, references: int) -> Start:
    answers, times_s = zip(*(_answer_once(photo, bundle) for _ in range(N_STARTS)), strict=True)
    peaks = [answer.peak_bytes for answer in answers if answer.peak_bytes is not None]
    return Start(
        references=references,
        starts=N_STARTS,
        first_answer_s=round(statistics.median(times_s), 4),
        slowest_s=round(max(times_s), 4),
        imports_s=round(statistics.median(answer.imports_s for answer in answers), 4),
        open_s=round(statistics.median(answer.open_s for answer in answers), 4),
        identify_s=round(statistics.median(answer.identify_s for answer in answers), 4),
        peak_mb=round(max(peaks) / 1e6, 1) if peaks else None,
    )


def _answer_once(photo: Path, bundle: Path) -> tuple[FirstAnswer, float]:
    """Start a process, wait for its line; return it, and the seconds until it was here."""
    command = [sys.executable, "-m", "pilltrack.core.first_answer", str(photo), str(bundle)]
    with tempfile.TemporaryFile("w+", errors="replace") as complaint:  # a pipe could fill up
        start_s = time.perf_counter()
        with subprocess.Popen(  # noqa: S603 - this Python, no shell
            command, stdout=subprocess.PIPE, stderr=complaint, text=True
        ) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            answered_s = time.perf_counter() - start_s
        complaint.seek(0)
        return read_first_answer(line, complaint.read()), answered_s


def _table(timing: Timing) -> list[str]:
    lines = [f"{'ms':12}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}"]
    for step in (*STEPS, "total"):
        at = timing.steps_ms[step]
        lines.append(f"{step:12}{at.p50:9.3f}{at.p95:9.3f}{at.p99:9.3f}{at.max:9.3f}")
    return lines


def _in_words(timing: Timing) -> str:
    return (
        f"{timing.model}, {timing.model_bytes / 1e6:.2f} MB, {timing.input_size_px} px, "
        f"{timing.embedding_dim} dimensions"
    )


def _or_unknown(value: object) -> str:
    return "unknown" if value is None else str(value)


def _text(path: str) -> str:
    """A file of the kernel, empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
