"""`QuantOptions`: how a job quantizes and evaluates layers, checked before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from qpass.errors import UsageError
from qpass.quant.layers import DEFAULT_OP_TYPES, families
from qpass.quant.observers import ACTIVATION_ALGOS
from qpass.quant.weight_observers import WEIGHT_ALGOS
from qpass.runtime.engines import ENGINES

_KINDS = {str: "a name", int: "a whole number", bool: "True or False", tuple: "a sequence of names"}


@dataclass(frozen=True)
class QuantOptions:
    """How layers are quantized and evaluated.

    Parameters
    ----------
    algo, weight_algo : str
        Observers of activations and weights.
    op_types : tuple of str
        Op types whose layers count.
    weight_bits, activation_bits : int
    batches : int or None
        Calibrate on that many batches only.
    engine : str
        ``inference``, ``executor`` or ``gpu``.
    higher_is_better : bool
        Direction of the metric.

    Raises
    ------
    UsageError
        If a value is not one of those that are known.
    """

    algo: str = "avg"
    weight_algo: str = "channel_wise_abs_max"
    op_types: tuple[str, ...] = DEFAULT_OP_TYPES
    weight_bits: int = 8
    activation_bits: int = 8
    batches: int | None = None
    engine: str = "inference"
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        choices: tuple[tuple[str, str, Collection[str]], ...] = (
            ("algo", self.algo, ACTIVATION_ALGOS),
            ("weight_algo", self.weight_algo, WEIGHT_ALGOS),
            ("engine", self.engine, ENGINES),
        )
        for name, value, known in choices:
            if value not in known:
                raise UsageError(f"unknown {name} {value!r}, expected one of {sorted(known)}")
        for name, bits in (("weight_bits", self.weight_bits), ("activation_bits", self.activation_bits)):
            if not 2 <= bits <= 16:
                raise UsageError(f"{name} is {bits}, expected 2 to 16")
        if self.batches is not None and self.batches < 1:
            raise UsageError(f"the number of batches is {self.batches}, expected a number >= 1")
        families(self.op_types)

    @classmethod
    def checked(cls, given: Mapping[str, object]) -> QuantOptions:
        """Options from untyped values by field name; None stands for the default.

        Raises
        ------
        UsageError
            If a value has the wrong type, or is not one of those that are known.
        """
        defaults = cls()
        set_ = {name: value for name, value in given.items() if value is not None}
        for name, value in set_.items():
            default = getattr(defaults, name)
            kind = int if name == "batches" else type(default)
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise UsageError(f"{name} is {value!r}, expected {_KINDS[kind]}")
        return dataclasses.replace(defaults, **set_)  # type: ignore[arg-type]
