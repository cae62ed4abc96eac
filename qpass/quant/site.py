"""`QuantSite`: one quantization point of a graph, whatever its spelling."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np

from qpass.ir.graph import Use, ValueRef
from qpass.quant.spec import QuantSpec


class Role(enum.Enum):
    """What is quantized."""

    WEIGHT = "weight"
    ACTIVATION = "activation"


class Storage(enum.Enum):
    """How the parameter file holds a quantized weight."""

    FLOAT = "float"
    """The float weight; it is quantized when the model runs (latent weights of QAT, simulated PTQ)."""
    INT = "int"
    """Integers of the right type; only a dequantize op runs."""
    INT_AS_FLOAT = "int-as-float"
    """Integers held in float32."""


@dataclass(frozen=True, eq=False)
class QuantSite:
    """A quantization point: which value, for which consumers, at what threshold.

    Parameters
    ----------
    role : Role
    value : ValueRef
        The value before quantization; for a weight, the parameter.
    uses : tuple of Use
        The operands of real ops (not of quantize or dequantize ops) that receive the quantized value.
    threshold : np.ndarray
        float32, shape () or (C,): the absolute value that maps to the highest level, in the tensor's own units
        (absmax, not absmax/127). NaN where it is found when the model runs, or the model has no parameters.
    spec : QuantSpec
    encoding : str
        Name of the spelling: ``A``, ``B``, ``C`` or ``D``.
    ops : tuple of int
        uids of the ops that spell it, in program order: between `value` and `uses`, or (weights of encoding A) after
        the ops of `uses`.
    storage : Storage
        FLOAT for activations.
    observer_only : bool
        Whether Paddle runs the pair as identity (attribute ``only_observer``).
    """

    role: Role
    value: ValueRef
    uses: tuple[Use, ...]
    threshold: np.ndarray
    spec: QuantSpec
    encoding: str
    ops: tuple[int, ...]
    storage: Storage = Storage.FLOAT
    observer_only: bool = False
