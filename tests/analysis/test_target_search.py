"""The search for a target metric, on made-up metrics, against all 2^n skip lists."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Iterable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qpass.analysis.target import Search, TargetResult, check_target
from qpass.errors import UsageError

Metric = Callable[[frozenset[str]], float]


class Counted:
    """A metric of skip lists that notes what it was asked."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.asked: list[frozenset[str]] = []

    def __call__(self, skip: tuple[str, ...]) -> float:
        self.asked.append(frozenset(skip))
        return self.metric(frozenset(skip))


def names(count: int) -> tuple[str, ...]:
    return tuple(f"conv2d_{i}.w_0" for i in range(count))


def search(
    metric: Counted, layers: tuple[str, ...], target: float, ranking: Iterable[str] | None = None, higher: bool = True
) -> TargetResult:
    order = tuple(layers if ranking is None else ranking)
    return Search(layers, lambda: order, metric, target, "ptq", "made up", higher).run()


def proper_subsets(skip: Iterable[str]) -> Iterable[frozenset[str]]:
    kept = tuple(skip)
    return (frozenset(some) for size in range(len(kept)) for some in itertools.combinations(kept, size))


def check(result: TargetResult, metric: Counted, layers: tuple[str, ...], higher: bool = True) -> None:
    """What holds whatever the metric is; computed from the metric alone."""

    def good(skip: Iterable[str]) -> bool:
        value = metric.metric(frozenset(skip))
        return value >= result.target if higher else value <= result.target

    assert len(metric.asked) == len(set(metric.asked)) == len(result.trials)
    assert [frozenset(t.skip) for t in result.trials] == metric.asked
    assert all(t.metric == metric.metric(frozenset(t.skip)) and t.reaches == good(t.skip) for t in result.trials)
    assert metric.asked[0] == frozenset()
    if good(()):
        assert (result.outcome, result.skip_tensor_list, len(result.trials)) == ("reached", (), 1)
    elif not good(layers):
        assert (result.outcome, result.skip_tensor_list, len(result.trials)) == ("float misses", (), 2)
        assert result.metric == metric.metric(frozenset(layers))
    else:
        skip = result.skip_tensor_list if result.outcome == "reached" else layers
        assert result.outcome in ("reached", "only float reaches")
        assert (len(skip) == len(layers)) == (result.outcome == "only float reaches")
        assert good(skip)
        assert result.metric == metric.metric(frozenset(skip))
        assert set(result.certificate) == set(skip)
        for name in skip:
            fewer = frozenset(skip) - {name}
            assert not good(fewer)
            assert fewer in metric.asked
            assert result.certificate[name] == metric.metric(fewer)


costs = st.lists(st.integers(0, 1000), min_size=1, max_size=9)


@given(costs, st.integers(-1, 1001), st.randoms(use_true_random=False), st.booleans())
def test_additive_costs(loss: list[int], permille: int, shuffle: random.Random, higher: bool) -> None:
    """Each layer costs its own share, whatever the order of the ranking: no sub-list at all reaches the target."""
    layers = names(len(loss))
    cost = dict(zip(layers, loss, strict=True))
    sign = 1 if higher else -1
    target = sign * (-sum(loss) * permille / 1000)
    metric = Counted(lambda skip: float(sign * -sum(c for name, c in cost.items() if name not in skip)))
    order = list(layers)
    shuffle.shuffle(order)
    result = search(metric, layers, target, order, higher)
    check(result, metric, layers, higher)
    if result.outcome == "reached":
        for fewer in proper_subsets(result.skip_tensor_list):
            assert sign * metric.metric(fewer) < sign * target


@given(costs, st.integers(0, 1000))
def test_additive_costs_ranked_truly_take_few_models_and_give_the_shortest_list(loss: list[int], permille: int) -> None:
    layers = names(len(loss))
    cost = dict(zip(layers, loss, strict=True))
    metric = Counted(lambda skip: float(-sum(c for name, c in cost.items() if name not in skip)))
    target = -sum(loss) * permille / 1000
    result = search(metric, layers, target, sorted(layers, key=lambda name: -cost[name]))
    if result.outcome == "reached":
        shortest = min(
            len(skip)
            for skip in itertools.chain(proper_subsets(layers), [frozenset(layers)])
            if metric.metric(skip) >= target
        )
        assert len(result.skip_tensor_list) == shortest
    assert len(result.trials) <= 2 + math.ceil(math.log2(len(layers))) + 2 * len(result.certificate)


@given(st.integers(1, 7), st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.5, 0.9]))
@settings(max_examples=200)
def test_any_metric(count: int, seed: int, target: float) -> None:
    """Every skip list has a random metric of its own: nothing is monotone, and the answer is right all the same."""
    layers = names(count)
    values = np.random.default_rng(seed).random(2**count)
    metric = Counted(lambda skip: float(values[sum(1 << i for i, name in enumerate(layers) if name in skip)]))
    check(search(metric, layers, target), metric, layers)


@given(st.integers(2, 8), st.data())
def test_layers_that_only_help_together(count: int, data: st.DataObject) -> None:
    """The metric recovers only when all of a hidden group are in float, wherever the ranking puts them."""
    layers = names(count)
    group = frozenset(data.draw(st.sets(st.sampled_from(layers), min_size=1, max_size=count - 1)))
    ranking = data.draw(st.permutations(layers))
    metric = Counted(lambda skip: 1.0 if group <= skip else 0.5)
    result = search(metric, layers, 0.9, ranking)
    check(result, metric, layers)
    assert result.skip_tensor_list == tuple(name for name in ranking if name in group)


def test_a_prefix_that_reaches_between_prefixes_that_miss() -> None:
    """With 0, 1, 2, ... layers in float the metric goes up and down: bisection ends where it was measured to reach."""
    layers = names(8)
    of_size = [0.1, 0.8, 0.2, 0.3, 0.2, 0.9, 0.1, 0.9, 0.9]
    metric = Counted(lambda skip: of_size[len(skip)])
    result = search(metric, layers, 0.75)
    check(result, metric, layers)
    assert len(result.skip_tensor_list) == 7  # 8 reaches, 4 and 6 miss, 7 reaches; every list of 6 misses


def test_a_noisy_metric_is_asked_once_for_a_list() -> None:
    """The certificate of a metric that differs from call to call holds for the values that were measured."""
    layers = names(10)
    noise = np.random.default_rng(3)
    first: dict[frozenset[str], float] = {}

    def metric(skip: tuple[str, ...]) -> float:
        assert frozenset(skip) not in first
        first[frozenset(skip)] = len(skip) / 10 + noise.normal(0, 0.05)
        return first[frozenset(skip)]

    result = Search(layers, lambda: layers, metric, 0.55, "ptq", "noisy").run()
    assert result.outcome == "reached"
    assert first[frozenset(result.skip_tensor_list)] == result.metric >= 0.55
    assert all(first[frozenset(result.skip_tensor_list) - {name}] < 0.55 for name in result.skip_tensor_list)


@pytest.mark.parametrize(("target", "outcome"), [(0.5, "reached"), (0.95, "float misses")])
def test_no_ranking_where_none_is_needed(target: float, outcome: str) -> None:
    def never() -> tuple[str, ...]:
        raise AssertionError("ranked")

    metric = Counted(lambda skip: 0.9 if skip else 0.5)
    result = Search(names(4), never, metric, target, "qat", "made up").run()
    assert (result.outcome, result.layers, result.certificate) == (outcome, names(4), {})


def test_one_layer_is_quantized_or_nothing_is() -> None:
    metric = Counted(lambda skip: 0.9 if skip else 0.5)
    result = search(metric, names(1), 0.9)
    assert result.outcome == "only float reaches"
    assert result.certificate == {"conv2d_0.w_0": 0.5}
    assert len(result.trials) == 2


def test_the_float_model_is_measured_where_nothing_reaches_the_target() -> None:
    def run(target: float) -> TargetResult:
        metric = Counted(lambda skip: len(skip) / 4)
        return Search(names(4), lambda: names(4), metric, target, "ptq", "m", measure_float=lambda: 2.0).run()

    found = {target: (run(target).outcome, run(target).float_metric) for target in (0.5, 1.0, 1.5, 2.5)}
    assert found == {
        0.5: ("reached", None),
        1.0: ("only float reaches", 2.0),
        1.5: ("layers in float miss", 2.0),
        2.5: ("float misses", 2.0),
    }


def test_every_trial_is_told_at_once() -> None:
    told: list[float] = []
    metric = Counted(lambda skip: len(skip) / 4)
    result = Search(names(4), lambda: names(4), metric, 0.5, "ptq", "m", on_trial=lambda t: told.append(t.metric)).run()
    assert told == [trial.metric for trial in result.trials]


def test_a_ranking_of_other_layers_is_refused() -> None:
    with pytest.raises(UsageError, match="ranking is of other layers"):
        search(Counted(lambda skip: len(skip) / 4), names(4), 0.5, names(3))


@pytest.mark.parametrize("target", [math.nan, math.inf, -math.inf, "0.9", None, True, [0.9], 1j, 10**400])
def test_a_target_that_is_no_number(target: object) -> None:
    with pytest.raises(UsageError, match="expected a finite number"):
        check_target(target)


@pytest.mark.parametrize("target", [1, 0.25, np.float32(0.25), np.int64(3), Fraction(1, 4)])
def test_a_target_that_is_a_number_of_some_kind(target: object) -> None:
    assert type(check_target(target)) is float
    assert check_target(target) == target


def test_json_says_everything() -> None:
    result = search(Counted(lambda skip: len(skip) / 4), names(4), 0.5)
    body = json.loads(result.to_json())
    assert body["skip_tensor_list"] == list(result.skip_tensor_list)
    assert body["certificate"] == dict.fromkeys(result.skip_tensor_list, 0.25)
    assert [t["skip"] for t in body["trials"]] == [list(t.skip) for t in result.trials]
