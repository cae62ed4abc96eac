"""Analyses and the target search measure models as the int8 engine computes them, simulated or in it."""

from __future__ import annotations

import numpy as np
import pytest
from support.onednn import batch, calibrated, conv, image, run

import qpass
from qpass.errors import CheckpointError, UsageError
from qpass.ir.model import Model
from qpass.options import QuantOptions
from qpass.passes import StripQuant
from qpass.runtime.evaluating import evaluating_engine, float_engine


def net() -> Model:
    return conv(conv(image().relu()).relu(), seed=1).relu().depthwise_conv2d().model()


def test_quantized_models_run_as_the_engine_does_and_float_ones_as_they_are() -> None:
    model = calibrated(net())
    x, plain = batch(model), StripQuant()(model)
    engine, floats = run(model, x, "int8"), run(plain, x)
    close = {"rtol": 0, "atol": 1e-5 * float(np.abs(engine).max())}
    for runner in (evaluating_engine("executor", "onednn"), evaluating_engine("int8")):
        np.testing.assert_allclose(runner.session(model).run(x)[0], engine, **close)
        np.testing.assert_allclose(runner.session(plain).run(x)[0], floats, **close)
    assert np.abs(run(model, x) - engine).max() > 100 * close["atol"]


def test_what_stays_float_in_the_engine_is_simulated_without_its_quantization() -> None:
    from support.build import Builder

    model = calibrated(Builder().feed("x", [-1, 8]).matmul(4).model())
    x = batch(model)
    made = evaluating_engine("executor", "onednn").session(model).run(x)[0]
    np.testing.assert_array_equal(made, run(StripQuant()(model), x))


def test_the_ranking_by_simulation_is_the_ranking_by_the_engine() -> None:
    model = net()
    x = batch(model)
    scales = qpass.calibrate(model, [x], algo="abs_max")
    by = {
        how: qpass.analyze_ptq(model, scales, data=[x], **given)
        for how, given in {
            "file": {"engine": "executor"},
            "simulated": {"engine": "executor", "simulate": "onednn"},
            "int8": {"engine": "int8"},
        }.items()
    }
    figures = {how: np.array([row.details["sqnr_db"] for row in found.rows]) for how, found in by.items()}
    np.testing.assert_allclose(figures["simulated"], figures["int8"], rtol=0, atol=0.01)
    assert np.abs(figures["file"] - figures["int8"]).max() > 0.05
    assert by["simulated"].settings["engine"] == "executor, simulating onednn"


def test_a_checkpoint_of_another_way_to_measure_is_refused(tmp_path) -> None:
    model = net()
    x = batch(model)
    scales = qpass.calibrate(model, [x], algo="abs_max")
    qpass.analyze_ptq(model, scales, data=[x], checkpoint=tmp_path / "c")
    with pytest.raises(CheckpointError, match="engine"):
        qpass.analyze_ptq(model, scales, data=[x], checkpoint=tmp_path / "c", resume=True, simulate="onednn")


def test_refusals() -> None:
    with pytest.raises(UsageError, match="no simulation of 'lite'"):
        QuantOptions(simulate="lite")
    for make in (lambda: QuantOptions(simulate="onednn", engine="int8"), lambda: evaluating_engine("int8", "onednn")):
        with pytest.raises(UsageError, match="does not go with"):
            make()
    assert (float_engine("int8"), float_engine("executor")) == ("inference", "executor")
