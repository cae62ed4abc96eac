"""The sweep that both modes share: every layer's variant measured, each result on the disk as soon as it is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from qpass._version import __version__
from qpass.analysis.breakdown import breakdown_details, local_key, local_record
from qpass.analysis.budget import DEFAULT_MEMORY
from qpass.analysis.checkpoint import Checkpoint, Record
from qpass.analysis.confidence import SampleScores, assemble
from qpass.analysis.estimate import estimate_layers, with_estimate
from qpass.analysis.evaluate import Evaluation
from qpass.analysis.fine_metric import FineMetric
from qpass.analysis.local_error import Subject, local_errors
from qpass.analysis.measuring import Slices, Variant
from qpass.analysis.progress import Progress, Silent
from qpass.analysis.rank_agreement import Estimate
from qpass.analysis.result import AnalysisResult, LayerResult, Mode, sign_of
from qpass.analysis.settle import Settled, Settling
from qpass.analysis.skeleton import Skeleton
from qpass.analysis.whole import WholeModels
from qpass.errors import UsageError
from qpass.quant.layers import Layer
from qpass.runtime.engine import Engine, Session
from qpass.runtime.jobs import InProcess, Workers

BASELINE, REFERENCE, NOISE = "baseline", "reference", "noise floor"


def layer_key(layer: Layer) -> str:
    """Name of a layer's record."""
    return f"layer:{layer.name}"


@dataclass(frozen=True)
class Resources:
    """What a sweep may use, and where it keeps what it found.

    Parameters
    ----------
    checkpoint : str or Path, optional
        File that gets a line after every layer; see `Checkpoint`.
    resume : bool
        Take over what the checkpoint holds.
    progress : Progress
    memory_bytes : int
        For the sweep, beyond what running the models takes.
    workers : Workers
        Who runs variants.

    Raises
    ------
    UsageError
        If `resume` is asked for without a checkpoint.
    """

    checkpoint: str | Path | None = None
    resume: bool = False
    progress: Progress = field(default_factory=Silent)
    memory_bytes: int = DEFAULT_MEMORY
    workers: Workers = field(default_factory=InProcess)

    def __post_init__(self) -> None:
        if self.resume and self.checkpoint is None:
            raise UsageError("resume needs a checkpoint", hint="name the checkpoint of the interrupted run")


@dataclass(frozen=True)
class Plan:
    """A whole analysis, before anything is measured.

    Parameters
    ----------
    mode : {"ptq", "qat"}
    evaluation : Evaluation
    higher_is_better : bool
    baseline : Variant
        What layers are compared with.
    reference : Variant
        The other end.
    layers : sequence of Layer
        In program order.
    variant : callable
        The variant of one layer.
    engine : Engine
        Runs whole models.
    skeleton : callable
        Makes the program that variants are slices of; None where they are measured as whole models.
    twin : callable or None
        Makes a session of the float model, where that is not the baseline.
    details : callable
        Further figures of one layer.
    settings : Mapping[str, str]
        What identifies the job, besides evaluation and data.
    known_baseline : float, optional
        The baseline's metric, where it is known.
    settle : float, optional
        Stop layers whose places are settled, all of them together with this confidence; see `settle.py`.
    subject : callable, optional
        Makes what local errors and estimates are taken of; needed with `parts` and `estimate`.
    parts : callable, optional
        The variants of the parts of one layer, to be measured too; see `breakdown.py`.
    estimate : int, optional
        Estimate all layers and evaluate that many, those with the largest estimate; see `estimate.py`.
    """

    mode: Mode
    evaluation: Evaluation
    higher_is_better: bool
    baseline: Variant
    reference: Variant
    layers: Sequence[Layer]
    variant: Callable[[Layer], Variant]
    engine: Engine
    skeleton: Callable[[], Skeleton | None]
    twin: Callable[[], Session] | None
    details: Callable[[Layer], Mapping[str, float]]
    settings: Mapping[str, str]
    known_baseline: float | None = None
    settle: float | None = None
    subject: Callable[[], Subject] | None = None
    parts: Callable[[Layer], Sequence[Variant]] | None = None
    estimate: int | None = None

    def run(self, resources: Resources) -> AnalysisResult:
        """Measure everything; the ranking.

        Raises
        ------
        CheckpointError
            If the checkpoint belongs to another job, or the disk does not take it.
        EvalError
            If a model cannot be measured; layers measured before are in the checkpoint.
        UsageError
            If the memory is too little for one batch.
        """
        settings = self._settings()
        store: AbstractContextManager[_Store] = (
            nullcontext(_Memory())
            if resources.checkpoint is None
            else Checkpoint(resources.checkpoint, settings, resume=resources.resume)
        )
        with store as done:
            skeleton = self.skeleton()
            slices = None if skeleton is None else self._slices(skeleton, resources)
            estimate = None if slices is None else self._estimated(slices, resources)
            plan = self if estimate is None else self._narrowed(estimate)
            resources.progress.start(len(plan.layers), sum(layer_key(layer) in done.done for layer in plan.layers))
            measured = (
                plan._measure_whole(done, resources)
                if slices is None
                else plan._measure_slices(done, resources, slices)
            )
            result = plan._result(dict(done.done), settings, measured)
            return result if estimate is None else with_estimate(result, estimate)

    def _settings(self) -> dict[str, str]:
        return {
            "mode": self.mode,
            "qpass": __version__,
            "evaluation": self.evaluation.name,
            "data": self.evaluation.data_digest(),
            "higher_is_better": str(self.higher_is_better),
            **({} if self.settle is None else {"settle": str(self.settle)}),
            **({} if self.parts is None else {"breakdown": "yes"}),
            **self.settings,
        }

    def _variants(self) -> list[Variant]:
        """In the order of where they differ from the baseline, so that little of what they share is held at a time."""
        layers = (each for layer in self.layers for each in (self.variant(layer), *self._parts(layer)))
        return [*layers, self.baseline, self.reference]

    def _parts(self, layer: Layer) -> Sequence[Variant]:
        return () if self.parts is None else self.parts(layer)

    def _slices(self, skeleton: Skeleton, resources: Resources) -> Slices:
        return Slices(
            skeleton,
            self.evaluation,
            self.baseline,
            self.twin,
            memory_bytes=resources.memory_bytes,
            workers=resources.workers,
            compare=self.parts is not None or self.estimate is not None,
        )

    def _estimated(self, slices: Slices, resources: Resources) -> Estimate | None:
        if self.estimate is None or self.subject is None:
            return None
        return estimate_layers(self.subject(), slices.units(), resources.memory_bytes // 4)

    def _narrowed(self, estimate: Estimate) -> Plan:
        """The plan for the layers with the largest estimates."""
        names = list(estimate.scores)[: self.estimate]
        return dataclasses.replace(self, layers=[layer for layer in self.layers if layer.name in names])

    def _measure_whole(self, store: _Store, resources: Resources) -> _Measured:
        for name, wanted in (("settle", self.settle), ("breakdown", self.parts), ("estimate", self.estimate)):
            if wanted is not None:
                raise UsageError(
                    f"{name} is possible only where layers are slices of one program, which they are not here",
                    where=name,
                    hint=f"leave {name} out, or use the engine 'inference' or 'executor' without simulate",
                )
        keep = _Keeper(store, self.layers, resources.progress)
        models = WholeModels(
            self.engine, self.evaluation, self.baseline, self.twin, memory_bytes=resources.memory_bytes
        )
        if BASELINE not in store.done:
            keep(self.baseline, models.baseline)
        if REFERENCE not in store.done:
            keep(self.reference, self.evaluation.measure(self.reference.make(), self.reference.what))
        for variant in map(self.variant, self.layers):
            if variant.key not in store.done:
                keep(variant, models.measure(variant))
        return self._complete(_Measured(models.fine, None, (models.why_no_fine_metric,)), store)

    def _complete(self, measured: _Measured, store: _Store) -> _Measured:
        """Without the finer metric where a layer has no losses by it."""
        records = [store.done[BASELINE], *(store.done[layer_key(layer)] for layer in self.layers)]
        remarks = tuple(filter(None, measured.remarks))
        if measured.fine is None or all(record.losses for record in records):
            return dataclasses.replace(measured, remarks=remarks)
        why = "No finer metric and no intervals: outputs of a layer's variant could not be compared."
        return dataclasses.replace(measured, fine=None, remarks=remarks or (why,))

    def _measure_slices(self, store: _Store, resources: Resources, slices: Slices) -> _Measured:
        """Measure what is not in the store."""
        keep = _Keeper(store, self.layers, resources.progress)
        raced = frozenset[str]() if self.settle is None else frozenset(map(layer_key, self.layers))
        wanted = [each for each in self._variants() if each.key not in store.done and each.key not in raced]
        for variant in wanted:
            if variant.on is None:
                keep(variant, slices.measure_float(variant))
        for variant, record in slices.measure([variant for variant in wanted if variant.on is not None]):
            keep(variant, record)
        remarks: tuple[str, ...] = ()
        settled = None
        if self.settle is not None:
            settling = Settling(slices, self.evaluation, self.mode, self.baseline, store.done[BASELINE], self.settle)
            settled = settling.run({layer.name: self.variant(layer) for layer in self.layers}, store.done, keep)
            remarks = settled.remarks
        if self.parts is not None and self.subject is not None:
            names = [layer.name for layer in self.layers if local_key(layer.name) not in store.done]
            errors = local_errors(self.subject(), names, slices.feeds, resources.memory_bytes // 4)
            for name, error in errors.items():
                store.add(local_key(name), local_record(error))
        if self.mode == "qat" and NOISE not in store.done:
            store.add(NOISE, slices.noise_floor(self.baseline, store.done[BASELINE]))
        return self._complete(_Measured(slices.fine, settled, (slices.why_no_fine_metric, *remarks)), store)

    def _result(self, records: dict[str, Record], settings: Mapping[str, str], measured: _Measured) -> AnalysisResult:
        baseline = records[BASELINE].metric if self.known_baseline is None else self.known_baseline
        sign = sign_of(self.mode, self.higher_is_better)
        by_layer = {layer.name: records[layer_key(layer)] for layer in self.layers}
        result = AnalysisResult(
            mode=self.mode,
            metric_name=self.evaluation.name,
            higher_is_better=self.higher_is_better,
            baseline=baseline,
            reference=records[REFERENCE].metric,
            rows=tuple(
                LayerResult(
                    layer=layer.name,
                    family=layer.family,
                    metric=by_layer[layer.name].metric,
                    sensitivity=sign * (by_layer[layer.name].metric - baseline) + 0.0,  # + 0.0: no negative zero
                    details={**by_layer[layer.name].details, **self.details(layer), **self._apart(layer, records)},
                )
                for layer in self.layers
            ),
            settings=settings,
        )
        settled = measured.settled
        start = records.get(BASELINE) if settled is None else settled.baseline
        weights = {} if settled is None else settled.weights
        floor = records.get(NOISE)
        return assemble(
            result,
            fine=_fine_scores(measured.fine, by_layer, start, weights),
            scores=self._user_scores(by_layer, start, weights),
            race=None if settled is None else settled.race,
            noise_floor=None if floor is None else floor.metric,
            remarks=[*measured.remarks, *_fine_floor(measured.fine, floor)],
        )

    def _apart(self, layer: Layer, records: Mapping[str, Record]) -> Mapping[str, float]:
        """The figures of a layer's parts."""
        if self.parts is None:
            return {}
        baseline = records.get(BASELINE, Record(0.0, {}))
        if self.known_baseline is not None:
            baseline = baseline._replace(metric=self.known_baseline)
        return breakdown_details(layer.name, records, baseline, self.mode, self.higher_is_better)

    def _user_scores(
        self, by_layer: Mapping[str, Record], baseline: Record | None, weights: Mapping[int, np.ndarray]
    ) -> SampleScores | None:
        if baseline is None or not baseline.scores:
            return None
        if any(not 0 < len(record.scores) <= len(baseline.scores) for record in by_layer.values()):
            return None
        if self.settle is None and any(len(record.scores) < len(baseline.scores) for record in by_layer.values()):
            return None
        return SampleScores(
            self.evaluation.name,
            "The evaluation function gives a score for each sample.",
            {layer: np.array(record.scores) for layer, record in by_layer.items()},
            np.array(baseline.scores),
            self.higher_is_better,
            weights,
        )


@dataclass(frozen=True)
class _Measured:
    """What is known of a sweep besides the records."""

    fine: FineMetric | None = None
    settled: Settled | None = None
    remarks: tuple[str, ...] = ()


def _fine_scores(
    fine: FineMetric | None,
    by_layer: Mapping[str, Record],
    baseline: Record | None,
    weights: Mapping[int, np.ndarray],
) -> SampleScores | None:
    if fine is None or baseline is None:
        return None
    layers = {layer: np.array(record.losses) for layer, record in by_layer.items()}
    return SampleScores(fine.name, fine.why, layers, np.array(baseline.losses), weights=weights)


def _fine_floor(fine: FineMetric | None, floor: Record | None) -> list[str]:
    """A sentence: how far the finer metric moves by rounding alone."""
    if fine is None or floor is None or "fine" not in floor.details:
        return []
    return [f"The noise floor of the {fine.name} is {floor.details['fine']:.2g}."]


class _Store(Protocol):
    """Where records go."""

    done: dict[str, Record]

    def add(self, key: str, record: Record) -> None:
        """Keep one."""


@dataclass
class _Memory:
    """A store that keeps nothing beyond the run."""

    done: dict[str, Record] = field(default_factory=dict)

    def add(self, key: str, record: Record) -> None:
        self.done[key] = record


class _Keeper:
    """Puts records into a store, and tells of layers."""

    def __init__(self, store: _Store, layers: Sequence[Layer], progress: Progress) -> None:
        self._store = store
        self._names = {layer_key(layer): layer.name for layer in layers}
        self._progress = progress

    def __call__(self, variant: Variant, record: Record) -> None:
        self._store.add(variant.key, record)
        if variant.key in self._names:
            self._progress.advance(self._names[variant.key], record.metric)
