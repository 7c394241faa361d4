"""What a module of the package imports, read from its source; used by tests and `make deps`."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
# What `weights: starter` stands for in the stages that know it.
STARTER_WEIGHTS = {"train": ("student",), "distill": ("student",), "locate": ("locator", "student")}


def path_of(module: str) -> Path | None:
    """The source file of a module of the package, None for anything else."""
    base = SOURCE.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def imported_modules(path: Path) -> set[str]:
    """Every module named in an import statement of `path`, at the top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}: relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def transitive_files(module: str) -> set[str]:
    """Files of the package that running `module` depends on, relative to the repository."""
    files: set[str] = set()
    waiting = [module]
    while waiting:
        path = path_of(waiting.pop())
        if path is None or str(path.relative_to(ROOT)) in files:
            continue
        files.add(str(path.relative_to(ROOT)))
        waiting += imported_modules(path)
    return {name for name in files if not name.endswith("__init__.py")}


def dependencies(stage: str) -> set[str]:
    """What a stage depends on in the package: its source, and the starter's weights."""
    weights = {
        f"src/pilltrack/starter/{name}.safetensors" for name in STARTER_WEIGHTS.get(stage, ())
    }
    return transitive_files(f"pilltrack.pipeline.{stage}") | weights


def write_dvc_deps(path: Path) -> None:
    """Bring the source files in the `deps` of every stage of a dvc.yaml up to date."""
    lines: list[str] = []
    stage = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("      - src/pilltrack/"):
            continue
        if line.startswith("    cmd: pilltrack "):
            stage = line.split()[-1]
        if line == "    params:":
            lines += [f"      - {file}" for file in sorted(dependencies(stage))]
        lines.append(line)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_dvc_deps(ROOT / "dvc.yaml")
