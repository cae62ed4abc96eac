"""The `Engine` protocol: something that runs models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from qpass.ir.graph import ValueRef
from qpass.ir.model import Model


class Session(Protocol):
    """A model made ready to run. Not thread-safe."""

    @property
    def feed_names(self) -> tuple[str, ...]:
        """Names of the inputs, in feed order."""

    @property
    def fetch_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the order `run` returns them."""

    def stream(self, feed: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
        """Run one batch; the outputs in fetch order, each copied when it is asked for, so that one is held at a time.

        The next run invalidates an iterator that is not read to its end.

        Raises
        ------
        DataError
            If the batch does not fit the model's inputs.
        EngineError
            If the engine fails; the message names the op where the engine tells it.
        """

    def run(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch; the outputs in fetch order, as arrays that the caller owns.

        Raises
        ------
        DataError
            If the batch does not fit the model's inputs.
        EngineError
            If the engine fails; the message names the op where the engine tells it.
        """


class Engine(Protocol):
    """Makes sessions."""

    @property
    def name(self) -> str:
        """Name under which `get_engine` finds it."""

    def session(self, model: Model, fetch: Sequence[ValueRef] | None = None) -> Session:
        """Make `model` ready to run.

        Parameters
        ----------
        model : Model
        fetch : sequence of ValueRef, optional
            Values of the root block to return in place of the model's outputs.

        Raises
        ------
        EngineError
            If the engine refuses the model.
        """
