"""Sensitivities estimated to first order, from one pass over some of the data and without an evaluation.

Quantizing a layer alone changes the output of its ops by e, and to first order the model's outputs by ``J e``. The
energy of that, relative to the outputs, is what is estimated, with gradients g of random projections of the outputs::

    score = mean over samples and projections of (sum of g e)^2,    g = J^T v,    v = r / |y|,    r = +1 or -1 at random

As ``E[r r^T]`` is the identity, the expectation of ``(v . J e)^2`` is ``|J e|^2 / |y|^2`` (Hutchinson, Commun. Stat.
Simul. 19, 1990). With the gradient of the log-likelihood in place of the projection it would be the Fisher form
``(g . e)^2`` that is used to rank what is pruned (Molchanov et al., CVPR 2019); that needs outputs to be probabilities.

Rank correlation (Spearman / Kendall) with the measured SQNR of the outputs, 200 samples, thresholds of `calibrate`:

==========================================================  ================  =============
score                                                       resnet8_cifar10   ppocr_cls
==========================================================  ================  =============
noise energy at the op's own output, 200 and 40 samples     0.49 / 0.42       -0.17 / -0.12
noise-to-signal ratio at the op's own output                0.65 / 0.51       0.50 / 0.36
``|g|^2 |e|^2 / n`` of 4 projections, 200 and 40 samples    0.92 / 0.82       0.89 / 0.72
``(g . e)^2`` of log-likelihood, 200 and 40 samples         1.00 / 1.00       0.72 / 0.52
this one, 16 samples                                        0.89 / 0.78       0.00 / 0.03
this one, 64 samples                                        1.00 / 1.00       0.92 / 0.77
this one, 200 samples                                       0.99 / 0.96       0.99 / 0.92
==========================================================  ================  =============

That is PTQ mode. In QAT mode the estimate is of what each layer costs alone, while what is measured is the gain of
un-quantizing one of many quantized layers: on ppocr_cls_qat, where half of these gains are negative, the two have
nothing in common (0.04 / 0.03).

A random perturbation run forward from each layer would need as many runs of what lies downstream as the evaluation
does.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from qpass.analysis.gathering import Units
from qpass.analysis.local_error import Subject, Twins, find_toggles_of, make_twins, value_bytes
from qpass.analysis.measuring import OUTPUT_SQNR
from qpass.analysis.metric import noise_to_signal
from qpass.analysis.rank_agreement import Estimate, agreement
from qpass.analysis.result import AnalysisResult
from qpass.errors import EngineError, UsageError
from qpass.quant.layers import find_layers, select
from qpass.quant.toggles import Switched, Toggles
from qpass.runtime.executor import ExecutorEngine
from qpass.runtime.gradients import Gradients, differentiable

SAMPLES = 64
"""Samples that an estimate is taken from, spread over all data."""

PROJECTIONS = 4
"""Random projections of a sample's outputs; outputs of no more values than that are taken value by value."""

_BATCH = 4
"""Most samples that are run at once: a backward pass holds all values. 16 take no less time, and 1.0 GB in place of 0.3
(ppocr_cls, Paddle 3.3.1)."""


def estimate_layers(subject: Subject, units: Units, memory_bytes: int) -> Estimate:
    """Estimate the sensitivities of all layers.

    Where there are no gradients (outputs are whole numbers, an op has no backward op) the noise-to-signal ratio at the
    output of a layer's own ops stands for the model's; the estimate says so.

    Parameters
    ----------
    subject : Subject
    units : Units
        The data that the evaluation feeds.
    memory_bytes : int
        For values of one batch.

    Raises
    ------
    UsageError
        If layers cannot be switched one by one, or there are no data.
    EngineError, DataError
        As the engine does.
    """
    toggles = find_toggles_of(subject)
    if toggles is None or not units.total:
        what = "layers cannot be switched one by one" if toggles is None else "the evaluation runs the model on nothing"
        raise UsageError(f"there is no estimate: {what}", where="estimate", hint="leave estimate out")
    names = [layer.name for layer in subject.layers]
    twins = make_twins(toggles, names)
    session = ExecutorEngine().session(twins.model)

    def over_data(measure: _Measure) -> Estimate:
        samples = 0
        for feed in _batches(toggles, names, units, memory_bytes):
            measure.add(feed, session.run(feed), twins)
            samples += len(next(iter(feed.values())))
        scores = measure.scores()
        order = sorted(names, key=lambda name: -scores[name])
        return Estimate(measure.name, measure.why, samples, {name: scores[name] for name in order})

    try:
        return over_data(_AtTheOutputs(toggles, names))
    except EngineError as e:  # some backward kernels refuse what they are given only when they run
        return over_data(_AtTheLayer(names, e.what))


def check_count(count: int | None) -> None:
    """Refuse a number of layers to evaluate that is none.

    Raises
    ------
    UsageError
        If it is not positive.
    """
    if count is not None and count < 1:
        raise UsageError(f"estimate is {count}, expected a number of layers to evaluate, 1 or more", where="estimate")


def with_estimate(result: AnalysisResult, estimate: Estimate) -> AnalysisResult:
    """The result with an estimate, and how that agrees with what was measured."""
    measured = {"ranking by the metric": {row.layer: row.sensitivity for row in result.rows}}
    if result.fine is not None:
        measured["finer ranking"] = {layer: row.loss for layer, row in result.fine.rows.items()}
    if result.mode == "ptq" and all(OUTPUT_SQNR in row.details for row in result.rows):
        measured["noise of the outputs"] = {row.layer: -row.details[OUTPUT_SQNR] for row in result.rows}
    found = tuple(agreement(name, estimate.scores, figures) for name, figures in measured.items())
    return dataclasses.replace(result, estimate=dataclasses.replace(estimate, agreement=found))


def _batches(
    toggles: Toggles, layers: Sequence[str], units: Units, memory_bytes: int
) -> Iterator[Mapping[str, np.ndarray]]:
    """Some of the data, evenly spread."""
    count = min(units.total, math.ceil(SAMPLES * units.total / units.samples))
    chosen = [i * units.total // count for i in range(count)]
    one = units.batches(chosen[:1], 1)[0].feed(units.recording)
    size = sum(value_bytes(toggles, layers, one).values())
    limit = min(max(1, memory_bytes // max(1, 2 * size)), _BATCH)
    for batch in units.batches(chosen, limit):
        yield batch.feed(units.recording)


class _Measure(abc.ABC):
    """Adds up what layers' errors do, batch by batch."""

    name: str
    why: str

    @abc.abstractmethod
    def add(self, feed: Mapping[str, np.ndarray], outputs: Sequence[np.ndarray], twins: Twins) -> None:
        """Take in one batch: what was fed, and what the twins returned."""

    @abc.abstractmethod
    def scores(self) -> Mapping[str, float]:
        """By layer."""


class _AtTheLayer(_Measure):
    """Noise-to-signal ratio at the output of the layer's own ops."""

    name = "noise-to-signal ratio at the output of the layer's own ops"

    def __init__(self, layers: Sequence[str], reason: str) -> None:
        self.why = f"What the rest of the model makes of it cannot be told, as there are no gradients: {reason}."
        self._noise = dict.fromkeys(layers, 0.0)
        self._signal = dict.fromkeys(layers, 0.0)

    def add(self, feed: Mapping[str, np.ndarray], outputs: Sequence[np.ndarray], twins: Twins) -> None:
        for layer in self._noise:
            for column, twin in twins.outputs[layer]:
                in_float = outputs[column].astype(np.float64)
                self._noise[layer] += float(np.square(outputs[twin] - in_float).sum())
                self._signal[layer] += float(np.square(in_float).sum())

    def scores(self) -> Mapping[str, float]:
        limit = np.finfo(np.float64).max  # JSON has no infinity
        return {layer: min(noise_to_signal(noise, self._signal[layer]), limit) for layer, noise in self._noise.items()}


class _AtTheOutputs(_Measure):
    """Noise-to-signal ratio at the model's outputs, to first order; see the top of this file."""

    name = "noise-to-signal ratio at the model's outputs, to first order"
    why = "Each layer's local error is taken to the outputs by gradients of their projections."

    def __init__(self, toggles: Toggles, layers: Sequence[str]) -> None:
        whole = toggles.variant(Switched.both(()))
        self._targets = differentiable(whole, [port.name for port in whole.fetches])
        if not self._targets:
            raise EngineError("no output is float32")
        self._values = {
            layer.name: [whole.graph.by_uid[op.uid].output(op.output.slot)[op.output.index] for op in layer.ops]
            for layer in select(find_layers(whole), layers)
        }
        self._flat = list(dict.fromkeys(name for names in self._values.values() for name in names))
        self._gradients = Gradients(whole, self._targets, self._flat)
        if not any(self._gradients.reached):
            raise EngineError("the outputs do not depend on any layer by ops that have gradients")
        self._columns = [[port.name for port in whole.fetches].index(name) for name in self._targets]
        self._random = np.random.Generator(np.random.PCG64(0))
        self._scores = dict.fromkeys(layers, 0.0)
        self._samples = 0

    def add(self, feed: Mapping[str, np.ndarray], outputs: Sequence[np.ndarray], twins: Twins) -> None:
        answers = [outputs[twins.finals[column]] for column in self._columns]
        count = len(next(iter(feed.values())))
        compared = [outputs[column] for columns in twins.outputs.values() for column, _ in columns]
        rows = count if all(array.shape[:1] == (count,) for array in (*answers, *compared)) else 1
        errors = {
            layer: [(outputs[twin].astype(np.float64) - outputs[column]).reshape(rows, -1) for column, twin in columns]
            for layer, columns in twins.outputs.items()
        }
        self._samples += rows
        for weight, directions in self._projections(answers, rows):
            found = self._gradients.run(feed, dict(zip(self._targets, directions, strict=True)))
            gradients = dict(zip(self._flat, found, strict=True))
            for layer, names in self._values.items():
                change = np.zeros(rows)
                for name, error in zip(names, errors[layer], strict=True):
                    gradient = gradients[name]
                    if gradient is not None:
                        change += (gradient.astype(np.float64).reshape(rows, -1) * error).sum(axis=1)
                self._scores[layer] += weight * float(np.square(change).sum())

    def scores(self) -> Mapping[str, float]:
        return {layer: score / self._samples for layer, score in self._scores.items()}

    def _projections(self, answers: Sequence[np.ndarray], rows: int) -> Iterator[tuple[float, list[np.ndarray]]]:
        """Weights, and directions of unit length relative to each sample's outputs."""
        ends = np.cumsum([array.size // rows for array in answers])
        width = int(ends[-1])
        exact = width <= PROJECTIONS
        for i in range(width if exact else PROJECTIONS):
            signs = np.eye(width)[[i] * rows] if exact else self._random.choice([-1.0, 1.0], (rows, width))
            parts = zip(np.split(signs, ends[:-1], axis=1), answers, strict=True)
            yield 1.0 if exact else 1.0 / PROJECTIONS, [_relative(part, answer) for part, answer in parts]


def _relative(direction: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """The direction over the length of each sample's output, in the shape of the output."""
    length = np.sqrt(np.square(answer.astype(np.float64).reshape(len(direction), -1)).sum(axis=1, keepdims=True))
    scaled = np.divide(direction, length, out=np.zeros_like(direction), where=length > 0)
    return np.asarray(scaled.reshape(answer.shape), np.float32)
