"""A publisher, the web server that shows its releases, and a device that follows it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from pilltrack.core.bundle import read_bundle
from pilltrack.edge.fetch import Fetcher
from pilltrack.edge.selftest import SelfTest, self_test
from pilltrack.edge.slots import Slots, digest_of_manifest
from pilltrack.edge.source import UpdateSource, join
from pilltrack.edge.updater import Outcome, update
from pilltrack.pipeline import keys
from pilltrack.pipeline.publish import Publisher
from pilltrack.pipeline.store import DirectoryStore
from tests.edge.files_server import Files, serving_files
from tests.tiny_bundle import tiny_bundle


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Fleet:
    directory: Path
    files: Files
    bundles: list[Path]  # the first is the device's install
    slots: Slots
    source: UpdateSource
    clock: Callable[[], datetime] = now  # of the publisher
    self_test: Callable[[Path], SelfTest] = field(init=False)

    def __post_init__(self) -> None:
        self.self_test = partial(self_test, home=self.home, max_frame_ms=10_000.0)

    @property
    def home(self) -> Path:
        return self.directory / "home"

    @property
    def releases(self) -> Path:
        return self.directory / "releases"

    def publisher(self) -> Publisher:
        return Publisher(
            DirectoryStore(self.releases),
            self.directory / "keys",
            prove=lambda _: None,  # a device relies on nothing but itself
            now=lambda: self.clock(),
        )

    def publish(self, number: int) -> str:
        """Publish a bundle on stable; the digest of its manifest."""
        self.publisher().publish(self.bundles[number], "stable")
        return digest_of_manifest(self.bundles[number])

    def update(self, *, only_ask: bool = False, time: datetime | None = None) -> Outcome:
        """One update of the device."""
        fetcher = Fetcher(pause=lambda _: None)
        return update(
            self.slots,
            self.source,
            self.self_test,
            time or now(),
            fetcher,
            only_ask=only_ask,
        )

    def active(self) -> str:
        """The name of the pill that the active bundle knows: proof that it is whole, too."""
        [pill] = read_bundle(self.slots.slot(self.slots.start().active)).pills
        return pill

    def last(self) -> tuple[str, str]:
        """Kind and reason of what happened last."""
        [happening] = self.slots.happenings(1)
        return happening.kind, happening.reason

    def save_releases(self, name: str) -> Path:
        """Keep a copy of what is published."""
        return Path(shutil.copytree(self.releases, self.directory / name))

    def put_back(self, saved: Path) -> None:
        """Publish again what was saved, as someone would who holds no key."""
        shutil.rmtree(self.releases)
        shutil.copytree(saved, self.releases)


def make_bundles(directory: Path, count: int) -> list[Path]:
    """Bundles of one model, whose galleries know pill-0, pill-1 and so on."""
    made = []
    for number in range(count):
        (directory / str(number)).mkdir(parents=True)
        photo = np.random.default_rng(number).integers(0, 256, (42, 42, 3), dtype=np.uint8)
        made.append(tiny_bundle(directory / str(number), f"pill-{number}", photo))
    return made


def make_keys(folder: Path, time: datetime) -> Path:
    """A key folder without a passphrase; its first root."""
    keys.init(folder, now=time, passphrase=None, root_keys=1, threshold=1)
    return folder / "1.root.json"


@contextmanager
def fleet(
    directory: Path, bundles: list[Path], clock: Callable[[], datetime] = now
) -> Iterator[Fleet]:
    """A device that has joined a publisher of nothing yet."""
    root = make_keys(directory / "keys", clock())
    (directory / "releases").mkdir()
    with serving_files(directory / "releases") as files:
        slots = Slots(directory / "home", bundles[0])
        source = UpdateSource(url=files.url)
        join(slots, source, root.read_bytes())
        yield Fleet(directory, files, bundles, slots, source, clock)
