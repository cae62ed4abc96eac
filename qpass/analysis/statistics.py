"""Statistics of weights and input activations, float against fake-quantized, for histograms and box plots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
"""The quantiles of `TensorStatistics.quantiles`."""


@dataclass(frozen=True, eq=False)
class TensorStatistics:
    """What one tensor holds in float, and what quantization makes of it.

    Parameters
    ----------
    layer : str
        The layer the tensor belongs to: the name of its weight.
    role : {"weight", "activation"}
        The layer's weight, or its input.
    name : str
        The tensor's own name.
    threshold : float
        Absolute value that maps to the highest level, in the tensor's own units; the largest one per channel.
    minimum, maximum, mean, std : float
        Of the float values.
    quantiles : tuple of float
        Of the float values, at `QUANTILES`.
    bin_edges : np.ndarray
        float64, shape (bins + 1,).
    float_counts, quant_counts : np.ndarray
        int64, shape (bins,): how many float and fake-quantized values fall into each bin.
    error_rms : float
        Root mean square of (fake-quantized - float).
    sqnr_db : float
        ``10 log10(sum(float^2) / sum((fake-quantized - float)^2))``.
    """

    layer: str
    role: Literal["weight", "activation"]
    name: str
    threshold: float
    minimum: float
    maximum: float
    mean: float
    std: float
    quantiles: tuple[float, ...]
    bin_edges: np.ndarray
    float_counts: np.ndarray
    quant_counts: np.ndarray
    error_rms: float
    sqnr_db: float
