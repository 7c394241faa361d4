"""The note on a pull request: figures of its own commit, or why there are none."""

from __future__ import annotations

import doctest
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pilltrack.cli import main
from pilltrack.pipeline import comment
from pilltrack.pipeline.comment import MARKER, MAX_CHARACTERS, read_note

MAKE = "import sys, pathlib; [pathlib.Path(p).write_text(pathlib.Path(sys.argv[1]).read_text()) "
MAKE += "for p in sys.argv[2:]]"


def git(*arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    done = subprocess.run(
        ["git", *identity, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def dvc(*arguments: str, check: bool = True) -> None:
    subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=check
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of two stages that copy files, run and committed, with a report."""
    root = tmp_path_factory.mktemp("template") / "repository"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("DVC_NO_ANALYTICS", "1")
        _make()
    return root


@pytest.fixture
def repository(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(template, tmp_path / "repository")
    monkeypatch.chdir(tmp_path / "repository")
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    return tmp_path / "repository"


def _make() -> None:
    Path("make.py").write_text(MAKE)
    for folder in ("src", "data", "artifacts/evaluate", "artifacts/train"):
        Path(folder).mkdir(parents=True)
    Path("src/code.py").write_text("code\n")
    Path("params.yaml").write_text("train: 1\n")
    Path("data/pills.zip").write_text("pills\n")
    run = f"{sys.executable} make.py"
    results = ["artifacts/evaluate/metrics.json", "artifacts/evaluate/calibration.json"]
    stages = {
        "train": {
            "cmd": f"{run} data/pills.zip artifacts/train/net",
            "deps": ["data/pills.zip", "src/code.py"],
            "params": ["train"],
            "outs": ["artifacts/train/net"],
        },
        "evaluate": {
            "cmd": f"{run} artifacts/train/net {' '.join(results)}",
            "deps": ["artifacts/train/net"],
            "outs": results,
        },
    }
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    git("init", "--quiet")
    dvc("init", "--quiet")
    dvc("add", "--quiet", "data/pills.zip")
    dvc("repro", "--quiet")
    commit()


def commit(message: str = "Change something") -> str:
    git("add", "--all")
    git("commit", "--quiet", "--allow-empty", "--message", message)
    write_report()
    return git("rev-parse", "HEAD")


def write_report(of: str = "") -> None:
    Path("artifacts/report").mkdir(exist_ok=True)
    Path("artifacts/report/.gitignore").write_text("*\n")
    made_at = of or git("rev-parse", "HEAD")
    Path("artifacts/report/report.md").write_text(
        f"# ✔ Test passed\n\n| digest | |\n|---|---|\n| this report: git commit | `{made_at}` |\n"
    )


def write(*options: str, of: str = "") -> tuple[int, str]:
    """Run `comment write` for pull request 7; the exit code and the body of the note."""
    Path("note.json").unlink(missing_ok=True)
    head = of or git("rev-parse", "HEAD")
    code = main(["comment", "write", "--pr=7", f"--commit={head}", "--out=note.json", *options])
    return code, read_note(Path("note.json")).body if Path("note.json").is_file() else ""


def test_a_finished_run_gives_report_comparison_and_links(repository: Path) -> None:
    (repository / "comparison.md").write_text("**B is better than A.**\n")
    code, body = write("--comparison=comparison.md", "--link=run=https://example.org/runs/1?a=b")
    lines = body.splitlines()
    assert code == 0
    assert lines[0] == MARKER
    assert lines[1].endswith(" · [run](https://example.org/runs/1?a=b)")
    assert "# ✔ Test passed" in lines
    assert lines[-1] == "**B is better than A.**"
    note = read_note(repository / "note.json")
    assert (note.pull_request, note.commit) == (7, git("rev-parse", "HEAD"))


def test_the_head_is_looked_for_below_the_merge_that_github_checks_out(repository: Path) -> None:
    head = git("rev-parse", "HEAD")
    git("checkout", "--quiet", "-b", "elsewhere", "HEAD")
    commit()
    assert write(of=head)[0] == 0


def test_a_commit_that_is_not_checked_out_is_refused(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = git("rev-parse", "HEAD")
    git("checkout", "--quiet", "--orphan", "other")
    other = commit("Begin anew")  # within one second the same words would make the same commit
    git("checkout", "--quiet", "--force", ours)
    assert write(of=other) == (1, "")
    assert "not part of what is checked out" in capsys.readouterr().err
    assert write(of="c" * 40) == (1, "")


def test_a_report_of_another_commit_gives_no_figures(repository: Path) -> None:
    before = git("rev-parse", "HEAD")
    commit()
    write_report(of=before)
    code, body = write()
    assert code == 3
    assert f"made at `{before}`" in body
    assert "passed" not in body


def test_metrics_of_an_older_parameter_give_no_figures(repository: Path) -> None:
    (repository / "params.yaml").write_text("train: 2\n")
    commit()  # the report is new, but nobody ran the pipeline
    code, body = write()
    assert code == 3
    assert "other code, parameters or data: train" in body
    assert "passed" not in body


def test_metrics_changed_by_hand_give_no_figures(repository: Path) -> None:
    (repository / "artifacts/evaluate/metrics.json").write_text("better\n")
    code, body = write()
    assert code == 3
    assert "results at hand are of an earlier run: evaluate" in body


def test_a_failed_gate_is_shown_with_its_figures(repository: Path) -> None:
    (repository / "artifacts/evaluate/metrics.json").write_text("worse\n")
    (repository / "artifacts/evaluate/calibration.json").unlink()
    code, body = write()
    assert code == 0  # the run itself is red
    assert "✘ The pipeline did not finish: evaluate." in body
    assert "# ✔ Test passed" in body  # what `pilltrack report` says, whatever it is


def test_without_a_report_the_note_says_so(repository: Path) -> None:
    (repository / "artifacts/report/report.md").unlink()
    code, body = write()
    assert code == 3
    assert "`pilltrack report` wrote nothing" in body


def test_code_that_is_not_committed_is_refused(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "src/code.py").write_text("other\n")
    assert write() == (1, "")
    assert "changes that it does not hold: src/code.py" in capsys.readouterr().err


def test_data_made_anew_for_the_run_is_named(repository: Path) -> None:
    (repository / "data/pills.zip").write_text("embedded pills\n")
    dvc("add", "--quiet", "data/pills.zip")
    dvc("repro", "--quiet")
    write_report(of=f"{git('rev-parse', 'HEAD')}+changes")
    code, body = write()
    assert code == 0
    assert "⚠ Measured on other data than the repository names: `data/pills.zip.dvc`" in body


@pytest.mark.parametrize("link", ["run=ftp://x/y", "run=https://x/y)z", "[a](b)=https://x/y"])
def test_a_link_that_is_none_is_refused(repository: Path, link: str) -> None:
    assert write(f"--link={link}") == (1, "")


def test_a_long_report_is_cut_where_github_would_refuse_it(repository: Path) -> None:
    path = repository / "artifacts/report/report.md"
    path.write_text(path.read_text() + "| a | b |\n" * 20_000)
    code, body = write()
    assert code == 0
    assert len(body) <= MAX_CHARACTERS
    assert body.endswith("the whole report is with the run.\n")


def test_examples_run() -> None:
    assert doctest.testmod(comment).failed == 0
