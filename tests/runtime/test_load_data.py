"""`--data` and `--eval` words: array files, folders, functions; every way they can be wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from qpass.errors import DataError, UsageError
from qpass.ir.dtype import DType
from qpass.ir.model import Port
from qpass.runtime.data import Batches, load_data, load_function

IMAGE = Port("image", DType.FLOAT32, (-1, 2))
X = np.arange(14, dtype=np.float32).reshape(7, 2)


def read(spec: str | Path, batch_size: int = 3) -> list[np.ndarray]:
    return [batch["image"] for batch in Batches([IMAGE], load_data(spec, batch_size=batch_size))]


@pytest.mark.parametrize("names", [("image",), ("x", "y"), ("image", "label")])
def test_npz(tmp_path: Path, names: tuple[str, ...]) -> None:
    np.savez(tmp_path / "d.npz", **{name: X if name in ("image", "x") else np.arange(7) for name in names})
    found = read(str(tmp_path / "d.npz"))
    assert [len(part) for part in found] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(found), X)


def test_npy_and_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", X[4:])
    np.save(tmp_path / "a.npy", X[:4])
    (tmp_path / "notes.txt").write_text("not data")
    np.testing.assert_array_equal(np.concatenate(read(tmp_path / "a.npy")), X[:4])
    found = read(tmp_path)
    assert [len(part) for part in found] == [3, 1, 3]
    np.testing.assert_array_equal(np.concatenate(found), X)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = "qpass_test_user_data"
    (tmp_path / f"{name}.py").write_text(
        "import numpy as np\n"
        "def batches():\n    yield np.float32([[1, 2]])\n    yield np.float32([[3, 4]])\n"
        "def fails():\n    raise RuntimeError('no camera')\n"
        "number = 3\n"
    )
    (tmp_path / "qpass_test_broken.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def test_functions_of_the_current_folder(module: str) -> None:
    np.testing.assert_array_equal(np.concatenate(read(f"{module}:batches")), [[1, 2], [3, 4]])
    assert next(load_function(f"{module}:batches")()).tolist() == [[1, 2]]


def test_wrong_functions(module: str) -> None:
    for spec, words in {
        f"{module}:nothing": "has no 'nothing'",
        f"{module}:number": "has a value, not a function, called 'number'",
        f"{module}_2:batches": "cannot import",
        "qpass_test_broken:f": "SyntaxError",
        f"{module}:": "expected module:function",
        ":f": "expected module:function",
    }.items():
        with pytest.raises(DataError, match=words):
            load_data(spec)
        with pytest.raises(UsageError, match=words):
            load_function(spec)
    with pytest.raises(DataError, match="raised RuntimeError: no camera"):
        read(f"{module}:fails")


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    good = tmp_path / "good.npz"
    np.savez_compressed(good, x=X)
    (tmp_path / "cut.npz").write_bytes(good.read_bytes()[:-40])
    damaged = bytearray(good.read_bytes())
    damaged[60:90] = bytes(30)
    (tmp_path / "damaged.npz").write_bytes(bytes(damaged))
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "text.npy").write_text("1 2 3")
    (tmp_path / "nothing.npz").write_bytes(b"PK\x05\x06" + bytes(18))
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], object), allow_pickle=True)
    (tmp_path / "data.csv").write_text("1,2")
    (tmp_path / "folder").mkdir()
    for name, words in {
        "missing.npz": "No such file",
        "missing": "no such file or folder",
        "cut.npz": "not a readable array file",
        "damaged.npz": "not a readable array file",
        "empty.npy": "not a readable array file",
        "text.npy": "array file|Python objects",
        "nothing.npz": "cannot be cut",
        "pickled.npy": "Python objects, expected plain arrays",
        "data.csv": "unknown kind of data file",
        "folder": r"no \.npy or \.npz",
    }.items():
        with pytest.raises(DataError, match=words) as caught:
            load_data(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(DataError, match="batch_size is 0"):
        load_data(good, batch_size=0)
