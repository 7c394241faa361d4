"""Publishers, and readers that follow them as devices do, for tests of releases."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tuf.api.metadata import Metadata, Targets
from tuf.ngclient import Updater, UpdaterConfig

from pilltrack.core.bundle import MANIFEST_FILE, read_bundle
from pilltrack.core.channels import Release, releases_in
from pilltrack.pipeline import keys
from pilltrack.pipeline.publish import Publisher
from pilltrack.pipeline.store import DirectoryStore, Store
from tests.tiny_bundle import tiny_bundle

PASSPHRASE = b"six random words are enough"
PHOTO = np.full((64, 64, 3), 90, np.uint8)


def some_keys(folder: Path, **options: Any) -> Path:
    """A folder of keys, unencrypted unless `passphrase` is given."""
    keys.init(folder, **{"now": datetime.now(UTC), "passphrase": None, **options})
    return folder


def some_bundle(directory: Path, pill: str = "blue-pill") -> Path:
    """A bundle that no other pill's bundle is equal to."""
    directory.mkdir(parents=True, exist_ok=True)
    return tiny_bundle(directory, pill, PHOTO, threshold=0.95, frames=[PHOTO])


def renamed_bundle(bundle: Path, directory: Path, name: str) -> Path:
    """A copy of a bundle that differs in its manifest only."""
    shutil.copytree(bundle, directory)
    manifest = json.loads((directory / MANIFEST_FILE).read_bytes())
    (directory / MANIFEST_FILE).write_text(json.dumps({**manifest, "name": name}))
    return directory


def some_bundles(directory: Path) -> list[Path]:
    """Sixteen bundles, of which the first three have galleries of their own."""
    first = [some_bundle(directory / str(number), f"pill-{number}") for number in range(3)]
    return first + [
        renamed_bundle(first[0], directory / str(number), f"tiny-{number}")
        for number in range(3, 16)
    ]


def publisher(store: Store | Path, folder: Path, **options: Any) -> Publisher:
    """A publisher that does not wait."""
    place = DirectoryStore(store) if isinstance(store, Path) else store
    return Publisher(place, folder, **{"sleep": lambda _: None, **options})


class Reader:
    """A device's view, by python-tuf's own client: it keeps what it saw, as devices do."""

    def __init__(self, url: str, root: Path, home: Path) -> None:
        self._url, self._root, self._home = url, root.read_bytes(), home
        home.mkdir(parents=True, exist_ok=True)

    def releases(self) -> list[Release]:
        """What is published now; raises what the client raises."""
        self._updater().refresh()
        targets = Metadata[Targets].from_file(str(self._home / "targets.json")).signed.targets
        return releases_in({path: file.custom for path, file in targets.items()})

    def fetch(self, release: Release, directory: Path) -> Path:
        """Download a release's bundle, every file verified."""
        updater = self._updater()
        directory.mkdir(parents=True, exist_ok=True)
        manifest = self._download(updater, release.manifest, directory / MANIFEST_FILE)
        for name, record in json.loads(manifest.read_bytes())["files"].items():
            self._download(updater, record["sha256"], directory / name)
        read_bundle(directory)
        return directory

    def _download(self, updater: Updater, sha256: str, path: Path) -> Path:
        target = updater.get_targetinfo(sha256)
        assert target is not None, sha256
        return Path(updater.download_target(target, str(path)))

    def _updater(self) -> Updater:
        return Updater(
            str(self._home),
            f"{self._url}/metadata/",
            target_base_url=f"{self._url}/targets/",
            config=UpdaterConfig(prefix_targets_with_hash=False),
            bootstrap=self._root,
        )


class Watcher:
    """A reader that looks all the time, and downloads every release once it sees it."""

    def __init__(self, reader: Reader, directory: Path) -> None:
        self._reader, self._directory = reader, directory
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.n_looks = 0
        self.seen: dict[int, str] = {}  # number to manifest
        self.faults: list[str] = []

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                for release in self._reader.releases():
                    if release.number not in self.seen:
                        self._reader.fetch(release, self._directory / str(release.number))
                    if self.seen.setdefault(release.number, release.manifest) != release.manifest:
                        self.faults.append(f"release {release.number} became another")
                self.n_looks += 1
            except Exception as error:  # noqa: BLE001  whatever a reader is refused with
                self.faults.append(f"{type(error).__name__}: {error}")


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """A static web server for a directory; its address."""
    directory.mkdir(parents=True, exist_ok=True)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Killed(BaseException):
    """What stands for SIGKILL between two operations."""


class Recorder:
    """A store that keeps a list of what was done, and dies after one operation."""

    def __init__(self, store: Store, at: int | None = None) -> None:
        self._store, self._at = store, at
        self.done: list[tuple[str, str]] = []

    def __str__(self) -> str:
        return str(self._store)

    def __getattr__(self, operation: str) -> Any:
        def call(*arguments: Any) -> Any:
            is_last = len(self.done) == self._at
            self.done.append((operation, str(arguments[0]) if arguments else ""))
            result = getattr(self._store, operation)(*arguments)
            if is_last:
                raise Killed
            return result

        return call


def race(publishers: list[Any]) -> list[Any]:
    """Call all at once; their results, or what they raised."""
    start = threading.Barrier(len(publishers))
    done: list[Any] = [None] * len(publishers)

    def run(index: int) -> None:
        start.wait()
        try:
            done[index] = publishers[index]()
        except Exception as error:  # noqa: BLE001  the test looks at it
            done[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(publishers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done
