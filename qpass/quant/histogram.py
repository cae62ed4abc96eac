"""`GrowingHistogram`: counts of all numbers of a tensor in one pass, whatever their range turns out to be.

Bins are 2**k wide and begin at multiples of 2**k::

    bin(x) = trunc(x / 2**k)            bin 0 is (-2**k, 2**k), all others are half open away from 0

with the smallest k for which the largest |x| so far fits into `size` bins a side. When larger numbers come, bins
are joined in pairs, and ``trunc(trunc(x / 2**k) / 2) == trunc(x / 2**(k+1))`` makes that exact: the counts depend on
the numbers alone, not on their order or on how they were shared out between histograms that are merged later.
Multiplying by a power of two is exact too, so no number lands a bin off.

At 2048 * 16 bins between 16,384 and 32,768 are in use; a step of 8 bits is at least 129 of them, and standing for its
numbers by its middle changes a mean squared error by less than 1/129**2 of it.
"""

from __future__ import annotations

import math

import numpy as np

from qpass.quant.observer_options import ObserverOptions
from qpass.quant.record import Part, View

_LEAST = -120
"""The smallest k: 2**120 is still a float32. Only numbers below 1e-31 get fewer bins by it."""

_CHUNK = 1 << 18
"""Numbers binned at a time; what is between stays in the cache."""


class GrowingHistogram(Part):
    """Counts of the positive and the negative numbers, by distance from 0.

    Attributes
    ----------
    positive, negative : np.ndarray
        int64 [size]; `negative` is empty as long as there is no negative number. 0 counts as positive.
    """

    def __init__(self, options: ObserverOptions) -> None:
        super().__init__(options)
        self._size = options.fine_bins
        self._exponent: int | None = None
        self.positive = np.zeros(self._size, np.int64)
        self.negative = np.zeros(0, np.int64)

    def observe(self, view: View) -> None:
        """See one batch."""
        if view.peak == 0:
            self.positive[0] += view.real.size
            return
        self._widen(max(math.frexp(view.peak / self._size)[1], _LEAST))
        assert self._exponent is not None
        if signed := view.range[0] < 0:
            self._make_negative()
        numbers = view.real.reshape(-1)
        factor = numbers.dtype.type(2.0**-self._exponent)
        for start in range(0, numbers.size, _CHUNK):
            self._count((numbers[start : start + _CHUNK] * factor).astype(np.intp), signed)

    def merge(self, other: GrowingHistogram) -> None:
        """Add the counts of `other`."""
        if other._exponent is not None:
            self._widen(other._exponent)
        shift = 0 if other._exponent is None or self._exponent is None else self._exponent - other._exponent
        self.positive += _joined(other.positive, shift)
        if other.negative.size:
            self._make_negative()
            self.negative += _joined(other.negative, shift)

    @property
    def width(self) -> float:
        """Width of a bin; 1 where only zeros were seen."""
        return 1.0 if self._exponent is None else 2.0**self._exponent

    def folded(self, bins: int) -> tuple[np.ndarray, float]:
        """Counts of |x| in at most so many bins, and their width; the last one holds the largest.

        Returns
        -------
        np.ndarray, float
            int64 [n] with n <= bins.
        """
        both = self.positive + self.negative if self.negative.size else self.positive
        filled = np.flatnonzero(both)
        used = int(filled[-1]) + 1 if filled.size else 1
        group = -(-used // bins)
        padded = np.zeros(-(-used // group) * group, np.int64)
        padded[:used] = both[:used]
        return padded.reshape(-1, group).sum(axis=1), group * self.width

    def two_sided(self, bins: int) -> tuple[np.ndarray, float]:
        """Counts of x in at most so many bins, half of them below 0, and their width.

        Returns
        -------
        np.ndarray, float
            int64 [2n] with 2n <= bins.
        """
        both, width = self.folded(bins // 2)
        group = round(width / self.width)
        below = np.zeros(both.size * group, np.int64)
        held = self.negative[: below.size]
        below[: held.size] = held
        below = below.reshape(-1, group).sum(axis=1)
        return np.concatenate((below[::-1], both - below)), width

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of the numbers, each taken as the middle of its bin."""
        middles = (np.arange(self._size) + 0.5) * self.width
        middles[0] = 0
        difference, both = self.positive, self.positive
        if self.negative.size:
            difference, both = self.positive - self.negative, self.positive + self.negative
        total = int(both.sum())
        mean = float(middles @ difference) / total
        square = float((middles * middles) @ both) / total
        return mean, math.sqrt(max(square - mean * mean, 0.0))

    def _count(self, index: np.ndarray, signed: bool) -> None:
        if not signed:
            counts = np.bincount(index)
            self.positive[: counts.size] += counts
            return
        index += self._size
        counts = np.bincount(index, minlength=2 * self._size)
        self.positive += counts[self._size :]
        self.negative[1:] += counts[self._size - 1 : 0 : -1]

    def _make_negative(self) -> None:
        if not self.negative.size:
            self.negative = np.zeros(self._size, np.int64)

    def _widen(self, exponent: int) -> None:
        if self._exponent is not None and exponent > self._exponent:
            self.positive = _joined(self.positive, exponent - self._exponent)
            self.negative = _joined(self.negative, exponent - self._exponent)
        if self._exponent is None or exponent > self._exponent:
            self._exponent = exponent


def _joined(counts: np.ndarray, shift: int) -> np.ndarray:
    """Counts over bins 2**shift times as wide, in an array of the same size."""
    if shift == 0 or not counts.size:
        return counts
    group = 1 << min(shift, counts.size.bit_length())
    padded = np.zeros(-(-counts.size // group) * group, counts.dtype)
    padded[: counts.size] = counts
    joined = np.zeros_like(counts)
    sums = padded.reshape(-1, group).sum(axis=1)
    joined[: sums.size] = sums
    return joined
