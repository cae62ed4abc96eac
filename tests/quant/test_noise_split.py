"""Noise split into clipping and rounding: closed forms, and the two parts always add up."""

from __future__ import annotations

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qpass.quant.fakequant import fake_quantize
from qpass.quant.noise import NoiseSplit, split_noise
from qpass.quant.spec import QuantSpec, Rounding

FOUR_BITS = QuantSpec(4)  # levels -8 to 7; with threshold 7 they are the whole numbers
WIDTHS = {"width": 32, "allow_nan": False}


def split(x: list[float], spec: QuantSpec = FOUR_BITS, threshold: object = 7.0) -> NoiseSplit:
    values = np.array(x, np.float32)
    return split_noise(values, fake_quantize(values, threshold, spec), threshold, spec)


def test_by_hand() -> None:
    found = split([0.25, -3.25, 9.0, -10.0, 5.0])
    assert found.rounding == 2 * 0.25**2
    assert found.clipping == (9 - 7) ** 2 + (10 - 8) ** 2
    assert found.signal == 0.25**2 + 3.25**2 + 81 + 100 + 25
    assert found.noise == found.rounding + found.clipping


def test_the_lowest_level() -> None:
    ordinary, narrow = split([-7.6]), split([-7.6], QuantSpec(4, narrow=True, rounding=Rounding.HALF_AWAY))
    assert ordinary.clipping == 0
    assert ordinary.rounding == pytest.approx(0.4**2, rel=1e-6)
    assert narrow.rounding == 0
    assert narrow.clipping == pytest.approx(0.6**2, rel=1e-6)


def test_a_value_half_a_step_beyond_is_clipped_not_rounded() -> None:
    found = split([7.4])
    assert found.rounding == 0
    assert found.clipping == pytest.approx(0.16, rel=1e-6)


def test_each_channel_has_its_own_range() -> None:
    x = np.array([[9.0, 9.0], [0.5, 1.25]], np.float32)
    spec = QuantSpec(4, axis=1)
    threshold = np.array([7.0, 14.0], np.float32)
    found = split_noise(x, fake_quantize(x, threshold, spec), threshold, spec)
    assert found.clipping == 4.0  # 9 against 7 in the first channel; in the second the levels are the even numbers
    assert found.rounding == 1.0 + 0.25 + 0.75**2


def test_sums_add_up() -> None:
    assert split([0.25]) + split([9.0]) == split([0.25, 9.0])


@settings(max_examples=100, deadline=None)
@given(
    npst.arrays(np.float32, st.integers(1, 40), elements=st.floats(-50, 50, **WIDTHS)),
    st.floats(0.125, 40, width=32),
    st.integers(2, 8),
    st.sampled_from(list(Rounding)),
)
def test_the_parts_are_all_of_the_noise(x: np.ndarray, threshold: float, bits: int, rounding: Rounding) -> None:
    spec = QuantSpec(bits, rounding=rounding, narrow=rounding is Rounding.HALF_AWAY)
    made = fake_quantize(x, threshold, spec)
    found = split_noise(x, made, threshold, spec)
    noise = np.square(made.astype(np.float64) - x)
    assert found.noise == pytest.approx(noise.sum(), rel=1e-12)
    step = threshold / spec.qmax
    assert found.rounding <= x.size * (step / 2) ** 2 * (
        1 + 1e-4
    )  # rounding never moves a value by more than half a step
