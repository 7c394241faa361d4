"""The rules of the house (docs of the rooms: ARCHITECTURE), checked on every import in src.

Each rule is a function from the parsed sources to the list of its violations, and is also shown
a small package that breaks it.
"""

import ast
import doctest
import graphlib
import importlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
TRAINING_ONLY = ("torch", "timm", "dvc", "mlflow", "boto3", "litert_torch")
CORE_MAY_IMPORT = {
    "numpy", "PIL", "cv2", "ai_edge_litert", "onnxruntime", "qdrant_edge", "pydantic",
    "safetensors",
}  # fmt: skip
S3 = ("boto3", "botocore")
PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


@dataclass(frozen=True)
class Module:
    name: str  # pilltrack.core.gallery
    tree: ast.Module
    imports: frozenset[str]  # full names of modules, wherever in the file they are imported

    @property
    def room(self) -> str:
        """core, pipeline, edge, or empty for what lies above them."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 2 else ""


def test_rooms_import_only_what_lies_below_them() -> None:
    assert wrong_arrows(modules(SOURCE)) == []


def test_no_module_imports_itself_by_a_detour() -> None:
    assert cycles(modules(SOURCE)) == []


def test_core_imports_only_what_a_device_has() -> None:
    assert foreign_imports_of_core(modules(SOURCE)) == []


def test_nothing_is_unpickled() -> None:
    assert unpickling(modules(SOURCE)) == []


def test_only_tracking_imports_mlflow() -> None:
    found = {m.name for m in modules(SOURCE) if any(i.split(".")[0] == "mlflow" for i in m.imports)}
    assert found == {"pilltrack.pipeline.tracking"}


def test_only_these_modules_open_s3() -> None:
    names = {m.name for m in modules(SOURCE) if any(i.split(".")[0] in S3 for i in m.imports)}
    assert names <= {f"pilltrack.pipeline.{name}" for name in ("remote", "doctor", "store")}


def test_keys_of_releases_are_opened_in_one_place() -> None:
    private = "cryptography.hazmat.primitives.serialization"
    names = {m.name for m in modules(SOURCE) if any(i.startswith(private) for i in m.imports)}
    assert names == {"pilltrack.pipeline.keys"}


def test_core_and_edge_load_nothing_of_the_training_machine() -> None:
    names = [m.name for m in modules(SOURCE) if m.room in ("core", "edge")]
    assert "pilltrack.core.identify" in names
    assert loaded_by(names, TRAINING_ONLY) == []


def test_examples_in_the_docstrings_of_core_and_edge_run() -> None:
    names = [m.name for m in modules(SOURCE) if m.room in ("core", "edge")]
    results = {name: doctest.testmod(importlib.import_module(name)) for name in names}
    assert {name for name, result in results.items() if result.failed} == set()
    assert results["pilltrack.core.metrics"].attempted >= 8


def test_loading_is_noticed() -> None:
    assert loaded_by(["json"], ("json", "torch")) == ["json"]


@pytest.mark.parametrize(
    ("rule", "files", "violation"),
    [
        ("wrong_arrows", {"core/a.py": "import pilltrack.edge.b", "edge/b.py": ""},
         "pilltrack.core.a imports pilltrack.edge.b"),
        ("wrong_arrows", {"core/a.py": "from ..pipeline import b", "pipeline/b.py": ""},
         "pilltrack.core.a imports pilltrack.pipeline.b"),
        ("wrong_arrows", {"edge/a.py": "def f():\n from pilltrack.pipeline.b import c",
                          "pipeline/b.py": ""},
         "pilltrack.edge.a imports pilltrack.pipeline.b"),
        ("wrong_arrows", {"pipeline/a.py": "from pilltrack.edge import b", "edge/b.py": ""},
         "pilltrack.pipeline.a imports pilltrack.edge.b"),
        ("wrong_arrows", {"core/a.py": "import pilltrack.cli", "cli.py": ""},
         "pilltrack.core.a imports pilltrack.cli"),
        ("cycles", {"core/a.py": "from pilltrack.core import b", "core/b.py": "from . import c",
                    "core/c.py": "def f():\n import pilltrack.core.a"},
         "pilltrack.core.a -> pilltrack.core.b -> pilltrack.core.c -> pilltrack.core.a"),
        ("foreign_imports_of_core", {"core/a.py": "import os\ndef f():\n import torch.nn"},
         "pilltrack.core.a imports torch"),
        ("unpickling", {"edge/a.py": "from pickle import loads"}, "pilltrack.edge.a:1 pickle"),
        ("unpickling", {"pipeline/a.py": "\nimport torch\ntorch.load('x')"},
         "pilltrack.pipeline.a:3 torch.load without weights_only=True"),
        ("unpickling", {"pipeline/a.py": "import torch\ntorch.load('x', weights_only=False)"},
         "pilltrack.pipeline.a:2 torch.load without weights_only=True"),
        ("unpickling", {"pipeline/a.py": "from torch import load"},
         "pilltrack.pipeline.a:1 load imported from torch"),
        ("unpickling", {"pipeline/a.py": "import numpy as np\nnp.load('x', allow_pickle=True)"},
         "pilltrack.pipeline.a:2 allow_pickle"),
    ],
)  # fmt: skip
def test_broken_rule_is_found(
    rule: str, files: dict[str, str], violation: str, tmp_path: Path
) -> None:
    for name, text in files.items():
        path = tmp_path / "pilltrack" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    (tmp_path / "pilltrack" / "__init__.py").touch()
    rules = {
        "wrong_arrows": wrong_arrows,
        "cycles": cycles,
        "foreign_imports_of_core": foreign_imports_of_core,
        "unpickling": unpickling,
    }
    assert rules[rule](modules(tmp_path)) == [violation]


def test_loading_only_weights_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import torch\ntorch.load('x', weights_only=True)")
    assert unpickling(modules(tmp_path)) == []


def wrong_arrows(found: list[Module]) -> list[str]:
    """core imports no sibling, edge and pipeline only core, and no room the cli."""
    may_import = {"core": {"core"}, "edge": {"core", "edge"}, "pipeline": {"core", "pipeline"}}
    return [
        f"{module.name} imports {target}"
        for module in found
        if module.room in may_import
        for target in sorted(module.imports)
        if target.startswith("pilltrack.") and target.split(".")[1] not in may_import[module.room]
    ]


def cycles(found: list[Module]) -> list[str]:
    """One import cycle, if there is any, written from its first module in alphabetical order."""
    names = {module.name for module in found}
    graph = {module.name: module.imports & names for module in found}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        imported_first: list[str] = error.args[1][:-1]  # the first module again at the end
        circle = imported_first[::-1]
        start = circle.index(min(circle))
        return [" -> ".join([*circle[start:], *circle[: start + 1]])]
    return []


def foreign_imports_of_core(found: list[Module]) -> list[str]:
    allowed = CORE_MAY_IMPORT | sys.stdlib_module_names | {"pilltrack"}
    return [
        f"{module.name} imports {package}"
        for module in found
        if module.room == "core"
        for package in sorted({target.split(".")[0] for target in module.imports} - allowed)
    ]


def unpickling(found: list[Module]) -> list[str]:
    return [
        f"{module.name}:{line} {what}"
        for module in found
        for line, what in sorted(_unpickling(module.tree))
    ]


def _unpickling(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                for alias in node.names:
                    if alias.name.split(".")[0] in PICKLES:
                        yield node.lineno, alias.name
            case ast.ImportFrom(module=str(name)):
                if name.split(".")[0] in PICKLES:
                    yield node.lineno, name
                if name == "torch" and any(alias.name == "load" for alias in node.names):
                    yield node.lineno, "load imported from torch"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load")):
                if not any(_is_true(keyword, "weights_only") for keyword in node.keywords):
                    yield node.lineno, "torch.load without weights_only=True"
            case ast.Call() if any(keyword.arg == "allow_pickle" for keyword in node.keywords):
                if not any(_is_false(keyword, "allow_pickle") for keyword in node.keywords):
                    yield node.lineno, "allow_pickle"


def _is_true(keyword: ast.keyword, name: str) -> bool:
    return keyword.arg == name and getattr(keyword.value, "value", None) is True


def _is_false(keyword: ast.keyword, name: str) -> bool:
    return keyword.arg == name and getattr(keyword.value, "value", None) is False


def loaded_by(names: list[str], packages: tuple[str, ...]) -> list[str]:
    """Which of `packages` a fresh interpreter has loaded after importing modules by name."""
    # securesystemslib takes along what it finds of cloud signers; a device has none to be found.
    program = "import importlib, sys\nsys.modules['boto3'] = None\n"
    program += "".join(f"importlib.import_module({name!r})\n" for name in names)
    program += "loaded = {name for name, module in sys.modules.items() if module}\n"
    program += f"print(*sorted(set({packages!r}) & loaded))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def modules(source: Path) -> list[Module]:
    """All modules below `source`, with the modules each one imports."""
    files = {_module_name(path.relative_to(source)): path for path in sorted(source.rglob("*.py"))}
    result = []
    for name, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        result.append(Module(name, tree, frozenset(_imports(tree, package, set(files)))))
    return result


def _module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(tree: ast.Module, package: str, known: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                member = f"{base}.{alias.name}"
                yield member if member in known else base
