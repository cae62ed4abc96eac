"""Rules of the house that a reader would otherwise have to watch: lengths of files and functions, paths of machines."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES = 400
FUNCTION_LINES = 70
OURS = ("qpass", "passes", "tests", "tools")
PYTHON = {path.relative_to(ROOT): path for top in OURS for path in sorted((ROOT / top).rglob("*.py"))}

# Folders that only exist on somebody's machine; written so that this file does not match itself.
MACHINE_PATH = re.compile(rb"(?<![\w.:/])/(?:work|tmp|root|home|Users|mnt|farm)" + rb"/[\w.]")
NOT_OURS = {".git", "__pycache__"}


def too_long(source: str) -> list[str]:
    """Names of functions over the limit, and ``file`` when the whole is; docstrings of functions do not count."""
    long = ["file"] if source.count("\n") > FILE_LINES else []
    functions = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return long + [f.name for f in functions if lines_of_code(f) > FUNCTION_LINES]


def lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = function.body[0]
    described = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    docstring = (first.end_lineno or first.lineno) - first.lineno + 1 if described else 0
    return (function.end_lineno or function.lineno) - function.lineno + 1 - docstring


def project_files():
    tops = (*OURS, "docs", ".ci")
    below = (p for top in tops for p in sorted((ROOT / top).rglob("*")) if NOT_OURS.isdisjoint(p.parts))
    at_root = (p for p in sorted(ROOT.glob("*.*")) if p.suffix in {".md", ".cfg", ".toml"})
    return {p.relative_to(ROOT): p for p in (*below, *at_root) if p.is_file()}


FILES = project_files()


@pytest.mark.parametrize("path", PYTHON, ids=str)
def test_files_and_functions_stay_short(path):
    assert too_long(PYTHON[path].read_text(encoding="utf-8")) == []


def test_long_files_and_functions_are_seen():
    body = "    x = 1\n" * FUNCTION_LINES
    assert too_long(f"def one_too_long():\n{body}") == ["one_too_long"]
    assert too_long(f"def just_right():\n{body[:-10]}") == []
    described = '    """One.\n' + "\n" * 40 + '    """\n'
    assert too_long(f"def just_right():\n{described}{body[:-10]}") == []
    assert too_long(f"def one_too_long():\n{described}{body}") == ["one_too_long"]
    assert too_long("x = 1\n" * (FILE_LINES + 1)) == ["file"]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_file_names_a_path_of_a_machine(path):
    found = MACHINE_PATH.search(FILES[path].read_bytes())
    assert found is None, f"{path} contains {found.group()!r}"


def test_machine_paths_are_seen():
    for folder in (b"tmp", b"root", b"home", b"work"):
        assert MACHINE_PATH.search(b'open("/' + folder + b'/x.txt")')
    assert not MACHINE_PATH.search(b"https://example.org/work/x and ./tmp/x and a/root/b")


def test_the_list_of_files_is_not_empty():
    assert {Path("setup.cfg"), Path("README.md"), Path("qpass/errors.py"), Path(".ci/run")} <= set(FILES)
