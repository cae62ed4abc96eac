"""Many programs over many batches: the pieces of work of a sweep, and who runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from qpass.ir.model import Model
from qpass.runtime.engine import Engine

Feed: TypeAlias = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Done:
    """What one program gave for one batch.

    Parameters
    ----------
    program, batch : int
        Their numbers.
    outputs : list of np.ndarray
        In fetch order.
    """

    program: int
    batch: int
    outputs: list[np.ndarray]


class Workers(Protocol):
    """Run programs.

    The same programs and batches give the same bytes, whoever runs them: a worker runs a batch as it was put together,
    with the threads of the engine it was given.
    """

    @property
    def count(self) -> int:
        """How many programs run at the same time."""

    def run(
        self, engine: Engine, programs: Sequence[Callable[[], Model]], batches: Sequence[Callable[[], Feed]]
    ) -> Iterator[Done]:
        """Run every program on every batch; the batches of a program come in order, programs in any.

        Parameters
        ----------
        engine : Engine
        programs : sequence of callable
            Each makes a program when its turn comes.
        batches : sequence of callable
            Each gives a batch.

        Raises
        ------
        EngineError, DataError
            As the engine does; EngineError too where workers are lost.
        """


class InProcess:
    """One program after the other, in this process."""

    count = 1

    def run(
        self, engine: Engine, programs: Sequence[Callable[[], Model]], batches: Sequence[Callable[[], Feed]]
    ) -> Iterator[Done]:
        """Run every program on every batch, in order.

        Raises
        ------
        EngineError, DataError
            As the engine does.
        """
        for number, make in enumerate(programs):
            session = engine.session(make())
            for index, batch in enumerate(batches):
                yield Done(number, index, session.run(batch()))
