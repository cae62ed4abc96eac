"""The page about the architecture speaks of files, folders and names that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WORDS = sorted(set(re.findall(r"`([^`\n]+)`", PAGE)))
FILES = [
    path.relative_to(ROOT).as_posix() for top in ("qpass", "passes", "tests") for path in (ROOT / top).rglob("*.py")
]
SOURCES = "\n".join((ROOT / file).read_text(encoding="utf-8") for file in FILES if not file.startswith("tests/"))

NOT_OURS = {"MultiDiGraph"}
"""Names of other projects."""


@pytest.mark.parametrize("word", [w for w in WORDS if w.endswith(".py") and "*" not in w])
def test_files_exist(word: str) -> None:
    assert any(file == word or ("/" not in word and file.endswith(f"/{word}")) for file in FILES)


@pytest.mark.parametrize("word", [w for w in WORDS if w.endswith("/")])
def test_folders_exist(word: str) -> None:
    assert (ROOT / word).is_dir()


@pytest.mark.parametrize("word", [w for w in WORDS if re.fullmatch(r"[A-Z][A-Za-z]+|[A-Z]+_[A-Z]+", w)])
def test_names_are_defined(word: str) -> None:
    assert word in NOT_OURS or re.search(rf"^(class {word}\b|{word}\b.*=)", SOURCES, re.MULTILINE)
