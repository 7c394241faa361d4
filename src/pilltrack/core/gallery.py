"""The enrolled pills: enrol, remove, search, save.

A probe is compared with the pills' looks (`core.looks`), which are searched exactly
(`core.look_index`). What is kept is one portable safetensors file with all embeddings and
references.

    gallery file    safetensors
      tensor        background  (M, D) float16, unit length: see `core.background`
                    embeddings  (N, D) float32, unit length, in order of (pill, side, image)
      metadata      format      "pilltrack-gallery-2"
                    space       name of the embedding space
                    background  JSON [pill, ...], one per row of background
                    references  JSON [[pill, side, image], ...], one per row of embeddings

The same content gives the same bytes. A file is trusted only after every value has been checked.
A gallery may be shared between threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from pilltrack.core.background import Background, no_background
from pilltrack.core.errors import BundleRejected, SpaceMismatch
from pilltrack.core.look_index import LookIndex
from pilltrack.core.looks import looks_of
from pilltrack.core.tensors import as_json, write_tensors

FORMAT = "pilltrack-gallery-2"
MAX_FILE_BYTES = 2 * 1024**3
MAX_REFERENCES = 1_000_000
MAX_DIM = 8192
MAX_NAME_LENGTH = 1024
UNIT_TOLERANCE = 1e-3
TENSORS = {"background": "F16", "embeddings": "F32"}
METADATA = {"format", "space", "background", "references"}


@dataclass(frozen=True, order=True)
class Reference:
    """Where one enrolled embedding comes from."""

    pill: str
    side: str  # "front", "back" or empty
    image: str


@dataclass(frozen=True)
class Candidate:
    """A pill and how much a probe resembles it.

    `score` is the best cosine of its looks, in -1..1, less the gallery's background.
    """

    pill: str
    score: float


_Enrolled = tuple[Reference, NDArray[np.float32]]  # with its embedding (D,)


class Gallery:
    """Enrolled embeddings of one embedding space, searchable by similarity.

    Use it as a context manager, or call `close`: a private shard directory is then deleted.
    """

    def __init__(
        self, space: str, dim: int, directory: Path | None = None, beside: Gallery | None = None
    ) -> None:
        if not space or not 1 <= dim <= MAX_DIM:
            raise ValueError(f"space {space!r}, dim {dim}; expected a name and 1..{MAX_DIM}")
        self.space: str = space
        self.dim: int = dim
        self._beside = beside
        self._background = no_background(dim)
        self._enrolled: dict[str, list[_Enrolled]] = {}  # by pill, in order
        self._n_references = 0
        if beside is None:
            self._index = LookIndex(dim, directory)
        elif (beside.space, beside.dim) != (space, dim) or beside._beside is not None:
            raise ValueError(
                f"a gallery of space {beside.space!r} and dim {beside.dim} beside one of space "
                f"{space!r} and dim {dim}; expected the same, and no other gallery beside it"
            )
        else:
            self._index, beside._beside = beside._index, self
        self.lock = self._index.lock  # hold it to have nothing change between two calls

    @classmethod
    def create(
        cls, space: str, dim: int, directory: Path | None = None, beside: Gallery | None = None
    ) -> Self:
        """Open an empty gallery for embeddings of length `dim` in `space`.

        `directory` holds the shard and must not hold one yet; None means a private temporary
        directory, removed by `close`. `beside`: a gallery to be searched with this one, from either
        of them, in its directory; the looks of a pill in both are made of the references of both.
        Each takes its own background off. A gallery has at most one beside it.
        """
        return cls(space, dim, directory, beside)

    @classmethod
    def load(cls, path: Path, directory: Path | None = None) -> Self:
        """Open a gallery file; `directory` as in `create`.

        Raises BundleRejected when the file is missing, damaged, of another format, or holds
        anything that `enrol` would refuse.
        """
        content = _read_file(path)
        gallery = cls(content.space, content.embeddings.shape[1], directory)
        try:
            gallery.background = content.background
            gallery.enrol(content.references, content.embeddings)
        except ValueError as error:
            gallery.close()
            raise _rejected(path, str(error), "a gallery written by PillTrack") from error
        return gallery

    @property
    def background(self) -> Background:
        """What is taken off every score; empty in a new gallery."""
        return self._background

    @background.setter
    def background(self, background: Background) -> None:
        """Keep a copy, as precise as the gallery file; ValueError for what it could not hold."""
        half = background.embeddings.astype(np.float16).astype(np.float32)
        kept = Background(half, list(background.pills))
        _check_background(kept, self.dim)
        self._background = kept

    def enrol(self, references: Sequence[Reference], embeddings: NDArray[np.float32]) -> None:
        """Add embeddings (N, D) float32 of unit length, one per reference: all or none.

        The same reference may be enrolled several times. Raises ValueError, and changes nothing,
        for another shape or dtype, a value that is not finite, a row that is not of unit length,
        a reference without a pill, or too many references.
        """
        with self.lock:
            _check_references(references, len(self))
            _check_unit_rows("embedding", embeddings, self.dim, len(references))
            kept = {
                reference.pill: list(self._enrolled.get(reference.pill, []))
                for reference in references
            }
            for reference, row in zip(references, map(np.copy, embeddings), strict=True):
                kept[reference.pill].append((reference, row))
            self._put(kept)

    def remove(self, pill: str) -> int:
        """Remove all references of a pill; return how many there were (0 if not enrolled)."""
        with self.lock:
            count = len(self._enrolled.get(pill, []))
            self._put({pill: []})
            return count

    def replace(
        self, pill: str, references: Sequence[Reference], embeddings: NDArray[np.float32]
    ) -> None:
        """Give a pill these references instead of its own: no search in between lacks any.

        Raises as `enrol`, and then changes nothing; ValueError also for another pill's reference.
        """
        if others := sorted({reference.pill for reference in references} - {pill}):
            raise ValueError(f"references of {others[0]!r}; expected those of {pill!r} alone")
        with self.lock:
            _check_references(references, len(self))
            _check_unit_rows("embedding", embeddings, self.dim, len(references))
            self._put({pill: list(zip(references, map(np.copy, embeddings), strict=True))})

    def search(self, embeddings: NDArray[np.float32], n_pills: int) -> list[list[Candidate]]:
        """Find the `n_pills` most similar distinct pills for each probe (N, D) float32.

        A pill's score is the dot product of its best look (`core.looks`) with the probe (the
        cosine, as both have unit length), clipped to -1..1, less the probe's share of the
        background. Candidates come best first, equal scores in order of pill name; fewer than
        `n_pills` only if the gallery has fewer. Exact: nothing is approximated or cut off, however
        many references a pill has.

        Raises ValueError for another shape or dtype, a value that is not finite, or n_pills < 1.
        """
        found = self.nearest(embeddings, n_pills)
        nearest = [candidates[0].pill if candidates else "" for candidates in found]
        shares = self.background.share(embeddings, nearest)
        return [
            [Candidate(candidate.pill, candidate.score - share) for candidate in candidates]
            for candidates, share in zip(found, shares.tolist(), strict=True)
        ]

    def nearest(self, embeddings: NDArray[np.float32], n_pills: int) -> list[list[Candidate]]:
        """What `search` finds before the background is taken off: scores are cosines."""
        _check_embeddings(embeddings, self.dim)
        if n_pills < 1:
            raise ValueError(f"n_pills is {n_pills}; expected at least 1")
        return [
            [Candidate(pill, score) for pill, score in self._index.nearest(probe, n_pills)]
            for probe in embeddings
        ]

    def pills(self) -> list[str]:
        """List the enrolled pills, sorted."""
        with self.lock:
            return sorted(self._enrolled)

    @property
    def n_pills(self) -> int:
        """How many pills are enrolled."""
        with self.lock:
            return len(self._enrolled)

    def counts(self) -> dict[str, int]:
        """Map each pill to how many references it has, in order of name."""
        with self.lock:
            return {pill: len(self._enrolled[pill]) for pill in sorted(self._enrolled)}

    def references(self, pill: str | None = None) -> list[Reference]:
        """List the references of a pill, or all, sorted by (pill, side, image)."""
        with self.lock:
            return [reference for reference, _ in self._in_order(pill)]

    def embeddings(self, pill: str | None = None) -> NDArray[np.float32]:
        """Return embeddings (N, D) float32, row i belonging to `references(pill)[i]`."""
        return self._content(pill)[1]

    def looks(self) -> tuple[NDArray[np.float32], list[str]]:
        """Return the looks (L, D) that probes are compared with (`core.looks`), and their pills."""
        with self.lock:
            of_pill = {
                pill: self._looks_of(pill, kept) for pill, kept in sorted(self._enrolled.items())
            }
        names = [pill for pill, looks in of_pill.items() for _ in looks]
        return np.concatenate([np.empty((0, self.dim), np.float32), *of_pill.values()]), names

    def save(self, path: Path) -> None:
        """Write the gallery file (see the module's docstring); the same content, the same bytes.

        The file appears under its name only when it is complete.
        """
        references, embeddings = self._content()
        background = self._background.embeddings.astype(np.float16)
        write_tensors(
            path,
            {"embeddings": embeddings, "background": background},
            {
                "format": FORMAT,
                "space": self.space,
                "background": as_json(list(self._background.pills)),
                "references": as_json([astuple(reference) for reference in references]),
            },
        )

    def require_space(self, space: str) -> None:
        """Raise SpaceMismatch, naming both, unless the gallery belongs to `space`."""
        if space != self.space:
            raise SpaceMismatch(
                "gallery",
                found=f"embedding space {self.space}",
                expected=f"embedding space {space}",
                remedy="Enrol the pills again with this model.",
            )

    def close(self) -> None:
        """Release the index, also for a gallery beside this one. Harmless when repeated.

        A private directory is then removed.
        """
        self._index.close()

    def __contains__(self, pill: object) -> bool:
        """Is this pill enrolled?"""
        with self.lock:
            return pill in self._enrolled

    def __len__(self) -> int:
        return self._n_references

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _put(self, changes: Mapping[str, Sequence[_Enrolled]]) -> None:
        """Give each of these pills these references instead of its own: all or none."""
        ordered = {pill: _sorted(kept) for pill, kept in changes.items()}
        self._index.put(
            {pill: self._looks_of(pill, kept) for pill, kept in ordered.items()},
            before=lambda pill: self._looks_of(pill, self._enrolled.get(pill, [])),
        )
        for pill, kept in ordered.items():
            self._n_references += len(kept) - len(self._enrolled.pop(pill, []))
            if kept:
                self._enrolled[pill] = kept

    def _looks_of(self, pill: str, kept: Sequence[_Enrolled]) -> NDArray[np.float32]:
        """The looks (L, D) of a pill with these references here, and its own in the one beside."""
        others = [] if self._beside is None else self._beside._in_order(pill)
        every = _sorted([*kept, *others])
        rows = np.array([row for _, row in every], np.float32).reshape(-1, self.dim)
        return looks_of(rows, [reference.side for reference, _ in every])

    def _content(self, pill: str | None = None) -> tuple[list[Reference], NDArray[np.float32]]:
        with self.lock:
            found = self._in_order(pill)
        embeddings = np.array([row for _, row in found], np.float32).reshape(-1, self.dim)
        return [reference for reference, _ in found], embeddings

    def _in_order(self, pill: str | None) -> list[_Enrolled]:
        """What is enrolled of a pill, or of all, sorted by (pill, side, image)."""
        pills = sorted(self._enrolled) if pill is None else [pill]
        return [one for name in pills for one in self._enrolled.get(name, [])]


def _sorted(kept: Sequence[_Enrolled]) -> list[_Enrolled]:
    return sorted(kept, key=lambda one: one[0])


def read_space(path: Path) -> str:
    """Read the name of the embedding space from a gallery file, without its embeddings.

    Raises BundleRejected when the file is missing, damaged or of another format.
    """
    return _read_metadata(path)["space"]


def read_background(path: Path, dim: int) -> Background:
    """Read the background from a gallery file for embeddings of length `dim`.

    Raises BundleRejected when the file is missing, damaged or of another format, or its background
    is not one of unit vectors of that length.
    """
    background = _read_file(path).background
    try:
        _check_background(background, dim)
    except ValueError as error:
        raise _rejected(
            path, str(error), "a gallery written by PillTrack for this model"
        ) from error
    return background


@dataclass(frozen=True)
class _Content:
    space: str
    references: list[Reference]
    embeddings: NDArray[np.float32]  # (N, D)
    background: Background


def _read_file(path: Path) -> _Content:
    metadata = _read_metadata(path)
    rows = _table(path, metadata, "references", list[tuple[str, str, str]], "[pill, side, image]")
    pills = _table(path, metadata, "background", list[str], "pill")
    try:
        with safe_open(path, framework="numpy") as file:
            for name, wanted in TENSORS.items():
                view = file.get_slice(name)
                shape, dtype = view.get_shape(), view.get_dtype()
                if dtype != wanted or len(shape) != 2 or not 1 <= shape[1] <= MAX_DIM:
                    found = f"{name} of type {dtype} and shape {shape}"
                    raise _rejected(path, found, f"(N, D) {wanted} with D in 1..{MAX_DIM}")
            embeddings: NDArray[np.float32] = file.get_tensor("embeddings")
            background = file.get_tensor("background").astype(np.float32)
    except (SafetensorError, OSError) as error:
        raise _rejected(path, f"damaged ({error})", "a whole gallery file") from error
    references = [Reference(*row) for row in rows]
    return _Content(metadata["space"], references, embeddings, Background(background, pills))


def _table(path: Path, metadata: dict[str, str], name: str, kind: Any, row: str) -> Any:
    try:
        return TypeAdapter(kind).validate_json(metadata[name])
    except ValidationError as error:
        found = f"{name} that are not such a table ({error.errors()[0]['msg']})"
        raise _rejected(path, found, f"JSON [{row}, ...]") from error


def _read_metadata(path: Path) -> dict[str, str]:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise _rejected(path, f"{size} bytes", f"at most {MAX_FILE_BYTES} bytes")
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = list(file.keys())
    except OSError as error:
        raise _rejected(path, f"cannot be read ({error})", "a gallery file") from error
    except SafetensorError as error:
        raise _rejected(path, f"damaged ({error})", "a whole gallery file") from error
    found_format = metadata.get("format")
    if found_format != FORMAT:
        raise _rejected(path, f"format {found_format!r}", f"format {FORMAT!r}")
    if set(metadata) != METADATA or sorted(tensors) != list(TENSORS):
        found = f"metadata {sorted(metadata)} and tensors {sorted(tensors)}"
        expected = f"metadata {', '.join(sorted(METADATA))} and tensors {', '.join(TENSORS)}"
        raise _rejected(path, found, expected)
    if not metadata["space"]:
        raise _rejected(path, "no name of an embedding space", "one")
    return metadata


def _rejected(path: Path, found: str, expected: str) -> BundleRejected:
    return BundleRejected(
        str(path),
        found=found,
        expected=expected,
        remedy="Fetch the bundle again, or build the gallery with `pilltrack enroll`.",
    )


def _check_references(references: Sequence[Reference], n_enrolled: int) -> None:
    if n_enrolled + len(references) > MAX_REFERENCES:
        raise ValueError(f"more than {MAX_REFERENCES} references; use a Qdrant cluster instead")
    for reference in references:
        longest = max(len(value) for value in astuple(reference))
        if not reference.pill or longest > MAX_NAME_LENGTH:
            raise ValueError(
                f"reference {reference!r:.200} has no pill or a name longer than "
                f"{MAX_NAME_LENGTH} characters"
            )


def _check_embeddings(embeddings: NDArray[np.float32], dim: int) -> None:
    if embeddings.ndim != 2 or embeddings.shape[1] != dim or embeddings.dtype != np.float32:
        raise ValueError(
            f"embeddings have shape {embeddings.shape} and dtype {embeddings.dtype}; "
            f"expected (N, {dim}) float32"
        )
    if not np.isfinite(embeddings).all():
        raise ValueError("embeddings hold values that are not finite")


def _check_unit_rows(what: str, embeddings: NDArray[np.float32], dim: int, n_names: int) -> None:
    _check_embeddings(embeddings, dim)
    if n_names != len(embeddings):
        raise ValueError(f"{n_names} names for {len(embeddings)} {what}s")
    lengths = np.linalg.norm(embeddings, axis=1)
    if (np.abs(lengths - 1) > UNIT_TOLERANCE).any():
        row = int(np.argmax(np.abs(lengths - 1)))
        raise ValueError(f"{what} {row} has length {lengths[row]:.4f}; expected 1")


def _check_background(background: Background, dim: int) -> None:
    longest = max(map(len, background.pills), default=1)
    if len(background) > MAX_REFERENCES or longest > MAX_NAME_LENGTH or "" in background.pills:
        raise ValueError("a background with a name that is empty or too long, or too many")
    _check_unit_rows("background embedding", background.embeddings, dim, len(background))
