"""Observers against closed forms, against one look at all data at once, and split over shards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qpass.errors import QuantError, UsageError
from qpass.quant.histogram import GrowingHistogram
from qpass.quant.observer_options import ObserverOptions
from qpass.quant.observers import ACTIVATION_ALGOS, COMPAT, Observer
from qpass.quant.record import View

FINITE = st.floats(-1e6, 1e6, width=32)
BATCHES = st.lists(
    hnp.arrays(np.float32, st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(1, 3)), elements=FINITE),
    min_size=1,
    max_size=5,
).filter(lambda batches: any(batch.size for batch in batches))
SMALL = ObserverOptions(quant_bits=4, bins=32, upsample_bins=4)
KINDS = [(algo, None) for algo in ACTIVATION_ALGOS] + [(algo, "paddle") for algo in COMPAT["paddle"]]
ENDS = ("abs_max", "avg", "min_max", "moving_average_abs_max")


def watched(observers: list[Observer], shards: list[list[np.ndarray]]) -> Observer:
    """One observer a shard, merged; the second pass, where there is one, starts from the merged range."""
    for observer, batches in zip(observers, shards, strict=True):
        for batch in batches:
            observer.observe(batch)
    first, *others = observers
    for other in others:
        first.merge(other)
    if first.passes == 2:
        first.next_pass()
        for batch in (batch for batches in shards for batch in batches):
            first.observe(batch)
    return first


def scale(algo: str, batches: list[np.ndarray], compat: str | None = None) -> float:
    return watched([Observer("t", algo, compat=compat)], [batches]).scale()


@given(BATCHES)
def test_streaming_equals_one_look_at_all_data(batches: list[np.ndarray]) -> None:
    flat = np.concatenate([b.ravel() for b in batches])
    for algo in ("abs_max", "min_max"):
        seen = watched([Observer("t", algo)], [batches])
        assert (seen.scale(), seen.range()) == (np.abs(flat).max(), (flat.min(), flat.max()))
    means = [np.mean([np.abs(sample).max() for sample in batch], dtype=np.float64) for batch in batches if batch.size]
    # the mean over samples is taken in float32, as Paddle takes it: 4 samples round at most a few ulps away
    assert scale("avg", batches) == pytest.approx(np.mean(means), rel=1e-6)


@settings(max_examples=40)
@pytest.mark.parametrize(("algo", "compat"), KINDS)
@given(batches=BATCHES, cut=st.integers(0, 5))
def test_merged_shards_equal_one_observer(algo: str, compat: str | None, batches: list[np.ndarray], cut: int) -> None:
    one = watched([Observer("t", algo, SMALL, compat)], [batches])
    two = watched([Observer("t", algo, SMALL, compat) for _ in range(2)], [batches[:cut], batches[cut:]])
    # a moving average rounds; everything else is the same to the last bit
    tolerance = 1e-14 if algo == "moving_average_abs_max" else 0
    assert two.scale() == pytest.approx(one.scale(), rel=tolerance, abs=0)
    assert two.range() == one.range()


@settings(max_examples=60)
@given(batches=BATCHES, seed=st.integers(0, 9))
def test_a_growing_histogram_depends_on_the_numbers_alone(batches: list[np.ndarray], seed: int) -> None:
    def counts(shown: list[np.ndarray]) -> tuple[list[int], list[int], float]:
        histogram = GrowingHistogram(SMALL)
        for batch in shown:
            if batch.size:
                histogram.observe(View(batch))
        negative = histogram.negative.tolist() or [0] * 128
        return histogram.positive.tolist(), negative, histogram.width

    order = np.random.default_rng(seed).permutation(len(batches))
    positive, negative, width = counts(batches)
    assert counts([batches[i] for i in order]) == (positive, negative, width)
    x = np.concatenate([b.ravel() for b in batches]).astype(np.float64)
    index = np.trunc(x / width).astype(int)
    assert positive == np.bincount(index[index >= 0], minlength=128).tolist()
    assert negative == np.bincount(-index[index < 0], minlength=128).tolist()
    if np.abs(x).max() > 1e-30:
        assert np.abs(index).max() >= 64


def test_avg_weighs_batches_not_samples() -> None:
    batches = [np.array([[1.0], [-3.0]], np.float32), np.array([[10.0]], np.float32)]
    assert scale("avg", batches) == ((1 + 3) / 2 + 10) / 2


def test_the_moving_average_starts_at_the_first_batch() -> None:
    batches = [np.array([[peak]], np.float32) for peak in (4, -2, 8)]
    assert scale("moving_average_abs_max", batches[:1]) == 4
    expected = (0.81 * 4 + 0.9 * 2 + 8) / (0.81 + 0.9 + 1)
    assert scale("moving_average_abs_max", batches) == pytest.approx(expected, rel=1e-15)


def test_mse_sees_all_data_where_the_framework_takes_the_quietest_batch() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (2, 4000)).astype(np.float32)
    loud, quiet = x, x / 100
    assert scale("mse", [loud, quiet], "paddle") < 0.02
    assert scale("mse", [loud, quiet]) > 0.9
    assert scale("ptf", [loud, quiet]) == np.abs(x).max()


def test_hist_and_kl_clip_an_outlier() -> None:
    x = np.random.default_rng(0).standard_normal((100, 2000)).astype(np.float32)
    x[7, 7] = 50
    assert 4 < scale("hist", [x]) < 5.5  # 2 of 200,000 may lie beyond: 4.4 for a normal
    assert scale("KL", [x]) == scale("hist", [x])  # nothing between 5 and 50: the search has no candidate
    assert scale("KL", [np.float32([0, 0, 0, 7])]) == 7  # where the framework's fallback clips everything to 0.002
    assert scale("KL", [np.float32([0, 0, 0, 7])], "paddle") < 0.01
    assert scale("abs_max", [x]) == 50
    kept = Observer("t", "hist", ObserverOptions(hist_percent=0.9))
    kept.observe(x)
    # 1.645 leaves out a tenth; a bin is 50 / 2048 wide
    assert kept.scale() == pytest.approx(1.645, abs=0.03)


@pytest.mark.parametrize("algo", ENDS)
def test_unusual_tensors(algo: str) -> None:
    assert scale(algo, [np.zeros((2, 3), np.float32)]) == 0
    assert scale(algo, [np.float32(-2.5).reshape(())]) == 2.5
    assert scale(algo, [np.empty((0, 3), np.float32), np.full((1, 3), 4, np.float32)]) == 4
    # -128 has no int8 counterpart: negating in int8 would give -128 again
    assert scale(algo, [np.array([[-128, 5]], np.int8)]) == 128
    assert scale(algo, [np.array([[True, False]])]) == 1
    # 60000 + 60000 overflows float16
    assert scale(algo, [np.full((2, 1), 60000, np.float16)]) == 60000 - 60000 % 32
    # 1.5 and -3.0 as bfloat16 bit patterns
    assert scale(algo, [np.array([[0x3FC0, 0xC040]], np.uint16)]) == 3


@pytest.mark.parametrize("algo", sorted(set(ACTIVATION_ALGOS) - {*ENDS, "entropy"}))
@pytest.mark.parametrize("constant", [2.5, -2.5, 1e-38, 1e-44, 3e38])
def test_a_constant_keeps_its_value(algo: str, constant: float) -> None:
    """No search may clip what is all there is, or make nothing of it: within a quarter, and 0 for zeros."""
    x = np.full((3, 4), constant, np.float32)
    assert scale(algo, [x]) == pytest.approx(float(np.abs(x[0, 0])), rel=0.25)
    assert scale(algo, [np.zeros((2, 2), np.float32)]) == 0
    assert scale(algo, [x[:1, :1].reshape(())]) == scale(algo, [x]) == scale(algo, [0 * x, x[:0], x])
    assert scale(algo, [np.array([[0, -128, 127]], np.int8)]) == pytest.approx(128, rel=0.01)


@pytest.mark.parametrize(("algo", "compat"), KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_names_tensor_and_batch(algo: str, compat: str | None, bad: float) -> None:
    observer = Observer("relu_3.tmp_0", algo, compat=compat)
    observer.observe(np.ones((2, 2), np.float32))
    with pytest.raises(QuantError, match=r"'relu_3.tmp_0', batch 2"):
        observer.observe(np.array([[1, bad], [0, 2]], np.float32))


@pytest.mark.parametrize(("algo", "compat"), KINDS)
def test_nothing_seen_is_an_error(algo: str, compat: str | None) -> None:
    observer = Observer("t", algo, compat=compat)
    observer.observe(np.empty((0, 4), np.float32))
    for ask in (observer.scale, observer.range, observer.next_pass):
        with pytest.raises(QuantError, match="'t'"):
            ask()


def test_observers_that_differ_cannot_be_merged() -> None:
    for other in (Observer("t", "mse"), Observer("t", "hist", SMALL), Observer("t", "hist", compat="paddle")):
        with pytest.raises(QuantError, match="cannot be merged"):
            Observer("t", "avg").merge(other)


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([None]), np.array([1j])])
def test_what_is_no_real_number_is_refused(array: np.ndarray) -> None:
    with pytest.raises(QuantError, match="cannot quantize numbers of dtype"):
        Observer("y").observe(array)


def test_unsigned_integers_of_any_width() -> None:
    for kind in ("uint8", "uint32", "uint64"):
        assert scale("abs_max", [np.array([3, 200], kind)]) == 200


def test_literals_of_neural_compressor() -> None:
    """MinMax of test/adaptor/onnxrt_adaptor: 9 after arange(10) and arange(5), 14 after arange(15) twice more."""
    observer = Observer("t", "min_max")
    for batch in (np.arange(10.0).reshape(2, 5), np.arange(5.0).reshape(1, 5)):
        observer.observe(batch)
    assert observer.range() == (0, 9)
    observer.observe(np.arange(15.0).reshape(3, 5))
    assert (observer.range(), observer.scale()) == ((0, 14), 14)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"quant_bits": 1}, "quant_bits is 1, expected a whole number from 2 to 16"),
        ({"quant_bits": 17}, "quant_bits is 17"),
        ({"quant_bits": 8.0}, "quant_bits is 8.0"),
        ({"bins": 0}, "bins is 0"),
        ({"bins": True}, "bins is True"),
        ({"upsample_bins": 0}, "upsample_bins is 0"),
        ({"hist_percent": 0}, r"hist_percent is 0, expected a number in \(0, 1\]"),
        ({"hist_percent": 99.999}, "a share, not a percentage"),
        ({"hist_percent": float("nan")}, "hist_percent is nan"),
        ({"moving_rate": 1}, r"moving_rate is 1, expected a number in \[0, 1\)"),
    ],
)
def test_options_out_of_range(given_: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ObserverOptions(**given_)  # type: ignore[arg-type]


def test_unknown_algorithms() -> None:
    with pytest.raises(UsageError, match="compat 'paddle' has no algo 'entropy', expected one of"):
        Observer("t", "entropy", compat="paddle")
    with pytest.raises(UsageError, match="unknown algo 'best', expected one of"):
        Observer("t", "best")
    with pytest.raises(UsageError, match="unknown compat 'torch'"):
        Observer("t", "avg", compat="torch")
    with pytest.raises(UsageError, match="KL needs at least 131068 bins for 16 bits"):
        Observer("t", "KL", ObserverOptions(quant_bits=16))
