"""`Record`: what is remembered of one tensor over all batches, shared by every algorithm that asks for it.

A record always knows the range; algorithms name the further parts they need. Each batch is reduced once, whatever
the number of algorithms, and what is kept does not grow with the data.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import numpy as np

from qpass.errors import QuantError
from qpass.ir.dtype import DType
from qpass.quant.observer_options import ObserverOptions

_DIVERGED = "the model diverges on this input, or the input itself is wrong"
_UNIT = 1074
"""Every float64 is a whole multiple of 2**-1074."""


class View:
    """One batch of one tensor; its reductions are computed once.

    Parameters
    ----------
    array : np.ndarray
        Any shape with at least one element, and any real dtype; samples along axis 0.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.real = as_real(array)

    @functools.cached_property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest number of each sample; NaN where there is a NaN."""
        samples = self.real.reshape(self.real.shape[0] if self.real.ndim else 1, -1)
        return np.minimum.reduce(samples, axis=1), np.maximum.reduce(samples, axis=1)

    @functools.cached_property
    def range(self) -> tuple[float, float]:
        """Smallest and largest number."""
        low, high = self.ends
        return float(low.min()), float(high.max())

    @property
    def peak(self) -> float:
        """Largest absolute value."""
        low, high = self.range
        return max(high, -low)

    @functools.cached_property
    def mean_peak(self) -> float:
        """Mean over samples of the sample's largest absolute value, in the dtype of the numbers as Paddle takes it."""
        low, high = self.ends
        return float(np.maximum(high, -low).mean())


P = TypeVar("P", bound="Part")


class Part(abc.ABC):
    """Something remembered of a tensor beside its range.

    Parameters
    ----------
    options : ObserverOptions
    """

    def __init__(self, options: ObserverOptions) -> None:
        self.options = options

    @abc.abstractmethod
    def observe(self, view: View) -> None:
        """See one batch."""

    @abc.abstractmethod
    def merge(self: P, other: P) -> None:
        """Add what `other` saw after this one, in the same pass."""


class TwoPassPart(Part):
    """A part that needs the range of all data before it can look at them."""

    @abc.abstractmethod
    def again(self, view: View) -> None:
        """See one batch in the second pass."""


class SampleMeans(Part):
    """Sum of the batches' `View.mean_peak`, exact, so that it does not depend on how the batches were shared out."""

    def __init__(self, options: ObserverOptions) -> None:
        super().__init__(options)
        self._sum = 0  # in units of the smallest float64
        self._batches = 0

    def observe(self, view: View) -> None:
        """See one batch."""
        numerator, denominator = view.mean_peak.as_integer_ratio()
        self._sum += (numerator << _UNIT) // denominator
        self._batches += 1

    def merge(self, other: SampleMeans) -> None:
        """Add what `other` saw."""
        self._sum += other._sum
        self._batches += other._batches

    @property
    def mean(self) -> float:
        """Mean over batches."""
        return float(Fraction(self._sum, self._batches << _UNIT))


class MovingPeak(Part):
    """Moving average of the batches' largest absolute values.

    ``accum = rate * accum + peak``, ``state = rate * state + 1``, from 0 and 0, so that a single batch gives its own
    peak. Source: `FindMovingAverageAbsMaxFunctor` (phi/kernels/funcs/fake_quantize_functor.cc).
    """

    def __init__(self, options: ObserverOptions) -> None:
        super().__init__(options)
        self._accum = self._state = 0.0
        self._batches = 0

    def observe(self, view: View) -> None:
        """See one batch."""
        rate = self.options.moving_rate
        self._accum, self._state = rate * self._accum + view.peak, rate * self._state + 1
        self._batches += 1

    def merge(self, other: MovingPeak) -> None:
        """Go on with what `other` saw."""
        past = self.options.moving_rate**other._batches
        self._accum, self._state = past * self._accum + other._accum, past * self._state + other._state
        self._batches += other._batches

    @property
    def mean(self) -> float:
        """The average so far."""
        return self._accum / self._state


@dataclass(frozen=True)
class Statistics:
    """What a calibrated tensor was like.

    Parameters
    ----------
    minimum, maximum : float
    count : int
        Numbers seen over all batches.
    mean, std : float or None
        Within half a bin of the histogram that the algorithm looks at (2**-15 of the largest absolute value with the
        default options); None where it looks at none.
    """

    minimum: float
    maximum: float
    count: int = 0
    mean: float | None = None
    std: float | None = None

    @property
    def absmax(self) -> float:
        """Largest absolute value."""
        return max(self.maximum, -self.minimum)


class Record:
    """What is remembered of one tensor.

    Parameters
    ----------
    name : str
        Name of the tensor, for messages.
    options : ObserverOptions
    kinds : iterable of type
        The parts wanted.
    """

    def __init__(self, name: str, options: ObserverOptions, kinds: Iterable[type[Part]] = ()) -> None:
        self.name = name
        self.options = options
        self._parts: dict[type[Part], Part] = {kind: kind(options) for kind in dict.fromkeys(kinds)}
        self._low, self._high = math.inf, -math.inf
        self._batch = self._count = 0
        self._twice = [part for part in self._parts.values() if isinstance(part, TwoPassPart)]
        self._second = False

    @property
    def passes(self) -> int:
        """How many times the data must be shown: 1, or 2 where a part needs the range first."""
        return 2 if self._twice else 1

    def part(self, kind: type[P]) -> P:
        """The part of a kind that was asked for when the record was made."""
        part = self._parts[kind]
        assert isinstance(part, kind)
        return part

    def has(self, kind: type[Part]) -> bool:
        """Whether that part was asked for."""
        return kind in self._parts

    def observe(self, array: np.ndarray) -> None:
        """See one batch; an empty array is passed over.

        Raises
        ------
        QuantError
            If a number is NaN or infinite; names the tensor and the batch.
        """
        self._batch += 1
        if not array.size:
            return
        view = View(array)
        low, high = view.range
        if not (math.isfinite(low) and math.isfinite(high)):
            raise QuantError("a number is NaN or infinite", where=f"{self._where}, batch {self._batch}", hint=_DIVERGED)
        if self._second:
            for twice in self._twice:
                twice.again(view)
            return
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._count += view.real.size
        for part in self._parts.values():
            part.observe(view)

    def next_pass(self) -> None:
        """Begin the second pass: shards must have been merged by now.

        Raises
        ------
        QuantError
            If nothing was seen in the first.
        """
        self.range()
        self._second = True
        self._batch = 0

    def merge(self, other: Record) -> None:
        """Add what `other` saw after this one, as if this one had seen it.

        Raises
        ------
        QuantError
            If the two are not alike: other options, other parts, or in different passes.
        """
        if (self.options, self._parts.keys(), self._second) != (other.options, other._parts.keys(), other._second):
            raise QuantError("observers of other options, algorithms or passes cannot be merged", where=self._where)
        self._low, self._high = min(self._low, other._low), max(self._high, other._high)
        self._batch += other._batch
        if not self._second:
            self._count += other._count
        for kind in self._parts:
            self.part(kind).merge(other.part(kind))

    def range(self) -> tuple[float, float]:
        """Smallest and largest number seen.

        Raises
        ------
        QuantError
            If nothing was seen.
        """
        if self._low > self._high:
            raise QuantError("no batch held any number of it", where=self._where)
        return self._low, self._high

    def absmax(self) -> float:
        """Largest absolute value seen.

        Raises
        ------
        QuantError
            If nothing was seen.
        """
        low, high = self.range()
        return max(high, -low)

    @property
    def count(self) -> int:
        """Numbers seen."""
        return self._count

    @property
    def _where(self) -> str:
        return f"activation {self.name!r}"


def as_real(array: np.ndarray) -> np.ndarray:
    """The array in a dtype in which negation is exact and means do not overflow: float32, or float64 for integers.

    Raises
    ------
    QuantError
        If the numbers are complex, or not numbers.
    """
    if array.dtype in (np.float32, np.float64):
        return array
    if array.dtype == DType.BFLOAT16.numpy:
        return (array.astype(np.uint32) << 16).view(np.float32)
    if array.dtype.name == "float16":
        return array.astype(np.float32)
    if array.dtype.kind not in "biu":
        raise QuantError(f"cannot quantize numbers of dtype {array.dtype}")
    return array.astype(np.float64)
