from __future__ import annotations

import hashlib
import itertools
import math
import os
import subprocess
import sys
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from qpass.analysis import confidence
from qpass.analysis.confidence import differing_needed, ranking
from qpass.errors import EvalError, UsageError

Z95 = NormalDist().inv_cdf(0.975)


def test_intervals_are_those_of_scipy() -> None:
    rng = np.random.default_rng(3)
    losses = {"a": rng.lognormal(0, 1, 150), "b": rng.normal(0.5, 1, 150)}
    found = ranking(losses, "loss", "why", resamples=20_000)
    difference = losses["a"] - losses["b"]
    pair = found.neighbours[0]
    assert (pair.upper, pair.lower) == ("a", "b")
    ends = [(found.rows["a"].low, found.rows["a"].high), (found.rows["b"].low, found.rows["b"].high)]
    for (low, high), values in zip([*ends, (pair.low, pair.high)], [*losses.values(), difference], strict=True):
        theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", random_state=7)
        spread = values.std() / math.sqrt(values.size)
        # the 2.5 % point of 20,000 draws has a standard error of 0.019 spreads, here in both
        assert low == pytest.approx(theirs.confidence_interval.low, abs=0.1 * spread)
        assert high == pytest.approx(theirs.confidence_interval.high, abs=0.1 * spread)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_intervals_cover_the_truth_as_often_as_they_say(level: float) -> None:
    rng = np.random.default_rng(11)
    trials, n = 600, 80
    inside = apart = 0
    for trial in range(trials):
        hard = rng.exponential(1, n)  # what both layers share
        losses = {"a": hard + rng.exponential(0.5, n), "b": hard + rng.exponential(0.5, n)}
        found = ranking(losses, "loss", "why", level, 400, trial)
        inside += found.rows["a"].low <= 1.5 <= found.rows["a"].high
        apart += not found.neighbours[0].noise
    error = math.sqrt(level * (1 - level) / trials)
    # 3 standard errors, and up to 2 points less than nominal: n = 80 of a skewed distribution
    assert level - 0.02 - 3 * error <= inside / trials <= level + 3 * error
    assert 1 - level - 3 * error <= apart / trials <= 1 - level + 0.02 + 3 * error


def test_what_samples_share_cancels_in_the_comparison() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 10, 200)
    noise = rng.normal(0, 0.1, 200)
    found = ranking({"a": hard + 0.1 + noise, "b": hard}, "loss", "why")
    pair = found.neighbours[0]
    half = Z95 * noise.std() / math.sqrt(200)
    assert pair.high - pair.low == pytest.approx(2 * half, rel=0.1)
    assert found.rows["a"].high - found.rows["a"].low > 50 * half
    assert not pair.noise


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_samples_needed_are_those_of_the_normal_interval(level: float) -> None:
    difference = np.tile([1.0, -0.8], 50)  # mean 0.1, standard deviation 0.9 sqrt(100/99)
    pair = ranking({"a": difference, "b": np.zeros(100)}, "loss", "why", level).neighbours[0]
    z = NormalDist().inv_cdf((1 + level) / 2)
    assert pair.noise
    assert pair.samples_needed == math.ceil((z * 0.9 * math.sqrt(100 / 99) / 0.1) ** 2)


def test_so_many_samples_settle_it() -> None:
    rng = np.random.default_rng(5)
    draw = rng.normal(0.1, 1, 40_000)
    needed = ranking({"a": draw[:200], "b": np.zeros(200)}, "loss", "why").neighbours[0].samples_needed
    assert needed is not None
    assert ranking({"a": draw[: 6 * needed], "b": np.zeros(6 * needed)}, "loss", "why").neighbours[0].noise is False


def test_equal_layers_are_noise_and_no_number_of_samples_helps() -> None:
    losses = np.zeros(50)
    swapped = np.array([0.5, -0.5] * 20 + [0.0] * 10)
    for other in (losses.copy(), swapped):
        pair = ranking({"a": losses, "b": other}, "loss", "why").neighbours[0]
        assert pair.difference == 0
        assert pair.noise
        assert pair.samples_needed is None


@pytest.mark.parametrize("lost", range(1, 9))
def test_a_few_flipped_answers_are_noise_like_in_a_sign_test(lost: int) -> None:
    flips = np.zeros(1000)
    flips[:lost] = 1
    pair = ranking({"a": flips, "b": np.zeros(1000)}, "loss", "why").neighbours[0]
    p = scipy.stats.binomtest(lost, lost, 0.5).pvalue
    assert pair.noise == (p > 0.05)
    assert pair.samples_needed is not None
    assert (pair.samples_needed > 1000) == pair.noise


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95, 0.99, 0.9999])
def test_the_number_that_must_differ_is_the_sign_tests(level: float) -> None:
    fewest = next(m for m in range(1, 100) if scipy.stats.binomtest(m, m, 0.5).pvalue <= 1 - level + 1e-12)
    assert differing_needed(level) == fewest


def test_one_sample_says_nothing() -> None:
    found = ranking({"a": np.array([2.0]), "b": np.array([1.0])}, "loss", "why")
    assert found.neighbours[0].noise
    assert found.neighbours[0].samples_needed == 6


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 60).flatmap(
        lambda n: st.lists(st.lists(st.floats(-1e6, 1e6), min_size=n, max_size=n), min_size=1, max_size=5)
    )
)
def test_every_ranking_is_ordered_and_consistent(table: list[list[float]]) -> None:
    losses = {f"w{i}": np.array(row) for i, row in enumerate(table)}
    found = ranking(losses, "loss", "why", resamples=50)
    rows = list(found.rows.values())
    assert [row.rank for row in rows] == list(range(1, len(table) + 1))
    assert all(a.loss >= b.loss for a, b in itertools.pairwise(rows))
    assert set(found.rows) == set(losses)
    for layer, row in found.rows.items():
        assert row.loss == losses[layer].mean()
        edge = 1e-9 * max(np.abs(losses[layer]).max(), 1e-300)
        assert losses[layer].min() - edge <= row.low <= row.high <= losses[layer].max() + edge
    for pair in found.neighbours:
        assert pair.noise or not pair.low <= 0 <= pair.high
        assert math.isfinite(pair.low)
        assert math.isfinite(pair.high)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e290])
def test_draws_add_up_exactly(scale: float) -> None:
    values = np.random.default_rng(2).normal(0, 1, 37) * scale
    draws = confidence._draws({"a": values}, 37, 20, seed=9)["a"]
    drawn = np.random.Generator(np.random.PCG64(9)).integers(37, size=(20, 37))
    for mean, rows in zip(draws, drawn, strict=True):
        exact = sum((Fraction(float(v)) for v in values[rows]), Fraction(0)) / 37
        assert abs(Fraction(float(mean)) - exact) <= Fraction(2) ** -50 * 37 * Fraction(float(np.abs(values).max()))


def test_blocks_of_resamples_are_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"a": np.random.default_rng(2).normal(0, 1, 100)}
    whole = confidence._draws(values, 100, 70, seed=1)["a"]
    monkeypatch.setattr(confidence, "_BLOCK", 1600)
    assert confidence._draws(values, 100, 70, seed=1)["a"].tolist() == whole.tolist()
    assert len(set(whole.tolist())) == 70


MANY = """
import numpy as np
from qpass.analysis.confidence import ranking
rng = np.random.default_rng(1)
losses = {f"w{i}": rng.lognormal(0, 3, 700) for i in range(60)}
print(ranking(losses, "loss", "why"))
"""


def test_the_same_bits_on_any_number_of_threads() -> None:
    seen = set()
    for threads in ("1", "2"):
        env = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        run = subprocess.run([sys.executable, "-c", MANY], env=env, capture_output=True, check=True)
        seen.add(hashlib.sha256(run.stdout).hexdigest())
    assert len(seen) == 1


def test_a_layer_that_was_stopped_is_judged_on_its_own_samples() -> None:
    rng = np.random.default_rng(4)
    full = {name: rng.normal(mean, 1, 400) for name, mean in (("a", 3.0), ("b", 2.0), ("c", 1.0))}
    short = {name: v[:100] for name, v in full.items()}
    mixed = ranking({"a": full["a"], "b": short["b"], "c": full["c"]}, "loss", "why")
    of_full, of_short = ranking(full, "loss", "why"), ranking(short, "loss", "why")
    assert mixed.rows["a"] == of_full.rows["a"]
    assert mixed.rows["b"] == of_short.rows["b"]
    assert mixed.neighbours == of_short.neighbours
    assert [mixed.rows[name].samples for name in "abc"] == [400, 100, 400]
    assert mixed.samples == 400


def test_another_seed_moves_intervals_and_nothing_else() -> None:
    losses = {name: np.random.default_rng(i).normal(i, 1, 60) for i, name in enumerate("ab")}
    one, again, other = (ranking(losses, "loss", "why", seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert {k: r.loss for k, r in one.rows.items()} == {k: r.loss for k, r in other.rows.items()}


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 95.0, math.nan])
def test_a_confidence_is_between_0_and_1(level: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        ranking({"a": np.zeros(3)}, "loss", "why", level)


@pytest.mark.parametrize("bad", [np.zeros((2, 2)), np.zeros(0), np.array([1.0, np.nan]), np.array([np.inf])])
def test_losses_are_finite_vectors(bad: np.ndarray) -> None:
    with pytest.raises(EvalError, match="layer 'a'"):
        ranking({"a": bad}, "loss", "why")
