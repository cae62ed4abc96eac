"""Rank correlations against scipy, ties among them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qpass.analysis.rank_agreement import Agreement, agreement, kendall, spearman

stats = pytest.importorskip("scipy.stats")

PAIRS = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=25)


@settings(max_examples=200, deadline=None)
@given(PAIRS)
def test_equal_to_scipy(pairs: list[tuple[int, int]]) -> None:
    x, y = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert spearman(x, y) is None
        assert kendall(x, y) is None
        return
    assert spearman(x, y) == pytest.approx(float(stats.spearmanr(x, y)[0]), abs=1e-12)
    assert kendall(x, y) == pytest.approx(float(stats.kendalltau(x, y)[0]), abs=1e-12)


def test_by_hand() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx(0.8)  # 1 - 6 (1 + 1) / (4 (16 - 1))
    assert kendall([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx(4 / 6)  # 5 pairs agree, 1 does not
    assert kendall([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / math.sqrt(2 * 3))


@pytest.mark.parametrize("x", [[], [1.0]])
def test_too_few(x: list[float]) -> None:
    assert spearman(x, x) is None
    assert kendall(x, x) is None


def test_layers_that_were_not_measured_do_not_count() -> None:
    found = agreement("truth", {"a": 3.0, "b": 9.0, "c": 1.0}, {"c": 0.1, "a": 0.2})
    assert found == Agreement("truth", 2, 1.0, 1.0)
