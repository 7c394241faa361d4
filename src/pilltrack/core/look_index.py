"""The looks of all enrolled pills, searched exactly: an in-process Qdrant Edge shard.

The shard lives in a directory of its own, is built anew whenever a gallery is opened and is not
meant to be kept: opening a shard writes to its directory and would break the hashes of a bundle.
An index may be shared between threads.
"""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import qdrant_edge
from numpy.typing import NDArray

VECTOR_NAME = "embedding"
CHUNK = 1000  # points become Python lists on their way into the shard: bounds memory


class LookIndex:
    """Looks of length `dim` by pill. Call `close` when done: a private directory is then deleted.

    `directory` holds the shard and must not hold one yet; None means a private temporary one.
    """

    def __init__(self, dim: int, directory: Path | None = None) -> None:
        self.lock = threading.RLock()  # hold it to have nothing change between two calls
        self._pill_of: dict[int, str] = {}  # by point id of a look
        self._ids_of: dict[str, list[int]] = {}  # by pill
        self._next_id = 0
        self._temporary = None
        if directory is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="pilltrack-gallery-")
            directory = Path(self._temporary.name)
        vectors = qdrant_edge.EdgeVectorParams(size=dim, distance=qdrant_edge.Distance.Dot)
        # No write-ahead log: the shard is built anew from what is kept, never recovered.
        config = qdrant_edge.EdgeConfig(vectors={VECTOR_NAME: vectors}, wal_enabled=False)
        directory.mkdir(parents=True, exist_ok=True)
        self._shard = qdrant_edge.EdgeShard.create(str(directory), config)

    def put(
        self,
        looks_of: Mapping[str, NDArray[np.float32]],
        before: Callable[[str], NDArray[np.float32]],
    ) -> None:
        """Give each of these pills these looks (L, D) instead of its own: all or none.

        A pill without looks is no longer found. `before`: the looks that a pill has had, in the
        same order; asked for where the shard fails, to put them back. Should it fail at that too,
        a pill may stay unfound until its next change.
        """
        with self.lock:
            looks = [(pill, look) for pill, looks in looks_of.items() for look in looks]
            new = dict(enumerate(looks, start=self._next_id))
            self._next_id += len(new)
            old = [point_id for pill in looks_of for point_id in self._ids_of.get(pill, [])]
            try:
                self._upsert((point_id, look) for point_id, (_, look) in new.items())
                self._delete(old)
            except BaseException:
                # What is new has no pill yet: whatever of it stays in the shard is not found.
                try:
                    for pill in looks_of:
                        ids = self._ids_of.get(pill, [])
                        self._upsert(zip(ids, before(pill), strict=True))
                finally:
                    self._delete([*new])
                raise
            for point_id in old:
                del self._pill_of[point_id]
            for pill in looks_of:
                self._ids_of.pop(pill, None)
            for point_id, (pill, _) in new.items():
                self._pill_of[point_id] = pill
                self._ids_of.setdefault(pill, []).append(point_id)

    def nearest(self, embedding: NDArray[np.float32], n_pills: int) -> list[tuple[str, float]]:
        """The `n_pills` pills whose best look is most like an embedding (D,), and how much.

        That is their dot product, clipped to -1..1. Best first, equal scores in order of name.
        """
        query = qdrant_edge.Query.Nearest(embedding.tolist(), using=VECTOR_NAME)
        with self.lock:
            # Enough where the nearest pills have no more looks than others; else it doubles.
            usual = math.ceil(len(self._pill_of) / max(len(self._ids_of), 1))
            limit = n_pills * max(4, usual + 1)
            while self._pill_of:
                hits = self._shard.query(
                    qdrant_edge.QueryRequest(
                        limit=limit,
                        query=query,
                        with_payload=False,
                        params=qdrant_edge.SearchParams(exact=True),
                    )
                )
                best: dict[str, float] = {}
                score = math.inf
                for hit in hits:  # best first
                    score = max(-1.0, min(1.0, hit.score))
                    pill = self._pill_of.get(_int_id(hit.id))
                    if pill is not None:
                        best.setdefault(pill, score)
                ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))
                # An unseen look scores at most `score`; one that ties with the last place could
                # still win it by name.
                settled = len(ranked) >= n_pills and score < ranked[n_pills - 1][1]
                if settled or len(hits) < limit:
                    return ranked[:n_pills]
                limit *= 2
        return []

    def close(self) -> None:
        """Release the shard and remove its directory if it is private. Harmless when repeated."""
        with self.lock:
            self._shard.close()
            if self._temporary is not None:
                self._temporary.cleanup()

    def _upsert(self, looks: Iterable[tuple[int, NDArray[np.float32]]]) -> None:
        points = (
            qdrant_edge.Point(point_id, {VECTOR_NAME: look.tolist()}, {})
            for point_id, look in looks
        )
        while chunk := list(islice(points, CHUNK)):
            self._shard.update(qdrant_edge.UpdateOperation.upsert_points(chunk))

    def _delete(self, point_ids: list[int]) -> None:
        if point_ids:
            self._shard.update(qdrant_edge.UpdateOperation.delete_points([*point_ids]))


def _int_id(point_id: object) -> int:
    assert isinstance(point_id, int)
    return point_id
