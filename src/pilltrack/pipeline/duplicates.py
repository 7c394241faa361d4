"""Find photos that are copies of one another, without merging different pills.

Exact: the same decoded pixels. Near: a 256-bit DCT hash says which pairs may be copies, then
64 x 64 thumbnails are compared block by block after evening out brightness and contrast. The
hash alone confuses blank white tablets and colour variants of one shape; the block comparison
alone would cost N^2 image comparisons. Measured on the NLM studio crops (docs/data.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

HASH_BITS = 256
THUMBNAIL_PX = 64
MAX_BLOCK_DIFFERENCE = 3.5  # grey levels of 255, mean of the worst 8 x 8 block
MAX_GAIN = 1.25  # ratio of contrasts
MAX_SHIFT = 32.0  # difference of mean brightness, grey levels
MAX_ASPECT_RATIO = 1.05  # of the aspect ratios of two photos
_QUIET = 2.0  # coefficients this close above the median are noise in smooth or symmetric images
_FLAT = 4.0  # contrast below which an image is not amplified
_PAIRS_PER_BATCH = 512
_DISTANCES_PER_CHUNK = 4_000_000


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What is kept of an image: SHA-256 of its pixels, hash bits, thumbnail, width / height."""

    digest: str
    bits: NDArray[np.uint64]  # (4,)
    thumbnail: NDArray[np.uint8]  # (64, 64, 3)
    aspect: float


@dataclass(frozen=True, order=True, slots=True)
class Link:
    """Two images, by index (first < second), found to be copies; `bits` 0 for exact ones too."""

    first: int
    second: int
    bits: int
    exact: bool


@dataclass(frozen=True, order=True, slots=True)
class Pair:
    """Two images, by index (first < second), compared.

    `bits` of the hash differ, and `grey_levels` in the worst block of the evened-out thumbnails
    (infinite when contrast or brightness differ too much for a copy). `alike` says that thumbnails
    and aspect ratios are those of a copy, whatever the hash says.
    """

    first: int
    second: int
    bits: int
    grey_levels: float
    alike: bool


class Unions:
    """Union-find over 0..n-1: which items hang together."""

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))

    def find(self, item: int) -> int:
        """Return the representative of an item, the smallest of its set."""
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def unite(self, first: int, second: int) -> bool:
        """Put two items into one set; False when they were in one already."""
        low, high = sorted((self.find(first), self.find(second)))
        self._parent[high] = low
        return low != high

    def labels(self) -> list[int]:
        """Return the representative of every item."""
        return [self.find(item) for item in range(len(self._parent))]


def fingerprint(image: NDArray[np.uint8]) -> Fingerprint:
    """Compute what `find_copies` needs of an upright RGB image (H, W, 3) uint8.

    The hash says which of the 256 lowest DCT coefficients (without the mean) of the grey image
    at 64 x 64 lie clearly above their median, after Zauner 2010, "Implementation and benchmarking
    of perceptual image hash functions", section 3.2.1.
    """
    height, width = image.shape[:2]
    digest = hashlib.sha256(f"{height}x{width}:".encode() + image.tobytes()).hexdigest()
    small = cv2.resize(image, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    low = cv2.dct(grey)[:17, :17].ravel()[1 : HASH_BITS + 1]
    bits = np.packbits(low > np.median(low) + _QUIET).view(np.uint64)
    thumbnail = cv2.GaussianBlur(small, (3, 3), 0)  # evens out compression noise
    return Fingerprint(digest, bits, thumbnail, width / height)


def find_copies(prints: Sequence[Fingerprint], max_bits: int) -> list[Link]:
    """Return links that join all copies, sorted; their connected components are the groups.

    `max_bits` is the number of the 256 hash bits in which near duplicates may differ; 0 still
    compares thumbnails of equal hashes. Not every pair of a group is linked: pairs that already
    hang together are not compared. Memory is O(N) beside a fixed working set; time is O(N^2) in
    the hash comparison (20,000 images: about 3 s on two cores).
    """
    links: list[Link] = []
    unions = Unions(len(prints))
    first_of: dict[str, int] = {}
    for index, print_ in enumerate(prints):
        first = first_of.setdefault(print_.digest, index)
        if first != index:
            unions.unite(first, index)
            links.append(Link(first, index, 0, exact=True))
    different = list(first_of.values())
    for rows, columns, distances in _close_pairs([prints[i] for i in different], max_bits):
        candidates = [
            (different[row], different[column], int(distance))
            for row, column, distance in zip(rows, columns, distances, strict=True)
        ]
        for start in range(0, len(candidates), _PAIRS_PER_BATCH):
            batch = candidates[start : start + _PAIRS_PER_BATCH]
            batch = [pair for pair in batch if unions.find(pair[0]) != unions.find(pair[1])]
            for pair in _compared(prints, np.array(batch, np.int64).reshape(-1, 3)):
                if pair.alike and unions.unite(pair.first, pair.second):
                    links.append(Link(pair.first, pair.second, pair.bits, exact=False))
    return sorted(links)


def compare_apart(
    prints: Sequence[Fingerprint], places: Sequence[str], max_bits: int, n_closest: int = 1000
) -> tuple[list[Pair], list[Pair]]:
    """Compare images in different places: (all copies, the closest of the other pairs).

    `places` says for each image where it lies, such as its split and role. Copies are pairs that
    look the same and differ in at most `max_bits` (see `find_copies`), exact ones included; here
    every pair is compared, so that a mistake in joining groups is found. The others are, of the
    `n_closest` pairs with the fewest bits different, those that are no copies; by bits, then by
    index. Memory and time as in `find_copies`.
    """
    _, labels = np.unique(np.array(places, dtype=np.str_), return_inverse=True)
    copies: list[Pair] = []
    candidates = np.empty((0, 3), np.int64)  # first, second, bits
    reach = HASH_BITS  # no farther pair can be among the candidates
    for start, distance in _distances(prints):
        together = labels[start : start + len(distance), None] == labels[None, start:]
        distance[together | np.tri(*distance.shape, dtype=np.bool_)] = HASH_BITS + 1
        within = distance[distance <= reach]
        if within.size > n_closest:
            reach = int(np.partition(within, n_closest - 1)[n_closest - 1])
        rows, columns = np.nonzero(distance <= max(reach, max_bits))
        found = np.stack([rows + start, columns + start, distance[rows, columns]], axis=1)
        near = _compared(prints, found[found[:, 2] <= max_bits])
        copies.extend(pair for pair in near if pair.alike)
        candidates = np.concatenate([candidates, found])
        order = np.lexsort((candidates[:, 1], candidates[:, 0], candidates[:, 2]))
        candidates = candidates[order[:n_closest]]
    closest = _compared(prints, candidates)
    return copies, [pair for pair in closest if not pair.alike or pair.bits > max_bits]


def block_difference(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Compare thumbnails (P, 64, 64, 3) pairwise: (P,) mean difference of the worst 8 x 8 block.

    Brightness and contrast of each image, over its three channels together, are evened out
    first, so that a colour difference stays a difference. In grey levels of 255; 0 is equal.
    """
    a, mean_a, contrast_a = _evened(first)
    b, mean_b, contrast_b = _evened(second)
    scale = ((contrast_a + contrast_b) / 2)[:, None, None]
    difference = np.abs(a - b).mean(axis=3) * scale  # (P, 64, 64)
    cells = difference.reshape(len(a), 16, 4, 16, 4).mean(axis=(2, 4))
    blocks = (
        cells[:, :-1, :-1] + cells[:, 1:, :-1] + cells[:, :-1, 1:] + cells[:, 1:, 1:]
    ) / 4  # 8 x 8 blocks in steps of 4
    worst = blocks.max(axis=(1, 2)).astype(np.float64)
    gain = np.maximum(contrast_a, contrast_b) / np.minimum(contrast_a, contrast_b)
    other_light = (gain > MAX_GAIN) | (np.abs(mean_a - mean_b) > MAX_SHIFT)
    return np.where(other_light, np.inf, worst)


def _close_pairs(
    prints: Sequence[Fingerprint], max_bits: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint16]]]:
    for start, distance in _distances(prints):
        rows, columns = np.nonzero(distance <= max_bits)
        upper = columns > rows
        rows, columns = rows[upper], columns[upper]
        yield rows + start, columns + start, distance[rows, columns]


def _distances(prints: Sequence[Fingerprint]) -> Iterator[tuple[int, NDArray[np.uint16]]]:
    """Yield (start, bits that differ between images start.. of a chunk and all from start on)."""
    if len(prints) < 2:
        return
    bits = np.stack([print_.bits for print_ in prints])  # (N, 4) uint64
    n_rows = max(1, _DISTANCES_PER_CHUNK // len(prints))
    for start in range(0, len(prints), n_rows):
        chunk, others = bits[start : start + n_rows], bits[start:]
        distance = np.zeros((len(chunk), len(others)), np.uint16)
        for word in range(bits.shape[1]):
            distance += np.bitwise_count(chunk[:, word, None] ^ others[None, :, word])
        yield start, distance


def _compared(prints: Sequence[Fingerprint], pairs: NDArray[np.int64]) -> Iterator[Pair]:
    """Look at the thumbnails of pairs (P, 3): first, second, bits."""
    for start in range(0, len(pairs), _PAIRS_PER_BATCH):
        batch = pairs[start : start + _PAIRS_PER_BATCH].tolist()
        difference = block_difference(
            np.stack([prints[first].thumbnail for first, _, _ in batch]),
            np.stack([prints[second].thumbnail for _, second, _ in batch]),
        )
        for (first, second, bits), worst in zip(batch, difference.tolist(), strict=True):
            a, b = prints[first].aspect, prints[second].aspect
            alike = worst <= MAX_BLOCK_DIFFERENCE and max(a, b) <= MAX_ASPECT_RATIO * min(a, b)
            yield Pair(first, second, bits, worst, alike)


def _evened(
    thumbnails: NDArray[np.uint8],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    values = thumbnails.astype(np.float32)
    mean = values.mean(axis=(1, 2, 3))
    contrast = np.maximum(values.std(axis=(1, 2, 3)), _FLAT)
    evened = (values - mean[:, None, None, None]) / contrast[:, None, None, None]
    return evened, mean, contrast
