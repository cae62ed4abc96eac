"""The entropy search of MXNet, ONNX Runtime and Neural Compressor: KL over both sides of 0 at once, smoothed.

It differs from `kl_bin` (TensorRT's, and Paddle's): the groups cover negative and positive numbers, every bin of a
group gets the group's mean, empty or not, and empty bins get a little probability. Means are cut to whole numbers, and
what does not divide into groups gets none, as it is done there; with few numbers it clips nearly all of them.

Source: python/mxnet/contrib/quantization.py, onnxruntime/python/tools/quantization/calibrate.py and
neural_compressor/adaptor/ox_utils/calibrator.py, which agree.
"""

from __future__ import annotations

import numpy as np

_EPS = 1e-4
"""Probability mass of an empty bin before scaling; smooth_distribution in the sources."""


def entropy_bin(counts: np.ndarray, levels: int) -> int:
    """How many bins to keep on the positive side of 0, and on the negative side up to one fewer.

    Parameters
    ----------
    counts : np.ndarray
        Whole numbers [2n]; 0 lies between bins n - 1 and n.
    levels : int
        Groups over both sides, at most 2n.
    """
    middle = counts.size // 2
    before = np.concatenate(([0], np.cumsum(counts)))
    reach = range(levels // 2, middle + 1)
    divergences = [_divergence(counts, before, middle - i, min(middle + i + 1, counts.size), levels) for i in reach]
    return min(reach[int(np.argmin(divergences))] + 1, middle)


def _divergence(counts: np.ndarray, before: np.ndarray, start: int, end: int, levels: int) -> float:
    kept = counts[start:end]
    p = kept.copy()
    p[0] += before[start]
    p[-1] += before[-1] - before[end]
    size = kept.size // levels
    inside = size * levels
    sums = kept[:inside].reshape(levels, size).sum(axis=1)
    sums[-1] += kept[inside:].sum()
    filled = np.count_nonzero(p[:inside].reshape(levels, size), axis=1)
    q = np.zeros_like(p)
    q[:inside] = np.repeat(np.where(filled > 0, sums // np.maximum(filled, 1), 0), size)
    smooth_p, smooth_q = _smooth(p), _smooth(q)
    if smooth_p is None or smooth_q is None:
        return np.inf
    smooth_p, smooth_q = smooth_p / smooth_p.sum(), smooth_q / smooth_q.sum()
    return float((smooth_p * np.log(smooth_p / smooth_q)).sum())


def _smooth(counts: np.ndarray) -> np.ndarray | None:
    """Counts with `_EPS` in each empty bin, taken from the others in equal parts; None where those have too little."""
    empty = counts == 0
    filled = counts.size - np.count_nonzero(empty)
    share = _EPS * (counts.size - filled) / filled if filled else 1.0
    return np.where(empty, _EPS, counts - share) if share < 1 else None
