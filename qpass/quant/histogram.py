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
    """Counts of the positive and the negative numbers."""

    def __init__(self, options: ObserverOptions) -> None:
        super().__init__(options)
        self._size = options.fine_bins
        self._exponent: int | None = None
        self._counts = np.zeros(2 * self._size, np.int64)  # bin 0 in the middle

    def observe(self, view: View) -> None:
        """See one batch."""
        if view.peak == 0:
            self._counts[self._size] += view.real.size
            return
        self._widen(max(math.frexp(view.peak / self._size)[1], _LEAST))
        assert self._exponent is not None
        numbers = view.real.reshape(-1)
        factor = numbers.dtype.type(2.0**-self._exponent)
        lowest = min(int(numbers.dtype.type(view.range[0]) * factor), 0)
        first = self._size + lowest
        for start in range(0, numbers.size, _CHUNK):
            index = (numbers[start : start + _CHUNK] * factor).astype(np.int32)
            if lowest:
                index -= lowest
            counts = np.bincount(index)
            self._counts[first : first + counts.size] += counts

    def merge(self, other: GrowingHistogram) -> None:
        """Add the counts of `other`."""
        if other._exponent is not None:
            self._widen(other._exponent)
        shift = 0 if other._exponent is None or self._exponent is None else self._exponent - other._exponent
        self._counts += _joined(other._counts, shift)

    @property
    def positive(self) -> np.ndarray:
        """Counts of the numbers from 0 up, by distance from 0: int64 [size]. Bin 0 is here alone."""
        return self._counts[self._size :]

    @property
    def negative(self) -> np.ndarray:
        """Counts of the numbers below 0, by distance from 0: int64 [size]; [0] if there are none."""
        below = self._counts[self._size :: -1][: self._size].copy()
        below[0] = 0
        return below if below.any() else below[:0]

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
        both = _folded(self.positive, self.negative)
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
        negative = self.negative
        difference, both = _folded(self.positive, -negative), _folded(self.positive, negative)
        total = int(both.sum())
        mean = float(middles @ difference) / total
        square = float((middles * middles) @ both) / total
        return mean, math.sqrt(max(square - mean * mean, 0.0))

    def _widen(self, exponent: int) -> None:
        if self._exponent is not None and exponent > self._exponent:
            self._counts = _joined(self._counts, exponent - self._exponent)
        if self._exponent is None or exponent > self._exponent:
            self._exponent = exponent


def _folded(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    return positive + negative if negative.size else positive


def _joined(counts: np.ndarray, shift: int) -> np.ndarray:
    """Counts over bins 2**shift times as wide, bin 0 in the middle of as many as before."""
    if shift == 0:
        return counts
    size = counts.size // 2
    index = np.trunc((np.arange(2 * size) - size) / 2.0**shift).astype(np.intp) + size
    joined = np.zeros_like(counts)
    np.add.at(joined, index, counts)
    return joined
