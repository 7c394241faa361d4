"""What the device install weighs and how fast it starts: a fresh environment from this checkout.

    python benchmarks/device_install.py

Prints the size of the environment, the packages in it, and the import time of
`pilltrack.core.identify` (median of 5, after one warm-up).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Build the environment, measure, print."""
    with tempfile.TemporaryDirectory() as directory:
        environment = Path(directory) / "venv"
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        python = str(environment / "bin" / "python")
        pip = [python, "-m", "pip", "install", "--quiet", "--constraint", "constraints.txt", "."]
        subprocess.run(pip, check=True, cwd=ROOT)
        size = sum(path.stat().st_size for path in environment.rglob("*") if path.is_file())
        print(f"environment: {size / 1e6:.0f} MB")
        listed = subprocess.run(
            [python, "-m", "pip", "list", "--format", "freeze"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        print(f"packages: {', '.join(sorted(listed.split()))}")
        times_s = [_import_time_s(python) for _ in range(6)][1:]
        print(f"import pilltrack.core.identify: median {statistics.median(times_s):.2f} s")


def _import_time_s(python: str) -> float:
    """Cumulative microseconds of the last line of `-X importtime`."""
    report = subprocess.run(
        [python, "-X", "importtime", "-c", "import pilltrack.core.identify"],
        check=True,
        capture_output=True,
        text=True,
    ).stderr
    return int(report.splitlines()[-1].split("|")[1]) / 1e6


if __name__ == "__main__":
    main()
