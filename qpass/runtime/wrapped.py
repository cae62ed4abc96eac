"""What sessions that stand in front of another session share."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping

import numpy as np

from qpass.runtime.engine import Session


class WrappedSession(abc.ABC):
    """A `Session` in front of another one, with its inputs and outputs; a subclass adds `run`.

    Parameters
    ----------
    session : Session
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def feed_names(self) -> tuple[str, ...]:
        """Names of the inputs, in feed order."""
        return self._session.feed_names

    @property
    def fetch_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the order `run` returns them."""
        return self._session.fetch_names

    @abc.abstractmethod
    def run(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch; the outputs in fetch order, as arrays that the caller owns."""

    def stream(self, feed: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
        """The outputs of `run`, one after the other."""
        yield from self.run(feed)
