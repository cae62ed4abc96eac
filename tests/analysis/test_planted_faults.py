"""A ranking must put first the layer whose scale was made 100 times too small on purpose, in both modes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.corpus import corpus, golden

from qpass import demo
from qpass.analysis.ptq import analyze_ptq
from qpass.analysis.qat import analyze_qat
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.quant.encodings import find_sites
from qpass.quant.layers import find_layers
from qpass.quant.scales import ScaleTable
from qpass.quant.site import Role
from qpass.rewrite.edit import edit
from qpass.runtime.calibrate import calibrate

QUANT = Path(__file__).resolve().parents[1] / "data" / "quant"
IMAGES = demo.calibration_data()[:1]


def shrunk(table: ScaleTable, model: Model, name: str, *, weight: bool) -> ScaleTable:
    """The table with one layer's threshold 100 times too small."""
    if weight:
        return dataclasses.replace(table, weights={**table.weights, name: table.weights[name] / np.float32(100)})
    layer = next(layer for layer in find_layers(model) if layer.name == name)
    op = model.graph.by_uid[layer.ops[0].uid]
    value = op.input(layer.ops[0].activation.slot)[0]
    return dataclasses.replace(table, activations={**table.activations, value: table.activations[value] / 100})


def broken(model: Model, name: str) -> Model:
    """The quantized model with one layer's activation scale 100 times too small."""
    layer = next(layer for layer in find_layers(model) if layer.name == name)
    site = next(s for s in find_sites(model) if s.role is Role.ACTIVATION and layer.ops[0].activation in s.uses)
    before = float(site.threshold)
    with edit(model) as e:
        for uid in site.ops:
            for slot in ("InScale", "Scale"):
                for scale in model.graph.by_uid[uid].input(slot):
                    e.set_param(scale, model.params[scale] / np.float32(100))
    after = next(s for s in find_sites(e.model) if s.value == site.value and layer.ops[0].activation in s.uses)
    assert float(after.threshold) == pytest.approx(before / 100, rel=1e-6)
    return e.model


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
