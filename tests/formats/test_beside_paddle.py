"""qpass and paddle load the same protobuf file: in either order, in one process; and files need no paddle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.build import Builder

from qpass.formats.files import save

READ_AND_WRITE = """
import sys
from qpass.formats.files import load, load_bytes, save, to_bytes
model = load(sys.argv[1])
assert load_bytes(*to_bytes(model)) == model
save(model, sys.argv[1], overwrite=True)
"""

PADDLE_READS = """
import warnings
warnings.simplefilter("ignore")
import paddle
from paddle.base.proto import framework_pb2
program = framework_pb2.ProgramDesc()
program.ParseFromString(to_bytes(model)[0] if "model" in globals() else open(sys.argv[1] + ".pdmodel", "rb").read())
assert [op.type for op in program.blocks[0].ops] == ["feed", "elementwise_add", "fetch"]
"""


def run(code: str, prefix: Path) -> str:
    """Run code in a fresh interpreter; what it printed."""
    done = subprocess.run([sys.executable, "-c", code, str(prefix)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    builder = Builder().feed("x", [-1, 4])
    save(builder.add(builder.param("b", (4,))).model(), tmp_path / "net")
    return tmp_path / "net"


def test_loading_and_saving_never_import_paddle(prefix: Path) -> None:
    printed = run(READ_AND_WRITE + "print([m for m in sys.modules if m.split('.')[0] == 'paddle'])", prefix)
    assert printed == "[]\n"


def test_paddle_can_be_imported_after_qpass(prefix: Path) -> None:
    run(READ_AND_WRITE + PADDLE_READS + READ_AND_WRITE, prefix)


def test_paddle_can_be_imported_before_qpass(prefix: Path) -> None:
    run("import sys\n" + PADDLE_READS + READ_AND_WRITE, prefix)
