"""An engine for large batches: they are run in parts, one after the other, so that memory stays within bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from qpass.ir.graph import ValueRef
from qpass.ir.model import Model
from qpass.runtime.engine import Engine, Session
from qpass.runtime.wrapped import WrappedSession


class PartedEngine:
    """Runs batches of another engine in parts; for models that compute every sample on its own.

    Parameters
    ----------
    engine : Engine
    samples : int
        Most samples of a part.
    """

    def __init__(self, engine: Engine, samples: int) -> None:
        self._engine = engine
        self._samples = samples
        self.name = engine.name

    def session(self, model: Model, fetch: Sequence[ValueRef] | None = None) -> PartedSession:
        """Make `model` ready to run.

        Raises
        ------
        EngineError
            If the engine refuses the model.
        """
        return PartedSession(self._engine.session(model, fetch), self._samples)


class PartedSession(WrappedSession):
    """A session that takes a batch apart along axis 0 and puts the outputs together.

    Parameters
    ----------
    session : Session
    samples : int
        Most samples of a part.
    """

    def __init__(self, session: Session, samples: int) -> None:
        super().__init__(session)
        self._samples = samples

    def run(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch; the outputs in fetch order, as arrays that the caller owns.

        Raises
        ------
        DataError
            If the batch does not fit the model's inputs.
        EngineError
            If the engine fails.
        """
        total = max((array.shape[0] for array in feed.values() if array.ndim), default=0)
        count = math.ceil(total / self._samples)
        if count < 2:
            return self._session.run(feed)
        ends = [total * (i + 1) // count for i in range(count)]
        parts = [
            self._session.run({name: array[start:end] for name, array in feed.items()})
            for start, end in zip([0, *ends], ends, strict=False)
        ]
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
