"""Measuring variants as whole models, one after the other: on engines whose programs cannot be sliced."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np

from qpass.analysis.checkpoint import Record
from qpass.analysis.evaluate import Evaluation
from qpass.analysis.fine_metric import FineMetric, losses_of
from qpass.analysis.measuring import Variant, find_fine_metric
from qpass.analysis.outputs import Again, Keeper, Outputs, in_order
from qpass.errors import EvalError
from qpass.runtime.engine import Engine, Session
from qpass.runtime.replay import Recording, RecordingSession
from qpass.runtime.spool import Spool
from qpass.runtime.wrapped import WrappedSession


class WholeModels:
    """Measures whole models; losses by the finer metric are taken while the evaluation runs.

    Parameters
    ----------
    engine : Engine
    evaluation : Evaluation
    baseline : Variant
    twin : callable or None
        Makes a session of the float model; None: `baseline` is the float model.
    memory_bytes : int
        For feeds and outputs.

    Attributes
    ----------
    baseline : Record
        Of the baseline.
    fine : FineMetric or None
    why_no_fine_metric : str
        A sentence for the report; empty where there is one.

    Raises
    ------
    EvalError, DataError, EngineError
        As the evaluation and the engine do.
    """

    def __init__(
        self,
        engine: Engine,
        evaluation: Evaluation,
        baseline: Variant,
        twin: Callable[[], Session] | None,
        *,
        memory_bytes: int,
    ) -> None:
        self._engine = engine
        self._evaluation = evaluation
        model = baseline.make()
        self._recording = Recording(model, memory_bytes // 4)
        session, kept = engine.session(model), Spool(memory_bytes // 4)
        recorder = RecordingSession(session, self._recording, kept)
        record = evaluation.measure_on(model, recorder, baseline.what)
        outputs = Outputs(kept, range(len(session.fetch_names)), Again(lambda: session, self._recording.feed))
        self._reference = outputs if twin is None else self._outputs_of(twin(), memory_bytes // 4)
        self.fine, self.why_no_fine_metric = find_fine_metric(self._recording, self._reference, outputs)
        self.baseline = record
        if self.fine is not None and self._reference is not None:
            pairs = ((self._reference(call), outputs(call)) for call in range(self._recording.calls))
            self.baseline = record._replace(losses=losses_of(self.fine, pairs))

    def measure(self, variant: Variant) -> Record:
        """The record of a variant; without losses where the evaluation did not feed what it fed before.

        Raises
        ------
        EvalError, DataError, EngineError
            As the evaluation and the engine do.
        """
        model = variant.make()
        session = self._engine.session(model)
        if self.fine is None or self._reference is None:
            return self._evaluation.measure_on(model, session, variant.what)
        watched = _Watched(session, self._recording, self._reference, self.fine)
        record = self._evaluation.measure_on(model, watched, variant.what)
        if watched.error is not None:
            self.why_no_fine_metric = f"No finer metric and no intervals: {variant.what}, {watched.error}."
        elif len(watched.losses) < self._recording.calls:
            self.why_no_fine_metric = (
                "No finer metric and no intervals: the evaluation function does not feed the same batches every time."
            )
        else:
            losses = np.concatenate([watched.losses[call] for call in range(self._recording.calls)])
            record = record._replace(losses=tuple(losses.tolist()))
        return record

    def _outputs_of(self, session: Session, memory_bytes: int) -> Outputs | None:
        ours, theirs = (len(s.feed_names) for s in (self._recording, session))
        if ours != theirs:
            return None
        kept = Keeper(memory_bytes, "outputs of the float model")
        for feed in self._recording:
            kept.add(in_order(session, feed))
        return Outputs(kept.spool, range(len(session.fetch_names)), Again(lambda: session, self._recording.feed))


class _Watched(WrappedSession):
    """A session of which losses are taken while it runs; thread-safe.

    Parameters
    ----------
    session : Session
    recording : Recording
    reference : Outputs
        Of the float model, by recorded call.
    fine : FineMetric

    Attributes
    ----------
    losses : dict of int to np.ndarray
        By recorded call.
    error : EvalError or None
        Why outputs could not be compared.
    """

    def __init__(self, session: Session, recording: Recording, reference: Outputs, fine: FineMetric) -> None:
        self.losses: dict[int, np.ndarray] = {}
        self.error: EvalError | None = None
        super().__init__(session)
        self._recording = recording
        self._reference = reference
        self._fine = fine
        self._next = 0
        self._lock = threading.Lock()

    def run(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch."""
        with self._lock:
            outputs = self._session.run(feed)
            call = self._recording.index(self._recording.checked(feed), self._next)
            if call is not None and call not in self.losses and self.error is None:
                try:
                    self.losses[call] = self._fine.losses(self._reference(call), outputs)
                except EvalError as e:
                    self.error = e
            self._next = 0 if call is None else call + 1
        return outputs
