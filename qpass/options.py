"""`QuantOptions`: how a job quantizes and evaluates layers, checked before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from qpass.errors import UsageError
from qpass.quant.layers import DEFAULT_OP_TYPES, families
from qpass.quant.observer_options import DEFAULT_OPTIONS, ObserverOptions
from qpass.quant.observers import algorithm
from qpass.quant.weight_observers import WEIGHT_ALGOS
from qpass.runtime.engines import ENGINES
from qpass.runtime.simulate import check_simulation

_OPTIONAL: Mapping[str, type] = {"batches": int, "compat": str, "simulate": str}
_KINDS = {str: "a name", int: "a whole number", float: "a number", bool: "True or False", tuple: "a sequence of names"}


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
    hist_percent : float
        Share of the numbers that ``algo="hist"`` keeps.
    compat : {None, "paddle"}
        Whose version of `algo`.
    batches : int or None
        Calibrate on that many batches only.
    engine : str
        ``inference``, ``executor`` or ``gpu``; ``int8`` evaluates quantized models in int8, the rest is ``inference``.
    simulate : {None, "onednn"}
        Evaluate what `qpass.simulate` makes of each quantized model.
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
    hist_percent: float = DEFAULT_OPTIONS.hist_percent
    compat: str | None = None
    batches: int | None = None
    engine: str = "inference"
    simulate: str | None = None
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        choices: tuple[tuple[str, str, Collection[str]], ...] = (
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
        if self.simulate is not None:
            check_simulation(self.simulate)
            if self.engine == "int8":
                raise UsageError("simulate does not go with engine='int8'", hint="leave one of them out")
        algorithm(self.algo, self.observer_options, self.compat)
        families(self.op_types)

    @property
    def observer_options(self) -> ObserverOptions:
        """The numbers that steer `algo`."""
        return ObserverOptions(quant_bits=self.activation_bits, hist_percent=self.hist_percent)

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
            kind = _OPTIONAL.get(name, type(default))
            if not isinstance(value, (int, float) if kind is float else kind) or (
                kind in (int, float) and isinstance(value, bool)
            ):
                raise UsageError(f"{name} is {value!r}, expected {_KINDS[kind]}")
        return dataclasses.replace(defaults, **set_)  # type: ignore[arg-type]
