"""Quantization in numpy, equal bit for bit to Paddle's CPU kernels.

All in float32, operation by operation as `phi/kernels/funcs/fake_quantize_functor.h`, `cpu/quantize_linear_kernel.cc`
and `funcs/fake_quantize_functor.cc` do it (Paddle 2.6 and 3.3; compared value by value in the tests), for a threshold
s and n = 2**(bits-1) - 1::

    inv = 1 / s                       (1 / (s + 1e-6) where s <= 1e-30)
    q   = clip(rint(n * inv * x), -n - 1, n)             round_type 0
    q   = round_half_away(n * inv * clip(x, -s, s))      round_type 1
    y   = q * s / n
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from qpass.errors import QuantError
from qpass.quant.spec import QuantSpec, Rounding

Floats: TypeAlias = npt.NDArray[np.float32]

_TINY = np.float32(1e-30)
_EPS = np.float32(1e-6)


def fake_quantize(x: npt.ArrayLike, threshold: npt.ArrayLike, spec: QuantSpec) -> Floats:
    """Quantize and dequantize: float32 values on the grid.

    Parameters
    ----------
    x : array_like
        float32, any shape.
    threshold : array_like
        float32, one value per tensor or one per channel along `spec.axis`: absmax, not absmax/127.
    spec : QuantSpec

    Raises
    ------
    QuantError
        If `threshold` does not fit `x` and `spec`.
    """
    x, s = _operands(x, threshold, spec)
    return _dequantized(_levels(x, s, spec), s, spec)


def quantize(x: npt.ArrayLike, threshold: npt.ArrayLike, spec: QuantSpec) -> np.ndarray:
    """The integers: int8 for up to 8 bits, else int16; parameters as in `fake_quantize`.

    Raises
    ------
    QuantError
        If `threshold` does not fit `x` and `spec`.
    """
    x, s = _operands(x, threshold, spec)
    return _levels(x, s, spec).astype(np.int8 if spec.bits <= 8 else np.int16)


def dequantize(q: npt.ArrayLike, threshold: npt.ArrayLike, spec: QuantSpec) -> Floats:
    """The float32 values that integers stand for; parameters as in `fake_quantize`.

    Raises
    ------
    QuantError
        If `threshold` does not fit `q` and `spec`.
    """
    x, s = _operands(q, threshold, spec)
    return _dequantized(x, s, spec)


def abs_max(weight: np.ndarray, axis: int | None) -> Floats:
    """Largest absolute value: shape () for axis None, else (C,) along `axis`; 0 where there is no element."""
    x = np.abs(np.asarray(weight, np.float32))
    over = None if axis is None else tuple(i for i in range(x.ndim) if i != axis)
    return np.asarray(x.max(axis=over, initial=0.0), np.float32)


def _operands(x: npt.ArrayLike, threshold: npt.ArrayLike, spec: QuantSpec) -> tuple[Floats, Floats]:
    x, s = np.asarray(x, np.float32), np.asarray(threshold, np.float32)
    if spec.axis is None:
        if s.size != 1:
            raise QuantError(f"{s.size} thresholds, expected one per tensor")
        return x, s.reshape(())
    if not 0 <= spec.axis < x.ndim:
        raise QuantError(f"axis {spec.axis} of an array of shape {list(x.shape)}")
    if s.size != x.shape[spec.axis]:
        raise QuantError(f"{s.size} thresholds, expected one for each of {x.shape[spec.axis]} channels")
    return x, s.reshape([-1 if i == spec.axis else 1 for i in range(x.ndim)])


def _levels(x: Floats, s: Floats, spec: QuantSpec) -> Floats:
    n = np.float32(spec.qmax)
    inverse = np.float32(1) / np.where(s <= _TINY, s + _EPS, s)
    # Infinity is what the kernel gets there too; the clip takes it back.
    with np.errstate(over="ignore"):
        if spec.rounding is Rounding.HALF_AWAY:
            q = n * inverse * np.clip(x, -s, s)
            whole = np.trunc(q)
            q = whole + np.copysign(np.abs(q - whole) >= np.float32(0.5), q)
        else:
            q = np.rint(n * inverse * x)
    return np.clip(q, np.float32(spec.qmin), n)


def _dequantized(q: Floats, s: Floats, spec: QuantSpec) -> Floats:
    made: Floats = q * s / np.float32(spec.qmax)
    return made
