"""The layers of the library, read from the source: who may import whom, inside functions too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS = ("base", "ir", "formats", "rewrite", "quant", "passes", "runtime", "analysis", "report", "front")
"""Each may import itself and what stands before it."""

FRONT = frozenset({"cli", "demo"})
BASE = frozenset({"errors", "_version"})

THIRD_PARTY = {
    "numpy": frozenset(LAYERS) - {"base"},
    "networkx": frozenset({"ir"}),
    "google": frozenset({"formats"}),
    "paddle": frozenset({"runtime"}),
    "dask": frozenset({"runtime"}),
    "distributed": frozenset({"runtime"}),
    "matplotlib": frozenset({"report"}),
    "rich": frozenset({"front"}),
}
"""Which layers may import a package; one that is not named here, none."""

LOADS_USER_CODE = frozenset({"qpass.runtime.data"})
"""Besides the front, the modules that import what a user names (``module:function``)."""

SOURCES = {path.relative_to(ROOT): path for top in ("qpass", "passes") for path in sorted((ROOT / top).rglob("*.py"))}


def module_name(path: Path) -> str:
    """``passes/fold_quant.py`` -> ``qpass.passes.fold_quant``; a package is named by its folder."""
    parts = path.with_suffix("").parts
    parts = ("qpass", *parts) if parts[0] == "passes" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = frozenset(module_name(path) for path in SOURCES)


def layer(module: str) -> str:
    """Layer of a module of the library; KeyError where it has none."""
    _, folder, *_ = (*module.split("."), "")
    if folder in BASE:
        return "base"
    if folder in FRONT or module == "qpass" or (module.count(".") == 1 and (ROOT / "qpass" / f"{folder}.py").exists()):
        return "front"
    if folder not in LAYERS:
        raise KeyError(f"{module} is in no layer")
    return folder


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every (line, module) that a source imports, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                yield node.lineno, whole if whole in MODULES else module
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            first = node.args[0] if node.args else None
            yield node.lineno, str(first.value) if isinstance(first, ast.Constant) else "a computed name"


def violations(path: Path, source: str) -> list[str]:
    """What a source at `path` imports against the table, as ``path:line: importer -> imported``."""
    importer = layer(module_name(path))
    found = []
    for line, module in imports(ast.parse(source)):
        top = module.split(".")[0]
        if top in sys.stdlib_module_names:
            continue
        if top == "qpass":
            allowed = LAYERS.index(layer(module)) <= LAYERS.index(importer)
        elif module == "a computed name":
            allowed = importer == "front" or module_name(path) in LOADS_USER_CODE
        else:
            allowed = importer in THIRD_PARTY.get(top, ())
        if not allowed:
            found.append(f"{path}:{line}: {importer} -> {module}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_keep_to_the_layers(path):
    assert violations(path, SOURCES[path].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source", "seen"),
    [
        ("qpass/ir/op.py", "from qpass.formats import pdmodel", "ir -> qpass.formats.pdmodel"),
        ("qpass/ir/op.py", "import qpass", "ir -> qpass"),
        ("qpass/ir/op.py", "from qpass import load", "ir -> qpass"),
        ("qpass/ir/op.py", "from .graph import Graph", "ir -> .graph"),
        ("qpass/quant/spec.py", "from qpass import passes", "quant -> qpass.passes"),
        ("qpass/quant/spec.py", "import paddle.static", "quant -> paddle.static"),
        ("qpass/quant/spec.py", "def f():\n    from paddle import static", "quant -> paddle"),
        ("qpass/quant/spec.py", "import importlib\nimportlib.import_module('paddle')", "quant -> paddle"),
        ("qpass/quant/spec.py", "import importlib\nimportlib.import_module(name)", "quant -> a computed name"),
        ("qpass/quant/spec.py", "if TYPE_CHECKING:\n    from qpass.cli import main", "quant -> qpass.cli.main"),
        ("passes/fold_batch_norm.py", "from qpass.runtime import engine", "passes -> qpass.runtime.engine"),
        ("qpass/analysis/result.py", "import matplotlib.pyplot as plt", "analysis -> matplotlib.pyplot"),
        ("qpass/analysis/result.py", "import rich", "analysis -> rich"),
        ("qpass/analysis/result.py", "from google.protobuf import message", "analysis -> google.protobuf"),
        ("qpass/analysis/sweep.py", "def f():\n    from distributed import Client", "analysis -> distributed"),
        ("qpass/cli/main.py", "import pandas", "front -> pandas"),
    ],
)
def test_a_forbidden_import_is_seen(path, source, seen):
    assert [v.split(": ", 1)[1] for v in violations(Path(path), source)] == [seen]


def test_allowed_imports_pass():
    source = (
        "import json, numpy\nfrom qpass.ir.model import Model\nfrom qpass.passes import parse_passes\nimport paddle"
    )
    assert violations(Path("qpass/runtime/engine.py"), source) == []


def test_every_module_has_a_layer():
    assert {layer(module) for module in MODULES} == set(LAYERS)


HEAVY = ("paddle", "distributed", "matplotlib", "rich", "google.protobuf", "networkx")


@pytest.mark.parametrize(
    ("code", "may_load"),
    [
        ("import qpass", ()),
        ("import qpass; from qpass import demo; qpass.load(demo.float_prefix())", ("google.protobuf", "networkx")),
        (
            "import qpass; from qpass import demo, passes;"
            "qpass.run(qpass.load(demo.float_prefix()), [passes.FoldBatchNorm()]).graph.nx",
            ("google.protobuf", "networkx"),
        ),
    ],
)
def test_reading_and_rewriting_load_no_heavy_package(code, may_load):
    check = f"{code}\nimport sys\nprint([m for m in {HEAVY} if m in sys.modules])"
    made = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert set(ast.literal_eval(made.stdout)) <= set(may_load)


def test_a_loaded_heavy_package_is_seen():
    made = subprocess.run(
        [sys.executable, "-c", f"import rich\nimport sys\nprint([m for m in {HEAVY} if m in sys.modules])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ast.literal_eval(made.stdout) == ["rich"]
