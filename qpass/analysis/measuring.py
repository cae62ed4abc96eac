"""Measuring many variants at once: record what the evaluation feeds, run all variants in few programs, evaluate each
against its recorded outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from qpass.analysis.budget import Budget
from qpass.analysis.checkpoint import Record
from qpass.analysis.evaluate import Evaluation
from qpass.analysis.fine_metric import FineMetric, choose
from qpass.analysis.grouping import Group, alone, together
from qpass.analysis.skeleton import Skeleton
from qpass.ir.model import Model
from qpass.quant.toggles import Switched, mixes_samples
from qpass.rewrite.merge import merge
from qpass.rewrite.reuse import reuse_names
from qpass.runtime.engine import Session
from qpass.runtime.jobs import Workers
from qpass.runtime.replay import Recording, RecordingSession, ReplaySession
from qpass.runtime.spool import Spool

_SEPARABLE = 1e-5
"""Largest difference, relative to the largest output, between a sample's outputs in one batch and in another: kernels
for other batch sizes add in another order, which gives about 1e-6."""


@dataclass(frozen=True)
class Variant:
    """One model to measure.

    Parameters
    ----------
    key : str
        Name of its record.
    what : str
        Words for it, for messages.
    make : callable
        Makes the model.
    on : Switched or None
        The same as a slice of the skeleton; None where it is none.
    """

    key: str
    what: str
    make: Callable[[], Model]
    on: Switched | None = None


@dataclass(frozen=True)
class _Outputs:
    """Outputs of one variant, call by call."""

    spool: Spool
    columns: tuple[int, ...]

    def __call__(self, call: int) -> list[np.ndarray]:
        return self.spool.pick(call, self.columns)


class Slices:
    """Measures slices of a skeleton.

    Parameters
    ----------
    skeleton : Skeleton
    evaluation : Evaluation
    baseline : Variant
        What slices are compared with; must be one itself.
    twin : callable or None
        Makes a session of the float model; None: `baseline` is the float model.
    memory_bytes : int
        For feeds, outputs and engines together, beyond what the model itself takes.
    workers : Workers

    Raises
    ------
    EvalError, DataError, EngineError
        As the evaluation and the engine do.
    UsageError
        If the memory is too little for one batch.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        evaluation: Evaluation,
        baseline: Variant,
        twin: Callable[[], Session] | None,
        *,
        memory_bytes: int,
        workers: Workers,
    ) -> None:
        self._skeleton = skeleton
        self._evaluation = evaluation
        self._workers = workers
        self._memory = memory_bytes
        self._model = baseline.make()
        self._recording = Recording(self._model, memory_bytes // 4)
        session = self._session(baseline)
        evaluation.feed(self._model, RecordingSession(session, self._recording), baseline.what)
        self._budget = Budget(skeleton.toggles, self._recording, memory_bytes // 2 // workers.count)
        self._groups = self._put_together(session if twin is None else None)
        self._live_float = twin if twin is not None else lambda: session
        ((_, self._quantized),) = self._outputs([baseline])
        self._float = self._quantized if twin is None else self._outputs_of(twin())
        self.fine = self._fine_metric()
        evaluation.expect(self._reference)

    def measure(self, variants: Sequence[Variant]) -> Iterator[tuple[Variant, Record]]:
        """The records of variants, in the order in which they are done.

        Raises
        ------
        EvalError, DataError, EngineError
            As the evaluation and the engine do.
        """
        for variant, outputs in self._outputs(variants):
            yield variant, self._evaluated(variant, outputs)

    def noise_floor(self, baseline: Variant, record: Record) -> float:
        """How far the baseline's metric moves when every weight moves by one unit in the last place."""
        moved = self._slice(baseline)
        weights = {name: _next_float(moved.params[name]) for name in self._skeleton.toggles.operands}
        session = self._skeleton.engine.session(moved.replaced(params=moved.params.replaced(weights)))
        return abs(self._evaluated(baseline, self._outputs_of(session)).metric - record.metric)

    def _session(self, variant: Variant) -> Session:
        return self._skeleton.engine.session(reuse_names(merge([self._slice(variant)]).model))

    def _slice(self, variant: Variant) -> Model:
        return self._skeleton.toggles.variant(_switched(variant))

    def _outputs(self, variants: Sequence[Variant]) -> Iterator[tuple[Variant, _Outputs]]:
        """Run variants; each with its outputs, which stay readable while they are held."""
        chunks = self._budget.chunks(variants, _switched, self._workers.count)
        columns: dict[int, tuple[tuple[int, ...], ...]] = {}
        spools = {number: Spool(self._memory // 4 // len(chunks)) for number in range(len(chunks))}

        def program(number: int) -> Model:
            merged = merge([self._slice(variant) for variant in chunks[number]])
            columns[number] = merged.columns
            return reuse_names(merged.model)

        programs = [partial(program, number) for number in range(len(chunks))]
        batches = [partial(group.feed, self._recording) for group in self._groups]
        if not batches:
            yield from ((variant, _Outputs(Spool(), ())) for variant in variants)
        for done in self._workers.run(self._skeleton.engine, programs, batches) if batches else ():
            for outputs in self._groups[done.batch].split(done.outputs):
                spools[done.program].add(outputs)
            if done.batch == len(batches) - 1:
                spool = spools.pop(done.program)
                for variant, found in zip(chunks[done.program], columns[done.program], strict=True):
                    yield variant, _Outputs(spool, found)

    def _outputs_of(self, session: Session) -> _Outputs:
        spool = Spool(self._memory // 8)
        for group in self._groups:
            batch = group.feed(self._recording).values()
            for outputs in group.split(session.run(dict(zip(session.feed_names, batch, strict=True)))):
                spool.add(outputs)
        return _Outputs(spool, tuple(range(len(session.fetch_names))))

    def _evaluated(self, variant: Variant, outputs: _Outputs) -> Record:
        with ReplaySession(self._recording, outputs, lambda: self._session(variant), variant.what) as session:
            record = self._evaluation.measure_on(self._model, session, variant.what, variant.make)
        if self.fine is None:
            return record
        losses = [self.fine.losses(self._float(call), outputs(call)) for call in range(self._recording.calls)]
        return record._replace(losses=tuple(np.concatenate(losses).tolist()))

    def _fine_metric(self) -> FineMetric | None:
        if not self._recording.calls:
            return None
        return choose(self._float(0), self._recording.samples(0))

    def _reference(self) -> Session:
        return ReplaySession(self._recording, self._float, self._live_float, "the float model")

    def _put_together(self, in_float: Session | None) -> list[Group]:
        """Batches put together, where that leaves the outputs of every sample what they are."""
        groups = together(self._recording, self._budget.samples)
        first = next((group for group in groups if len(group.calls) > 1), None)
        if first is None or mixes_samples(self._skeleton.toggles.model):
            return alone(self._recording)
        session = in_float or self._skeleton.engine.session(self._skeleton.toggles.variant(Switched.both(())))
        whole = first.split(session.run(first.feed(self._recording)))
        apart = (session.run(self._recording.feed(call)) for call in first.calls)
        equal = all(_close(a, b) for pair in zip(whole, apart, strict=True) for a, b in zip(*pair, strict=True))
        return groups if equal else alone(self._recording)


def _switched(variant: Variant) -> Switched:
    assert variant.on is not None, f"{variant.key} is no slice"
    return variant.on


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape:
        return False
    return a.size == 0 or bool(np.abs(a - b).max() <= _SEPARABLE * np.abs(b).max())


def _next_float(array: np.ndarray) -> np.ndarray:
    return np.nextafter(array, np.array(np.inf, array.dtype)) if array.dtype.kind == "f" else array
