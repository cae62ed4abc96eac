"""Scales of weights against closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest

from qpass.errors import QuantError, UsageError
from qpass.quant.fakequant import fake_quantize
from qpass.quant.spec import QuantSpec
from qpass.quant.weight_observers import WEIGHT_ALGOS, per_channel, weight_scale


def test_largest_absolute_values() -> None:
    weight = np.array([[[1, -5], [2, 0]], [[-3, 3], [0, -0.5]]], np.float32)
    np.testing.assert_array_equal(weight_scale(weight, 0, "w"), np.float32([5, 3]))
    np.testing.assert_array_equal(weight_scale(weight, 1, "w"), np.float32([5, 2]))
    whole = weight_scale(weight, None, "w")
    assert (whole.shape, whole.dtype, float(whole)) == ((), np.float32, 5.0)
    np.testing.assert_array_equal(weight_scale(np.array([[-128], [1]], np.int8), 0, "w"), np.float32([128, 1]))


@pytest.mark.parametrize("algo", WEIGHT_ALGOS)
def test_unusual_weights(algo: str) -> None:
    np.testing.assert_array_equal(weight_scale(np.empty((2, 0), np.float32), 0, "w", algo=algo), np.float32([0, 0]))
    np.testing.assert_array_equal(weight_scale(np.zeros((2, 3), np.float32), 0, "w", algo=algo), np.float32([0, 0]))
    assert float(weight_scale(np.float32(-2).reshape(()), None, "w", algo=algo)) == 2
    with pytest.raises(QuantError, match="weight 'w': a number is NaN"):
        weight_scale(np.array([1, np.nan], np.float32), 0, "w", algo=algo)
    with pytest.raises(QuantError, match=r"weight 'w': there is no axis 1"):
        weight_scale(np.ones(3, np.float32), 1, "w", algo=algo)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("axis", "shape"), [(0, (3, 5, 40)), (1, (150, 4)), (None, (3, 500)), (0, (2, 140_000))])
def test_least_squares(bits: int, axis: int | None, shape: tuple[int, ...]) -> None:
    """No fraction of the largest value does better, channel by channel; 0 is never clipped to nothing."""
    weight = np.random.default_rng(bits).standard_t(3, shape).astype(np.float32)
    found = weight_scale(weight, axis, "w", algo="mse", bits=bits)
    largest = weight_scale(weight, axis, "w")
    spec = QuantSpec(bits, axis)
    others = tuple(a for a in range(weight.ndim) if a != axis)

    def loss(scale: np.ndarray) -> np.ndarray:
        return np.sum((fake_quantize(weight, scale, spec) - weight) ** 2, axis=others, dtype=np.float64)

    assert (found.shape, found.dtype) == (largest.shape, np.float32)
    assert (found > 0).all()
    for fraction in np.linspace(0.05, 1, 20, dtype=np.float32):
        # sums of the same squares in another order
        assert (loss(found) <= loss(fraction * largest) * (1 + 1e-6)).all()


def test_names() -> None:
    assert [algo for algo in WEIGHT_ALGOS if per_channel(algo)] == ["channel_wise_abs_max", "channel_wise_mse"]
    with pytest.raises(UsageError, match="unknown weight_algo 'kl'"):
        per_channel("kl")
