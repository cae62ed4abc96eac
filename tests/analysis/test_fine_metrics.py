from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from qpass.analysis.fine_metric import (
    LOST_PROBABILITY,
    NOISE_SHARE,
    FineMetric,
    LostProbability,
    NoiseShare,
    choose,
    loss_as_sqnr,
    why_none,
)
from qpass.analysis.metric import Comparison
from qpass.errors import EvalError

RNG = np.random.default_rng(8)
LOGITS = RNG.normal(0, 3, (6, 10)).astype(np.float32)
PROBABILITIES = scipy.special.softmax(LOGITS, axis=1)


def chosen(*outputs: np.ndarray, samples: int = 6) -> FineMetric:
    metric = choose(outputs, samples)
    assert metric is not None
    return metric


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ((PROBABILITIES,), LostProbability((0,), ())),
        ((LOGITS,), LostProbability((), (0,))),
        ((LOGITS, PROBABILITIES), LostProbability((1,), ())),
        ((np.zeros((6, 1, 8, 8), np.float32), LOGITS), LostProbability((), (1,))),
        ((np.stack([PROBABILITIES] * 3, axis=1),), LostProbability((0,), ())),  # text: an answer at every step
        ((LOGITS[:, None, :],), NoiseShare((0,))),
        ((LOGITS[:, :1],), NoiseShare((0,))),
        ((scipy.special.expit(LOGITS),), NoiseShare((0,))),  # several labels at once
        ((LOGITS.argmax(axis=1),), NoiseShare((0,))),
        ((LOGITS[:, 0], np.zeros((37, 6), np.float32)), NoiseShare((0,))),
        ((np.zeros((37, 6), np.float32),), None),
        ((np.float32(3),), None),
        ((), None),
    ],
)
def test_the_metric_follows_from_the_outputs(outputs: tuple[np.ndarray, ...], expected: FineMetric | None) -> None:
    assert choose([np.asarray(o) for o in outputs], 6) == expected


def test_why_is_told() -> None:
    assert chosen(PROBABILITIES).name == chosen(LOGITS).name == LOST_PROBABILITY
    assert "softmax" in chosen(LOGITS).why
    assert "softmax" not in chosen(PROBABILITIES).why
    assert chosen(LOGITS[:, 0]).name == NOISE_SHARE
    assert "[37, 6] for 6 samples" in why_none([np.zeros((37, 6))], 6)


def test_lost_probability_is_the_fall_of_the_answers_probability() -> None:
    noisy = LOGITS + RNG.normal(0, 1, LOGITS.shape).astype(np.float32)
    answer = LOGITS.argmax(axis=1)
    fall = [p[a] - q[a] for p, q, a in zip(PROBABILITIES, scipy.special.softmax(noisy, axis=1), answer, strict=True)]
    np.testing.assert_allclose(chosen(LOGITS).losses([LOGITS], [noisy]), fall, rtol=0, atol=1e-6)
    losses = chosen(PROBABILITIES).losses([PROBABILITIES], [scipy.special.softmax(noisy, axis=1)])
    np.testing.assert_allclose(losses, fall, rtol=0, atol=1e-6)


def test_every_step_of_a_text_counts_alike() -> None:
    steps = np.stack([PROBABILITIES, PROBABILITIES], axis=1)
    changed = steps.copy()
    changed[:, 1] = np.roll(changed[:, 1], 1, axis=1)
    whole = chosen(PROBABILITIES).losses([PROBABILITIES], [changed[:, 1]])
    np.testing.assert_allclose(chosen(steps).losses([steps], [changed]), whole / 2, rtol=1e-12)


@pytest.mark.parametrize("logits", [True, False])
def test_saturated_answers_still_tell_layers_apart(logits: bool) -> None:
    """In float32 all these answers have probability 1."""
    clean, weaker, weakest = (np.array([[top, 0.0, -1.0]], np.float32) for top in (40.0, 39.9, 39.0))
    outputs = [clean, weaker, weakest]
    if not logits:
        outputs = [scipy.special.softmax(x, axis=1) for x in outputs]
        assert {float(x[0, 0]) for x in outputs} == {1.0}
    metric = chosen(outputs[0], samples=1)
    small, large = (metric.losses(outputs[:1], [x])[0] for x in outputs[1:])
    others = 1 + math.exp(-1)
    assert small == pytest.approx(others * (math.exp(-float(weaker[0, 0])) - math.exp(-40)), rel=1e-5)
    assert large == pytest.approx(others * (math.exp(-39) - math.exp(-40)), rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.sampled_from(["logits", "probabilities", "maps"]))
def test_losses_are_bounded_and_zero_for_equal_outputs(seed: int, size: float, kind: str) -> None:
    rng = np.random.default_rng(seed)
    a, b = (size * rng.normal(0, 1, (5, 7)).astype(np.float32) for _ in range(2))
    if kind == "probabilities":
        a, b = (scipy.special.softmax(x, axis=1) for x in (a, b))
    elif kind == "maps":
        a, b = (x.reshape(5, 1, 7, 1) for x in (a, b))
    metric = chosen(a, samples=5)
    losses = metric.losses([a], [b])
    assert losses.shape == (5,)
    assert losses.dtype == np.float64
    assert (np.abs(losses) <= 1 + 1e-6).all()
    assert not metric.losses([a], [a]).any()
    one_by_one = [metric.losses([a[i : i + 1]], [b[i : i + 1]])[0] for i in range(5)]
    np.testing.assert_allclose(losses, one_by_one, rtol=1e-12, atol=0)


def test_noise_share_is_the_sqnr_of_a_sample() -> None:
    r = RNG.normal(0, 1, (4, 3, 5)).astype(np.float32)
    v = r + RNG.normal(0, 0.01, r.shape).astype(np.float32)
    losses = chosen(r, samples=4).losses([r], [v])
    for i in range(4):
        comparison = Comparison(["y"])
        comparison.add([r[i]], [v[i]])
        assert loss_as_sqnr(float(losses[i])) == pytest.approx(comparison.result().sqnr_db, rel=1e-9)


def test_noise_share_of_samples_without_a_signal() -> None:
    r = np.zeros((3, 2), np.float32)
    v = np.array([[0, 0], [0, 1e-20], [1, 1]], np.float32)
    assert chosen(r[:, :, None], samples=3).losses([r], [v]).tolist() == [0.0, 1.0, 1.0]
    assert loss_as_sqnr(1.0) == -300
    assert loss_as_sqnr(0.0) == 300


def test_whole_numbers_count_by_the_share_that_changed() -> None:
    r = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    v = np.array([[1, 2, 3, 4], [5, 0, 7, 0]])
    assert chosen(r, samples=2).losses([r], [v]).tolist() == [0.0, 0.5]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([], "1 reference outputs against 0"),
        ([LOGITS[:5]], r"\[5, 10\], the reference's is \[6, 10\]"),
        ([np.where(LOGITS > 0, np.nan, LOGITS)], "the variant has values that are NaN"),
    ],
)
@pytest.mark.parametrize("metric", [LostProbability((), (0,)), NoiseShare((0,))])
def test_outputs_that_cannot_be_compared(metric: FineMetric, outputs: list[np.ndarray], message: str) -> None:
    with pytest.raises(EvalError, match=message):
        metric.losses([LOGITS], outputs)
