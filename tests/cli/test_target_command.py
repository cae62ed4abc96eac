"""`qpass quantize --target-metric`: what it writes, what it says, what it refuses."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from support.commands import Answer, qpass
from support.planted import shrunk

from qpass import demo
from qpass.formats.files import load
from qpass.quant.layers import find_layers
from qpass.runtime.calibrate import calibrate

DIGITS, TWIN = demo.float_prefix(), demo.qat_prefix()
LAYERS = [layer.name for layer in find_layers(load(DIGITS))]
BAD = "conv2d_5.w_0"

MODULE = """
from qpass import demo
IMAGES, LABELS = (array[:200] for array in demo.test_data())
stop = None
calls = 0

def probability(predict):
    global calls
    calls += 1
    if calls == stop:
        raise KeyboardInterrupt
    return float(predict(IMAGES)[0][range(200), LABELS].mean())

def loss(predict):
    return 1 - probability(predict)

def nan(predict):
    return float("nan")
"""


@pytest.fixture(scope="module")
def scales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scale table in which one layer is bad."""
    model = load(DIGITS)
    path = tmp_path_factory.mktemp("scales") / "scales.json"
    shrunk(calibrate(model, demo.calibration_data()[:1]), model, BAD, weight=True).save(path)
    return path


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "metrics", raising=False)
    (tmp_path / "metrics.py").write_text(MODULE)
    np.savez(tmp_path / "calib.npz", x=demo.calibration_data()[0])
    return tmp_path


def files(folder: Path) -> list[str]:
    kept = (f for f in folder.rglob("*") if f.is_file() and f.suffix not in (".py", ".pyc", ".npz"))
    return sorted(str(f.relative_to(folder)) for f in kept)


def to_target(target: object, *more: object, function: str = "probability") -> Answer:
    return qpass("quantize", DIGITS, "--eval", f"metrics:{function}", "--target-metric", target, "-o", "int8/m", *more)


REPORTS = [f"analysis_results/target.{suffix}" for suffix in ("csv", "json", "txt")]
RANKING = [
    "analysis.csv",
    "analysis.json",
    "analysis.txt",
    "analysis_checkpoint.jsonl",
    "ranking.txt",
    "sensitivity.png",
]


def test_the_bad_layer_stays_in_float(place: Path, scales: Path) -> None:
    answer = to_target(0.85, "--scales", scales)
    assert answer.code == 0, answer.err
    assert "the target is reached with 1 of 8 layers in float" in answer.out
    assert f"skip_tensor_list: {BAD}\n" in answer.out
    assert "nothing skipped: 0 in float" in answer.err
    made = load("int8/m")
    assert [name for name in LAYERS if made.params[name].dtype == np.float32] == [BAD]
    assert files(place) == sorted(
        ["int8/m.pdiparams", "int8/m.pdmodel", "analysis_results/skip_tensor_list.txt", *REPORTS]
        + ["analysis_results/target_checkpoint.jsonl"]
        + [f"analysis_results/{name}" for name in RANKING]
    )
    for file in (*REPORTS, "int8/m.pdmodel", "int8/m.pdiparams"):
        assert f"wrote {file}\n" in answer.out
    trials = list(csv.DictReader(Path("analysis_results/target.csv").read_text().splitlines()))
    assert [row["step"] for row in trials[:2]] == ["nothing skipped", "everything skipped"]
    assert [json.loads(row["skip_tensor_list"]) for row in trials[:2]] == [[], LAYERS]


def test_a_loss_as_json_without_anything_to_skip(place: Path) -> None:
    arguments = ("--data", "calib.npz", "--lower-is-better", "--results", "found", "--scales-out", "scales.json")
    answer = to_target(0.5, *arguments, "--json", function="loss")
    assert answer.code == 0, answer.err
    body = json.loads(answer.out)
    assert (body["outcome"], body["skip_tensor_list"], len(body["trials"])) == ("reached", [], 1)
    assert body["metric"] <= 0.5
    assert all(Path(file).is_file() for file in body["files"])
    assert Path("scales.json").is_file()
    assert not any(name.startswith("found/analysis") for name in files(place))


@pytest.mark.parametrize(
    ("target", "words"),
    [(0.999, "even the float model misses the target"), (0.9795, "only the float model reaches the target")],
)
def test_out_of_reach_is_exit_code_1_with_a_report(place: Path, target: float, words: str) -> None:
    model = load(DIGITS)
    table = calibrate(model, demo.calibration_data()[:1])
    for name in LAYERS:
        table = shrunk(table, model, name, weight=True)
    table.save("all_bad.json")
    answer = to_target(target, "--scales", "all_bad.json")
    assert answer.code == 1
    assert words in answer.err
    assert words in Path("analysis_results/target.txt").read_text()
    assert "Traceback" not in answer.err
    assert not (place / "int8").exists()


def test_stopped_and_resumed(place: Path, scales: Path) -> None:
    import metrics  # type: ignore[import-not-found]

    metrics.stop = 6
    answer = to_target(0.85, "--scales", scales)
    assert answer.code == 1
    assert "--resume" in answer.err
    assert not (place / "int8").exists()
    metrics.stop, metrics.calls = None, 0
    assert to_target(0.85, "--scales", scales, "--resume").code == 0
    resumed = metrics.calls
    metrics.calls = 0
    assert to_target(0.85, "--scales", scales, "--overwrite").code == 0
    assert resumed == metrics.calls - 5 + 1  # the ranking asks again for what is fed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target-metric", "0.9", "--data", "calib.npz"], "--target-metric needs --eval"),
        (["--eval", "metrics:probability", "--data", "calib.npz"], "--eval goes with --target-metric"),
        (["--resume", "--data", "calib.npz"], "--resume goes with --target-metric"),
        (["--results", "x", "--data", "calib.npz"], "--results goes with --target-metric"),
        (["--lower-is-better", "--data", "calib.npz"], "--lower-is-better goes with --target-metric"),
        (["--target-metric", "nan", "--eval", "metrics:probability", "--data", "calib.npz"], "not a finite number"),
        (["--target-metric=-inf", "--eval", "metrics:probability", "--data", "calib.npz"], "not a finite number"),
        (["--target-metric", "high", "--eval", "metrics:probability", "--data", "calib.npz"], "not a finite number"),
        (["--target-metric", "0.9", "--eval", "metrics:probability"], "exactly one of --data and --scales"),
        (["--target-metric", "0.9", "--eval", "metrics:missing", "--data", "calib.npz"], "missing"),
        (
            ["--target-metric", "0.9", "--eval", "metrics:probability", "--data", "calib.npz", "--skip", LAYERS[0]],
            "--skip does not go with --target-metric",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_writes_nothing(place: Path, arguments: list[str], words: str) -> None:
    answer = qpass("quantize", DIGITS, "-o", "int8/m", *arguments)
    assert answer.code == 2
    assert words in answer.err
    assert "Traceback" not in answer.err
    assert files(place) == []


def test_failures_write_no_model(place: Path) -> None:
    nan = to_target(0.9, "--data", "calib.npz", function="nan")
    assert nan.code == 1
    assert "expected a finite number" in nan.err
    quantized = qpass(
        "quantize", TWIN, "--data", "calib.npz", "--eval", "metrics:nan", "--target-metric", 1, "-o", "int8/m"
    )
    assert quantized.code == 2
    assert "quantized already" in quantized.err
    assert not (place / "int8").exists()
    Path("other.json").write_text(
        calibrate(load(DIGITS), demo.calibration_data()[:1]).to_json().replace(BAD, "other.w_0")
    )
    other = to_target(0.9, "--scales", "other.json")
    assert other.code == 1
    assert "the scale table belongs to another model" in other.err
    (place / "int8").mkdir()
    (place / "int8" / "m.pdmodel").write_text("mine")
    taken = to_target(0.9, "--data", "calib.npz")
    assert taken.code == 1
    assert "--overwrite" in taken.err
    assert (place / "int8" / "m.pdmodel").read_text() == "mine"
