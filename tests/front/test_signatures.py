"""How each public name is called: a golden text, so that no signature changes unseen."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import qpass

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "public_api.txt"


def test_public_names_are_the_table_of_homes() -> None:
    assert qpass.__all__ == sorted({*qpass._HOMES, "__version__"})
    assert set(qpass.__all__) <= set(dir(qpass))


def described(name: str) -> list[str]:
    """The call of a public name, and of its public methods; properties by name."""
    value = getattr(qpass, name)
    if not inspect.isclass(value):
        return [f"{name}{inspect.signature(value)}"]
    lines = [f"class {name}" if issubclass(value, Exception) else f"class {name}{inspect.signature(value)}"]
    members = [member for cls in value.__mro__ if cls.__module__.startswith("qpass") for member in vars(cls)]
    for member in sorted({member for member in members if not member.startswith("_")}):
        found = inspect.getattr_static(value, member)
        if isinstance(found, property):
            lines.append(f"    {member}")
        elif isinstance(found, (classmethod, staticmethod)) or inspect.isfunction(found):
            lines.append(f"    {member}{inspect.signature(getattr(value, member))}")
    return lines


def test_signatures_are_those_written_down() -> None:
    text = "\n".join(line for name in qpass.__all__ if name != "__version__" for line in described(name)) + "\n"
    assert text == GOLDEN.read_text(encoding="utf-8"), f"the public interface has changed:\n{text}"


def test_every_public_name_without_paddle() -> None:
    code = (
        "import sys, qpass\n"
        "assert [getattr(qpass, name) for name in qpass.__all__]\n"
        "heavy = {'paddle'} & {m.split('.')[0] for m in sys.modules}\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
