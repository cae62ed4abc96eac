"""Whatever is wrong with the input: one message, the right exit code, nothing half-written, no traceback."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.commands import Answer, qpass
from support.full_disk import file_size_limit

from qpass import demo
from qpass.analysis.result import AnalysisResult, LayerResult
from qpass.cli.main import OPTIONS
from qpass.runtime.engines import ENGINES

DIGITS, TWIN = str(demo.float_prefix()), str(demo.qat_prefix())
PROGRAM, PARAMS = Path(f"{DIGITS}.pdmodel").read_bytes(), Path(f"{DIGITS}.pdiparams").read_bytes()

MODULE = """
import numpy as np
value = 5
def nan(predict): return float("nan")
def boom(predict): raise ValueError("my own mistake")
def nothing(predict): pass
def empty(): return iter(())
def wrong(): return [{"y": np.zeros((2, 1, 8, 8), np.float32)}]
def number(): return 5
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a calibration file and a module of bad functions; the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bad_functions", raising=False)
    (tmp_path / "bad_functions.py").write_text(MODULE)
    np.savez(tmp_path / "calib.npz", x=np.concatenate(demo.calibration_data()[:1]))
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file() and f.suffix != ".pyc"}


def refused(answer: Answer, command: str, code: int, *words: str) -> None:
    """One message with these words, from this command, and this exit code."""
    message = [line for line in answer.err.splitlines() if line.startswith(f"qpass {command}: ")]
    assert len(message) == 1, answer.err
    assert "Traceback" not in answer.err
    assert answer.code == code, answer.err
    for word in words:
        assert word in answer.err


def put(program: bytes | None, params: bytes | None, name: str = "m") -> str:
    for suffix, content in ((".pdmodel", program), (".pdiparams", params)):
        if content is not None:
            Path(name + suffix).write_bytes(content)
    return name


def first_tensor(dims: list[int], dtype: int = 5) -> bytes:
    """A parameter file whose first record declares these dimensions and this element type."""
    # Record: version, LoD level, version, size of the description, description (VarType.TensorDesc), data.
    described = bytes([0x08, dtype]) + b"".join(b"\x10" + varint(d) for d in dims)
    return struct.pack("<IQIi", 0, 0, 0, len(described)) + described + PARAMS[50:]


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


@pytest.mark.parametrize("command", ["inspect", "dump"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: put(PROGRAM[: len(PROGRAM) // 2], PARAMS), "m.pdmodel: not a Paddle program"),
        (lambda: put(b"", PARAMS), "m.pdmodel: the file is empty"),
        (lambda: put(b"\x89PNG not a program at all", PARAMS), "m.pdmodel: not a Paddle program"),
        (lambda: put(PARAMS, PROGRAM), "are program and parameters swapped?"),
        (lambda: put(PROGRAM, PROGRAM), "m.pdiparams, offset 0"),
        (lambda: put(PROGRAM, PARAMS[:-1]), "m.pdiparams, offset "),
        (lambda: put(PROGRAM, b""), "ends after 0 of 34 parameters"),
        (lambda: put(PROGRAM, PARAMS + b"\0"), "1 bytes are left after the 34 parameters"),
        (lambda: put(PROGRAM, Path(f"{TWIN}.pdiparams").read_bytes()), "m.pdiparams"),
        (lambda: put(PROGRAM, first_tensor([1 << 40])), "batch_norm2d_0.b_0"),
        (lambda: put(PROGRAM, first_tensor([-8])), "batch_norm2d_0.b_0"),
        (lambda: put(PROGRAM, first_tensor([8], dtype=77)), "tensor description (08 4d 10 08)"),
        (lambda: put(None, None, "nowhere"), "no such file"),
        (lambda: ".", "no .pdmodel"),
        (lambda: "", "empty path"),
    ],
)
def test_model_files(command: str, make: Callable[[], str], words: str, place: Path) -> None:
    model = make()
    before = files(place)
    refused(qpass(command, model), command, 1, words)
    refused(qpass("run", model, "-p", "drop-identity", "-o", "out/m"), "run", 1, words)
    assert files(place) == before


def test_a_pir_program_says_what_it_is(place: Path) -> None:
    (place / "inference.json").write_text('{"base_code":{"magic":"pir","trainable":true,"version":1},"program":{}}')
    for path in ("inference.json", ".", "inference"):
        refused(qpass("inspect", path), "inspect", 1, "Paddle 3", "FLAGS_enable_pir_api=0")


def test_a_program_without_parameters_can_be_looked_at_only(place: Path) -> None:
    model = put(PROGRAM, None)
    assert qpass("inspect", model).code == 0
    answer = qpass("run", model, "-p", "drop-identity", "-o", "out/m")
    refused(answer, "run", 1, "declares 34 parameters", "no 'm.pdiparams' beside it", "--params-filename")
    assert "structure_only" not in answer.err


DATA = {
    "missing.npz": (1, "cannot read it"),
    "missing": (1, "no such file or folder"),
    "bad_functions.py": (1, "unknown kind of data file"),
    "names.npz": (1, "inputs ['image'] are missing; it has ['foo']"),
    "rank.npz": (1, "add the batch dimension"),
    "nan.npz": (1, "NaN or infinite"),
    "none.npz": (1, "there is no batch"),
    "torn.npz": (1, "torn.npz"),
    "pickle.npy": (1, "pickle.npy"),
    "bad_functions:empty": (1, "there is no batch"),
    "bad_functions:wrong": (1, "inputs ['image'] are missing; it has ['y']"),
    "bad_functions:number": (1, "returned int, expected batches"),
    "bad_functions:absent": (1, "has no 'absent'"),
}


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("command", ["analyze", "quantize"])
def test_data(command: str, data: str, place: Path) -> None:
    images = np.zeros((2, 1, 8, 8), np.float32)
    np.savez("names.npz", foo=images)
    np.savez("rank.npz", x=images[:, 0])
    np.savez("nan.npz", x=images + np.float32("nan"))
    np.savez("none.npz", x=images[:0])
    Path("torn.npz").write_bytes(Path("calib.npz").read_bytes()[:-40])
    np.save("pickle.npy", np.array([{"a": 1}], object), allow_pickle=True)
    before = files(place)
    code, words = DATA[data]
    refused(qpass(command, DIGITS, "--data", data, "-o", "out/m"), command, code, words)
    assert files(place) == before


@pytest.mark.parametrize(
    ("function", "code", "words"),
    [
        ("nan", 1, "returned nan, expected a finite number"),
        ("boom", 1, "raised ValueError: my own mistake"),
        ("nothing", 1, "is a return statement missing?"),
        ("value", 2, "a value, not a function"),
        ("absent", 2, "has no 'absent'"),
    ],
)
def test_evaluation(function: str, code: int, words: str) -> None:
    command = ("analyze", DIGITS, "--data", "calib.npz", "--eval", f"bad_functions:{function}", "-o", "out")
    refused(qpass(*command), "analyze", code, words)
    assert set(files(Path("out"))) <= {"analysis_checkpoint.jsonl"}


def test_debug_shows_where_an_evaluation_raised() -> None:
    answer = qpass("analyze", DIGITS, "--data", "calib.npz", "--eval", "bad_functions:boom", "-o", "out", "--debug")
    assert 'raise ValueError("my own mistake")' in answer.err
    assert answer.err.rstrip().endswith("hint: --debug shows where")


CALIB = ("--data", "calib.npz")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("quantize", DIGITS, *CALIB, "--skip", "conv2d_9.w_0"), 1, "'conv2d_9.w_0' matches no"),
        (("quantize", DIGITS, *CALIB, "--skip", "@missing.txt"), 2, "cannot read the names (No such file"),
        (("quantize", DIGITS, *CALIB, "--skip", "@binary"), 2, "no UTF-8 text"),
        (("quantize", DIGITS), 2, "exactly one of --data and --scales"),
        (("quantize", DIGITS, *CALIB, "--scales", "list.json"), 2, "exactly one of --data and --scales"),
        (("quantize", DIGITS, "--scales", "list.json", "--algo", "avg"), 2, "--algo goes with --data"),
        (("quantize", DIGITS, "--scales", "missing.json"), 1, "missing.json"),
        (("quantize", DIGITS, "--scales", "list.json"), 1, "not a scale table"),
        (("quantize", DIGITS, "--scales", "deep.json"), 1, "not a scale table"),
        (("quantize", DIGITS, "--scales", "binary"), 1, "not a scale table"),
        (("quantize", TWIN, *CALIB), 2, "quantized already"),
        (("analyze", DIGITS, *CALIB, "--float", DIGITS), 2, "--float goes with a quantized model"),
        (("analyze", DIGITS, *CALIB, "--restore", "self"), 2, "--restore goes with a quantized model"),
        (("analyze", DIGITS, *CALIB, "--lower-is-better"), 2, "--lower-is-better needs an evaluation function"),
        (("analyze", DIGITS, *CALIB, "--op-types", "conv3d"), 2, "'conv3d' has no quantizable weight"),
        (("analyze", DIGITS, *CALIB, "--engine", "gpu"), 1, "use --engine inference"),
        (("analyze", TWIN, *CALIB), 2, "--restore float needs the float model"),
        (("analyze", TWIN, *CALIB, "--float", TWIN), 2, "swapped"),
        (("analyze", TWIN, *CALIB, "--float", "missing"), 1, "no such file"),
        (("analyze", TWIN, *CALIB, "--float", DIGITS, "--algo", "avg"), 2, "--algo goes with a float model"),
        (("analyze", TWIN, *CALIB, "--float", DIGITS, "--map", "missing.json"), 2, "cannot read the mapping"),
        (("analyze", TWIN, *CALIB, "--float", DIGITS, "--map", "binary"), 2, "cannot read the mapping"),
        (("analyze", TWIN, *CALIB, "--float", DIGITS, "--map", "torn.json"), 2, "the mapping is no JSON"),
        (("analyze", TWIN, *CALIB, "--float", DIGITS, "--map", "deep.json"), 2, "the mapping is no JSON"),
        (("analyze", TWIN, *CALIB, "--float", DIGITS, "--map", "list.json"), 2, "expected a JSON object of names"),
        (("analyze", TWIN, *CALIB, "--float", DIGITS, "--map", "names.json"), 1, "no layer 'conv1'"),
        (("analyze", TWIN, *CALIB, "--float", DIGITS, "--map", "shapes.json"), 1, "has shape"),
        (("run", DIGITS, "-p", "strip-quant{layers=conv2d_9.w_0}"), 1, "no layer 'conv2d_9.w_0'"),
        (("run", DIGITS, "-p", "insert-quant{scales=missing.json}"), 1, "missing.json"),
    ],
)
def test_arguments(arguments: tuple[str, ...], code: int, words: str, place: Path) -> None:
    Path("binary").write_bytes(b"\xff\xfe\0")
    Path("torn.json").write_text('{"a": ')
    Path("deep.json").write_text("[" * 200_000)
    Path("list.json").write_text("[1]")
    Path("names.json").write_text(json.dumps({"conv1": "conv2d_0.w_0"}))
    Path("shapes.json").write_text(json.dumps({"conv2d_0.w_0": "conv2d_3.w_0"}))
    before = files(place)
    refused(qpass(*arguments, "-o", "out/m"), arguments[0], code, words)
    assert files(place) == before


@pytest.mark.parametrize("results", ["missing", "binary", "deep.json", "list.json", "words.json", "."])
def test_results_that_are_none(results: str) -> None:
    Path("binary").write_bytes(b"\xff\xfe\0")
    Path("deep.json").write_text("[" * 200_000)
    Path("list.json").write_text("[1]")
    whole = AnalysisResult("ptq", "accuracy", True, 0.9, None, (LayerResult("a", "conv2d", 0.2, 0.7),)).to_json()
    Path("words.json").write_text(whole.replace("0.7", '"high"'))
    refused(qpass("skiplist", results, "--threshold", "0.5"), "skiplist", 2, "qpass analyze")


@pytest.mark.parametrize(
    "arguments",
    [
        ("analyze", DIGITS, *CALIB, "--top", "-1"),
        ("analyze", DIGITS, *CALIB, "--top", "1", "--threshold", "1"),
        ("analyze", DIGITS, *CALIB, "--threshold", "nan"),
        ("analyze", DIGITS, *CALIB, "--plots", "-1"),
        ("analyze", DIGITS, *CALIB, "--plots", "some"),
        ("analyze", DIGITS, *CALIB, "--batch-size", "0"),
        ("analyze", DIGITS, *CALIB, "--batches", "0"),
        ("analyze", DIGITS, *CALIB, "--algo", "best"),
        ("analyze", DIGITS, *CALIB, "--compat", "torch"),
        ("analyze", DIGITS, *CALIB, "--hist-percent", "most"),
        ("analyze", DIGITS, *CALIB, "--weight-bits", "16"),
        ("analyze", DIGITS, *CALIB, "--activation-bits", "1"),
        ("analyze", DIGITS, *CALIB, "--engine", "tensorrt"),
        ("analyze", TWIN, *CALIB, "--qat-metric", "inf"),
        ("analyze", DIGITS),
        ("skiplist", "results"),
        ("skiplist", "results", "--top", "1.5"),
    ],
)
def test_wrong_usage_is_seen_before_the_work(arguments: tuple[str, ...], place: Path) -> None:
    before = files(place)
    answer = qpass(*arguments)
    assert answer.code == 2
    assert answer.err.startswith("usage: qpass ")
    assert f"\nqpass {arguments[0]}: error: " in answer.err
    assert files(place) == before


def test_engine_names_are_those_of_the_library() -> None:
    assert "{" + ",".join(ENGINES) + "}" in qpass("analyze", "--help").out


def test_every_option_that_messages_name_exists() -> None:
    helps = "".join(qpass(command, "--help").out for command in ("run", "analyze"))
    for option in OPTIONS.values():
        words = [word for word in option.split() if word.startswith("--")]
        assert all(word in helps for word in words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("analyze", DIGITS, *CALIB, "-o", "calib.npz"), "analysis_checkpoint.jsonl: cannot use the checkpoint"),
        (("quantize", DIGITS, *CALIB, "-o", "calib.npz/m"), "cannot be written"),
        (("quantize", DIGITS, *CALIB, "-o", "m", "--scales-out", "calib.npz/s.json"), "cannot write the scale table"),
        (("quantize", DIGITS, *CALIB, "-o", "folder/"), "a folder, expected a prefix"),
        (("quantize", "digits", *CALIB, "-o", "digits"), "this is the model's own input"),
        (("quantize", "digits", *CALIB, "-o", "there"), "pass --overwrite"),
        (("run", "digits", "-p", "drop-identity", "-o", "there"), "pass --overwrite"),
        (("run", "digits", "-p", "drop-identity", "-o", ""), "not a path"),
        (("demo", "-o", "calib.npz"), "cannot use the checkpoint"),
    ],
)
def test_output_that_cannot_be_written(arguments: tuple[str, ...], words: str, place: Path) -> None:
    put(PROGRAM, PARAMS, "digits")
    put(b"mine", b"too", "there")
    before = files(place)
    refused(qpass(*arguments), arguments[0], 1, words)
    assert files(place) == before


@pytest.mark.parametrize(
    ("arguments", "size", "words", "left"),
    [
        (("run", DIGITS, "-p", "drop-identity", "-o", "out/m"), 20_000, "no file was changed", {}),
        (("quantize", DIGITS, *CALIB, "-o", "out/m"), 8_000, "no file was changed", {}),
        (("quantize", DIGITS, *CALIB, "-o", "out/m", "--scales-out", "out/s"), 500, "cannot write the scale table", {}),
        # One line too many for the checkpoint, then one file of the results.
        (("analyze", DIGITS, *CALIB, "-o", "out", "--plots", 0), 1_300, "cannot use the checkpoint", {"check"}),
        (("analyze", DIGITS, *CALIB, "-o", "out", "--plots", 0), 60_000, "cannot write the results", {"check"}),
    ],
)
def test_a_full_disk(arguments: tuple[str, ...], size: int, words: str, left: set[str], place: Path) -> None:
    before = files(place)
    with file_size_limit(size):
        answer = qpass(*arguments)
    refused(answer, arguments[0], 1, words)
    added = set(files(place)) - set(before)
    assert added == {f"out/{name.replace('check', 'analysis_checkpoint.jsonl')}" for name in left}
    if left:
        assert qpass(*arguments, "--resume").code == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_to_a_full_device_is_one_message() -> None:
    code = f"import sys; from qpass.cli.main import main; sys.exit(main(['dump', {DIGITS!r}]))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "qpass dump: output: No space left on device\n")


@pytest.mark.skipif(shutil.which("head") is None, reason="needs head")
def test_a_closed_pipe_is_no_error() -> None:
    code = f"import sys; from qpass.cli.main import main; sys.exit(main(['dump', '--full', {TWIN!r}]))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "qpass text 1\n"
        process.stdout.close()
        assert process.stderr.read() == ""
