"""How alike photos of one side must be at enrolment: good sets refused, wrong ones caught.

    python benchmarks/enrolment_agreement.py src/pilltrack/starter/bundle \\
        --params params/starter.yaml --photos phone1/gallery phone1/probes phone1/strangers

Three photos of a pill's side are a good set; with the third one of another of these pills, drawn
anew OTHERS times, a wrong one, caught by any fault, whichever photo it names. Simulated sets are
captures by three cameras in turn, as of `several_references.py`. Those of `--photos` (folders of
`<pill>/<image>`, each photo in one of them) are drawn from all photos of a pill, whose sides nobody
told: only pills that look alike from both sides are fair (`--pill`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from several_references import OF_FRONT, photograph

from pilltrack.core.bundle import read_bundle
from pilltrack.core.embedder import Embedder, open_embedder
from pilltrack.core.enrol import embed_references
from pilltrack.core.image import read_image
from pilltrack.core.quality import least_agreement
from pilltrack.pipeline.evaluate_folder import pill_photos
from pilltrack.pipeline.params import CaptureParams, load_params
from pilltrack.pipeline.table import ImageRow, load_images

LIMITS = (0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7)
OTHERS = 10  # wrong sets for each good one
SETS = 50  # good sets drawn from the photos of one pill
Sets = tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]  # good, wrong; each (3, D)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--prepared", type=Path, default=Path("artifacts/prepare"))
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--photos", type=Path, nargs="+", default=[], metavar="DIR")
    parser.add_argument("--pill", nargs="+", default=[], help="of --photos: these alone (all)")
    arguments = parser.parse_args()
    bundle: Path = arguments.bundle
    manifest = read_bundle(bundle)
    embedder = open_embedder(bundle / manifest.model.file, threads=2)
    rows = [row for row in load_images(arguments.prepared) if row.split == arguments.split]
    capture = load_params(arguments.params).capture
    sets = {"simulated": simulated_sets(embedder, rows, arguments.prepared, capture)}
    if arguments.photos:
        sets["photos"] = photo_sets(embedder, arguments.photos, arguments.pill)
    print(as_table(sets, manifest.calibration.agreement))


def simulated_sets(
    embedder: Embedder, rows: list[ImageRow], prepared: Path, capture: CaptureParams
) -> Sets:
    """The front of each new pill, by three cameras."""
    [captures] = photograph([embedder], rows, prepared, capture)
    of_pill: dict[str, list[NDArray[np.float32]]] = {}
    for reference in captures.references:
        of_pill.setdefault(reference.pill, []).append(reference.embedding)
    return _with_wrong_ones({pill: [np.stack(e[:OF_FRONT])] for pill, e in of_pill.items()})


def photo_sets(embedder: Embedder, folders: Sequence[Path], wanted: Sequence[str]) -> Sets:
    """Any three photos of each pill."""
    photos: dict[str, list[Path]] = {}
    for folder in folders:
        for pill, image in pill_photos(folder):
            if not wanted or pill in wanted:
                photos.setdefault(pill, []).append(image)
    few = [pill for pill in {*photos, *wanted} if len(photos.get(pill, [])) < 3]
    if few:
        sys.exit(f"fewer than 3 photos of {', '.join(sorted(few))}; leave them out by --pill")
    rng = np.random.default_rng(0)
    drawn = {}
    for pill, images in photos.items():
        embeddings = np.concatenate([embed_references(embedder, [read_image(i)]) for i in images])
        drawn[pill] = [embeddings[rng.choice(len(images), 3, replace=False)] for _ in range(SETS)]
    return _with_wrong_ones(drawn)


def as_table(sets: dict[str, Sets], own: float) -> str:
    """One row for each limit; `own` is that of the bundle."""
    names = [f"{name}: {what}" for name in sets for what in ("good refused", "wrong caught")]
    lines = [f"| limit | {' | '.join(names)} |", "|---:" * (len(names) + 1) + "|"]
    for limit in sorted({*LIMITS, round(own, 3)}):
        shares = [
            f"{np.mean([least_agreement(three) < limit for three in some]):.1%}"
            for both in sets.values()
            for some in both
        ]
        lines.append(f"| {limit} | {' | '.join(shares)} |")
    counts = [str(len(some)) for both in sets.values() for some in both]
    return "\n".join([*lines, f"| sets | {' | '.join(counts)} |"])


def _with_wrong_ones(good: dict[str, list[NDArray[np.float32]]]) -> Sets:
    if len(good) < 2:
        sys.exit(f"expected two pills or more, found {len(good)}")
    rng = np.random.default_rng(0)
    wrong = []
    for pill, sets in good.items():
        others = [other for other in good if other != pill]
        for three in sets:
            for _ in range(OTHERS):
                of_other = good[others[rng.integers(len(others))]]
                odd = of_other[rng.integers(len(of_other))][rng.integers(3)]
                wrong.append(np.stack([*three[:2], odd]))
    return [three for sets in good.values() for three in sets], wrong


if __name__ == "__main__":
    main()
