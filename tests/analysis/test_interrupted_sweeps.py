from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qpass import demo
from qpass.analysis.ptq import analyze_ptq
from qpass.analysis.qat import analyze_qat
from qpass.analysis.result import AnalysisResult
from qpass.errors import CheckpointError, EvalError, UsageError
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.quant.scales import ScaleTable
from qpass.runtime.calibrate import calibrate

IMAGES = demo.calibration_data()[0]


class Metric:
    """A cheap metric that counts its calls and does something at one of them."""

    def __init__(self, stop: int | None = None, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.calls = 0
        self._stop = stop
        self._error = error

    def __call__(self, predict: demo.Predict) -> float:
        self.calls += 1
        if self.calls == self._stop:
            raise self._error
        return float(np.abs(predict(IMAGES)[0][:, :3]).sum())


class Seen:
    """A progress that notes what it is told."""

    def __init__(self) -> None:
        self.started: list[tuple[int, int]] = []
        self.layers: list[tuple[str, float]] = []

    def start(self, total: int, done: int = 0) -> None:
        self.started.append((total, done))

    def advance(self, layer: str, metric: float) -> None:
        self.layers.append((layer, metric))


@pytest.fixture(scope="module")
def digits() -> Model:
    return load(demo.float_prefix())


@pytest.fixture(scope="module")
def table(digits: Model) -> ScaleTable:
    return calibrate(digits, [IMAGES])


@pytest.fixture(scope="module")
def whole(digits: Model, table: ScaleTable) -> AnalysisResult:
    return analyze_ptq(digits, table, evaluate=Metric(), engine="executor")


@pytest.mark.parametrize("stop", [1, 2, 5, 10, 11])
def test_an_interrupted_sweep_goes_on_where_it_stopped(
    digits: Model, table: ScaleTable, whole: AnalysisResult, tmp_path: Path, stop: int
) -> None:
    path = tmp_path / "out" / "check.jsonl"
    with pytest.raises(KeyboardInterrupt):
        analyze_ptq(digits, table, evaluate=Metric(stop), engine="executor", checkpoint=path)
    rest, seen = Metric(), Seen()
    result = analyze_ptq(digits, table, evaluate=rest, engine="executor", checkpoint=path, resume=True, progress=seen)
    done = max(0, stop - 2)  # all but the first call, which is for what it feeds, and the one it was stopped in
    assert rest.calls == 1 + 10 - done  # eight layers and two ends
    assert seen.started == [(8, min(8, done))]
    assert len(seen.layers) == 8 - min(8, done)
    assert dict(seen.layers).items() <= {row.layer: row.metric for row in result.rows}.items()
    assert result.to_json() == whole.to_json()


def test_of_a_finished_checkpoint_nothing_is_measured_again(
    digits: Model, table: ScaleTable, whole: AnalysisResult, tmp_path: Path
) -> None:
    path = tmp_path / "check.jsonl"
    analyze_ptq(digits, table, evaluate=Metric(), engine="executor", checkpoint=path)
    again, seen = Metric(2), Seen()
    result = analyze_ptq(digits, table, evaluate=again, engine="executor", checkpoint=path, resume=True, progress=seen)
    assert again.calls == 1  # for what it feeds
    assert (seen.started, seen.layers) == ([(8, 8)], [])
    assert result.to_json() == whole.to_json()
    analyze_ptq(digits, table, evaluate=again.__class__(), engine="executor", checkpoint=path)
    assert (tmp_path / "check.jsonl.bak").exists()


def test_other_jobs_are_refused_naming_what_differs(digits: Model, table: ScaleTable, tmp_path: Path) -> None:
    path = tmp_path / "check.jsonl"
    arguments = {"evaluate": Metric(), "engine": "executor", "checkpoint": path}
    fewer = calibrate(digits, [IMAGES[:3]])
    analyze_ptq(digits, table, **arguments, op_types=("mul",))
    with pytest.raises(CheckpointError, match="op_types: mul in the checkpoint"):
        analyze_ptq(digits, table, **arguments, resume=True)
    with pytest.raises(CheckpointError, match="weight_bits: 8 in the checkpoint, 4 now"):
        analyze_ptq(digits, table, **arguments, op_types=("mul",), weight_bits=4, resume=True)
    with pytest.raises(CheckpointError, match="engine: executor in the checkpoint, inference now"):
        analyze_ptq(digits, table, **{**arguments, "engine": "inference"}, op_types=("mul",), resume=True)
    with pytest.raises(CheckpointError, match=r"(?s)scales: .*calibration_data: "):
        analyze_ptq(digits, fewer, **arguments, op_types=("mul",), resume=True)
    with pytest.raises(CheckpointError, match=r"(?s)mode: ptq in the checkpoint, qat now.*program: "):
        analyze_qat(load(demo.qat_prefix()), digits, **arguments, op_types=("mul",), resume=True)
    with pytest.raises(CheckpointError, match=r"evaluation: .*Metric in the checkpoint, cosine now\n  data: "):
        analyze_ptq(digits, table, checkpoint=path, engine="executor", data=[IMAGES], op_types=("mul",), resume=True)


def test_other_data_are_refused(digits: Model, table: ScaleTable, tmp_path: Path) -> None:
    path = tmp_path / "check.jsonl"
    analyze_ptq(digits, table, data=[IMAGES], op_types=("mul",), checkpoint=path)
    with pytest.raises(CheckpointError, match="data: ") as caught:
        analyze_ptq(digits, table, data=[IMAGES[:7]], op_types=("mul",), checkpoint=path, resume=True)
    assert "program" not in str(caught.value)


def test_an_evaluation_that_fails_names_the_layer_and_keeps_what_was_done(
    digits: Model, table: ScaleTable, tmp_path: Path
) -> None:
    path = tmp_path / "check.jsonl"
    with pytest.raises(EvalError, match=r"layer 'conv2d_1.w_0' quantized alone.*raised ZeroDivisionError") as caught:
        analyze_ptq(digits, table, evaluate=Metric(3, ZeroDivisionError), engine="executor", checkpoint=path)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert path.read_text().count("\n") == 1 + 1


def test_resume_without_a_checkpoint_is_refused(digits: Model, table: ScaleTable) -> None:
    with pytest.raises(UsageError, match="resume needs a checkpoint"):
        analyze_ptq(digits, table, evaluate=Metric(), resume=True)


WORKER = """
import sys
from qpass import demo
from qpass.analysis.qat import analyze_qat
from qpass.formats.files import load

class Said:
    def start(self, total, done=0):
        print("done", done, flush=True)
    def advance(self, layer, metric):
        print(layer, flush=True)

result = analyze_qat(load(demo.qat_prefix()), load(demo.float_prefix()), evaluate=demo.true_class_probability,
                     engine="executor", checkpoint=sys.argv[1], resume=True, progress=Said())
print(result.to_json())
"""


def test_killed_in_the_middle_it_ends_with_the_same_result(digits: Model, tmp_path: Path) -> None:
    path = tmp_path / "check.jsonl"
    command = [sys.executable, "-c", WORKER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "done 0\n"
        reported = [worker.stdout.readline() for _ in range(3)]
        assert all(reported)
        time.sleep(0.02)
        os.kill(worker.pid, signal.SIGKILL)
    whole_lines = path.read_bytes().split(b"\n")[:-1]
    lines = sum(b'"layer:' in line for line in whole_lines)
    assert lines >= len(reported)
    said, _, result = subprocess.run(command, capture_output=True, text=True, check=True).stdout.partition("{")
    assert said.split()[:2] == ["done", str(lines)]
    quantized = load(demo.qat_prefix())
    whole = analyze_qat(quantized, digits, evaluate=demo.true_class_probability, engine="executor")
    assert "{" + result.rstrip() == whole.to_json().rstrip()
