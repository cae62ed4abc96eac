"""Measuring many variants at once: record what the evaluation feeds, run all variants in few programs, evaluate each
against its recorded outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from qpass.analysis.budget import Budget
from qpass.analysis.checkpoint import Record
from qpass.analysis.evaluate import Evaluation
from qpass.analysis.fine_metric import FineMetric, choose, losses_of, why_none
from qpass.analysis.gathering import Units
from qpass.analysis.grouping import Group, alone, together
from qpass.analysis.metric import Comparison
from qpass.analysis.outputs import Again, Keeper, Outputs, in_order
from qpass.analysis.skeleton import Skeleton
from qpass.errors import EvalError
from qpass.ir.model import Model
from qpass.quant.toggles import Switched, mixes_samples
from qpass.rewrite.merge import merge
from qpass.rewrite.reuse import reuse_names
from qpass.runtime.engine import Engine, Session
from qpass.runtime.jobs import Workers
from qpass.runtime.parted import PartedEngine
from qpass.runtime.replay import Recording, RecordingSession, ReplaySession
from qpass.runtime.spool import Spool

_SEPARABLE = 1e-5
"""Largest difference, relative to the largest output, between a sample's outputs in one batch and in another: kernels
for other batch sizes add in another order, which gives about 1e-6."""

_TRIED = 4
"""Samples of a call that are tried in another batch."""

OUTPUT_SQNR = "output_sqnr_db"
"""The detail of a record that tells how far outputs are from the float model's, as an SQNR in dB."""


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


class Batch(Protocol):
    """Samples that are run together."""

    def feed(self, recording: Recording) -> Mapping[str, np.ndarray]:
        """The arrays, by input."""

    def split(self, outputs: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """The outputs in the pieces in which they are to be kept."""


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
        For feeds, outputs and engines together, beyond what the model itself takes; each worker has as much. Sizes of
        batches follow from it, and last bits from these, so that it must not be shared among workers.
    workers : Workers
    compare : bool
        Records get the detail `OUTPUT_SQNR`.

    Attributes
    ----------
    recording : Recording
        What the evaluation feeds.
    reference, baseline : Outputs
        Of the float model and of the baseline, by recorded call.
    fine : FineMetric or None
    why_no_fine_metric : str
        A sentence for the report; empty where there is one.
    limit : int
        Most samples of a batch.

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
        compare: bool = False,
    ) -> None:
        self._skeleton = skeleton
        self._evaluation = evaluation
        self._workers = workers
        self._memory = memory_bytes
        self._compare = compare
        self._model = baseline.make()
        self.recording = Recording(self._model, memory_bytes // 8)
        self._engine: Engine = skeleton.engine
        session = self._session(baseline)
        recorded = Spool(memory_bytes // 16)
        evaluation.feed(self._model, RecordingSession(session, self.recording, recorded), baseline.what)
        self._budget = Budget(skeleton.toggles, self.recording, memory_bytes)
        self.limit = self._budget.samples
        self._independent, same_bits = self._are_independent(session if twin is None else None)
        self._budget.check(1 if self._independent else None)
        if self._independent:
            self._engine = PartedEngine(skeleton.engine, self.limit)
        self._groups = self._put_together()
        if same_bits:
            self.baseline = Outputs(recorded, range(len(session.fetch_names)), self._again(baseline, self._groups))
        else:
            ((_, self.baseline),) = self.outputs([baseline], self._groups)
        self._live_float = session if twin is None else twin()
        self.reference = self.baseline if twin is None else self._float_outputs()
        self.fine, self.why_no_fine_metric = find_fine_metric(self.recording, self.reference, self.baseline)
        evaluation.expect(self._expected)

    def measure(self, variants: Sequence[Variant]) -> Iterator[tuple[Variant, Record]]:
        """The records of variants, in the order in which they are done.

        Raises
        ------
        EvalError, DataError, EngineError
            As the evaluation and the engine do.
        """
        for variant, outputs in self.outputs(variants, self._groups):
            yield variant, self._evaluated(variant, outputs)

    def measure_float(self, variant: Variant) -> Record:
        """The record of the float model, which is no slice.

        Raises
        ------
        EvalError, DataError, EngineError
            As the evaluation and the engine do.
        """
        if self.reference is None:
            return self._evaluation.measure(variant.make(), variant.what)
        return self._replayed(variant, self.reference, self._float_session)

    def noise_floor(self, baseline: Variant, record: Record) -> Record:
        """How far the baseline's metric moves when every weight moves by one unit in the last place.

        The loss by the fine metric is how far the mean of it moves.
        """
        moved = self._slice(baseline)
        weights = {name: _next_float(moved.params[name]) for name in self._skeleton.toggles.operands}
        session = self._ready(moved.replaced(params=moved.params.replaced(weights)))
        found = self._evaluated(baseline, self._outputs_of(session))
        fine = {"fine": abs(float(np.mean(found.losses) - np.mean(record.losses)))} if found.losses else {}
        return Record(abs(found.metric - record.metric), fine)

    def evaluate(self, variant: Variant, outputs: Callable[[int], list[np.ndarray]]) -> Record:
        """What the evaluation says of outputs by recorded call, without losses by the fine metric."""
        return self._replayed(variant, outputs, lambda: self._session(variant))

    def _replayed(
        self, variant: Variant, outputs: Callable[[int], list[np.ndarray]], live: Callable[[], Session]
    ) -> Record:
        with ReplaySession(self.recording, outputs, live, variant.what) as session:
            return self._evaluation.measure_on(self._model, session, variant.what, variant.make)

    def outputs(
        self, variants: Sequence[Variant], batches: Sequence[Batch], share: float = 1.0
    ) -> Iterator[tuple[Variant, Outputs]]:
        """Run variants; each with its outputs by piece, which stay readable while they are held.

        Parameters
        ----------
        variants : sequence of Variant
            At least one.
        batches : sequence of Batch
        share : float
            Of the memory that there is for outputs.
        """
        chunks = self._budget.chunks(variants, _switched, self._workers.count)
        columns: dict[int, tuple[tuple[int, ...], ...]] = {}
        room = int(self._memory // 8 // max(1, len(chunks)) * share)
        kept = {number: Keeper(room, f"outputs of {len(chunk)} variants") for number, chunk in enumerate(chunks)}

        def program(number: int) -> Model:
            merged = merge([self._slice(variant) for variant in chunks[number]])
            columns[number] = merged.columns
            return reuse_names(merged.model)

        programs = [partial(program, number) for number in range(len(chunks))]
        feeds = [partial(batch.feed, self.recording) for batch in batches]
        if not feeds:
            yield from ((variant, Outputs(Spool(), (), self._again(variant, batches))) for variant in variants)
        for done in self._workers.run(self._engine, programs, feeds) if feeds else ():
            for outputs in batches[done.batch].split(done.outputs):
                kept[done.program].add(outputs)
            if done.batch == len(batches) - 1:
                spool = kept.pop(done.program).spool
                for variant, found in zip(chunks[done.program], columns[done.program], strict=True):
                    yield variant, Outputs(spool, found, self._again(variant, batches))

    def feeds(self) -> Iterator[Mapping[str, np.ndarray]]:
        """All that the evaluation feeds, in batches of at most `limit` samples where there is a choice."""
        units = self.units()
        for batch in units.batches(range(units.total), self.limit):
            yield batch.feed(self.recording)

    def units(self) -> Units:
        """What can be run on its own: samples, unless those of a batch depend on each other."""
        return Units(self.recording, single=self._independent)

    def _session(self, variant: Variant) -> Session:
        return self._ready(self._slice(variant))

    def _ready(self, model: Model) -> Session:
        """A session of a slice, without what none of its outputs needs."""
        merged = merge([model])
        (columns,) = merged.columns
        as_they_are = columns == tuple(range(len(columns)))  # outputs that are one value are merged into one
        return self._engine.session(reuse_names(merged.model) if as_they_are else model)

    def _slice(self, variant: Variant) -> Model:
        return self._skeleton.toggles.variant(_switched(variant))

    def _again(self, variant: Variant, batches: Sequence[Batch]) -> Again:
        """Runs pieces anew: recorded calls, or batches that are not taken apart."""
        if batches is self._groups:
            return Again(lambda: self._session(variant), self.recording.feed)
        return Again(lambda: self._session(variant), lambda number: batches[number].feed(self.recording))

    def _float_outputs(self) -> Outputs | None:
        """None where the float model has another interface, which a function may know how to deal with."""
        session = self._live_float
        ours, theirs = ((len(s.feed_names), len(s.fetch_names)) for s in (self.recording, session))
        return self._outputs_of(session) if ours == theirs else None

    def _outputs_of(self, session: Session) -> Outputs:
        kept = Keeper(self._memory // 16, "outputs of a model")
        for group in self._groups:
            for outputs in group.split(in_order(session, group.feed(self.recording))):
                kept.add(outputs)
        return Outputs(kept.spool, range(len(session.fetch_names)), Again(lambda: session, self.recording.feed))

    def _evaluated(self, variant: Variant, outputs: Outputs) -> Record:
        record = self.evaluate(variant, outputs)
        if self._compare and self.reference is not None:
            record = record._replace(details={**record.details, OUTPUT_SQNR: self._output_sqnr(outputs)})
        if self.fine is None or self.reference is None:
            return record
        pairs = ((self.reference(call), outputs(call)) for call in range(self.recording.calls))
        try:
            return record._replace(losses=losses_of(self.fine, pairs))
        except EvalError as e:
            self.why_no_fine_metric = f"No finer metric and no intervals: {variant.what}, {e}."
            return record

    def _output_sqnr(self, outputs: Outputs) -> float:
        assert self.reference is not None
        comparison = Comparison(self.recording.fetch_names)
        for call in range(self.recording.calls):
            comparison.add(self.reference(call), outputs(call))
        return comparison.result().sqnr_db

    def _expected(self) -> Session:
        assert self.reference is not None
        return ReplaySession(self.recording, self.reference, self._float_session, "the float model")

    def _float_session(self) -> Session:
        return _Renamed(self._live_float, self.recording)

    def _put_together(self) -> list[Group]:
        return together(self.recording, self.limit) if self._independent else alone(self.recording)

    def _are_independent(self, in_float: Session | None) -> tuple[bool, bool]:
        """Whether samples give the same outputs in another batch, and whether bit for bit.

        Tried with some of the first and the last call.
        """
        if any(port.shape[:1] != (-1,) for port in self.recording.feeds) or mixes_samples(self._skeleton.toggles.model):
            return False, False
        session = in_float or self._ready(self._skeleton.toggles.variant(Switched.both(())))
        units = Units(self.recording, single=True)
        ends = sorted({0, self.recording.calls - 1}) if self.recording.calls else []
        tried = [
            int(units.offsets[call]) + row for call in ends for row in range(self.recording.samples(call))[:_TRIED]
        ]
        apart = {call: session.run(self.recording.feed(call)) for call in ends}
        if any(array.shape[:1] != (self.recording.samples(call),) for call in ends for array in apart[call]):
            return False, False
        same_bits = True
        for batch in units.batches(tried, 2 * _TRIED - 1):
            found = session.run(batch.feed(self.recording))
            for i, (call, row) in enumerate(batch.places):
                pairs = [(a[i], b[row]) for a, b in zip(found, apart[call], strict=True)]
                if not all(_close(a, b) for a, b in pairs):
                    return False, False
                same_bits &= all(np.array_equal(a, b) for a, b in pairs)
        return True, same_bits


def find_fine_metric(
    recording: Recording, reference: Outputs | None, baseline: Outputs
) -> tuple[FineMetric | None, str]:
    """The finer metric for what was recorded, and where there is none a sentence for the report.

    Parameters
    ----------
    recording : Recording
    reference : Outputs or None
        Of the float model, by call; None where they are not known.
    baseline : Outputs
        Of the model that layers are compared with, by call.
    """
    if not recording.calls:
        return None, "No finer metric and no intervals: the evaluation ran the model on nothing."
    if reference is None or [a.shape for a in reference(0)] != [a.shape for a in baseline(0)]:
        return None, "No finer metric and no intervals: the float model has other inputs or outputs."
    fine = choose(reference(0), recording.samples(0))
    return fine, "" if fine is not None else why_none(reference(0), recording.samples(0))


class _Renamed:
    """A session whose inputs have the names of a recording, in the same order.

    Parameters
    ----------
    session : Session
    recording : Recording
    """

    def __init__(self, session: Session, recording: Recording) -> None:
        self._session = session
        self.feed_names = recording.feed_names
        self.fetch_names = recording.fetch_names

    def run(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch."""
        return in_order(self._session, {name: feed[name] for name in self.feed_names})

    def stream(self, feed: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
        """Run one batch."""
        yield from self.run(feed)


def _switched(variant: Variant) -> Switched:
    assert variant.on is not None, f"{variant.key} is no slice"
    return variant.on


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape:
        return False
    a, b = a.astype(np.float64), b.astype(np.float64)
    return a.size == 0 or bool(np.abs(a - b).max() <= _SEPARABLE * np.abs(b).max())


def _next_float(array: np.ndarray) -> np.ndarray:
    return np.nextafter(array, np.array(np.inf, array.dtype)) if array.dtype.kind == "f" else array
