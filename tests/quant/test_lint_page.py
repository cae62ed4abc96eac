"""docs/lint.md is what the registry says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("write_lint_page", ROOT / "tools" / "write_lint_page.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(), "run tools/write_lint_page.py"


def test_the_readme_names_the_page() -> None:
    assert "(docs/lint.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
