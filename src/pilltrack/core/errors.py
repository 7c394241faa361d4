"""Every error PillTrack raises on purpose.

    PillTrackError
    ├── InputRejected         what the user handed in cannot be used
    │   ├── ImageRejected     an image is unreadable, too large, too small
    │   ├── ArchiveRejected   a zip is unsafe, damaged or too large
    │   ├── DatasetRejected   the photos or tables do not make a data set
    │   └── ParamsRejected    params.yaml has an unknown, missing or wrong value
    ├── BundleRejected        a bundle is incomplete, tampered with or of another format
    │   └── SpaceMismatch     two parts belong to different embedding spaces
    ├── StageFailed           a stage cannot go on (weights missing, nothing to evaluate)
    └── GateFailed            a stage ran, and its result is below a promised limit

Each message says four things: the subject, what was found, what was expected, and what to do.
"""

from __future__ import annotations


class PillTrackError(Exception):
    """Base of all expected errors: `subject: found; expected …. Remedy.`"""

    exit_code = 1

    def __init__(self, subject: str, *, found: str, expected: str, remedy: str) -> None:
        super().__init__(subject, found, expected, remedy)
        self.subject = subject
        self.found = found
        self.expected = expected
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.subject}: {self.found}; expected {self.expected}. {self.remedy}"


class InputRejected(PillTrackError):
    """What the user handed in cannot be used."""


class ImageRejected(InputRejected):
    """An image is unreadable, or outside the limits of `core.image`."""


class ArchiveRejected(InputRejected):
    """A zip is unsafe, damaged, encrypted or too large."""


class DatasetRejected(InputRejected):
    """The photos or the tables beside them do not make a data set."""


class ParamsRejected(InputRejected):
    """params.yaml has an unknown, missing or wrong value."""


class BundleRejected(PillTrackError):
    """A bundle is incomplete, tampered with, or of another format."""


class SpaceMismatch(BundleRejected):
    """Two parts belong to different embedding spaces and must not be mixed."""


class StageFailed(PillTrackError):
    """A stage cannot go on."""


class GateFailed(PillTrackError):
    """A stage ran to its end, and its result is below a promised limit."""

    exit_code = 3
