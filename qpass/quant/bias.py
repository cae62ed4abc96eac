"""The bias of a layer: where it stands in the graph, and how to change it or add one.

Paddle adds biases by an op of their own, ``elementwise_add`` with a parameter, sometimes reshaped before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qpass.errors import QuantError
from qpass.ir.graph import Decl, Graph, Use, ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Attr, Op
from qpass.ir.schema import FAMILIES, FORWARD
from qpass.quant.encoding import data_out, declare_param
from qpass.quant.layers import is_param
from qpass.quant.ops import OLD_DEQUANTIZE
from qpass.rewrite.edit import Edit

_RESHAPES = ("reshape", "reshape2")


@dataclass(frozen=True, eq=False)
class Bias:
    """A parameter that is added to the product of a layer, one number a channel.

    Parameters
    ----------
    ref : ValueRef
        The parameter.
    use : Use
        The operand that reads it.
    values : np.ndarray
        float64 [channels].
    add : int
        uid of the addition.
    """

    ref: ValueRef
    use: Use
    values: npt.NDArray[np.float64]
    add: int


def product(graph: Graph, output: Use) -> ValueRef:
    """The output of a layer's op in its own units: behind what encoding A writes after the op."""
    ref = graph.written(graph.by_uid[output.op], output.slot)
    readers = graph.readers(ref)
    while len(readers) == 1 and readers[0].type in OLD_DEQUANTIZE:
        out = data_out(graph, readers[0])
        if out is None:
            break
        ref, readers = out, graph.readers(out)
    return ref


def channel_axis(op: Op, rank: int) -> int:
    """Axis of the output channels in the output of a layer's op."""
    last = FAMILIES[op.type] == "matmul" or op.attr("data_format", "NCHW") == "NHWC"
    return rank - 1 if last else 1


def find_bias(model: Model, output: Use, channels: int) -> Bias | None:
    """The bias of the layer's op that writes `output`; None where there is none of `channels` numbers of its own."""
    graph = model.graph
    ref = product(graph, output)
    uses = graph.uses(ref)
    add = graph.by_uid[uses[0].op] if len(uses) == 1 else None
    if add is None or add.type != "elementwise_add" or uses[0].slot != "X" or graph.last(ref.name) != ref:
        return None
    given = graph.sole_read(add, "Y")
    if given is None:
        return None
    use, source, writer = Use(add.uid, "Y", 0), given, graph.writer(given)
    if writer is not None and writer.type in _RESHAPES and len(graph.uses(given)) == 1:
        before = graph.sole_read(writer, "X")
        use, source = Use(writer.uid, "X", 0), before if before is not None else given
    array = model.params.get(source.name)
    if not is_param(graph, source) or array is None or array.dtype != np.float32 or array.size != channels:
        return None
    shape, rank = graph.decls[given.name].shape, len(graph.decls[ref.name].shape)
    start = add.int_attr("axis", -1)
    start = rank - len(shape) if start == -1 else start
    axis = channel_axis(graph.by_uid[output.op], rank)
    if not 0 <= axis - start < len(shape) or any(n != 1 for i, n in enumerate(shape, start) if i != axis):
        return None
    return Bias(source, use, array.astype(np.float64).reshape(-1), add.uid)


def set_bias(e: Edit, model: Model, bias: Bias, values: np.ndarray) -> None:
    """Give a bias other values, in a parameter of its own where others read it too."""
    name = bias.ref.name
    array = np.asarray(values, np.float32).reshape(model.params[name].shape)
    elsewhere = any(name in (n for _, _, n in op.reads()) for g in model.blocks[1:] for op in g.ops)
    if len(model.graph.uses(bias.ref)) > 1 or elsewhere:
        e.rewire(bias.use.op, bias.use.slot, bias.use.index, declare_param(e, name, array))
    else:
        e.set_param(name, array)


def add_bias(e: Edit, model: Model, output: Use, values: np.ndarray, name: str) -> None:
    """Add a bias called `name` to the product of a layer that has none.

    The sum takes the name of the product, so that its readers, and what the model returns, stay as they are.

    Raises
    ------
    QuantError
        If the product cannot be told from what else is written under its name.
    """
    graph = model.graph
    ref = product(graph, output)
    writer, definition = graph.writer(ref), graph.definition(ref)
    if writer is None or definition is None or graph.last(ref.name) != ref or ref.version != 1:
        raise QuantError("its output is overwritten: no bias can be added", where=f"value {ref}")
    decl = graph.decls[ref.name]
    inner = e.fresh(f"{ref.name}.product")
    e.declare(Decl(inner, dtype=decl.dtype, shape=decl.shape))
    e.redirect(writer, definition.slot, definition.index, inner)
    axis = channel_axis(graph.by_uid[output.op], len(decl.shape))
    bias = declare_param(e, name, np.asarray(values, np.float32))
    attrs = {"axis": Attr.int(axis if axis == 1 else -1), **FORWARD}
    made = e.insert(Op.make("elementwise_add", {"X": inner, "Y": bias}, {"Out": ref.name}, attrs), after=writer)
    for use in graph.uses(ref):
        reader = e.op(use.op)
        if use.op != made.uid:
            e.rewire(reader, use.slot, use.index, reader.input(use.slot)[use.index])
