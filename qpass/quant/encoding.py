"""The `Encoding` protocol, and what encodings share: reading sites from a graph and building the ops of one.

An encoding is one way to spell quantization sites as ops. Encodings sit between a value and its consumers::

    value -> [quantize ...] -> quantized value -> consumers

so a site is taken out by letting its consumers read the value again (`qpass.quant.strip`), whatever the encoding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qpass.errors import QuantError
from qpass.ir.dtype import DType
from qpass.ir.graph import Decl, Graph, Use, ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Op
from qpass.quant.layers import is_param
from qpass.quant.ops import DATA_SLOTS
from qpass.quant.site import QuantSite, Role
from qpass.quant.spec import QuantSpec, Rounding
from qpass.rewrite.edit import Edit


class Encoding(Protocol):
    """One spelling of quantization sites."""

    @property
    def name(self) -> str:
        """``A``, ``B``, ``C`` or ``D``."""

    def recognise(self, model: Model) -> tuple[QuantSite, ...]:
        """The sites of the root block that are spelled this way, in program order."""

    def spell(self, e: Edit, graph: Graph, sites: Sequence[QuantSite]) -> None:
        """Write sites into the transaction: their consumers read quantized values afterwards.

        Parameters
        ----------
        e : Edit
        graph : Graph
            The root block as it was when the transaction began.
        sites : sequence of QuantSite
            What to write; their `ops` and `encoding` are not looked at. Their `storage` says what the parameters of
            weights hold: floats, or the integers.

        Raises
        ------
        QuantError
            If this encoding cannot say it.
        """


def data_in(graph: Graph, op: Op) -> ValueRef | None:
    """The value that a quantization op reads; None for another op."""
    slots = DATA_SLOTS.get(op.type)
    return graph.sole_read(op, slots[0]) if slots else None


def data_out(graph: Graph, op: Op) -> ValueRef | None:
    """The value that a quantization op makes; None for another op, or where it makes none."""
    slots = DATA_SLOTS.get(op.type)
    return graph.sole_written(op, slots[1]) if slots else None


def real_uses(graph: Graph, ref: ValueRef) -> tuple[Use, ...]:
    """Operands of ops other than quantization ops that read `ref`."""
    return tuple(use for use in graph.uses(ref) if graph.by_uid[use.op].type not in DATA_SLOTS)


def role_of(graph: Graph, ref: ValueRef) -> Role:
    """WEIGHT for a parameter, else ACTIVATION."""
    return Role.WEIGHT if is_param(graph, ref) else Role.ACTIVATION


def scale_value(model: Model, op: Op, slot: str, index: int = 0) -> npt.NDArray[np.float32]:
    """The scale parameter that `op` reads or writes: float32, () or (C,); NaN where there is none with a value."""
    names = op.input(slot) or op.output(slot)
    array = model.params.get(names[index]) if index < len(names) else None
    if array is None:
        return np.array(np.nan, np.float32)
    flat = np.asarray(array, np.float32).reshape(-1)
    return flat.reshape(()) if flat.size == 1 and not op.int_attr("quant_axis", -1) >= 0 else flat


def spec_of(op: Op, axis: int | None, default: Rounding) -> QuantSpec:
    """The spec that the attributes of a quantization op say; `default` is the rounding where `round_type` is absent.

    With round_type 1 the kernels clip to the threshold before they round: the lowest level is -qmax.

    Raises
    ------
    QuantError
        If there is no quantization of these attributes.
    """
    code, bits = op.int_attr("round_type", default.value), op.int_attr("bit_length", 8)
    if code not in (0, 1):
        raise QuantError(f"round_type is {code}, expected 0 (nearest even) or 1 (half away from zero)", where=str(op))
    try:
        return QuantSpec(bits, axis, Rounding(code), narrow=code == Rounding.HALF_AWAY.value)
    except QuantError as e:
        raise QuantError(e.what, where=str(op)) from e


def check_threshold(site: QuantSite, weight: np.ndarray) -> None:
    """Check that the threshold of a weight is known and fits it.

    Raises
    ------
    QuantError
        If not.
    """
    where, axis = f"weight {site.value.name!r}", site.spec.axis
    if not np.isfinite(site.threshold).all():
        raise QuantError("its scale is no finite parameter: it is known only when the model runs", where=where)
    if axis is not None and not 0 <= axis < weight.ndim:
        raise QuantError(f"quantized along axis {axis}, but it has shape {list(weight.shape)}", where=where)
    count = 1 if axis is None else weight.shape[axis]
    if site.threshold.size != count:
        raise QuantError(f"{site.threshold.size} thresholds, expected {count}", where=where)


def declare_param(e: Edit, name: str, array: np.ndarray) -> str:
    """Declare a new parameter with a value; the name it got."""
    name, array = e.fresh(name), np.array(array)  # a copy: the caller may go on writing into his
    e.declare(Decl(name, dtype=DType.of(array), shape=array.shape, persistable=True))
    e.set_param(name, array)
    return name


def insert_chain(e: Edit, graph: Graph, site: QuantSite, steps: list[tuple[str, Callable[[str, str], Op]]]) -> None:
    """Insert a chain of ops before the first consumer of `site` and let its consumers read the end of the chain.

    Parameters
    ----------
    steps : list of (suffix, make)
        `suffix` is added to the name of the value for the name that the op writes; ``make(source, target)`` builds it.

    Raises
    ------
    QuantError
        If the value is not float32, or nobody consumes it.
    """
    decl = e.decl(site.value.name)
    if decl.dtype is not DType.FLOAT32:
        said = decl.dtype.value if decl.dtype else decl.kind
        raise QuantError(f"only float32 can be quantized, this is {said}", where=f"value {site.value}")
    if not site.uses:
        raise QuantError("nobody reads it", where=f"value {site.value}")
    first = min(site.uses, key=lambda use: graph.position[use.op]).op
    source = site.value.name
    for suffix, make in steps:
        target = e.fresh(site.value.name + suffix)
        e.declare(Decl(target, dtype=DType.FLOAT32, shape=decl.shape))
        e.insert(make(source, target), before=first)
        source = target
    for use in site.uses:
        e.rewire(use.op, use.slot, use.index, source)


def replace_maker(e: Edit, graph: Graph, op: Op, new: Op) -> None:
    """Let `new` make, under the same name, what the quantization op `op` made; its readers read on."""
    out = data_out(graph, op)
    for use in graph.uses(out) if out is not None else ():
        reader = e.op(use.op)
        e.rewire(reader, use.slot, use.index, reader.input(use.slot)[use.index])
    e.replace(op, new)
