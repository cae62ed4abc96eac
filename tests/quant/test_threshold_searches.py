"""Searches in histograms against the framework's loop, scipy, brute force, and figures published by other tools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import wasserstein_distance

from qpass.quant.entropy import entropy_bin
from qpass.quant.fakequant import fake_quantize
from qpass.quant.histogram import GrowingHistogram
from qpass.quant.observer_options import ObserverOptions
from qpass.quant.record import View
from qpass.quant.spec import QuantSpec
from qpass.quant.threshold_search import kl_bin, least_error, percentile_bin

RNG = np.random.default_rng(5)


def kl_of_paddle(counts: np.ndarray, bits: int) -> float:
    from paddle.static.quantization.cal_kl_threshold import cal_kl_threshold

    return float(cal_kl_threshold(counts, 1.0, bits))


def ours(counts: np.ndarray, bits: int) -> float | None:
    found = kl_bin(counts, 2 ** (bits - 1) - 1)
    return None if found is None else found + 0.5


SAMPLES = {
    "normal": np.abs(RNG.standard_normal(200_000)),
    "relu of a normal": np.maximum(RNG.standard_normal(50_000), 0),
    "long tail": RNG.standard_t(3, 100_000) ** 2,
    "few numbers": RNG.standard_normal(300) ** 2,
    "whole numbers": RNG.integers(0, 256, 100_000).astype(float),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_kl_is_that_of_the_framework(name: str) -> None:
    for bins, bits in ((2048, 8), (700, 8), (300, 4)):
        counts = np.histogram(SAMPLES[name], bins, (0, SAMPLES[name].max()))[0]
        assert ours(counts, bits) == kl_of_paddle(counts, bits), (bins, bits)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.int64, st.integers(4, 90), elements=st.integers(0, 40) | st.sampled_from([0, 0, 0, 10**9])),
    st.integers(2, 6),
)
def test_kl_of_any_histogram_is_that_of_the_framework(counts: np.ndarray, bits: int) -> None:
    found = ours(counts, bits)
    if found is None:  # no candidate ends in a bin that holds anything
        assert not counts[max((counts.size - 1) // 2 - 1, 0) : -1].any()
    else:
        assert found == kl_of_paddle(counts, bits)


def test_many_candidates_that_are_equal_are_settled_as_the_loop_does() -> None:
    counts = np.zeros(400, np.int64)
    counts[180:400:3] = 7
    assert ours(counts, 8) == kl_of_paddle(counts, 8)
    counts[:] = 5
    assert ours(counts, 3) == kl_of_paddle(counts, 3)


def two_sided(batches: list[np.ndarray], bins: int) -> tuple[np.ndarray, float, float]:
    """Histogram as neural-compressor keeps it: bins of the first batch, more of them where later batches need them."""
    peak = float(np.abs(batches[0]).max())
    width = 2 * peak / bins
    counts = np.histogram(batches[0], bins, (-peak, peak))[0]
    for batch in batches[1:]:
        more = max(0, int((np.abs(batch).max() - peak) // width + 1)) if np.abs(batch).max() > peak else 0
        peak += more * width
        counts = np.pad(counts, more) + np.histogram(batch, counts.size + 2 * more, (-peak, peak))[0]
    return counts, width, float(max(np.abs(batch).max() for batch in batches))


SMALL = [np.arange(10.0), np.arange(5.0)]
LARGE = [np.tile(np.arange(15.0), 2)]


@pytest.mark.parametrize(("batches", "expected"), [(SMALL, 9.0), (SMALL + LARGE, 9.140625)])
def test_entropy_of_neural_compressor(batches: list[np.ndarray], expected: float) -> None:
    """Source: test/adaptor/onnxrt_adaptor/test_adaptor_onnxrt.py of neural-compressor 2.x, KL calibrator (128, 128)."""
    counts, width, largest = two_sided(batches, 128)
    assert min(entropy_bin(counts, 128) * width, largest) == expected


@pytest.mark.parametrize(("batches", "expected"), [(SMALL, 8.991211), (SMALL + LARGE, 13.9921875)])
def test_percentile_of_neural_compressor(batches: list[np.ndarray], expected: float) -> None:
    """Same source, percentile calibrator (2048, 99.999): cuts half on each side, takes the lower edge of a bin."""
    counts, width, _ = two_sided(batches, 2048)
    edge = (percentile_bin(counts, 1 - 0.00001 / 2) - counts.size // 2) * width
    assert np.float32(edge) == np.float32(expected)


def test_percentile_closed_form() -> None:
    counts = np.full(100, 10)
    assert [percentile_bin(counts, share) for share in (0.005, 0.5, 0.501, 0.99, 1.0)] == [0, 49, 50, 98, 99]
    assert percentile_bin(np.array([0, 0, 3, 0]), 1.0) == 2
    assert percentile_bin(np.full(3, 1), 1.0) == 2  # a third three times adds up to less than 1


def quantized(x: np.ndarray, scale: float, bits: int) -> np.ndarray:
    return fake_quantize(x.astype(np.float32), np.float32(scale), QuantSpec(bits)).astype(np.float64)


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize(
    "x",
    [
        RNG.standard_normal(20_000),
        np.maximum(RNG.standard_t(4, 20_000), 0),
        -RNG.exponential(1, 20_000),
        RNG.laplace(0.3, 1, 20_000),
    ],
    ids=["normal", "relu", "negative", "laplace"],
)
def test_mse_and_emd_are_what_their_names_say(x: np.ndarray, bits: int) -> None:
    """Among twelve fractions, by quantizing all numbers with the kernel's arithmetic and by scipy's distance."""
    x = x.astype(np.float32)
    fractions = np.arange(1, 13) / 12
    peak = float(np.abs(x).max())
    histogram = GrowingHistogram(ObserverOptions())
    histogram.observe(View(x))

    def best(power: int) -> float:
        bins = peak / histogram.width
        levels = 2 ** (bits - 1) - 1
        return least_error(histogram.positive, histogram.negative, bins, fractions, levels=levels, power=power)

    mse = [np.mean((x - quantized(x, f * peak, bits)) ** 2) for f in fractions]
    emd = [wasserstein_distance(x, quantized(x, f * peak, bits)) for f in fractions]
    assert best(2) == fractions[np.argmin(mse)]
    assert best(1) == fractions[np.argmin(emd)]


@given(
    hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-8, 8, width=32)),
    st.floats(0.1, 8),
    st.integers(2, 6),
)
def test_earth_movers_distance_is_the_mean_absolute_error(x: np.ndarray, scale: float, bits: int) -> None:
    y = quantized(x, scale, bits)
    assert wasserstein_distance(x, y) == pytest.approx(np.abs(x - y).mean(), rel=1e-6, abs=1e-7)


def test_of_equal_fractions_the_largest_wins() -> None:
    counts = np.array([5] + [0] * 9)
    assert least_error(counts, np.zeros(0, np.int64), 1.0, [0.5, 1.0, 0.25], levels=127, power=2) == 1.0


def test_sixteen_bits_fit_into_memory_and_clip_nothing() -> None:
    histogram = GrowingHistogram(ObserverOptions())
    x = RNG.uniform(-1, 1, 10_000).astype(np.float32)
    histogram.observe(View(x))
    peak = float(np.abs(x).max()) / histogram.width
    found = least_error(histogram.positive, histogram.negative, peak, [0.5, 0.9, 1.0], levels=32767, power=2)
    assert found == 1.0
