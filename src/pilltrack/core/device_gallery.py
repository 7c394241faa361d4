"""What a device searches: the bundle's pills and those enrolled on it, as one gallery.

Two galleries side by side. The bundle's never changes; the device's own grows and shrinks while it
is searched, and is filled from `core.local` whenever a bundle is opened. A pill that is in both is
one pill, with looks made of the references of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.background import Background
from pilltrack.core.gallery import Candidate, Gallery, Reference


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
        self.local.enrol(references, embeddings)

    def replace(
        self, pill: str, references: Sequence[Reference], embeddings: NDArray[np.float32]
    ) -> None:
        """Replace what the device enrolled of a pill; as `Gallery.replace`."""
        self.local.replace(pill, references, embeddings)

    def remove(self, pill: str) -> int:
        """Remove what the device enrolled of a pill; the bundle's references stay."""
        return self.local.remove(pill)

    def search(self, embeddings: NDArray[np.float32], n_pills: int) -> list[list[Candidate]]:
        """Find the `n_pills` most similar distinct pills of both; as `Gallery.search`."""
        return self.bundled.search(embeddings, n_pills)

    @contextmanager
    def bundle_alone(self) -> Iterator[Gallery]:
        """A copy of the bundle's gallery, to be searched without what was enrolled here.

        A copy even where that is nothing: somebody may enrol while it is searched.
        """
        with Gallery.create(self.space, self.dim) as gallery:
            gallery.background = self.background
            gallery.enrol(self.bundled.references(), self.bundled.embeddings())
            yield gallery

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
        """Release both. Harmless when repeated."""
        self.bundled.close()

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
