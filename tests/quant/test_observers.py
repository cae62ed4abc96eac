"""Observers against closed forms and against one look at all data at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qpass.errors import QuantError
from qpass.quant.observers import ACTIVATION_ALGOS, AbsMax, weight_threshold

FINITE = st.floats(-1e6, 1e6, width=32)
BATCHES = st.lists(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)), elements=FINITE),
    min_size=1,
    max_size=5,
)


def watched(algo: str, batches: list[np.ndarray]) -> tuple[float, tuple[float, float]]:
    observer = ACTIVATION_ALGOS[algo]("t")
    for batch in batches:
        observer.update(batch)
    return observer.threshold(), observer.range()


@given(BATCHES)
def test_streaming_equals_one_look_at_all_data(batches: list[np.ndarray]) -> None:
    flat = np.concatenate([b.ravel() for b in batches])
    for algo in ("abs_max", "min_max"):
        assert watched(algo, batches) == (np.abs(flat).max(), (flat.min(), flat.max()))
    means = [np.mean([np.abs(sample).max() for sample in batch], dtype=np.float64) for batch in batches]
    threshold, limits = watched("avg", batches)
    # the mean over samples is taken in float32, as Paddle takes it: 4 samples round at most a few ulps away
    assert threshold == pytest.approx(np.mean(means), rel=1e-6)
    assert limits == (flat.min(), flat.max())


def test_avg_weighs_batches_not_samples() -> None:
    batches = [np.array([[1.0], [-3.0]], np.float32), np.array([[10.0]], np.float32)]
    assert watched("avg", batches)[0] == ((1 + 3) / 2 + 10) / 2


@pytest.mark.parametrize("algo", ACTIVATION_ALGOS)
def test_unusual_tensors(algo: str) -> None:
    assert watched(algo, [np.zeros((2, 3), np.float32)]) == (0.0, (0.0, 0.0))
    assert watched(algo, [np.float32(-2.5).reshape(())]) == (2.5, (-2.5, -2.5))
    assert watched(algo, [np.empty((0, 3), np.float32), np.full((1, 3), 4, np.float32)])[0] == 4
    # -128 has no int8 counterpart: negating in int8 would give -128 again
    assert watched(algo, [np.array([[-128, 5]], np.int8)]) == (128.0, (-128.0, 5.0))
    assert watched(algo, [np.array([[True, False]])])[0] == 1.0
    # 60000 + 60000 overflows float16
    assert watched(algo, [np.full((2, 1), 60000, np.float16)])[0] == 60000 - 60000 % 32
    # 1.5 and -3.0 as bfloat16 bit patterns
    assert watched(algo, [np.array([[0x3FC0, 0xC040]], np.uint16)])[1] == (-3.0, 1.5)


@pytest.mark.parametrize("algo", ACTIVATION_ALGOS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_names_tensor_and_batch(algo: str, bad: float) -> None:
    observer = ACTIVATION_ALGOS[algo]("relu_3.tmp_0")
    observer.update(np.ones((2, 2), np.float32))
    with pytest.raises(QuantError, match=r"'relu_3.tmp_0', batch 2"):
        observer.update(np.array([[1, bad], [0, 2]], np.float32))


@pytest.mark.parametrize("algo", ACTIVATION_ALGOS)
def test_nothing_seen_is_an_error(algo: str) -> None:
    observer = ACTIVATION_ALGOS[algo]("t")
    observer.update(np.empty((0, 4), np.float32))
    with pytest.raises(QuantError, match="'t'"):
        observer.threshold()


def test_weight_thresholds() -> None:
    weight = np.array([[[1, -5], [2, 0]], [[-3, 3], [0, -0.5]]], np.float32)
    np.testing.assert_array_equal(weight_threshold(weight, 0, "w"), np.float32([5, 3]))
    np.testing.assert_array_equal(weight_threshold(weight, 1, "w"), np.float32([5, 2]))
    whole = weight_threshold(weight, None, "w")
    assert (whole.shape, whole.dtype, float(whole)) == ((), np.float32, 5.0)
    np.testing.assert_array_equal(weight_threshold(np.array([[-128], [1]], np.int8), 0, "w"), np.float32([128, 1]))
    np.testing.assert_array_equal(weight_threshold(np.empty((2, 0), np.float32), 0, "w"), np.float32([0, 0]))
    assert float(weight_threshold(np.float32(-2).reshape(()), None, "w")) == 2


def test_bad_weights() -> None:
    with pytest.raises(QuantError, match="weight 'w': a number is NaN"):
        weight_threshold(np.array([1, np.nan], np.float32), 0, "w")
    with pytest.raises(QuantError, match=r"weight 'w': there is no axis 1"):
        weight_threshold(np.ones(3, np.float32), 1, "w")


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([None]), np.array([1j])])
def test_what_is_no_real_number_is_refused(array):
    with pytest.raises(QuantError, match="cannot quantize numbers of dtype"):
        AbsMax("y").update(array)


def test_unsigned_integers_of_any_width():
    for kind in ("uint8", "uint32", "uint64"):
        watched = AbsMax("y")
        watched.update(np.array([3, 200], kind))
        assert watched.threshold() == 200.0
