"""Quantization noise in two parts: what clipping does beyond the range of the levels, what rounding does within it.

With x the float value, q what quantization leaves of it, [low, high] the range of the levels::

    c = clip(x, low, high)
    q - x = (q - c) + (c - x)

Within the range c is x and the second term is zero; beyond it q is the outermost level, which is c, and the first term
is zero. So the noise of a value is the one or the other, and the energies of both add up to that of the noise: the
granular and the overload noise of Gray and Neuhoff ("Quantization", IEEE Trans. Inf. Theory 44, 1998).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qpass.quant.spec import QuantSpec, Rounding


@dataclass(frozen=True)
class NoiseSplit:
    """Energies: sums of squares over the values of a tensor, in float64.

    Parameters
    ----------
    signal : float
        Of the float values.
    clipping, rounding : float
        Of the noise of values beyond the range, and within it.
    """

    signal: float = 0.0
    clipping: float = 0.0
    rounding: float = 0.0

    @property
    def noise(self) -> float:
        """Energy of all noise."""
        return self.clipping + self.rounding

    def __add__(self, other: NoiseSplit) -> NoiseSplit:
        """The energies of both tensors together."""
        return NoiseSplit(self.signal + other.signal, self.clipping + other.clipping, self.rounding + other.rounding)


def split_noise(
    x: npt.NDArray[np.floating], quantized: npt.NDArray[np.floating], threshold: npt.ArrayLike, spec: QuantSpec
) -> NoiseSplit:
    """Split the noise of a tensor.

    Where `quantized` was not made of `x` alone (a weight that training moved on, after its float twin was kept), the
    rest of the difference counts as rounding within the range and as clipping beyond it.

    Parameters
    ----------
    x, quantized : np.ndarray
        The float values and what quantization leaves of them, of one shape.
    threshold : array_like
        Value that maps to the highest level: one, or one per channel along `spec.axis`.
    spec : QuantSpec
    """
    values = np.asarray(x, np.float64)
    high = np.asarray(threshold, np.float64)
    if spec.axis is not None and high.size > 1:
        high = high.reshape([-1 if i == spec.axis else 1 for i in range(values.ndim)])
    beyond = (values > high) | (values < lowest(spec) * high)
    energy = np.square(np.asarray(quantized, np.float64) - values)
    clipping = float(energy.sum(where=beyond))
    return NoiseSplit(float(np.square(values).sum()), clipping, float(energy.sum(where=~beyond)))


def lowest(spec: QuantSpec) -> float:
    """The lowest value that is not clipped, as a multiple of the threshold; round_type 1 clips before it rounds."""
    return -1.0 if spec.rounding is Rounding.HALF_AWAY else spec.qmin / spec.qmax
