"""What goes wrong in the middle of a sweep: full disks, shuffled data, threads of the evaluation function."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.full_disk import file_size_limit

from qpass import demo
from qpass.analysis.ptq import analyze_ptq
from qpass.analysis.result import AnalysisResult
from qpass.errors import DataError
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.quant.scales import ScaleTable
from qpass.runtime.calibrate import calibrate
from qpass.runtime.replay import ReplayWarning

IMAGES, LABELS = demo.calibration_data()[0], np.arange(50) % 10
BATCHES = [IMAGES[i : i + 10] for i in range(0, 50, 10)]


@pytest.fixture(scope="module")
def digits() -> Model:
    return load(demo.float_prefix())


@pytest.fixture(scope="module")
def table(digits: Model) -> ScaleTable:
    return calibrate(digits, [IMAGES])


def probability(predict: demo.Predict) -> float:
    scores = np.concatenate([predict(batch)[0] for batch in BATCHES])
    return float(scores[np.arange(50), LABELS].mean())


@pytest.fixture(scope="module")
def expected(digits: Model, table: ScaleTable) -> AnalysisResult:
    return analyze_ptq(digits, table, evaluate=probability, engine="executor")


def without_name(result: AnalysisResult) -> list[object]:
    """Everything but the function's name."""
    rows = [(row.layer, row.metric, row.sensitivity) for row in result.rows]
    return [rows, result.baseline, result.reference, result.fine]


def spilling(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Outputs of variants get this much memory in place of the given one; the rest goes to the disk."""
    from qpass.analysis import outputs

    made = outputs.Spool
    monkeypatch.setattr(outputs, "Spool", lambda memory_bytes=None: made(room))


@pytest.mark.parametrize("settle", [None, 0.9])
def test_outputs_that_the_disk_does_not_take_are_run_again(
    digits: Model, table: ScaleTable, monkeypatch: pytest.MonkeyPatch, settle: float | None
) -> None:
    data = {"data": BATCHES, "engine": "executor", "settle": settle}
    whole = analyze_ptq(digits, table, **data)  # type: ignore[arg-type]
    spilling(monkeypatch, 1000)  # outputs of a batch are 400 bytes, of all variants up to 4,000
    with file_size_limit(10_000), pytest.warns(ReplayWarning, match="outputs of .* is run again") as caught:
        limited = analyze_ptq(digits, table, **data)  # type: ignore[arg-type]
    assert [row.layer for row in limited.rows] == [row.layer for row in whole.rows]
    # alone, a batch adds in another order than together with others
    assert [row.metric for row in limited.rows] == pytest.approx([row.metric for row in whole.rows], rel=1e-6)
    assert limited.race == whole.race
    assert limited.fine is not None
    assert {row.samples for row in limited.fine.rows.values()} == {50}
    assert len([w for w in caught if w.category is ReplayWarning]) <= 2


def test_feeds_that_the_disk_does_not_take_are_run_for_real(
    digits: Model, table: ScaleTable, expected: AnalysisResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qpass.runtime import replay

    made = replay.Spool
    monkeypatch.setattr(replay, "Spool", lambda memory_bytes=None: made(3000))  # a batch is 2,560 bytes
    with file_size_limit(4000), pytest.warns(ReplayWarning, match="recording ended early"):
        limited = analyze_ptq(digits, table, evaluate=probability, engine="executor")
    assert without_name(limited)[:3] == without_name(expected)[:3]
    assert limited.fine is not None
    assert limited.fine.samples < 50


def test_data_that_the_disk_does_not_take_stop_the_sweep_with_its_checkpoint_kept(
    digits: Model, table: ScaleTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qpass.analysis import likeness

    made = likeness.Spool
    path = tmp_path / "check.jsonl"
    monkeypatch.setattr(likeness, "Spool", lambda: made(0))
    with file_size_limit(4000), pytest.raises(DataError, match="cannot keep a batch") as caught:
        analyze_ptq(digits, table, data=BATCHES, engine="executor", checkpoint=path)
    assert "TMPDIR" in str(caught.value)
    monkeypatch.undo()
    analyze_ptq(digits, table, data=BATCHES, engine="executor", checkpoint=path, resume=True)


def test_a_function_that_calls_the_executor_from_several_threads(
    digits: Model, table: ScaleTable, expected: AnalysisResult
) -> None:
    def threads(executor: Any, program: Any, feed_names: Sequence[str], fetch_list: Sequence[Any]) -> float:
        def run(batch: np.ndarray) -> np.ndarray:
            (scores,) = executor.run(program, feed={feed_names[0]: batch}, fetch_list=fetch_list)
            return np.asarray(scores)

        with ThreadPoolExecutor(4) as pool:
            scores = np.concatenate(list(pool.map(run, BATCHES)))
        return float(scores[np.arange(50), LABELS].mean())

    with warnings.catch_warnings():
        warnings.simplefilter("error", ReplayWarning)
        found = analyze_ptq(digits, table, evaluate=threads, engine="executor")
    assert without_name(found)[:3] == without_name(expected)[:3]
    assert found.fine is not None
    assert expected.fine is not None
    assert [(k, v.loss) for k, v in found.fine.rows.items()] == [
        (k, pytest.approx(v.loss, rel=1e-12)) for k, v in expected.fine.rows.items()
    ]


def test_batches_in_another_order_are_found(digits: Model, table: ScaleTable, expected: AnalysisResult) -> None:
    rng = np.random.default_rng(0)

    def reordered(predict: demo.Predict) -> float:
        scores = np.empty((50, 10), np.float32)
        for i in rng.permutation(5):
            scores[10 * i : 10 * i + 10] = predict(BATCHES[i])[0]
        return float(scores[np.arange(50), LABELS].mean())

    with warnings.catch_warnings():
        warnings.simplefilter("error", ReplayWarning)
        found = analyze_ptq(digits, table, evaluate=reordered, engine="executor")
    assert without_name(found)[0] == without_name(expected)[0]


def test_a_loader_that_shuffles_is_run_for_real_with_one_warning(
    digits: Model, table: ScaleTable, expected: AnalysisResult
) -> None:
    rng = np.random.default_rng(0)

    def shuffled(predict: demo.Predict) -> float:
        order = rng.permutation(50)
        scores = np.concatenate([predict(IMAGES[order[i : i + 10]])[0] for i in range(0, 50, 10)])
        return float(scores[np.arange(50), LABELS[order]].mean())

    with pytest.warns(ReplayWarning, match="does its loader shuffle") as caught:
        found = analyze_ptq(digits, table, evaluate=shuffled, engine="executor")
    assert len([w for w in caught if w.category is ReplayWarning]) == 1
    metrics = {row.layer: row.metric for row in expected.rows}
    assert {row.layer: row.metric for row in found.rows} == {k: pytest.approx(v, rel=1e-5) for k, v in metrics.items()}
    assert found.fine is not None
    assert found.fine.samples == 50
