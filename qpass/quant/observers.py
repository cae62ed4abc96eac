"""Observers: thresholds of activations, batch by batch in constant memory, and of weights at once.

A threshold is the absolute value that maps to the highest level, in the tensor's own units (absmax, not absmax/127).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from qpass.errors import QuantError
from qpass.ir.dtype import DType

_DIVERGED = "the model diverges on this input, or the input itself is wrong"


class Observer(Protocol):
    """Watches one activation over all batches."""

    def update(self, array: np.ndarray) -> None:
        """See one batch: any shape and real dtype, samples along axis 0; an empty array is passed over.

        Raises
        ------
        QuantError
            If a number is NaN or infinite; names the tensor and the batch.
        """

    def threshold(self) -> float:
        """The threshold so far.

        Raises
        ------
        QuantError
            If nothing was seen.
        """

    def range(self) -> tuple[float, float]:
        """Smallest and largest number seen.

        Raises
        ------
        QuantError
            If nothing was seen.
        """


class AbsMax:
    """Largest absolute value over all batches.

    Source: `PostTrainingQuantization._sample_abs_max` (python/paddle/static/quantization, 2.6 and 3.3).

    Parameters
    ----------
    name : str
        Name of the tensor, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._batch = 0
        self._low, self._high = math.inf, -math.inf

    def update(self, array: np.ndarray) -> None:
        """See one batch."""
        self._batch += 1
        if array.size:
            self._see(as_real(array))

    def threshold(self) -> float:
        """Largest absolute value seen."""
        low, high = self.range()
        return max(high, -low)

    def range(self) -> tuple[float, float]:
        """Smallest and largest number seen."""
        if self._low > self._high:
            raise QuantError("no batch held any number of it", where=f"activation {self.name!r}")
        return self._low, self._high

    def _see(self, array: np.ndarray) -> None:
        self._extend(float(array.min()), float(array.max()))

    def _extend(self, low: float, high: float) -> None:
        if not (math.isfinite(low) and math.isfinite(high)):
            raise QuantError(
                "a number is NaN or infinite", where=f"activation {self.name!r}, batch {self._batch}", hint=_DIVERGED
            )
        self._low, self._high = min(self._low, low), max(self._high, high)


class MinMax(AbsMax):
    """Smallest and largest value over all batches; symmetric quantization takes the one farther from 0.

    Source: `PostTrainingQuantization._sample_min_max`. Its threshold is that of `AbsMax`.
    """


class Avg(AbsMax):
    """Mean over batches of the mean over samples of the sample's largest absolute value.

    Every batch counts the same, whatever its size. Source: `PostTrainingQuantization._sample_avg`
    (python/paddle/static/quantization, 2.6 and 3.3), which takes the mean over samples in float32.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._sum = 0.0
        self._seen = 0

    def threshold(self) -> float:
        """Mean of the batches' means."""
        self.range()
        return self._sum / self._seen

    def _see(self, array: np.ndarray) -> None:
        samples = array.reshape(array.shape[0] if array.ndim else 1, -1)
        low, high = samples.min(axis=1), samples.max(axis=1)
        self._extend(float(low.min()), float(high.max()))
        self._sum += float(np.maximum(high, -low).mean())
        self._seen += 1


ACTIVATION_ALGOS: Mapping[str, Callable[[str], Observer]] = {"abs_max": AbsMax, "avg": Avg, "min_max": MinMax}
"""Name of an activation algorithm -> observer of the tensor of that name."""

WEIGHT_ALGOS = ("abs_max", "channel_wise_abs_max")
"""Names of the weight algorithms."""


def weight_threshold(weight: np.ndarray, axis: int | None, name: str) -> np.ndarray:
    """Largest absolute values of a weight.

    Parameters
    ----------
    weight : np.ndarray
        Any real dtype; uint16 means bfloat16.
    axis : int or None
        Channel axis; None is per tensor.
    name : str
        Name of the weight, for messages.

    Returns
    -------
    np.ndarray
        float32, shape () per tensor or (C,) per channel; 0 where there are no numbers.

    Raises
    ------
    QuantError
        If a number is NaN or infinite, or there is no such axis.
    """
    where = f"weight {name!r}"
    if axis is not None and not 0 <= axis < weight.ndim:
        raise QuantError(f"there is no axis {axis} in shape {list(weight.shape)}", where=where)
    real = as_real(weight)
    others = tuple(a for a in range(real.ndim) if a != axis)
    found = np.maximum(real.max(axis=others, initial=0), -real.min(axis=others, initial=0))
    if not np.isfinite(found).all():
        raise QuantError("a number is NaN or infinite", where=where, hint="the parameters are damaged")
    return np.asarray(found, np.float32)


def as_real(array: np.ndarray) -> np.ndarray:
    """The array in a dtype in which negation is exact and means do not overflow: float32, or float64 for integers.

    Raises
    ------
    QuantError
        If the numbers are complex, or not numbers.
    """
    if array.dtype.name in ("float32", "float64"):
        return array
    if array.dtype == DType.BFLOAT16.numpy:
        return (array.astype(np.uint32) << 16).view(np.float32)
    if array.dtype.name == "float16":
        return array.astype(np.float32)
    if array.dtype.kind not in "biu":
        raise QuantError(f"cannot quantize numbers of dtype {array.dtype}")
    return array.astype(np.float64)
