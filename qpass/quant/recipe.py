"""`Recipe`: what of a model is quantized, and with how many bits; not at what scale."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from qpass.errors import QuantError, UsageError
from qpass.ir.schema import ACTIVATION_OPERANDS, EMBEDDINGS, FAMILIES
from qpass.quant.layers import DEFAULT_OP_TYPES
from qpass.quant.spec import QuantSpec

FULL_OP_TYPES = tuple(ACTIVATION_OPERANDS)
"""Op types without weights whose inputs are quantized too under Paddle's `is_full_quantize`."""

_OVERRIDE = re.compile(r"(?P<match>.+):(?:w(?P<weight>\d+))?(?:a(?P<activation>\d+))?")


@dataclass(frozen=True)
class Override:
    """Other bits for some ops.

    Parameters
    ----------
    match : str
        Name of a tensor of those ops (weight, input or output), or a regular expression that matches the whole of it.
    weight_bits, activation_bits : int or None
        2 to 16; None keeps the recipe's.

    Raises
    ------
    QuantError
        If it changes nothing, or bits are out of range.
    """

    match: str
    weight_bits: int | None = None
    activation_bits: int | None = None

    def __post_init__(self) -> None:
        given = [bits for bits in (self.weight_bits, self.activation_bits) if bits is not None]
        if not given:
            raise QuantError("it says no bits", where=f"override of {self.match!r}")
        for bits in given:
            _check_bits(bits, f"override of {self.match!r}")

    @classmethod
    def parse(cls, text: str) -> Override:
        """Read ``NAME:w4``, ``NAME:a16`` or ``NAME:w4a16``.

        Raises
        ------
        UsageError
            If the text has another form.
        """
        found = _OVERRIDE.fullmatch(text)
        if found is None or text.endswith(":"):
            raise UsageError(
                f"{text!r} is no override of bits",
                hint="NAME:w4, NAME:a16 or NAME:w4a16, where NAME is a tensor or a regular expression",
            )
        weight, activation = found["weight"], found["activation"]
        return cls(found["match"], int(weight) if weight else None, int(activation) if activation else None)

    def __str__(self) -> str:
        weight = "" if self.weight_bits is None else f"w{self.weight_bits}"
        activation = "" if self.activation_bits is None else f"a{self.activation_bits}"
        return f"{self.match}:{weight}{activation}"


@dataclass(frozen=True)
class Recipe:
    """What is quantized, and with how many bits.

    Parameters
    ----------
    op_types : tuple of str
        Op types with weights: weight and input activation are quantized. `mul`, `matmul` and `matmul_v2` are one
        family; of embedding lookups (`lookup_table_v2`) only the weight is.
    activation_op_types : tuple of str
        Op types without weights whose input activations are quantized too; `FULL_OP_TYPES` is all that can be.
        Products of two activations come in by `matmul`, `matmul_v2` and `mul` here.
    weight_bits, activation_bits : int
        2 to 16.
    skip : tuple of str
        What stays in float: names of weights, activations or outputs, or regular expressions; see `qpass.quant.skip`.
    overrides : tuple of Override
        Other bits for some ops; the last that matches counts.
    outputs : bool
        Whether outputs of quantized ops get scales as well.

    Raises
    ------
    UsageError
        If an op type cannot be quantized that way.
    QuantError
        If bits are out of range.
    """

    op_types: tuple[str, ...] = DEFAULT_OP_TYPES
    activation_op_types: tuple[str, ...] = ()
    weight_bits: int = 8
    activation_bits: int = 8
    skip: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = ()
    outputs: bool = False

    def __post_init__(self) -> None:
        _check_op_types(self.op_types, (*FAMILIES, *EMBEDDINGS), "has no quantizable weight", "op_types")
        _check_op_types(
            self.activation_op_types, FULL_OP_TYPES, "has no quantizable activations", "activation_op_types"
        )
        _check_bits(self.weight_bits, "weight_bits")
        _check_bits(self.activation_bits, "activation_bits")


def _check_op_types(given: Sequence[str], known: Sequence[str], what: str, where: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.5)
            raise UsageError(
                f"op type {name!r} {what}, expected some of {sorted(known)}",
                where=where,
                hint=f"the nearest are {', '.join(near)}" if near else None,
            )


def _check_bits(bits: int, where: str) -> None:
    try:
        QuantSpec(bits)
    except QuantError as e:
        raise QuantError(e.what, where=where) from e
