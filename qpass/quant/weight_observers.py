"""Scales of weights, which are seen at once: per tensor or per channel, the largest absolute value or the best one.

``mse`` and ``channel_wise_mse`` try 96 fractions of the largest absolute value, from 0.05 to 1, and keep the one whose
fake-quantized weights (Paddle's own arithmetic, `qpass.quant.fakequant`) have the least mean squared error.
"""

from __future__ import annotations

import numpy as np

from qpass.errors import QuantError, UsageError
from qpass.quant.fakequant import fake_quantize
from qpass.quant.record import as_real
from qpass.quant.spec import QuantSpec

WEIGHT_ALGOS = ("abs_max", "channel_wise_abs_max", "mse", "channel_wise_mse")
"""Names of the weight algorithms."""

_FRACTIONS = np.arange(100, 4, -1, dtype=np.float32) / np.float32(100)
_BLOCK = 1 << 17
"""Numbers quantized at a time; what is between stays in the cache."""


def per_channel(algo: str) -> bool:
    """Whether a weight algorithm gives a scale a channel.

    Raises
    ------
    UsageError
        If there is no such algorithm.
    """
    if algo not in WEIGHT_ALGOS:
        raise UsageError(f"unknown weight_algo {algo!r}, expected one of {sorted(WEIGHT_ALGOS)}")
    return algo.startswith("channel_wise_")


def weight_scale(
    weight: np.ndarray, axis: int | None, name: str, *, algo: str = "abs_max", bits: int = 8
) -> np.ndarray:
    """Scales of a weight.

    Parameters
    ----------
    weight : np.ndarray
        Any real dtype; uint16 means bfloat16.
    axis : int or None
        Channel axis; None is per tensor.
    name : str
        Name of the weight, for messages.
    algo : str
        One of `WEIGHT_ALGOS`; whether it is channel-wise is for `axis` to say.
    bits : int
        For how many bits the squared error is least.

    Returns
    -------
    np.ndarray
        float32, shape () per tensor or (C,) per channel; 0 where there are no numbers but 0.

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
    largest = np.asarray(found, np.float32)
    if not algo.endswith("mse") or not real.size:
        return largest
    rows = np.moveaxis(real, axis, 0).reshape(real.shape[axis], -1) if axis is not None else real.reshape(1, -1)
    return _least_squares(rows.astype(np.float32), largest.reshape(-1), bits).reshape(largest.shape)


def _least_squares(rows: np.ndarray, largest: np.ndarray, bits: int) -> np.ndarray:
    """The best scale of each row, by the sum of squared errors of the whole row."""
    losses = np.zeros((_FRACTIONS.size, rows.shape[0]))
    spec = QuantSpec(bits, 0)
    height = max(1, _BLOCK // rows.shape[1])
    for top in range(0, rows.shape[0], height):
        for left in range(0, rows.shape[1], _BLOCK):
            block = rows[top : top + height, left : left + _BLOCK]
            for k, fraction in enumerate(_FRACTIONS):
                error = fake_quantize(block, fraction * largest[top : top + height], spec) - block
                losses[k, top : top + height] += np.square(error, out=error).sum(axis=1, dtype=np.float64)
    best: np.ndarray = _FRACTIONS[losses.argmin(axis=0)] * largest
    return best
