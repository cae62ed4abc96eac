"""A ranking must put first the layer whose scale was made 100 times too small on purpose, in both modes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.corpus import corpus, golden
from support.planted import broken, shrunk

from qpass import demo
from qpass.analysis.ptq import analyze_ptq
from qpass.analysis.qat import analyze_qat
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.quant.layers import find_layers
from qpass.quant.scales import ScaleTable
from qpass.runtime.calibrate import calibrate

QUANT = Path(__file__).resolve().parents[1] / "data" / "quant"
IMAGES = demo.calibration_data()[:1]


@pytest.fixture(scope="module")
def digits() -> Model:
    return load(demo.float_prefix())


@pytest.fixture(scope="module")
def table(digits: Model) -> ScaleTable:
    return calibrate(digits, IMAGES)


@pytest.mark.parametrize("weight", [False, True], ids=["activation", "weight"])
@pytest.mark.parametrize("name", ["conv2d_5.w_0", "linear_1.w_0"])
@pytest.mark.parametrize("evaluate", [None, demo.accuracy, demo.eval_function], ids=["none", "short", "paddle"])
def test_ptq(digits: Model, table: ScaleTable, name: str, weight: bool, evaluate: Callable[..., object] | None) -> None:
    result = analyze_ptq(digits, shrunk(table, digits, name, weight=weight), evaluate=evaluate, data=IMAGES)
    assert result.rows[0].layer == name
    assert result.rows[0].sensitivity > 5 * abs(result.rows[1].sensitivity)
    assert result.skip_tensor_list(top=1) == [name]


def test_ptq_where_a_lower_metric_is_better(digits: Model, table: ScaleTable) -> None:
    def error_rate(predict: demo.Predict) -> float:
        return 1 - demo.accuracy(predict)

    wrong = shrunk(table, digits, "conv2d_5.w_0", weight=False)
    result = analyze_ptq(digits, wrong, evaluate=error_rate, higher_is_better=False)
    assert result.rows[0].layer == "conv2d_5.w_0"
    assert result.rows[0].metric > result.baseline
    assert result.rows[0].sensitivity == pytest.approx(result.rows[0].metric - result.baseline)


def test_ptq_on_a_residual_net() -> None:
    model = load(corpus("models/resnet8_cifar10"))
    images = [np.load(golden("resnet8_calibration.npz"))["x"][:8].astype(np.float32)]
    wrong = shrunk(calibrate(model, images), model, "conv2d_5.w_0", weight=True)
    result = analyze_ptq(model, wrong, data=images)
    assert len(result.rows) == 10
    assert result.rows[0].layer == "conv2d_5.w_0"


@pytest.mark.parametrize(
    ("name", "restore", "evaluate"),
    [
        ("conv2d_5.w_0", "float", None),
        ("conv2d_5.w_0", "self", demo.accuracy),
        ("linear_1.w_0", "float", demo.eval_function),
        ("linear_1.w_0", "self", None),
    ],
)
def test_qat(digits: Model, name: str, evaluate: Callable[..., object] | None, restore: str) -> None:
    wrong = broken(load(demo.qat_prefix()), name)
    result = analyze_qat(wrong, digits, evaluate=evaluate, data=IMAGES, restore=restore)
    assert result.rows[0].layer == name
    assert result.rows[0].metric > result.baseline
    assert result.rows[0].sensitivity > 5 * abs(result.rows[1].sensitivity)


@pytest.mark.parametrize(("encoding", "index"), [("a", 0), ("a", 2), ("t", 1), ("b", 0), ("b", 2), ("c", 1)])
def test_qat_in_every_encoding(encoding: str, index: int) -> None:
    quantized = load(QUANT / encoding)
    name = [layer.name for layer in find_layers(quantized)][index]
    data = [np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)]
    result = analyze_qat(broken(quantized, name), load(QUANT / "float"), data=data)
    assert result.rows[0].layer == name
    assert result.rows[0].metric > result.baseline
