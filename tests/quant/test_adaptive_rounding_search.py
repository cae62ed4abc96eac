"""The search for the best rounding, against all roundings there are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpass.quant.adaround import DAMPING, best_rounding, rounding_loss
from qpass.quant.fakequant import dequantize, quantize
from qpass.quant.spec import QuantSpec, Rounding

LIMITS = (-8, 7)


def problem(seed: int, length: int, *, groups: int = 1, rows: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(weights, steps, second moment) with inputs that are correlated and no less than 0, as behind a relu."""
    random = np.random.default_rng(seed)
    mix = random.normal(size=(groups, length, length)) + 0.5
    inputs = np.maximum(mix @ random.normal(size=(groups, length, 40)), 0)
    steps = np.broadcast_to(random.uniform(0.1, 0.3, (groups, rows, 1)), (groups, rows, length))
    return random.normal(size=(groups, rows, length)) * 0.5, steps, inputs @ inputs.swapaxes(1, 2) / 40


def nearest(weights: np.ndarray, steps: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(weights / steps), *LIMITS)


def least(weights: np.ndarray, steps: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The least loss of every row, by trying every rounding up or down."""
    found = np.full(weights.shape[:2], np.inf)
    low = np.clip(np.floor(weights / steps), *LIMITS)
    high = np.clip(np.ceil(weights / steps), *LIMITS)
    for up in itertools.product((False, True), repeat=weights.shape[2]):
        found = np.minimum(found, rounding_loss(np.where(up, high, low), weights, steps, second))
    return found


def damped(second: np.ndarray) -> np.ndarray:
    length = second.shape[1]
    return second + DAMPING * np.trace(second, axis1=1, axis2=2)[:, None, None] / length * np.eye(length)


def test_finds_nearly_always_the_best_of_all_roundings():
    # Measured over 400 rows of these: the best in 95.5 %, 0.7 % more loss than the best on average; nearest rounding
    # has many times the loss of the best.
    excess = []
    for length, seed in itertools.product((3, 6, 9), range(12)):
        weights, steps, second = problem(seed, length, groups=2)
        made = best_rounding(weights, steps, nearest(weights, steps), LIMITS, second)
        ratio = rounding_loss(made, weights, steps, damped(second)) / least(weights, steps, damped(second))
        assert (ratio >= 1 - 1e-9).all()
        excess.append(ratio - 1)
    assert (np.array(excess) < 1e-9).mean() >= 0.9
    assert np.mean(excess) <= 0.03


@given(seed=st.integers(0, 2**16), length=st.integers(1, 40), groups=st.integers(1, 3))
def test_never_worse_than_nearest_and_never_farther_than_its_neighbour(seed, length, groups):
    weights, steps, second = problem(seed, length, groups=groups)
    start = nearest(weights, steps)
    made = best_rounding(weights, steps, start, LIMITS, second)
    assert (rounding_loss(made, weights, steps, second) <= rounding_loss(start, weights, steps, second)).all()
    assert np.array_equal(made, np.rint(made))
    assert (np.abs(made - start) <= 1).all()
    assert LIMITS[0] <= made.min() <= made.max() <= LIMITS[1]
    inside = np.abs(weights / steps) < 7
    assert (np.abs(made * steps - weights)[inside] < np.broadcast_to(steps, made.shape)[inside]).all()
    assert np.array_equal(made, best_rounding(weights, steps, start, LIMITS, second))


def test_inputs_without_correlation_leave_the_nearest():
    weights, steps, _ = problem(1, length=20)
    start = nearest(weights, steps)
    second = np.diag(np.random.default_rng(2).uniform(0.1, 2, 20))[None]
    assert np.array_equal(best_rounding(weights, steps, start, LIMITS, second), start)


def test_equal_inputs_leave_half_a_step_at_most():
    # All inputs alike: the loss is the square of the sum of errors, and rounding n weights of 0.3 steps each makes
    # the sum of levels the nearest whole number to 0.3 n.
    weights, steps = np.full((1, 1, 20), 0.3), np.ones((1, 1, 20))
    made = best_rounding(weights, steps, np.zeros((1, 1, 20)), LIMITS, np.ones((1, 20, 20)))
    assert made.sum() == 6


def test_an_input_that_is_always_zero_changes_nothing():
    weights, steps, second = problem(3, length=6)
    start = nearest(weights, steps)
    assert np.array_equal(best_rounding(weights, steps, start, LIMITS, np.zeros_like(second)), start)


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize(("rounding", "narrow"), [(Rounding.HALF_EVEN, False), (Rounding.HALF_AWAY, True)])
def test_values_on_the_grid_are_quantized_to_their_levels(bits, rounding, narrow):
    spec = QuantSpec(bits, 0, rounding, narrow)
    thresholds = np.exp(np.random.default_rng(bits).uniform(-60, 40, 50)).astype(np.float32)
    some = np.unique(np.linspace(spec.qmin, spec.qmax, 300).astype(np.int32))
    levels = np.broadcast_to(some, (50, len(some)))
    again = quantize(dequantize(levels, thresholds, spec), thresholds, spec)
    assert np.array_equal(again, levels)
