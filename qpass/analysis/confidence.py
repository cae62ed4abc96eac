"""How sure a ranking is: paired bootstrap over samples.

The samples are drawn anew, with replacement, as many as there are; each draw gives one mean for every layer. The same
draws serve all layers, so what makes a sample hard for every layer cancels in differences (paired). The interval of a
mean or of a difference runs between two percentiles of its draws: B. Efron, R. Tibshirani, An Introduction to the
Bootstrap (1993), chapter 13.

Two layers are told apart when the interval of their difference leaves out zero, and so many samples differ that a sign
test could tell: with m samples that differ, the smallest two-sided p of any test that flips signs is ``2**(1 - m)``
(R. A. Fisher, The Design of Experiments, 1935, section 21). The second condition is for scores of 0 and 1: four images
of a thousand lost give an interval without zero, and a p of 0.125.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import NormalDist

import numpy as np

from qpass.analysis.result import (
    AnalysisResult,
    LayerResult,
    Mode,
    Neighbours,
    RaceResult,
    RankedLoss,
    Ranking,
    sign_of,
)
from qpass.errors import EvalError, UsageError

CONFIDENCE, RESAMPLES = 0.95, 2000
"""Efron and Tibshirani, section 13.3: percentiles near 0.025 need at least 1,000 resamples."""

_BLOCK = 1 << 20
"""Counts in memory at once: 8 MB."""


@dataclass(frozen=True)
class SampleScores:
    """A figure of every sample, for every layer's variant.

    Parameters
    ----------
    name : str
        What it is.
    why : str
        A sentence: why it was used.
    layers : Mapping[str, np.ndarray]
        By layer, float64 of shape [samples run]. Entry j is of the same sample for all; a layer that was stopped early
        has the first ones only.
    baseline : np.ndarray or float
        Of the model that layers are compared with (the float model in PTQ mode, the quantized one in QAT mode):
        float64 of shape [samples], or one number that stands for all samples.
    higher_is_better : bool
        False for losses.
    weights : Mapping[int, np.ndarray]
        By number of samples run, where those of a layer that was stopped early do not count alike: what each counts,
        1 in the mean.
    """

    name: str
    why: str
    layers: Mapping[str, np.ndarray]
    baseline: np.ndarray | float = 0.0
    higher_is_better: bool = False
    weights: Mapping[int, np.ndarray] = field(default_factory=dict)


def assemble(
    result: AnalysisResult,
    *,
    fine: SampleScores | None = None,
    scores: SampleScores | None = None,
    race: RaceResult | None = None,
    noise_floor: float | None = None,
    remarks: Sequence[str] = (),
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> AnalysisResult:
    """The result with everything that tells how sure its ranking is, ranked anew.

    Rows are ordered by sensitivity; ties by the loss of `fine`, then in the order that `result` has them in. Layers
    that a race settled get its places, the others fill the rest in that order; if it raced on `fine`, the others are
    ordered by its loss alone, and so is the ranking by it.

    Parameters
    ----------
    result : AnalysisResult
        Rows with equal sensitivities in program order.
    fine : SampleScores, optional
        Losses by a metric of `qpass.analysis.fine_metric`, for exactly the layers of `result`.
    scores : SampleScores, optional
        The user's metric, sample by sample, for exactly the layers of `result`.
    race : RaceResult, optional
    noise_floor : float, optional
        See `AnalysisResult`.
    remarks : sequence of str
        Sentences for the report.
    confidence, resamples, seed
        See `ranking`.

    Raises
    ------
    EvalError
        If figures are missing, are not finite, or their numbers do not fit each other.
    UsageError
        If `confidence` is not between 0 and 1.
    """
    raced = race is not None and fine is not None and race.metric == fine.name
    names = [row.layer for row in result.rows]
    losses = {} if fine is None else sensitivities(fine, names, result.mode)
    loss = {} if fine is None else {name: float(_weighted(v, fine.weights).mean()) for name, v in losses.items()}
    rows = _ordered(result.rows, loss, {} if race is None else race.places, by_sensitivity=not raced)
    in_order = [row.layer for row in rows]

    def rank(scores: SampleScores, losses: Mapping[str, np.ndarray], ordered: bool) -> Ranking:
        chosen = {layer: losses[layer] for layer in (in_order if ordered else names)}
        return ranking(
            chosen, scores.name, scores.why, confidence, resamples, seed, ordered=ordered, weights=scores.weights
        )

    by_loss = None if fine is None else rank(fine, losses, raced)
    by_score = None if scores is None else rank(scores, sensitivities(scores, names, result.mode), True)
    return dataclasses.replace(
        result,
        rows=rows,
        fine=by_loss,
        scores=by_score,
        race=race,
        noise_floor=noise_floor,
        remarks=(*result.remarks, *remarks),
    )


def sensitivities(scores: SampleScores, layers: Sequence[str], mode: Mode) -> dict[str, np.ndarray]:
    """How much each sample loses by a layer's quantization, larger is more sensitive in both modes, by layer.

    Raises
    ------
    EvalError
        If figures are missing, are not finite, or there are more than of the baseline.
    """
    if set(scores.layers) != set(layers):
        odd = sorted(set(scores.layers) ^ set(layers))
        raise EvalError(f"the layers of {scores.name} are others than those of the analysis: {', '.join(odd)}")
    sign = sign_of(mode, scores.higher_is_better)
    found = {}
    for layer in layers:
        values = _checked(scores.layers[layer], f"{scores.name}, layer {layer!r}")
        baseline = np.asarray(scores.baseline, np.float64)
        if baseline.ndim:
            baseline = _checked(baseline, f"{scores.name}, baseline")
            if baseline.size < values.size:
                raise EvalError(
                    f"{values.size} samples, the baseline has {baseline.size}", where=f"{scores.name}, layer {layer!r}"
                )
            baseline = baseline[: values.size]
        found[layer] = sign * (values - baseline) + 0.0  # + 0.0: no negative zero
    return found


def ranking(
    losses: Mapping[str, np.ndarray],
    name: str,
    why: str,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
    *,
    ordered: bool = False,
    weights: Mapping[int, np.ndarray] | None = None,
) -> Ranking:
    """Rank layers by their mean loss, with intervals.

    Parameters
    ----------
    losses : Mapping[str, np.ndarray]
        By layer, float64 of shape [samples run], larger is more sensitive. Entry j is of the same sample for all
        layers; a layer that was stopped early has the first ones only. Ties stay in this order.
    name, why : str
        See `Ranking`.
    confidence : float
        Of each interval on its own, 0 to 1.
    resamples : int
        Number of bootstrap resamples.
    seed : int
        The same seed gives the same bits, on any machine and number of threads.
    ordered : bool
        The order of `losses` is the ranking already.
    weights : Mapping[int, np.ndarray], optional
        See `SampleScores`.

    Raises
    ------
    EvalError
        If losses are no vectors of finite numbers, or are empty.
    UsageError
        If `confidence` is not between 0 and 1, or `resamples` is not positive.
    """
    if not 0 < confidence < 1:
        raise UsageError(f"the confidence is {confidence}, expected a number between 0 and 1", where="confidence")
    if resamples < 1:
        raise UsageError(f"the number of resamples is {resamples}, expected 1 or more", where="resamples")
    values = {layer: _checked(v, f"{name}, layer {layer!r}") for layer, v in losses.items()}
    counted = weights or {}
    means = {layer: float(_weighted(v, counted).mean()) for layer, v in values.items()}
    layers = list(values) if ordered else sorted(values, key=lambda layer: -means[layer])
    draws = {
        n: _draws({k: _weighted(v[:n], counted) for k, v in values.items() if v.size >= n}, n, resamples, seed)
        for n in _sizes(values)
    }
    tail = (1 - confidence) / 2
    rows = {}
    for rank, layer in enumerate(layers, 1):
        n = values[layer].size
        low, high = np.quantile(draws[n][layer], [tail, 1 - tail])
        rows[layer] = RankedLoss(means[layer], float(low), float(high), rank, n)
    pairs = []
    for upper, lower in pairwise(layers):
        n = min(values[upper].size, values[lower].size)
        low, high = np.quantile(draws[n][upper] - draws[n][lower], [tail, 1 - tail])
        difference = _weighted(values[upper][:n] - values[lower][:n], counted)
        pairs.append(_compared(upper, lower, difference, float(low), float(high), confidence))
    return Ranking(name, why, max(_sizes(values), default=0), confidence, resamples, rows, tuple(pairs))


def differing_needed(confidence: float) -> int:
    """Number of samples that must differ before a sign test can tell two layers apart: ``2**(1 - m) <= 1 - c``."""
    return 1 + math.ceil(-math.log2(1 - confidence))


def _compared(upper: str, lower: str, difference: np.ndarray, low: float, high: float, confidence: float) -> Neighbours:
    """Judge the difference of two layers.

    The number of samples that would tell them apart is that at which ``z s / sqrt(n)``, half the width of the interval
    of normal theory, has shrunk to the difference: ``n = (z s / mean)**2``, s being the standard deviation of the
    paired differences; and at which enough samples differ.
    """
    n, mean, needed = difference.size, float(difference.mean()), differing_needed(confidence)
    differing = int(np.count_nonzero(difference))
    noise = low <= 0 <= high or differing < needed
    samples: int | None = None
    if mean != 0:
        z = NormalDist().inv_cdf((1 + confidence) / 2)
        spread = float(difference.std(ddof=1)) if n > 1 else 0.0
        expected = min(max((z * spread / mean) ** 2, n * needed / differing), _MOST_SAMPLES)
        samples = max(math.ceil(expected), n + 1) if noise else min(math.ceil(expected), n)
    return Neighbours(upper, lower, mean, low, high, noise, samples)


_MOST_SAMPLES = 1e15
"""A difference of rounding errors would ask for more samples than an integer of JSON holds exactly."""


def _draws(values: Mapping[str, np.ndarray], n: int, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """Means of the first `n` losses of each layer, in every resample; the same draws for all layers.

    A BLAS product adds up in another order on another number of threads. The losses are rounded to whole multiples of a
    power of two, small enough to err by at most ``2**-52 n`` of the layer's largest and large enough that every
    partial sum is an integer below ``2**53``: then float64 adds without error and the order does not matter.
    """
    table = np.stack([v[:n] for v in values.values()])
    _, exponent = np.frexp(np.abs(table).max(axis=1))
    shift = 52 - n.bit_length() - exponent
    whole = np.rint(np.ldexp(table, shift[:, None])).T
    generator = np.random.Generator(np.random.PCG64(seed))
    rows = max(1, _BLOCK // n)
    sums = []
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = generator.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n)
        sums.append(times.astype(np.float64) @ whole)
    means = np.ldexp(np.concatenate(sums), -shift) / n
    return {layer: means[:, i] for i, layer in enumerate(values)}


def _weighted(values: np.ndarray, weights: Mapping[int, np.ndarray]) -> np.ndarray:
    return values * weights[values.size] if values.size in weights else values


def _sizes(values: Mapping[str, np.ndarray]) -> list[int]:
    return sorted({v.size for v in values.values()})


def _checked(values: np.ndarray, where: str) -> np.ndarray:
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or not found.size:
        raise EvalError(f"the shape is {list(found.shape)}, expected one number for each sample", where=where)
    if not np.isfinite(found).all():
        raise EvalError("there are numbers that are NaN or infinite", where=where)
    return found


def _ordered(
    rows: Sequence[LayerResult],
    loss: Mapping[str, float],
    places: Mapping[str, int],
    *,
    by_sensitivity: bool,
) -> tuple[LayerResult, ...]:
    """Rows at their settled places; the rest by sensitivity (if wanted), then by loss, then as they come."""
    rest = sorted(
        (row for row in rows if row.layer not in places),
        key=lambda row: (-row.sensitivity if by_sensitivity else 0.0, -loss.get(row.layer, 0.0)),
    )
    free = iter(rest)
    settled = {places[row.layer]: row for row in rows if row.layer in places}
    return tuple(settled[place] if place in settled else next(free) for place in range(len(rows)))
