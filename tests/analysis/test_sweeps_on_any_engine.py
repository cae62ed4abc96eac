"""Engines of which nothing is known run whole models: the same figures, and the same finer ranking."""

from __future__ import annotations

import numpy as np
import pytest

from qpass import demo
from qpass.analysis.ptq import analyze_ptq
from qpass.analysis.qat import analyze_qat
from qpass.analysis.result import AnalysisResult
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.quant.scales import ScaleTable
from qpass.runtime.calibrate import calibrate
from qpass.runtime.engines import get_engine

IMAGES = demo.calibration_data()[0]
BATCHES = [IMAGES[:20], IMAGES[20:40], IMAGES[40:]]


class Own:
    """An engine of which nothing is known."""

    name = "own"
    session = get_engine("executor").session


@pytest.fixture(scope="module")
def digits() -> Model:
    return load(demo.float_prefix())


@pytest.fixture(scope="module")
def table(digits: Model) -> ScaleTable:
    return calibrate(digits, [IMAGES])


def same(whole: AnalysisResult, sliced: AnalysisResult) -> None:
    assert whole.fine is not None
    assert sliced.fine is not None
    assert [row.layer for row in whole.rows] == [row.layer for row in sliced.rows]
    assert [row.metric for row in whole.rows] == pytest.approx([row.metric for row in sliced.rows], rel=1e-6)
    assert list(whole.fine.rows) == list(sliced.fine.rows)
    for layer, row in whole.fine.rows.items():
        expected = sliced.fine.rows[layer]
        assert (row.loss, row.low, row.high) == pytest.approx((expected.loss, expected.low, expected.high), rel=1e-4)
    assert whole.fine.samples == sliced.fine.samples == len(IMAGES)
    assert whole.remarks == ()


def test_ptq_mode(digits: Model, table: ScaleTable) -> None:
    options = {"data": BATCHES, "weight_bits": 4}
    same(
        analyze_ptq(digits, table, engine=Own(), **options),  # type: ignore[arg-type]
        analyze_ptq(digits, table, engine="executor", **options),  # type: ignore[arg-type]
    )


def test_qat_mode_with_a_function(digits: Model) -> None:
    quantized = load(demo.qat_prefix())
    calls = []

    def probability(predict: demo.Predict) -> float:
        calls.append(1)
        return float(np.concatenate([predict(batch)[0] for batch in BATCHES]).max(axis=1).mean())

    whole = analyze_qat(quantized, digits, evaluate=probability, engine=Own())
    assert len(calls) == 10  # eight layers and two ends: none is for what it feeds
    same(whole, analyze_qat(quantized, digits, evaluate=probability, engine="executor"))


def test_scores_have_intervals(digits: Model, table: ScaleTable) -> None:
    def sure(predict: demo.Predict) -> np.ndarray:
        return np.concatenate([predict(batch)[0] for batch in BATCHES]).max(axis=1)

    result = analyze_ptq(digits, table, evaluate=sure, engine=Own(), op_types=("mul",))
    assert result.scores is not None
    assert {row.samples for row in result.scores.rows.values()} == {len(IMAGES)}


@pytest.mark.parametrize("engine", [Own(), "executor"])
def test_functions_that_never_run_the_model_have_no_finer_ranking(
    digits: Model, table: ScaleTable, engine: str
) -> None:
    result = analyze_ptq(digits, table, evaluate=lambda predict: 0.5, engine=engine, op_types=("mul",))
    assert result.fine is None
    assert result.remarks == ("No finer metric and no intervals: the evaluation ran the model on nothing.",)


def test_a_function_that_feeds_something_else_every_time_has_no_finer_ranking(digits: Model, table: ScaleTable) -> None:
    calls = []

    def augmented(predict: demo.Predict) -> float:
        calls.append(1)
        return float(predict(IMAGES + len(calls) / 100)[0].max(axis=1).mean())

    result = analyze_ptq(digits, table, evaluate=augmented, engine=Own(), op_types=("mul",))
    assert result.fine is None
    assert any("does not feed the same batches every time" in remark for remark in result.remarks)


def test_outputs_that_are_not_finite_cost_the_finer_ranking_alone(digits: Model, table: ScaleTable) -> None:
    class Broken:
        """Makes NaN of what quantized models give, as an overflow would."""

        name = "broken"

        def session(self, model: Model, fetch: object = None) -> object:
            made = get_engine("executor").session(model)
            if model.params_digest() != digits.params_digest():
                run = made.run
                made.run = lambda feed: [array * np.nan for array in run(feed)]  # type: ignore[method-assign]
            return made

    result = analyze_ptq(
        digits,
        table,
        evaluate=lambda predict: float(np.isfinite(predict(IMAGES)[0]).mean()),
        engine=Broken(),  # type: ignore[arg-type]
        op_types=("mul",),
    )
    assert [row.metric for row in result.rows] == [0.0, 0.0]
    assert result.fine is None
    assert any("NaN or infinite" in remark for remark in result.remarks)
