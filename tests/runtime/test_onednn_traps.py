"""Files for which the int8 engine computes something else than was simulated, and LegalizeOnednn, which mends them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from support.build import Builder
from support.onednn import batch, calibrated, conv, image, run, sqnr

import qpass
from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.ir.params import Params
from qpass.passes import LegalizeOnednn
from qpass.runtime.onednn_plan import onednn_plan


def squeeze_and_excite() -> Model:
    """The means of a map, which are small, are quantized; a convolution makes the map, and a float op reads it too."""
    b = conv(image().relu())
    b.relu()
    h = b.current
    conv(b.pool2d("avg", whole=True), seed=1)
    gate = b.unary("sigmoid").current
    b.at(h)
    b.declare("gated", b.shape(h)).op("elementwise_mul", {"X": h, "Y": gate}, {"Out": "gated"})
    return calibrated(b.model())


def product_of_uneven_columns() -> Model:
    """The columns of a weight differ by up to a hundred; the engine takes its scales from runs of memory instead."""
    b = Builder().feed("x", [-1, 16]).relu()
    weight = np.random.default_rng(1).standard_normal((16, 6)).astype(np.float32)
    weight[1::2] = 0
    weight[:6] *= 0.01
    b.matmul(6, weight=b.param("linear_0.w_0", weight))
    return calibrated(b.add(b.param("linear_0.b_0", (6,))).model())


def scaled_convolution(factor: float) -> Model:
    """A convolution that only a `scale` op reads, and quantization behind that."""
    b = conv(image()).relu()
    attrs = {"scale": Attr.float(factor), "bias": Attr.float(0.0), "bias_after_scale": Attr.bool(True)}
    b.declare("scaled", b.shape()).op("scale", {"X": "relu_0.tmp_0"}, {"Out": "scaled"}, attrs)
    return calibrated(conv(b).relu().model())


@pytest.mark.parametrize(
    ("plant", "before", "after"),
    [
        (squeeze_and_excite, 15.0, 35.0),
        (product_of_uneven_columns, 15.0, 35.0),
        (lambda: scaled_convolution(0.25), 0.0, 34.0),  # seen: -9.2 and 35.0
        (lambda: scaled_convolution(4.0), 5.0, 34.0),  # seen: 2.5 and 35.0
    ],
)
def test_traps_and_the_pass_that_ends_them(plant: Callable[[], Model], before: float, after: float) -> None:
    model = plant()
    x = batch(model)
    assert sqnr(run(model, x, "int8"), run(model, x)) < before
    legal = LegalizeOnednn()(model)
    assert sqnr(run(legal, x, "int8"), run(legal, x)) > after


def test_an_average_pool_lends_the_range_of_its_means() -> None:
    model = squeeze_and_excite()
    means = float(np.asarray(model.params["pool2d_0.tmp_0@scale"])[0])
    assert onednn_plan(model).stored["relu_1.tmp_0"].threshold == pytest.approx(means)
    assert np.abs(run(model, batch(model), "executor", "relu_1.tmp_0")).max() > 3 * means
    plan = onednn_plan(LegalizeOnednn()(model))
    assert "relu_1.tmp_0" not in {**plan.stored, **plan.quantized}
    assert plan.quantized["pool2d_0.tmp_0.copy"].threshold == pytest.approx(means)


def test_scales_of_a_product_come_from_runs_of_memory() -> None:
    model = product_of_uneven_columns()
    (op,) = (op for op in onednn_plan(model).ops if op.int8)
    assert op.type == "fc"
    assert op.weight_value is not None
    assert op.weight_scales is not None
    runs = op.weight_value.reshape(-1)[: 6 * 16].reshape(6, 16)
    np.testing.assert_allclose(op.weight_scales, 127 / np.abs(runs).max(1), rtol=1e-5)
    (op,) = (op for op in onednn_plan(LegalizeOnednn()(model)).ops if op.int8)
    assert op.weight_value is not None
    assert op.weight_scales is not None
    np.testing.assert_allclose(op.weight_scales, 127 / np.abs(op.weight_value).max(), rtol=1e-5)


def test_a_legal_model_is_left_alone() -> None:
    for plant in (squeeze_and_excite, product_of_uneven_columns, lambda: scaled_convolution(4.0)):
        legal = LegalizeOnednn()(plant())
        assert LegalizeOnednn()(legal) is legal


def test_plans_do_not_depend_on_the_values_of_weights() -> None:
    """Except by the scales of weights: what is int8 follows from the program and the scales of activations."""
    model = squeeze_and_excite()
    twice = {n: a * np.float32(2) if n.endswith("w_0@scale") else np.asarray(a) for n, a in model.params.items()}
    assert onednn_plan(model).same_as(onednn_plan(dataclasses.replace(model, params=Params(twice))))


def test_a_sum_of_a_signed_and_an_unsigned_value_spoils_the_convolution_and_is_kept_out() -> None:
    """The engine reads the signed bytes of the shortcut as unsigned ones, inside the convolution."""
    b = image().relu()
    h = b.current
    shortcut = conv(b, seed=1).current
    conv(conv(b.at(h), seed=2).relu(), seed=3).add(shortcut).relu()
    planted = calibrated(conv(b, seed=4).model(), outputs=True)
    x = batch(planted)
    assert sqnr(run(planted, x, "int8"), run(qpass.simulate(planted, "onednn"), x)) < 20
    legal = LegalizeOnednn()(planted)
    assert sqnr(run(legal, x, "int8"), run(qpass.simulate(legal, "onednn"), x)) > 60
    np.testing.assert_array_equal(run(legal, x), run(planted, x))
    signed = calibrated(residual_chain(), outputs=True)
    assert LegalizeOnednn()(signed) is signed


def residual_chain() -> Model:
    """No relu behind the sum: both are signed, as in an inverted residual."""
    b = image().relu()
    h = conv(b, seed=1).current
    return conv(conv(conv(b, seed=2).relu(), seed=3).add(h), seed=4).model()
