"""A metric that tells every bit of the outputs, and remembers them: equal metrics mean equal outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

Predict = Callable[[object], list[np.ndarray]]


class Projection:
    """An evaluation function: a number made of all bits of the outputs for some batches.

    Parameters
    ----------
    batches : sequence of np.ndarray

    Attributes
    ----------
    outputs : dict of float to list of np.ndarray
        What was put out where the metric is this.
    calls : int
    """

    def __init__(self, batches: Sequence[np.ndarray]) -> None:
        self.batches = batches
        self.outputs: dict[float, list[np.ndarray]] = {}
        self.calls = 0

    def __call__(self, predict: Predict) -> float:
        self.calls += 1
        return self.of([output for batch in self.batches for output in predict(batch)])

    def of(self, outputs: list[np.ndarray]) -> float:
        """The number of these outputs: 52 bits of their digest."""
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(output).tobytes() for output in outputs))
        metric = float(int(digest.hexdigest()[:13], 16))
        self.outputs[metric] = outputs
        return metric
