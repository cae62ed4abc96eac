"""`Outputs`: what a variant gave for each batch, kept in a spool; made again where the disk did not take it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from qpass.errors import DataError
from qpass.runtime.engine import Session
from qpass.runtime.replay import ReplayWarning
from qpass.runtime.spool import Spool


class Outputs:
    """Outputs of one variant, batch by batch.

    Parameters
    ----------
    spool : Spool
        Holds those of the first batches, beside others.
    columns : sequence of int
        Where they are among the arrays of a batch.
    again : callable
        Runs a batch that the spool does not hold.
    """

    def __init__(self, spool: Spool, columns: Sequence[int], again: Callable[[int], list[np.ndarray]]) -> None:
        self._spool = spool
        self._columns = tuple(columns)
        self._again = again

    def __call__(self, batch: int) -> list[np.ndarray]:
        """All outputs for a batch, as arrays that the caller owns."""
        return self._spool.pick(batch, self._columns) if batch < len(self._spool) else self._again(batch)

    def rows(self, batch: int, rows: Sequence[int]) -> list[np.ndarray]:
        """The outputs for some samples of a batch, as arrays that the caller owns."""
        if batch < len(self._spool):
            return [self._spool.rows(batch, column, rows) for column in self._columns]
        return [array[list(rows)] for array in self._again(batch)]


class Again:
    """Runs batches of which no outputs were kept; makes its session once, and only where it is needed.

    Parameters
    ----------
    session : callable
    feed : callable
        The feed of a batch, in the order of the session's inputs.
    """

    def __init__(self, session: Callable[[], Session], feed: Callable[[int], Mapping[str, np.ndarray]]) -> None:
        self._make = session
        self._feed = feed
        self._session: Session | None = None

    def __call__(self, batch: int) -> list[np.ndarray]:
        """The outputs for a batch."""
        if self._session is None:
            self._session = self._make()
        return in_order(self._session, self._feed(batch))


class Keeper:
    """Fills a spool until the disk is full, then tells so once.

    Attributes
    ----------
    spool : Spool
        Holds the batches that were added before.
    """

    def __init__(self, memory_bytes: int, what: str) -> None:
        self.spool = Spool(memory_bytes)
        self._what = what
        self._full = False

    def add(self, outputs: Sequence[np.ndarray]) -> None:
        """Keep the outputs of the next batch, where there is room for them."""
        if self._full:
            return
        try:
            self.spool.add(outputs)
        except DataError as e:
            self._full = True
            warnings.warn(
                f"{self._what}: {e.what}; what was not kept is run again when it is evaluated, which takes twice as "
                f"long ({e.hint})",
                ReplayWarning,
                stacklevel=2,
            )


def in_order(session: Session, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run a batch whose inputs are in the session's order, whatever their names."""
    return session.run(dict(zip(session.feed_names, feed.values(), strict=True)))
