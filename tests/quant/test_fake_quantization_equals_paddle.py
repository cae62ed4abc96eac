"""The numpy formulas against Paddle's own kernels, value by value: ties, saturation, tiny and zero thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from support.build import Builder
from support.infer import infer

from qpass.errors import QuantError
from qpass.ir.op import Attr
from qpass.quant.fakequant import abs_max, dequantize, fake_quantize, quantize
from qpass.quant.spec import QuantSpec, Rounding

STORED = "fake_quantize_dequantize_moving_average_abs_max"
CHANNELS = "fake_channel_wise_quantize_dequantize_abs_max"
THRESHOLDS = (1.0, 0.37, 3.7e-5, 1e-31, 0.0, 123.456, 127.0)


def specs(bits: int, axis: int | None = None) -> tuple[QuantSpec, QuantSpec]:
    return QuantSpec(bits, axis), QuantSpec(bits, axis, Rounding.HALF_AWAY, narrow=True)


def hard_cases(threshold: float, bits: int) -> np.ndarray:
    """Halfway points, grid points, saturation, extremes and ordinary numbers, as float32 [8, ...]."""
    s, n = threshold or 1e-3, 2 ** (bits - 1) - 1
    grid = np.arange(-300, 301) * (s / n)
    ordinary = np.random.default_rng(0).standard_normal(1500) * s
    extremes = [0.0, -0.0, s, -s, 1.001 * s, -1.02 * s, 1e30, -1e30, 1e-38]
    cases = np.concatenate([grid, grid + s / n / 2, ordinary, extremes])
    return np.resize(cases.astype(np.float32), (8, -(-cases.size // 8)))


def linear(x: np.ndarray, scale: np.ndarray, spec: QuantSpec) -> list[np.ndarray]:
    """Integers and floats from `quantize_linear` and `dequantize_linear`."""
    b = Builder().feed("x", x.shape)
    scales = {"Scale": b.param("s", scale), "ZeroPoint": b.param("z", np.zeros(scale.size, np.int32))}
    attrs = {
        "quant_axis": Attr.int(-1 if spec.axis is None else spec.axis),
        "bit_length": Attr.int(spec.bits),
        "round_type": Attr.int(spec.rounding.value),
        "qmin": Attr.int(-(2 ** (spec.bits - 1))),
        "qmax": Attr.int(2 ** (spec.bits - 1) - 1),
        "is_test": Attr.bool(True),
    }
    b.declare("q", x.shape).declare("y", x.shape)
    b.op("quantize_linear", {"X": "x", **scales}, {"Y": "q"}, attrs)
    b.op("dequantize_linear", {"X": "q", **scales}, {"Y": "y"}, attrs)
    return infer(b.fetch("q", "y").model(), {"x": x})


def fake(x: np.ndarray, scale: np.ndarray, bits: int, round_type: int | None) -> np.ndarray:
    b = Builder().feed("x", x.shape)
    b.param("s", scale)
    attrs = {"bit_length": Attr.int(bits), "is_test": Attr.bool(True)}
    if round_type is not None:
        attrs["round_type"] = Attr.int(round_type)
    b.declare("y", x.shape).op(STORED, {"X": "x", "InScale": "s"}, {"Out": "y", "OutScale": "s"}, attrs)
    return infer(b.model(), {"x": x})[0]


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("bits", [8, 4, 16])
def test_per_tensor(threshold, bits):
    x, scale = hard_cases(threshold, bits), np.array([threshold], np.float32)
    for spec in specs(bits):
        q, y = linear(x, scale, spec)
        np.testing.assert_array_equal(quantize(x, threshold, spec), q)
        np.testing.assert_array_equal(dequantize(q, threshold, spec), y)
        np.testing.assert_array_equal(fake_quantize(x, threshold, spec), y)
        np.testing.assert_array_equal(fake_quantize(x, threshold, spec), fake(x, scale, bits, spec.rounding.value))


def test_rounding_of_the_fake_op_without_the_attribute_is_half_away():
    x = hard_cases(1.0, 8)
    even, away = (fake_quantize(x, 1.0, spec) for spec in specs(8))
    np.testing.assert_array_equal(fake(x, np.ones(1, np.float32), 8, None), away)
    assert not np.array_equal(even, away)


@pytest.mark.parametrize(("axis", "shape"), [(0, (7, 3, 5, 5)), (1, (6, 7)), (1, (6, 7, 3, 3)), (0, (7, 9))])
@pytest.mark.parametrize("bits", [8, 4])
def test_per_channel(axis, shape, bits):
    x = np.resize(hard_cases(1.0, bits), shape)
    scale = np.array([1.0, 0.37, 3.7e-5, 1e-31, 0.0, 123.456, 127.0], np.float32)
    for spec in specs(bits, axis):
        q, y = linear(x, scale, spec)
        np.testing.assert_array_equal(quantize(x, scale, spec), q)
        np.testing.assert_array_equal(dequantize(q, scale, spec), y)
        np.testing.assert_array_equal(fake_quantize(x, scale, spec), y)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("round_type", [0, 1, None])
def test_per_channel_with_computed_thresholds(axis, round_type):
    w = np.random.default_rng(1).standard_normal((6, 4, 3, 3)).astype(np.float32)
    w[2], w[:, 1] = 0, np.round(w[:, 1] * 4) / 4
    b = Builder().feed("x", w.shape)
    b.param("s", np.zeros(w.shape[axis], np.float32))
    attrs = {"bit_length": Attr.int(8), "quant_axis": Attr.int(axis)}
    if round_type is not None:
        attrs["round_type"] = Attr.int(round_type)
    b.declare("y", w.shape).op(CHANNELS, {"X": "x"}, {"Out": "y", "OutScale": "s"}, attrs)
    spec = specs(8, axis)[1 if round_type is None else round_type]
    np.testing.assert_array_equal(fake_quantize(w, abs_max(w, axis), spec), infer(b.model(), {"x": w})[0])


def test_abs_max():
    w = np.array([[1, -5, 2], [0, 3, -4]], np.float32)
    assert abs_max(w, None).shape == ()
    assert abs_max(w, None) == 5
    assert abs_max(w, 0).tolist() == [5, 4]
    assert abs_max(w, 1).tolist() == [1, 5, 4]
    assert abs_max(np.zeros((0, 2), np.float32), 1).tolist() == [0, 0]


def test_types():
    x = np.array([0.1, -1.0], np.float32)
    assert quantize(x, 1.0, QuantSpec(8)).dtype == np.int8
    assert quantize(x, 1.0, QuantSpec(9)).dtype == np.int16
    assert fake_quantize(x.astype(np.float64), np.float64(1.0), QuantSpec(8)).dtype == np.float32


@pytest.mark.parametrize(
    ("threshold", "axis", "says"),
    [
        ([1.0, 2.0], None, "2 thresholds, expected one per tensor"),
        ([1.0, 2.0], 1, "2 thresholds, expected one for each of 3 channels"),
        ([1.0], 2, r"axis 2 of an array of shape \[2, 3\]"),
    ],
)
def test_thresholds_that_do_not_fit(threshold, axis, says):
    with pytest.raises(QuantError, match=says):
        fake_quantize(np.zeros((2, 3), np.float32), threshold, QuantSpec(8, axis))
