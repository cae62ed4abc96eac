"""Analyses in many workers: the same bytes as in one process, whatever happens to the workers."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.build import Builder
from support.workers import AnyOrder, group_lives, wait_until

import qpass
from qpass import demo
from qpass.analysis.result import AnalysisResult
from qpass.errors import EngineError, UsageError
from qpass.hardware import Hardware
from qpass.ir.model import Model
from qpass.quant.scales import ScaleTable
from qpass.runtime.jobs import Workers

IMAGES = np.concatenate(demo.calibration_data())
LITTLE = 1 << 20  # a program for every variant


class Metric:
    """Calls something at every call; holds what cannot be pickled."""

    def __init__(self, then=lambda call: None) -> None:
        self.calls = 0
        self._then = then

    def __call__(self, predict: demo.Predict) -> float:
        self.calls += 1
        self._then(self.calls)
        return float(
            sum(np.abs(predict(IMAGES[start : start + 32])[0][:, :3]).sum() for start in range(0, len(IMAGES), 32))
        )


@pytest.fixture(scope="module")
def digits() -> Model:
    return qpass.load(demo.float_prefix())


@pytest.fixture(scope="module")
def table(digits: Model) -> ScaleTable:
    return qpass.calibrate(digits, [IMAGES])


def run(
    digits: Model,
    table: ScaleTable,
    path: Path,
    workers: Workers | int | None,
    metric: Metric | None = None,
    *,
    resume: bool = False,
) -> tuple[str, bytes]:
    """`analysis.json` and the checkpoint."""
    result = qpass.analyze_ptq(
        digits,
        table,
        evaluate=metric or Metric(),
        checkpoint=path,
        resume=resume,
        memory_bytes=LITTLE,
        workers=workers,
    )
    return result.to_json(), path.read_bytes()


@pytest.fixture(scope="module")
def alone(digits: Model, table: ScaleTable, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    return run(digits, table, tmp_path_factory.mktemp("alone") / "c", None)


@pytest.mark.parametrize("count", [0, 1])
def test_no_other_process(digits: Model, table: ScaleTable, alone, tmp_path: Path, count: int) -> None:
    assert run(digits, table, tmp_path / "c", count) == alone


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_and_any_order_give_the_same_bytes(
    digits: Model, table: ScaleTable, alone, tmp_path: Path, seed: int, count: int
) -> None:
    executor = AnyOrder(seed)
    assert run(digits, table, tmp_path / "c", qpass.ExecutorWorkers(executor, count)) == alone
    assert executor.calls > count


def test_processes_and_a_dead_one_among_them(digits: Model, table: ScaleTable, alone, tmp_path: Path) -> None:
    with qpass.processes(2) as workers:
        assert run(digits, table, tmp_path / "two", workers) == alone
        killed = multiprocessing.active_children()[0].pid

        def kill(call: int) -> None:
            if call == 4:
                os.kill(killed, signal.SIGKILL)

        assert run(digits, table, tmp_path / "killed", workers, Metric(kill)) == alone
        assert killed not in {child.pid for child in multiprocessing.active_children()}
    assert run(digits, table, tmp_path / "three", 3) == alone
    assert multiprocessing.active_children() == []


def test_quantized_models(digits: Model) -> None:
    quantized = qpass.load(demo.qat_prefix())

    def analyse(workers: Workers | None) -> str:
        return qpass.analyze_qat(quantized, digits, data=[IMAGES], memory_bytes=LITTLE, workers=workers).to_json()

    assert analyse(qpass.ExecutorWorkers(AnyOrder(1), 3)) == analyse(None)


def test_lost_workers_leave_the_checkpoint_to_go_on_from(
    digits: Model, table: ScaleTable, alone, tmp_path: Path
) -> None:
    path = tmp_path / "c"
    with pytest.raises(EngineError, match="workers died 4 times"):
        run(digits, table, path, qpass.ExecutorWorkers(AnyOrder(breaks_at=range(4, 99)), 1))
    kept = path.read_bytes()
    assert alone[1].startswith(kept)
    assert len(kept.splitlines()) >= 4
    assert run(digits, table, path, None, resume=True) == alone


COMMAND = """
import sys
import qpass.cli.main
sys.exit(qpass.cli.main.main(sys.argv[1:]))
"""

SLOW = """
import time
from pathlib import Path
from qpass import demo
def metric(predict):
    calls = Path(__file__).with_name("calls")
    seen = calls.read_text() if calls.exists() else ""
    calls.write_text(seen + ".")
    if len(seen) == 4:
        time.sleep(60)
    return demo.true_class_probability(predict)
"""


def test_ctrl_c_leaves_no_process_and_a_whole_checkpoint(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", IMAGES)
    (tmp_path / "slow.py").write_text(SLOW, encoding="utf-8")

    def start(folder: str, *more: str) -> subprocess.Popen[bytes]:
        arguments = ["analyze", str(demo.float_prefix()), "--data", "data.npy", "--eval", "slow:metric", "--plots", "0"]
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments, "--memory", "1M", "-o", folder, *more],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    first = start("out", "--workers", "2")
    wait_until(lambda: len(text(tmp_path / "calls")) == 5)
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does
    _, errors = first.communicate(timeout=20)
    assert b"every finished layer is in the checkpoint" in errors
    assert b"Traceback" not in errors
    wait_until(lambda: not group_lives(first.pid))
    assert len((tmp_path / "out" / "analysis_checkpoint.jsonl").read_bytes().splitlines()) >= 3
    for folder, more in (("out", ["--resume"]), ("whole", [])):
        _, errors = (done := start(folder, *more)).communicate(timeout=60)
        assert done.returncode == 0, errors
    assert (tmp_path / "out" / "analysis.json").read_bytes() == (tmp_path / "whole" / "analysis.json").read_bytes()


@pytest.mark.parametrize(("size", "unit"), [(8, "KiB"), (512, "MiB")])
def test_memory_for_less_than_a_sample_says_how_much_is_needed(size: int, unit: str) -> None:
    model = Builder().feed("x", (-1, 1, size, size)).conv2d(4).relu().conv2d(2).pool2d(whole=True).model()
    image = np.ones((1, 1, size, size), np.float32)
    table = qpass.calibrate(model, [image])

    def analyse(memory: str) -> AnalysisResult:
        return qpass.analyze_ptq(model, table, data=[image], memory_bytes=Hardware(memory=memory).memory_bytes)

    with pytest.raises(UsageError, match="too little for one batch of 1 samples: it needs about") as raised:
        analyse("100")
    found = re.search(rf"needs about (\d+) {unit}, and has 1 KiB", str(raised.value))
    assert found is not None, str(raised.value)
    assert len(analyse(f"{found[1]} {unit}").rows) == 2
    with pytest.raises(UsageError, match="too little"):
        analyse(f"{int(found[1]) * 0.7:.1f} {unit}")


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
