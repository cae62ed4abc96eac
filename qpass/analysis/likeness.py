"""The metric that needs no labels: how alike all outputs are to a reference model's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np

from qpass.analysis.checkpoint import Record
from qpass.analysis.metric import Comparison
from qpass.errors import EvalError
from qpass.ir.model import Model
from qpass.runtime.data import Batches
from qpass.runtime.engine import Engine, Session
from qpass.runtime.spool import Spool

Pair: TypeAlias = tuple[Sequence[np.ndarray], Sequence[np.ndarray]]
"""Outputs for one batch, of the reference and of what is compared with it."""


class OutputEvaluation:
    """Cosine similarity of all outputs with a reference model's, the SQNR as a detail; needs no labels.

    Inputs and reference outputs are kept from the first measurement on, so every model sees the same batches even where
    a loader shuffles.

    Parameters
    ----------
    reference : Model
    data : Batches
    engine : Engine
    """

    name = "cosine"

    def __init__(self, reference: Model, data: Batches, engine: Engine) -> None:
        self._names = [port.name for port in reference.fetches]
        self._data = data
        self._engine = engine
        self._reference: Callable[[], Session] = lambda: engine.session(reference)
        self._inputs: Spool | None = None
        self._expected: Spool | None = None

    def data_digest(self) -> str:
        """Digest of the batches that are kept."""
        self._kept()
        return self._data.digest()

    def measure(self, model: Model, what: str) -> Record:
        """Compare the outputs of `model` with the reference's.

        Raises
        ------
        EvalError
            If the numbers or shapes of outputs differ, or they are not finite.
        DataError
            If the data do not fit the models.
        """
        return self.measure_on(model, self._engine.session(model), what)

    def measure_on(self, model: Model, session: Session, what: str, whole: Callable[[], Model] | None = None) -> Record:
        """Compare the outputs of a session with the reference's.

        Raises
        ------
        EvalError
            If the numbers or shapes of outputs differ, or they are not finite.
        DataError
            If the data do not fit the models.
        """
        inputs = self._kept()
        expected = self._outputs()
        return self.compare(
            ((outputs, _run(session, batch)) for batch, outputs in zip(inputs, expected, strict=True)), what
        )

    def compare(self, pairs: Iterable[Pair], what: str) -> Record:
        """The metric of outputs, batch by batch.

        Raises
        ------
        EvalError
            If the numbers or shapes of outputs differ, or they are not finite.
        """
        comparison = Comparison(self._names)
        try:
            for expected, outputs in pairs:
                comparison.add(expected, outputs)
            found = comparison.result()
        except EvalError as e:
            raise EvalError(e.what, where=f"{what}, {e.where}" if e.where else what, hint=e.hint) from e
        return Record(found.cosine, {"cosine": found.cosine, "sqnr_db": found.sqnr_db})

    def feed(self, model: Model, session: Session, what: str) -> None:
        """Run every batch."""
        for batch in self._kept():
            _run(session, batch)

    def expect(self, reference: Callable[[], Session]) -> None:
        """Compare with what this session gives."""
        self._reference = reference
        self._expected = None

    def _kept(self) -> Spool:
        if self._inputs is None:
            kept = Spool()
            for batch in self._data:
                kept.add(list(batch.values()))
            self._inputs = kept
        return self._inputs

    def _outputs(self) -> Spool:
        if self._expected is None:
            session = self._reference()
            kept = Spool()
            for batch in self._kept():
                kept.add(_run(session, batch))
            self._expected = kept
        return self._expected


def _run(session: Session, batch: Sequence[np.ndarray]) -> list[np.ndarray]:
    return session.run(dict(zip(session.feed_names, batch, strict=True)))
