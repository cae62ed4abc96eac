"""Searches in histograms: the percentile, the divergence, the least error. All candidates at once, no loop over bins.

`least_error` is written for what quantization does to a number: with n = 2**(bits-1) - 1 and threshold s, the level is
``clip(rint(x * n / s), -n - 1, n)``. Rounding and clipping never swap two numbers, and a map that keeps the order is
the cheapest way to carry one distribution on the line into another (Villani, Topics in Optimal Transportation, 2.18).
The earth mover's distance (Wasserstein-1) between the numbers and their quantized forms is therefore exactly the mean
of ``|x - quantized(x)|``, and the mean squared error is the square of Wasserstein-2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_BLOCK = 1 << 20
"""Sums held at a time by `least_error`: 8 MB each."""


def percentile_bin(counts: np.ndarray, share: float) -> int:
    """Index of the first bin up to which at least a share of all counts lies; the last bin if rounding hides it.

    Parameters
    ----------
    counts : np.ndarray
        [n], not all zero.
    share : float
        In (0, 1].
    """
    reached = np.flatnonzero(np.cumsum(counts / float(counts.sum())) >= share)
    return int(reached[0]) if reached.size else counts.size - 1


def kl_bin(counts: np.ndarray, levels: int) -> int | None:
    """How many bins to keep so that quantizing them to `levels` levels loses least information.

    For each i from (n - 1) // 2 to n - 1 whose last bin i - 1 is not empty: P is the first i bins with everything
    beyond added to the last; Q is the first i bins as `levels` equal groups see them (i // levels bins each, the last
    group takes the rest), each group's count spread evenly over its bins that are not empty. The i with the smallest
    KL(P || Q) wins, the smallest i among equals.

    Source: S. Migacz, 8-bit Inference with TensorRT (GTC 2017), as `cal_kl_threshold` of
    python/paddle/static/quantization computes it. With h the counts, S and C the sum and the number of non-empty bins
    of a group, H the sum of the first i bins and T of all, ``T * KL`` is::

        sum(h log h) over bins before i - 1, + p log p for p = the last bin with the outliers
        + T log(H / T) - sum(S log(S / C)) over groups - outliers * log(S / C) of the last group

    so prefix sums give all candidates at once. They round differently from the loop; candidates too close to call are
    computed again in the loop's own order of operations, so that the answer is the loop's.

    Parameters
    ----------
    counts : np.ndarray
        Whole numbers [n], n >= 2.
    levels : int
        The highest level: 127 for 8 bits.

    Returns
    -------
    int or None
        The i; None if no candidate's last bin holds anything.
    """
    kept = np.arange((counts.size - 1) // 2, counts.size)
    kept = kept[kept > 0]
    kept = kept[counts[kept - 1] != 0]
    if not kept.size:
        return None
    divergence = _divergences(counts, kept, levels)
    # Sums of n terms of size T log T: rounding stays below n * 2**-53 of it, ten times more is "too close to call".
    total = float(counts.sum())
    slack = 10 * counts.size * 2.0**-52 * max(1.0, math.log(total))
    close = kept[divergence <= divergence.min() + slack]
    if close.size == 1:
        return int(close[0])
    return int(close[np.argmin([_divergence_of_loop(counts, int(i), levels) for i in close])])


def _divergences(counts: np.ndarray, kept: np.ndarray, levels: int) -> np.ndarray:
    h = counts.astype(np.float64)
    sums = np.concatenate(([0.0], np.cumsum(h)))
    filled = np.concatenate(([0], np.cumsum(counts != 0)))
    logs = np.concatenate(([0.0], np.cumsum(_xlogx(h))))
    total = sums[-1]
    outliers = total - sums[kept]
    group = kept // levels
    start = (levels - 1) * group
    rest, rest_filled = sums[kept] - sums[start], filled[kept] - filled[start]
    log_level = np.log(rest / rest_filled)  # the last group ends in a bin that is not empty
    whole = np.zeros(kept.size)
    for size in np.unique(group):
        edges = np.arange(levels) * size
        s, c = np.diff(sums[edges]), np.diff(filled[edges])
        whole[group == size] = np.sum(_xlogx(s) - s * np.log(np.maximum(c, 1)))
    reference = logs[kept - 1] + _xlogx(h[kept - 1] + outliers)
    quantized = whole + (rest + outliers) * log_level
    divergence: np.ndarray = (reference + total * np.log(sums[kept] / total) - quantized) / total
    return divergence


def _divergence_of_loop(counts: np.ndarray, i: int, levels: int) -> float:
    """KL(P || Q) of one candidate, every sum taken one by one from the first bin and every logarithm by `math`."""
    p = counts[:i].astype(np.float64)
    p[-1] += float(counts[i:].sum())
    edges = np.append(np.arange(levels) * (i // levels), i)
    sums = np.concatenate(([0], np.cumsum(counts[:i])))
    filled = np.concatenate(([0], np.cumsum(counts[:i] != 0)))
    means = np.diff(sums[edges]) / np.maximum(np.diff(filled[edges]), 1)
    q = np.where(p != 0, np.repeat(means, np.diff(edges)), 0.0)
    p_sum, q_sum = float(counts.sum()), float(np.cumsum(q)[-1])
    p, q = p[p != 0], q[p != 0]
    own = np.cumsum(p * [math.log(v) for v in (q_sum * p).tolist()])[-1]
    other = np.cumsum(p * [math.log(v) for v in (p_sum * q).tolist()])[-1]
    return float((own - other) / p_sum)


def _xlogx(x: np.ndarray) -> np.ndarray:
    product: np.ndarray = x * np.log(np.where(x > 0, x, 1))
    return product


class _Side(NamedTuple):
    """Prefix sums over the bins on one side of 0, distances in bins."""

    counts: np.ndarray
    first: np.ndarray
    second: np.ndarray
    levels: int


def least_error(
    positive: np.ndarray,
    negative: np.ndarray,
    peak: float,
    fractions: npt.ArrayLike,
    *,
    levels: int,
    power: int,
) -> float:
    """The fraction of the largest |x| that loses least as the threshold.

    Parameters
    ----------
    positive, negative : np.ndarray
        Counts by distance from 0; a bin stands for its middle, the first one for 0. `negative` may be empty.
    peak : float
        Largest |x|, in bins.
    fractions : array_like
        The candidates; of several that are equal the largest wins.
    levels : int
        The highest level: 127 for 8 bits; there is one more below 0.
    power : {1, 2}
        1 is the earth mover's distance, 2 the mean squared error.
    """
    candidates = np.sort(np.asarray(fractions, np.float64))[::-1]
    sides = [_side(counts, top) for counts, top in ((positive, levels), (negative, levels + 1)) if counts.size]
    block = max(1, _BLOCK // (2 * levels + 2))
    losses = [
        sum(_loss(side, candidates[i : i + block, None] * (peak / levels), power) for side in sides)
        for i in range(0, candidates.size, block)
    ]
    return float(candidates[np.argmin(np.concatenate(losses))])


def _side(counts: np.ndarray, levels: int) -> _Side:
    used = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 1
    middles = np.arange(used) + 0.5
    middles[0] = 0
    held = counts[:used].astype(np.float64)
    sums = [np.concatenate(([0.0], np.cumsum(terms))) for terms in (held, held * middles, held * middles**2)]
    return _Side(sums[0], sums[1], sums[2], levels)


def _loss(side: _Side, step: np.ndarray, power: int) -> np.ndarray:
    """Sum of |x - quantized(x)|**power for each step [k, 1], in bins.

    Half steps divide the line into pieces that have one level each and lie on one side of it.
    """
    halves = np.arange(1, 2 * side.levels + 1)
    last = side.counts.size - 1
    inner = np.clip(np.ceil(halves * (step / 2) - 0.5), 1, last).astype(np.intp)
    edges = np.concatenate((np.zeros_like(inner[:, :1]), inner, np.full_like(inner[:, :1], last)), axis=1)
    pieces = np.arange(2 * side.levels + 1)
    value = (pieces + 1) // 2 * step
    count, first, second = (np.diff(sums[edges], axis=1) for sums in side[:3])
    if power == 1:
        above = np.where(pieces % 2 == 0, 1.0, -1.0)
        loss: np.ndarray = (above * (first - value * count)).sum(axis=1)
    else:
        loss = (second - value * (2 * first - value * count)).sum(axis=1)
    return loss
