from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from qpass.analysis.race import FIRST_LOOK, Race, student_quantile
from qpass.analysis.result import RaceResult
from qpass.errors import EvalError, UsageError


def run(table: np.ndarray, confidence: float = 0.95, seed: int = 0, piece: int | None = None) -> RaceResult:
    """A race of rows, fed from stage to stage or in pieces."""
    names = [f"w{i}" for i in range(len(table))]
    race = Race(names, table.shape[1], metric="loss", confidence=confidence, seed=seed)
    order = race.order
    ends = race.stages if piece is None else [*range(piece, table.shape[1], piece), table.shape[1]]
    start = 0
    for end in ends:
        if race.running:
            race.feed({name: table[names.index(name), order[start:end]] for name in race.running})
        start = end
    assert race.running == ()
    kept = race.losses()
    assert [len(kept[name]) for name in names] == list(race.result().samples.values())
    for i, name in enumerate(names):
        assert kept[name].tolist() == table[i, order[: len(kept[name])]].tolist()
    return race.result()


def full_places(table: np.ndarray) -> dict[str, int]:
    order = np.argsort(-table.mean(axis=1), kind="stable")
    return {f"w{i}": place for place, i in enumerate(order.tolist())}


def network(kind: str, layers: int, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Losses like those of networks: a few layers matter, some samples are hard for all."""
    sizes = 10 ** rng.uniform(-3, 0, layers)
    if kind == "normal":
        return sizes[:, None] + rng.normal(0, 0.3, (layers, samples))
    if kind == "skewed":
        return sizes[:, None] * rng.random(samples) ** 4 * rng.lognormal(0, 2, (layers, samples))
    if kind == "flips":
        return (rng.random((layers, samples)) < 0.3 * sizes[:, None]).astype(np.float64)
    return rng.lognormal(0, 1.5, (layers, samples))


@pytest.mark.parametrize("kind", ["normal", "skewed", "flips", "equal"])
def test_settled_places_are_wrong_more_rarely_than_allowed(kind: str) -> None:
    rng = np.random.default_rng(17)
    races = 150
    wrong = 0
    for seed in range(races):
        table = network(kind, 8, 400, rng)
        places = full_places(table)
        wrong += any(places[name] != place for name, place in run(table, 0.9, seed).places.items())
    assert wrong / races <= 0.1


def test_a_race_without_the_division_of_doubt_would_be_wrong_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail."""
    monkeypatch.setattr("qpass.analysis.race.student_quantile", lambda p, freedom: 1.0)
    monkeypatch.setattr("qpass.analysis.race.differing_needed", lambda confidence: 2)
    rng = np.random.default_rng(17)
    wrong = 0
    for seed in range(30):
        table = network("normal", 8, 400, rng)
        places = full_places(table)
        wrong += any(places[name] != place for name, place in run(table, 0.9, seed).places.items())
    assert wrong / 30 > 0.3


def test_what_is_clear_is_settled_early_and_what_is_not_runs_on() -> None:
    rng = np.random.default_rng(0)
    means = np.array([5.0, 3.0, 1.0, 1.0, 0.0])
    table = means[:, None] + rng.normal(0, 0.2, (5, 1000))
    table[3] = table[2] + rng.normal(0, 1e-3, 1000)
    table[3] -= (table[3] - table[2]).mean()
    result = run(table)
    assert result.places == {"w0": 0, "w1": 1, "w4": 4}
    assert [result.samples[f"w{i}"] for i in range(5)] == [FIRST_LOOK, FIRST_LOOK, 1000, 1000, FIRST_LOOK]
    assert result.saved == pytest.approx(3 * (1000 - FIRST_LOOK) / 5000)


def test_samples_sorted_by_class_do_not_deceive_it() -> None:
    """The first hundred samples show the layers in the wrong order."""
    table = np.zeros((2, 1000)) + np.random.default_rng(0).normal(0, 0.1, (2, 1000))
    table[0, :100] += 1
    table[1, 100:] += 1
    assert run(table).places == {"w0": 1, "w1": 0}


def test_equal_layers_run_to_the_end() -> None:
    table = np.tile(np.random.default_rng(0).random(500), (4, 1))
    assert run(table) == RaceResult("loss", 0.95, 500, {}, {f"w{i}": 500 for i in range(4)}, 0.0)


@pytest.mark.parametrize(("layers", "samples"), [(1, 100), (3, 1), (3, FIRST_LOOK)])
def test_small_races_end(layers: int, samples: int) -> None:
    result = run(np.random.default_rng(0).random((layers, samples)))
    if layers == 1:
        assert result.places == {"w0": 0}
        assert result.samples == {"w0": FIRST_LOOK}
    else:
        assert result.places == {}
        assert result.saved == 0


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 300),
    st.integers(0, 2**32 - 1),
    st.integers(1, 120),
    st.sampled_from(["normal", "skewed", "flips", "equal"]),
)
def test_races_keep_their_promises(layers: int, samples: int, seed: int, piece: int, kind: str) -> None:
    table = network(kind, layers, samples, np.random.default_rng(seed))
    result = run(table, seed=seed)
    assert result == run(table, seed=seed)
    assert len(set(result.places.values())) == len(result.places)
    assert all(0 <= place < layers for place in result.places.values())
    assert 0 <= result.saved < 1
    for name, count in result.samples.items():
        assert (count < samples) == (name in result.places)
    pieces = run(table, seed=seed, piece=piece)
    assert set(pieces.samples) == set(result.samples)
    backwards = run(table[::-1], seed=seed)
    renamed = {f"w{layers - 1 - int(name[1:])}": place for name, place in backwards.places.items()}
    assert renamed == result.places


def test_the_order_is_a_permutation_of_the_seed() -> None:
    orders = [Race(["a"], 100, metric="loss", seed=seed).order.tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[2]) == list(range(100))


def test_stages_grow_to_the_total() -> None:
    assert Race(["a"], 200, metric="loss").stages == (32, 48, 72, 108, 162, 200)
    assert Race(["a"], 32, metric="loss").stages == (32,)


@pytest.mark.parametrize("freedom", [31, 47, 500])
@pytest.mark.parametrize("tail", [0.4, 0.05, 1e-3, 1e-6, 1e-8])
def test_students_quantiles_are_scipys(tail: float, freedom: int) -> None:
    assert student_quantile(1 - tail, freedom) == pytest.approx(scipy.stats.t.isf(tail, freedom), rel=1e-4)


def test_bad_feeds_are_refused() -> None:
    race = Race(["a", "b"], 10, metric="loss")
    for losses, message in (
        ({"a": np.zeros(2)}, "other layers than those that run: b"),
        ({"a": np.zeros(2), "b": np.zeros(3)}, "one number for each sample"),
        ({"a": np.zeros((2, 1)), "b": np.zeros((2, 1))}, "one number for each sample"),
        ({"a": np.zeros(11), "b": np.zeros(11)}, "11 samples, there are 10"),
        ({"a": np.zeros(2), "b": np.array([0, math.nan])}, "NaN"),
    ):
        with pytest.raises(EvalError, match=message):
            race.feed(losses)
    assert race.seen == 0
    race.feed({"a": np.ones(10), "b": np.zeros(10)})
    assert race.running == ()


def test_bad_races_are_refused() -> None:
    with pytest.raises(UsageError, match="not unique"):
        Race(["a", "a"], 10, metric="loss")
    with pytest.raises(UsageError, match="number of samples"):
        Race(["a"], 0, metric="loss")
    with pytest.raises(UsageError, match="confidence"):
        Race(["a"], 10, metric="loss", confidence=1.0)
