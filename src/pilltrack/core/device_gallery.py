"""What a device searches: the bundle's pills and those enrolled on it, as one gallery.

Two galleries. The bundle's keeps its references; the device's own grows and shrinks while it is
searched, and is filled from `core.local` whenever a bundle is opened. A pill that is in both is one
pill: the device's gallery has its looks, made of the references of both, and the bundle's sets it
aside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.background import Background
from pilltrack.core.gallery import Candidate, Gallery, Reference, best_of, held_against


class DeviceGallery:
    """Two galleries of one embedding space. Use it as a context manager, or call `close`.

    May be shared between threads, like each of the two.
    """

    def __init__(self, bundled: Gallery) -> None:
        self.bundled = bundled
        self.local = Gallery.create(bundled.space, bundled.dim, beside=bundled)

    @property
    def space(self) -> str:
        """The embedding space of both."""
        return self.bundled.space

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.bundled.dim

    @property
    def background(self) -> Background:
        """The bundle's: what every score is held against."""
        return self.bundled.background

    def enrol(self, references: Sequence[Reference], embeddings: NDArray[np.float32]) -> None:
        """Enrol on the device; as `Gallery.enrol`."""
        with self._changing({reference.pill for reference in references}):
            self.local.enrol(references, embeddings)

    def replace(
        self, pill: str, references: Sequence[Reference], embeddings: NDArray[np.float32]
    ) -> None:
        """Replace what the device enrolled of a pill; as `Gallery.replace`."""
        with self._changing({pill}):
            self.local.replace(pill, references, embeddings)

    def remove(self, pill: str) -> int:
        """Remove what the device enrolled of a pill; the bundle's references stay."""
        with self._changing({pill}):
            return self.local.remove(pill)

    def search(self, embeddings: NDArray[np.float32], n_pills: int) -> list[list[Candidate]]:
        """Find the `n_pills` most similar distinct pills of both; as `Gallery.search`."""
        with self.local.lock:  # no pill may be in both answers, or in none
            bundled = self.bundled.nearest_but_aside(embeddings, n_pills)
            local = self.local.nearest(embeddings, n_pills)
        found = [best_of(*lists, n_pills) for lists in zip(bundled, local, strict=True)]
        return held_against(self.background, embeddings, found)

    def pills(self) -> list[str]:
        """List the enrolled pills of both, sorted."""
        return sorted({*self.bundled.pills(), *self.local.pills()})

    @property
    def n_pills(self) -> int:
        """How many pills are enrolled in either."""
        return self.bundled.n_pills + sum(pill not in self.bundled for pill in self.local.pills())

    def references(self, pill: str | None = None) -> list[Reference]:
        """List the references of a pill, or all, of both, sorted by (pill, side, image)."""
        return sorted([*self.bundled.references(pill), *self.local.references(pill)])

    def require_space(self, space: str) -> None:
        """Raise SpaceMismatch, naming both, unless the galleries belong to `space`."""
        self.bundled.require_space(space)

    def close(self) -> None:
        """Release both shards. Harmless when repeated."""
        self.bundled.close()
        self.local.close()

    @contextmanager
    def _changing(self, pills: set[str]) -> Iterator[None]:
        """A change of these pills of the device, during and after which none is found twice."""
        with self.local.lock:
            self.bundled.set_aside({*self.local.pills(), *pills})
            try:
                yield
            finally:
                self.bundled.set_aside(self.local.pills())

    def __len__(self) -> int:
        return len(self.bundled) + len(self.local)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
