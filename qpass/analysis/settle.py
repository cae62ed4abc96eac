"""A sweep as a race: layers are run on more and more samples, until their places are settled.

It races by the finer metric. What the evaluation says of a layer that was stopped is said of the samples it was run on,
set against the baseline on the same ones, and nothing is made up for the others ::

    metric = metric of the baseline + mean of the differences from the baseline

the difference estimator of survey sampling (W. Cochran, Sampling Techniques, 3rd edition 1977, section 7.1, with the
coefficient 1); hard samples, which are drawn more often than they occur, count that much less. So a metric has to come
from single samples: a function that gives one number for all of them cannot be asked about some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qpass.analysis.checkpoint import Record
from qpass.analysis.evaluate import Evaluation
from qpass.analysis.fine_metric import FineMetric
from qpass.analysis.gathering import Gathered
from qpass.analysis.measuring import Slices, Variant
from qpass.analysis.outputs import Outputs
from qpass.analysis.race import Race
from qpass.analysis.result import Mode, RaceResult, sign_of
from qpass.errors import CheckpointError, EvalError, UsageError

ROUND = 100
"""Samples, at least, that programs are run on before those of the remaining layers are built anew.

To build a program takes as long as some 20 samples of it (ppocr_cls and resnet8, Paddle 3.3.1)."""

_Piece = tuple[list[Gathered], Outputs]


@dataclass(frozen=True)
class Settled:
    """What a race found.

    Parameters
    ----------
    race : RaceResult
    baseline : Record
        Of the baseline, samples in the order of the race, as those of layers are.
    weights : Mapping[int, np.ndarray]
        See `SampleScores`.
    remarks : tuple of str
        Sentences for the report.
    """

    race: RaceResult
    baseline: Record
    weights: Mapping[int, np.ndarray]
    remarks: tuple[str, ...]


class Settling:
    """A race of the slices of a skeleton.

    Parameters
    ----------
    slices : Slices
    evaluation : Evaluation
    mode : {"ptq", "qat"}
    baseline : Variant
    measured : Record
        Of the baseline.
    confidence : float
        See `Race`.

    Raises
    ------
    UsageError
        If samples cannot be told apart in outputs or in the evaluation, or the confidence is out of range.
    """

    def __init__(
        self,
        slices: Slices,
        evaluation: Evaluation,
        mode: Mode,
        baseline: Variant,
        measured: Record,
        confidence: float,
    ) -> None:
        self._slices = slices
        self._evaluation = evaluation
        self._sign = sign_of(mode, higher_is_better=False)
        self._confidence = confidence
        self._fine = _needed(slices)
        self._units = slices.units()
        self._measured = measured
        self._by_outputs = evaluation.compare([(slices.baseline(0), slices.baseline(0))], baseline.what) is not None
        if not self._by_outputs:
            self._check_scores(baseline)
        calls = range(slices.recording.calls)
        assert slices.reference is not None
        self._hardness = np.concatenate([self._fine.hardness(slices.reference(call)) for call in calls])

    def run(
        self, variants: Mapping[str, Variant], done: Mapping[str, Record], keep: Callable[[Variant, Record], None]
    ) -> Settled:
        """Race.

        Parameters
        ----------
        variants : Mapping[str, Variant]
            By layer.
        done : Mapping[str, Record]
            What is known of variants by their keys, from an earlier race: these are not run again.
        keep : callable
            Gets the record of every other variant once it is settled, or has run on everything.

        Raises
        ------
        CheckpointError
            If a known record does not reach as far as the race.
        EvalError, DataError, EngineError
            As the evaluation and the engine do.
        """
        race = Race(
            list(variants),
            self._units.total,
            metric=self._fine.name,
            confidence=self._confidence,
            hardness=self._units.figures(self._hardness),
        )
        baseline = self._units.figures(np.array(self._measured.losses))
        known = {layer: done[variant.key] for layer, variant in variants.items() if variant.key in done}
        losses = {layer: _taken_over(record, race.order, layer) for layer, record in known.items()}
        pieces: dict[str, list[_Piece]] = {layer: [] for layer in variants if layer not in known}
        ends = rounds(race.stages, ROUND * self._units.total / self._units.samples)
        for start, end in zip((0, *ends), ends, strict=False):
            before, chosen = race.running, race.order[start:end]
            self._run(
                {layer: variants[layer] for layer in before if layer in pieces}, chosen, losses, pieces, len(ends)
            )
            for layer in before:
                if np.isnan(losses[layer][chosen]).any():
                    raise _shorter(layer)
            race.feed({layer: self._sign * (losses[layer] - baseline)[chosen] for layer in before})
            for layer in [layer for layer in before if layer not in race.running and layer in pieces]:
                record = self._record(variants[layer], pieces.pop(layer), race, end)
                raw = tuple(losses[layer][race.order[:end]].tolist())
                keep(variants[layer], record._replace(losses=raw))
            if not race.running:
                break
        return self._settled(race, baseline)

    def _run(
        self,
        variants: Mapping[str, Variant],
        chosen: np.ndarray,
        losses: dict[str, np.ndarray],
        pieces: Mapping[str, list[_Piece]],
        parts: int,
    ) -> None:
        """Run variants on some units: their losses, by unit, and their outputs."""
        if not variants:
            return
        layers = {variant.key: layer for layer, variant in variants.items()}
        batches = self._units.batches(chosen.tolist(), self._slices.limit)
        expected = [batch.of(self._reference) for batch in batches]
        for variant, outputs in self._slices.outputs(list(variants.values()), batches, 1 / parts):
            layer = layers[variant.key]
            found = losses.setdefault(layer, np.full(self._units.total, np.nan))
            for number, batch in enumerate(batches):
                figures = self._fine.losses(expected[number], outputs(number))
                share = figures if self._units.single else figures.sum() * (self._units.total / self._units.samples)
                found[list(batch.units)] = share
            pieces[layer].append((batches, outputs))

    @property
    def _reference(self) -> Outputs:
        assert self._slices.reference is not None
        return self._slices.reference

    def _record(self, variant: Variant, pieces: Sequence[_Piece], race: Race, seen: int) -> Record:
        """What the evaluation says of what a variant was run on."""
        weights = np.zeros(self._units.total)
        weights[race.order[:seen]] = race.weights(seen)
        if self._by_outputs:
            return self._compared(variant, pieces, weights)
        record = self._slices.evaluate(variant, _Patched(self._slices.baseline, pieces))
        if len(record.scores) != self._units.samples:
            raise self._wrong_number(record)
        run = race.order[:seen]
        scores = self._units.figures(np.array(record.scores))[run]
        if seen < self._units.total:
            differences = scores - self._units.figures(np.array(self._measured.scores))[run]
            record = record._replace(metric=self._measured.metric + float((differences * weights[run]).mean()))
        return record._replace(scores=tuple(scores.tolist()))

    def _compared(self, variant: Variant, pieces: Sequence[_Piece], weights: np.ndarray) -> Record:
        def pairs(outputs_of: Callable[[Gathered, list[np.ndarray]], list[np.ndarray]]) -> Iterator[_Arrays]:
            for batches, outputs in pieces:
                for number, batch in enumerate(batches):
                    root = np.sqrt(weights[list(batch.units)])
                    expected, found = batch.of(self._reference), outputs_of(batch, outputs(number))
                    yield _scaled(expected, root), _scaled(found, root)

        found = self._evaluation.compare(pairs(lambda batch, outputs: outputs), variant.what)
        before = self._evaluation.compare(pairs(lambda batch, outputs: batch.of(self._slices.baseline)), variant.what)
        assert found is not None
        assert before is not None
        return found._replace(metric=self._measured.metric + (found.metric - before.metric))

    def _settled(self, race: Race, baseline: np.ndarray) -> Settled:
        scores = np.array(self._measured.scores)
        in_order = self._measured._replace(
            losses=tuple(baseline[race.order].tolist()),
            scores=tuple(self._units.figures(scores)[race.order].tolist()) if scores.size else (),
        )
        result = race.result()
        weights = {count: race.weights(count) for count in sorted(set(result.samples.values()))}
        remarks = []
        if result.places:
            remarks.append(
                f"A settled place is the place on these {self._units.total:,} samples, intervals are about others like "
                "them. The figures of a settled layer are those of the samples it was run on, set against the same "
                "samples of the baseline; hard samples are run first, and count no more than they occur."
            )
        if not self._units.single:
            remarks.append(
                f"What the model gives for a sample depends on its batch: the race was on the {self._units.total:,} "
                "batches as the evaluation feeds them, and they are what is counted as samples."
            )
        return Settled(result, in_order, weights, tuple(remarks))

    def _check_scores(self, baseline: Variant) -> None:
        """Refuse a function of which it is not known what it says of which sample.

        It is asked about outputs of which every second sample's are disturbed: the scores of the others have to stay.
        """
        record = self._measured
        if not record.scores:
            raise UsageError(
                "a race needs a score for each sample, and the evaluation function gives one number for all",
                where="settle",
                hint="return the scores as a 1-D array (1 where the answer is right), not their mean; "
                "or leave the function out, then outputs are compared; or leave settle out",
            )
        if len(record.scores) != self._units.samples:
            raise self._wrong_number(record)
        offsets = self._units.offsets

        def disturbed(call: int) -> list[np.ndarray]:
            odd = np.arange(offsets[call], offsets[call + 1]) % 2 == 1
            return [_rolled(array, odd) for array in self._slices.baseline(call)]

        before = np.array(record.scores)
        after = np.array(self._slices.evaluate(baseline, disturbed).scores)
        fed_anew = self._slices.recording.misses > 0
        if fed_anew or len(after) != len(before) or (after[::2] != before[::2]).any():
            raise UsageError(
                "the scores that the evaluation function gives are not in the order of the samples it feeds",
                where="settle",
                hint="give the scores in the order of the batches, feed the same batches in the same order every time, "
                "or leave settle out",
            )

    def _wrong_number(self, record: Record) -> EvalError:
        return EvalError(
            f"the evaluation function gives {len(record.scores)} scores for {self._units.samples} different samples",
            where="settle",
            hint="a race needs one score for each sample that is fed, and each sample once; or leave settle out",
        )


_Arrays = tuple[list[np.ndarray], list[np.ndarray]]


class _Patched:
    """Outputs by call: a variant's for the samples it was run on, the baseline's for the others."""

    def __init__(self, baseline: Outputs, pieces: Iterable[_Piece]) -> None:
        self._baseline = baseline
        self._calls: dict[int, list[np.ndarray]] = {}
        for batches, outputs in pieces:
            for number, batch in enumerate(batches):
                self._put(batch, outputs(number))

    def __call__(self, call: int) -> list[np.ndarray]:
        return [array.copy() for array in self._calls[call]] if call in self._calls else self._baseline(call)

    def _put(self, batch: Gathered, outputs: list[np.ndarray]) -> None:
        if batch.whole:
            self._calls[batch.places[0][0]] = outputs
            return
        for i, (call, row) in enumerate(batch.places):
            if call not in self._calls:
                self._calls[call] = self._baseline(call)
            for kept, found in zip(self._calls[call], outputs, strict=True):
                kept[row] = found[i]


def rounds(stages: Sequence[int], least: float) -> tuple[int, ...]:
    """The stages at which programs are built anew: so many units, at least, after the one before and before the end."""
    ends: list[int] = []
    for stage in stages[:-1]:
        if stage - (ends[-1] if ends else 0) >= least and stages[-1] - stage >= least:
            ends.append(stage)
    return (*ends, stages[-1])


def _needed(slices: Slices) -> FineMetric:
    if slices.fine is None:
        raise UsageError(
            "a race needs outputs with an entry for each sample",
            where="settle",
            hint=f"leave settle out. {slices.why_no_fine_metric}",
        )
    return slices.fine


def _taken_over(record: Record, order: np.ndarray, layer: str) -> np.ndarray:
    """Losses by unit, as far as they are known."""
    losses = np.full(len(order), np.nan)
    if not 0 < len(record.losses) <= len(order):
        raise _shorter(layer)
    losses[order[: len(record.losses)]] = record.losses
    return losses


def _shorter(layer: str) -> CheckpointError:
    return CheckpointError(
        "the checkpoint has the layer run on another number of samples than this race needs",
        where=f"layer {layer!r}",
        hint="start anew without resume",
    )


def _scaled(arrays: Sequence[np.ndarray], root: np.ndarray) -> list[np.ndarray]:
    """Floats times the root of each sample's weight, so that sums of products count samples by weight."""
    if (root == 1).all():
        return list(arrays)
    return [
        array * root.reshape(-1, *[1] * (array.ndim - 1)) if array.dtype.kind == "f" and array.ndim else array
        for array in arrays
    ]


def _rolled(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Some samples' values moved on by one: probabilities stay probabilities, of other answers."""
    if array.ndim and len(array) == len(rows) and array.shape[-1] > 1:
        array[rows] = np.roll(array[rows], 1, axis=-1)
    return array
