"""What the sessions of all engines share: names, checks of the batch, and how outputs are put together."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from qpass.errors import EngineError
from qpass.ir.model import Model
from qpass.ir.verify import persistable_tensors
from qpass.runtime.feed import checked_feed
from qpass.runtime.paddle_env import PADDLE_ERRORS, engine_error
from qpass.runtime.targets import Targets


class TargetSession(abc.ABC):
    """A `Session` that runs the model of `Targets`; an engine adds `_compute`.

    Parameters
    ----------
    wanted : Targets

    Raises
    ------
    EngineError
        If a persistable tensor has no parameter.
    """

    def __init__(self, wanted: Targets) -> None:
        _check_params(wanted.model)
        self._targets = wanted

    @property
    def feed_names(self) -> tuple[str, ...]:
        """Names of the inputs, in feed order."""
        return tuple(port.name for port in self._targets.model.feeds)

    @property
    def fetch_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the order `run` returns them."""
        return self._targets.names

    def run(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch; the outputs in fetch order, as arrays that the caller owns.

        Raises
        ------
        DataError
            If the batch does not fit the model's inputs.
        EngineError
            If the engine fails.
        """
        return list(self.stream(feed))

    def stream(self, feed: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
        """Run one batch; the outputs in fetch order, each copied when it is asked for.

        Raises
        ------
        DataError
            If the batch does not fit the model's inputs.
        EngineError
            If the engine fails.
        """
        batch = checked_feed(self._targets.model.feeds, feed)
        copy = self._compute(batch)
        try:
            yield from self._targets.stream(copy, batch)
        except PADDLE_ERRORS as e:
            raise engine_error("an output cannot be copied from the engine", e) from e

    @abc.abstractmethod
    def _compute(self, batch: Mapping[str, np.ndarray]) -> Callable[[int], np.ndarray]:
        """Run one checked batch; a function that copies the fetch of a column to an array."""


def _check_params(model: Model) -> None:
    missing = [name for name in persistable_tensors(model) if name not in model.params]
    if missing:
        raise EngineError(
            f"{len(missing)} parameters are missing, the first is {missing[0]!r}",
            hint="load the model together with its .pdiparams",
        )
