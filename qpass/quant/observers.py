"""Observers: scales of activations, batch by batch in constant memory, from one pass over the data.

A scale is the absolute value that maps to the highest level, in the tensor's own units: absmax, not absmax/127.
Every algorithm is a rule that reads a `Record`; algorithms that watch one tensor together share its record, so that
each batch is reduced and binned once. ``compat="paddle"`` gives the framework's own scales instead
(`qpass.quant.paddle_compat` says where they differ and why); its hist and KL need two passes.

| algo | scale |
|---|---|
| abs_max, min_max | the largest absolute value |
| avg | mean over batches of the mean over samples of the sample's largest absolute value |
| moving_average_abs_max | moving average of the batches' largest absolute values |
| hist | where a share `hist_percent` of the numbers lies within |
| KL | what loses least information, as a divergence of histograms; as hist where the upper half of the range is empty |
| entropy | the same over both sides of 0 and smoothed, as ONNX Runtime does it (`qpass.quant.entropy`) |
| mse | what gives the least mean squared error |
| emd | what gives the least earth mover's distance between the numbers and their quantized forms |
| ptf | the largest absolute value or its half, quarter or eighth, whichever gives the least mean squared error: what |
|     | the power-of-two factors of FQ-ViT (Lin et al., IJCAI 2022) come to with one factor a tensor |

mse and emd look at 200 thresholds up to the largest absolute value, over all data, with the numbers' signs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from qpass.errors import UsageError
from qpass.quant import paddle_compat as paddle
from qpass.quant.entropy import entropy_bin
from qpass.quant.histogram import GrowingHistogram
from qpass.quant.observer_options import DEFAULT_OPTIONS, ObserverOptions
from qpass.quant.record import MovingPeak, Part, Record, SampleMeans, Statistics
from qpass.quant.threshold_search import kl_bin, least_error, percentile_bin

_FRACTIONS = np.arange(1, 201) / 200
_POWERS = (0.125, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Algorithm:
    """What an algorithm needs to know of a tensor, and how a scale follows from it.

    Parameters
    ----------
    rule : callable
        Record -> scale.
    parts : tuple of type
        What the record must hold beside the range.
    """

    rule: Callable[[Record], float]
    parts: tuple[type[Part], ...] = ()


def _hist(record: Record) -> float:
    counts, width = record.part(GrowingHistogram).folded(record.options.bins)
    return min((percentile_bin(counts, record.options.hist_percent) + 0.5) * width, record.absmax())


def _kl(record: Record) -> float:
    """The search looks at the upper half of the range; where that is empty but for the largest, hist must do."""
    counts, width = record.part(GrowingHistogram).folded(record.options.bins)
    kept = kl_bin(counts, record.options.levels) if counts.size > record.options.levels else None
    return _hist(record) if kept is None else min((kept + 0.5) * width, record.absmax())


def _entropy(record: Record) -> float:
    counts, width = record.part(GrowingHistogram).two_sided(record.options.bins)
    levels = record.options.levels + 1
    return min(entropy_bin(counts, levels) * width, record.absmax()) if counts.size > levels else record.absmax()


def _least(record: Record, fractions: Iterable[float], power: int) -> float:
    histogram, peak = record.part(GrowingHistogram), record.absmax()
    return peak * least_error(
        histogram.positive,
        histogram.negative,
        peak / histogram.width,
        np.array(list(fractions)),
        levels=record.options.levels,
        power=power,
    )


_RANGE = {
    "abs_max": Algorithm(Record.absmax),
    "min_max": Algorithm(Record.absmax),
    "moving_average_abs_max": Algorithm(lambda record: record.part(MovingPeak).mean, (MovingPeak,)),
}

ACTIVATION_ALGOS: Mapping[str, Algorithm] = {
    **_RANGE,
    "avg": Algorithm(lambda record: record.part(SampleMeans).mean, (SampleMeans,)),
    "hist": Algorithm(_hist, (GrowingHistogram,)),
    "KL": Algorithm(_kl, (GrowingHistogram,)),
    "entropy": Algorithm(_entropy, (GrowingHistogram,)),
    "mse": Algorithm(lambda record: _least(record, _FRACTIONS, 2), (GrowingHistogram,)),
    "emd": Algorithm(lambda record: _least(record, _FRACTIONS, 1), (GrowingHistogram,)),
    "ptf": Algorithm(lambda record: _least(record, _POWERS, 2), (GrowingHistogram,)),
}
"""Algorithms of activations by name."""

COMPAT: Mapping[str, Mapping[str, Algorithm]] = {
    "paddle": {
        **_RANGE,
        "avg": Algorithm(paddle.paddle_avg, (paddle.PaddleMeans,)),
        "hist": Algorithm(paddle.paddle_hist, (paddle.PaddleHistogram,)),
        "KL": Algorithm(paddle.paddle_kl, (paddle.PaddleHistogram,)),
        "mse": Algorithm(lambda record: record.part(paddle.PaddleMse).scale, (paddle.PaddleMse,)),
        "emd": Algorithm(lambda record: record.part(paddle.PaddleEmd).scale, (paddle.PaddleEmd,)),
        "ptf": Algorithm(lambda record: record.part(paddle.PaddlePtf).scale, (paddle.PaddlePtf,)),
    }
}
"""The same by name of what they agree with."""


class Observer:
    """Watches one activation and gives its scale.

    Parameters
    ----------
    name : str
        Name of the tensor, for messages.
    algo : str
        One of `ACTIVATION_ALGOS`.
    options : ObserverOptions
    compat : {None, "paddle"}

    Raises
    ------
    UsageError
        If there is no such algorithm, or it does not work with the options.
    """

    def __init__(
        self,
        name: str,
        algo: str = "avg",
        options: ObserverOptions = DEFAULT_OPTIONS,
        compat: str | None = None,
    ) -> None:
        self._rule = algorithm(algo, options, compat).rule
        self._record = new_record(name, [algo], options, compat)

    @property
    def passes(self) -> int:
        """2 if all data must be shown twice, with `next_pass` between; else 1."""
        return self._record.passes

    def observe(self, batch: np.ndarray) -> None:
        """See one batch: any shape and real dtype, samples along axis 0; an empty array is passed over.

        Raises
        ------
        QuantError
            If a number is NaN or infinite; names the tensor and the batch.
        """
        self._record.observe(batch)

    def next_pass(self) -> None:
        """Begin the second pass; observers of shards must have been merged by now.

        Raises
        ------
        QuantError
            If nothing was seen in the first.
        """
        self._record.next_pass()

    def merge(self, other: Observer) -> None:
        """Add what `other` saw after this one, as if this one had seen it.

        Exact, but for moving_average_abs_max, where a rounding in the last bits remains.

        Raises
        ------
        QuantError
            If it is an observer of another kind.
        """
        self._record.merge(other._record)

    def scale(self) -> float:
        """The scale so far; 0 where there were only zeros.

        Raises
        ------
        QuantError
            If nothing was seen.
        """
        return scale_of(self._record, self._rule)

    def range(self) -> tuple[float, float]:
        """Smallest and largest number seen.

        Raises
        ------
        QuantError
            If nothing was seen.
        """
        return self._record.range()


def algorithm(algo: str, options: ObserverOptions, compat: str | None = None) -> Algorithm:
    """The algorithm of a name.

    Raises
    ------
    UsageError
        If there is none, or it does not work with the options.
    """
    if compat is not None and compat not in COMPAT:
        raise UsageError(f"unknown compat {compat!r}, expected one of {sorted(COMPAT)} or None")
    known = ACTIVATION_ALGOS if compat is None else COMPAT[compat]
    if algo not in known:
        what = f"unknown algo {algo!r}" if algo not in ACTIVATION_ALGOS else f"compat {compat!r} has no algo {algo!r}"
        raise UsageError(f"{what}, expected one of {sorted(known)}")
    if algo in ("KL", "entropy") and options.bins < 4 * options.levels:
        raise UsageError(
            f"{algo} needs at least {4 * options.levels} bins for {options.quant_bits} bits, there are {options.bins}",
            hint="give more bins, or another algo: so many levels leave nothing to gain by clipping",
        )
    return known[algo]


def new_record(
    name: str, algos: Iterable[str], options: ObserverOptions = DEFAULT_OPTIONS, compat: str | None = None
) -> Record:
    """A record of a tensor that serves all these algorithms.

    Raises
    ------
    UsageError
        If there is no such algorithm, or it does not work with the options.
    """
    return Record(name, options, [part for algo in algos for part in algorithm(algo, options, compat).parts])


def scale_of(record: Record, rule: Callable[[Record], float]) -> float:
    """What a rule makes of a record.

    Raises
    ------
    QuantError
        If nothing was seen.
    """
    record.range()
    return rule(record)


def statistics(record: Record) -> Statistics:
    """What is known of the tensor.

    Raises
    ------
    QuantError
        If nothing was seen.
    """
    low, high = record.range()
    if not record.has(GrowingHistogram):
        return Statistics(low, high, record.count)
    mean, std = record.part(GrowingHistogram).moments()
    return Statistics(low, high, record.count, mean, std)
