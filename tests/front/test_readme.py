"""The README does what it says: its Python runs as it stands, its commands are commands."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from support.commands import check_command, commands_in

import qpass

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = re.findall(r"```(?:bash|sh|console)?\n(.*?)```", README, re.DOTALL)


def test_the_readme_has_code() -> None:
    assert len(PYTHON) == 1
    assert sum(len(commands_in(block)) for block in SHELL) >= 7


def test_python_block_runs_and_keeps_its_skip_list_in_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(PYTHON[0], "README.md", "exec"), names)
    skip = names["skip"]
    assert isinstance(skip, list)
    assert len(skip) == 2
    written = qpass.load("int8/digits")
    layers = [layer.name for layer in qpass.find_layers(written)]
    integers = [name for name in layers if written.params[name].dtype == "int8"]
    assert integers == [name for name in layers if name not in skip]
    assert len(layers) == 8


@pytest.mark.parametrize("arguments", [c for block in SHELL for c in commands_in(block)], ids=" ".join)
def test_command_is_one_that_parses(arguments: list[str]) -> None:
    check_command(arguments)


def test_tools_and_links_exist() -> None:
    tools = re.findall(r"^(tools/\w+)", "\n".join(SHELL), re.MULTILINE)
    assert tools == ["tools/demo", "tools/test"]
    assert all(os.access(ROOT / tool, os.X_OK) for tool in tools)
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert [link for link in links if not (ROOT / link).is_file()] == []
