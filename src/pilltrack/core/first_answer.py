"""From a bare process to the first answer, as `pilltrack bench` times it.

    python -m pilltrack.core.first_answer CROP BUNDLE

Looks for pills in the photo, as `pilltrack identify` does, and identifies it as one pill, so that
both models have answered. Then it writes one line of JSON: the seconds taken by imports, by opening
the bundle, by reading the photo and both looks at it, and the process's peak memory in bytes. It
imports nothing before its clock runs.
"""

from __future__ import annotations

import sys
import time


def main(crop: str, bundle: str) -> None:
    """Identify one photo and write the line."""
    marks = [time.perf_counter()]
    import json
    from pathlib import Path

    from pilltrack.core.identify import open_identifier
    from pilltrack.core.image import read_image

    marks.append(time.perf_counter())
    with open_identifier(Path(bundle), threads=1) as identifier:
        marks.append(time.perf_counter())
        photo = read_image(Path(crop))
        identifier.identify(photo)
        identifier.identify_crop(photo)  # there need be no pill in it
        marks.append(time.perf_counter())
        line = {
            "imports_s": marks[1] - marks[0],
            "open_s": marks[2] - marks[1],
            "identify_s": marks[3] - marks[2],
            "peak_bytes": peak_bytes(),
        }
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()  # the parent's watch stops here, before anything is closed


def peak_bytes() -> int | None:
    """Most memory this process has had resident; None where that is not Linux."""
    # Not getrusage: after fork and exec it still counts what the parent process had.
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123
            (line,) = (line for line in status if line.startswith("VmHWM:"))
    except FileNotFoundError:
        return None
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
