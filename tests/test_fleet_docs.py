"""What docs/fleet.md tells a publisher to type works, in the order of the page."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from pilltrack.pipeline.keys import PASSPHRASE
from pilltrack.pipeline.roots import read_chain
from tests import releases
from tests.imports import ROOT

TEXT = (ROOT / "docs" / "fleet.md").read_text(encoding="utf-8")


HEADINGS = ("Keys", "Publishing", "When something is lost")


def program() -> str:
    """All blocks of shell in the publisher's sections, those of lists without their margin."""
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE))
    text = "".join(sections[heading] for heading in HEADINGS)
    blocks = re.findall(r"^( *)```sh\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return "".join(re.sub(f"^{margin}", "", block, flags=re.MULTILINE) for margin, block in blocks)


def test_the_commands_of_the_page_work_in_their_order(tmp_path: Path) -> None:
    first, second, *_ = releases.some_bundles(tmp_path / "some")
    shutil.copytree(first, tmp_path / "artifacts" / "package" / "bundle")
    shutil.copytree(second, tmp_path / "newer" / "bundle")
    (tmp_path / "media" / "publisher").mkdir(parents=True)
    text = program().replace("/media", str(tmp_path / "media"))
    text = text.replace("s3://pills/fleet", str(tmp_path / "releases"))
    done = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", text],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
        env={
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "PYTHONPATH": str(ROOT / "src"),
            PASSPHRASE: releases.PASSPHRASE.decode(),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stable*" in done.stdout
    assert "release 1004 is yanked" in done.stdout
    assert len(read_chain(tmp_path / "keys")) == 4
    assert not list((tmp_path / "keys").glob("root-*.pem"))
    assert [path.name for path in tmp_path.glob("*ceremony*")] == []
