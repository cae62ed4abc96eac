"""`QuantOptions`: how a job quantizes and evaluates layers, checked before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from qpass.errors import UsageError
from qpass.quant.encodings import ENCODINGS
from qpass.quant.layers import DEFAULT_OP_TYPES
from qpass.quant.observer_options import DEFAULT_OPTIONS, ObserverOptions
from qpass.quant.observers import algorithm
from qpass.quant.presets import find_target
from qpass.quant.recipe import Override, Recipe
from qpass.quant.weight_observers import WEIGHT_ALGOS
from qpass.refine import check_refinements
from qpass.runtime.engines import ENGINES
from qpass.runtime.simulate import check_simulation

_OPTIONAL: Mapping[str, type] = {"batches": int, "compat": str, "simulate": str, "target": str}
_KINDS = {str: "a name", int: "a whole number", float: "a number", bool: "True or False"}


@dataclass(frozen=True)
class QuantOptions:
    """How layers are quantized and evaluated.

    Parameters
    ----------
    algo, weight_algo : str
        Observers of activations and weights.
    op_types : tuple of str
        Op types whose layers count.
    activation_op_types : tuple of str
        Op types without weights whose input activations are quantized too.
    skip : tuple of str
        What stays in float; see `qpass.quant.skip`.
    weight_bits, activation_bits : int
        2 to 16.
    overrides : tuple of str
        Other bits for some ops, as ``NAME:w4a16``.
    round_type, bias_correction
        As in `qpass.refine.refine`.
    equalize : bool
        Whether ranges are equalized across layers first; batch norms are folded for it.
    fold_batch_norm : bool
        Whether batch norms are folded into convolutions first.
    encoding : {"A", "B", "C", "D"}
        How quantization is spelled; `target` has its own.
    outputs : bool
        Whether outputs of quantized ops keep their thresholds, for engines that look for them.
    target : {None, "onednn", "tensorrt", "lite", "generic"}
        An engine to write for.
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
    fast : bool
        In analyses, quantize activations by oneDNN's own ops: see `analyze_ptq`.
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
    activation_op_types: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    weight_bits: int = 8
    activation_bits: int = 8
    overrides: tuple[str, ...] = ()
    round_type: str = "round"
    bias_correction: bool | str = False
    equalize: bool = False
    fold_batch_norm: bool = False
    encoding: str = "B"
    outputs: bool = False
    target: str | None = None
    hist_percent: float = DEFAULT_OPTIONS.hist_percent
    compat: str | None = None
    batches: int | None = None
    engine: str = "inference"
    simulate: str | None = None
    fast: bool = False
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        choices: tuple[tuple[str, str, Collection[str]], ...] = (
            ("weight_algo", self.weight_algo, WEIGHT_ALGOS),
            ("engine", self.engine, ENGINES),
            ("encoding", self.encoding, ENCODINGS),
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
        check_refinements(self.round_type, self.bias_correction)
        self.recipe  # noqa: B018 - it checks itself
        if self.encoding not in (self.spelling, "B"):
            raise UsageError(
                f"encoding {self.encoding} does not go with target {self.target!r}, which is written in "
                f"{self.spelling}",
                hint="leave one of them out",
            )

    @property
    def recipe(self) -> Recipe:
        """What is quantized, and with how many bits; a target has its own op types where none are chosen."""
        given = Recipe(
            op_types=self.op_types,
            activation_op_types=self.activation_op_types,
            weight_bits=self.weight_bits,
            activation_bits=self.activation_bits,
            skip=self.skip,
            overrides=tuple(Override.parse(text) for text in self.overrides),
            outputs=self.outputs,
        )
        return given if self.target is None else find_target(self.target).fitted(given)

    @property
    def spelling(self) -> str:
        """The encoding that is written: that of the target, where there is one."""
        return self.encoding if self.target is None else find_target(self.target).encoding

    @property
    def observer_options(self) -> ObserverOptions:
        """The numbers that steer `algo`."""
        return ObserverOptions(
            quant_bits=self.activation_bits, hist_percent=self.hist_percent, onnx_format=self.encoding != "A"
        )

    @classmethod
    def checked(cls, given: Mapping[str, object], called: Mapping[str, str] = MappingProxyType({})) -> QuantOptions:
        """Options from untyped values by field name; None stands for the default.

        Parameters
        ----------
        given : Mapping[str, object]
        called : Mapping[str, str]
            What the caller calls a field, for messages, where that is not its name.

        Raises
        ------
        UsageError
            If a value has the wrong type, or is not one of those that are known.
        """
        defaults = cls()
        set_ = {name: value for name, value in given.items() if value is not None}
        for name, value in set_.items():
            default = getattr(defaults, name)
            what = called.get(name, name)
            if isinstance(default, tuple):
                set_[name] = names(value, what)
                continue
            if name == "bias_correction" and isinstance(value, str):
                continue
            kind = _OPTIONAL.get(name, type(default))
            if not isinstance(value, (int, float) if kind is float else kind) or (
                kind in (int, float) and isinstance(value, bool)
            ):
                raise UsageError(f"{what} is {value!r}, expected {_KINDS[kind]}")
        return dataclasses.replace(defaults, **set_)  # type: ignore[arg-type]


def names(given: object, what: str) -> tuple[str, ...]:
    """A list or tuple of names as a tuple.

    Raises
    ------
    UsageError
        If it is something else, a single name for example.
    """
    if not isinstance(given, (list, tuple)) or not all(isinstance(name, str) for name in given):
        raise UsageError(f"{what} is {given!r}, expected a sequence of names")
    return tuple(given)
