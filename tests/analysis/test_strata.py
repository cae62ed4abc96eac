from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qpass.analysis.race import Race
from qpass.analysis.strata import Strata
from qpass.errors import UsageError

STAGES = (32, 48, 72, 108, 162, 243, 364, 400)


def hard_table(rng: np.random.Generator, layers: int = 8, samples: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Losses that a few samples decide, and how hard the samples are."""
    hardness = rng.random(samples) ** 8
    sizes = 10 ** rng.uniform(-3, 0, layers)
    return sizes[:, None] * hardness * rng.normal(1, 0.5, (layers, samples)), hardness


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 700), st.integers(0, 1000), st.booleans())
def test_every_sample_is_drawn_once_and_means_are_those_of_the_strata(total: int, seed: int, known: bool) -> None:
    rng = np.random.default_rng(seed)
    hardness = rng.random(total) if known else None
    stages = (*(stage for stage in STAGES if stage < total), total)
    strata = Strata.draw(total, stages, seed, hardness)
    assert sorted(strata.order.tolist()) == list(range(total))
    values = rng.normal(size=total)
    for count in stages:
        weights = strata.weights(count)
        means = {
            i: (np.mean(values[strata.order[:count]][strata.labels[:count] == i]), np.mean(strata.labels == i))
            for i in set(strata.labels.tolist())
        }
        expected = sum(mean * share for mean, share in means.values())
        assert np.mean(values[strata.order[:count]] * weights) == pytest.approx(expected, abs=1e-12)
        assert weights.mean() == pytest.approx(1, abs=1e-12)
    assert strata.weights(total).tolist() == [1.0] * total
    if hardness is None:
        assert not strata.labels.any()
    else:
        drawn = hardness[strata.order]
        assert all(drawn[strata.labels == 0].max() <= drawn[strata.labels > 0])


def test_the_hardest_are_all_seen_soon() -> None:
    hardness = np.arange(400.0)
    strata = Strata.draw(400, STAGES, 3, hardness)
    assert np.bincount(strata.labels).tolist() == [200, 100, 50, 25, 12, 13]
    assert set(range(387, 400)) <= set(strata.order[:108].tolist())
    assert np.bincount(strata.labels[:32]).tolist() in ([5, 5, 5, 5, 6, 6], [5, 5, 5, 5, 5, 7])


def test_the_weighted_mean_is_that_of_all_samples_on_average() -> None:
    rng = np.random.default_rng(0)
    hardness = rng.random(300)
    values = hardness**4 + rng.normal(0, 0.1, 300)
    found = []
    for seed in range(400):
        strata = Strata.draw(300, (60, 300), seed, hardness)
        found.append((values[strata.order[:60]] * strata.weights(60)).mean())
    assert np.mean(found) == pytest.approx(values.mean(), abs=4 * np.std(found) / 20)
    assert abs(values[strata.order[:60]].mean() - values.mean()) > 0.1  # hard ones are over-represented


def race(table: np.ndarray, hardness: np.ndarray | None, seed: int) -> tuple[float, bool, int]:
    """Share saved, whether all places are right, how many there are."""
    names = [f"w{i}" for i in range(len(table))]
    made = Race(names, table.shape[1], metric="loss", confidence=0.9, seed=seed, hardness=hardness)
    start = 0
    for end in made.stages:
        if made.running:
            made.feed({name: table[names.index(name), made.order[start:end]] for name in made.running})
        start = end
    full = np.argsort(-table.mean(axis=1), kind="stable")
    result = made.result()
    return result.saved, all(names[full[p]] == name for name, p in result.places.items()), len(result.places)


def test_strata_settle_more_places_and_are_wrong_more_rarely_than_allowed() -> None:
    rng = np.random.default_rng(5)
    found, plain = [], []
    for seed in range(60):
        table, hardness = hard_table(rng)
        found.append(race(table, hardness, seed))
        plain.append(race(table, None, seed))
    assert np.mean([not right for _, right, _ in found]) <= 0.1
    assert np.mean([saved for saved, _, _ in found]) > 1.5 * np.mean([saved for saved, _, _ in plain])


def test_hardness_of_other_samples_is_refused() -> None:
    with pytest.raises(UsageError, match="hardness of shape"):
        Race(["a"], 10, metric="loss", hardness=np.zeros(9))
