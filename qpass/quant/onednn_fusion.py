"""What oneDNN's graph passes fuse, and what they take for harmless: the op types, and the graph as it is read there.

Quantization ops count for nothing here: the engine has taken them out before (Paddle, fluid/framework/ir/onednn/; in
2.6 in the folder mkldnn).
"""

from __future__ import annotations

from qpass.ir.graph import Graph, Use, ValueRef
from qpass.ir.op import Op
from qpass.quant.encoding import data_out
from qpass.quant.layers import is_param, root

CONVOLUTIONS = ("conv2d", "depthwise_conv2d")
PRODUCTS = ("mul", "matmul", "matmul_v2")

SAME_VALUES = ("transpose2", "reshape2", "slice", "split", "nearest_interp", "nearest_interp_v2")
"""Ops that move values and change none; a scale of what they read or make is taken for the other as well.

compute_propagate_scales_onednn_pass.cc, UpdateScales.
"""

ACTIVATIONS = (
    *("abs", "clip", "gelu", "hard_sigmoid", "hard_swish", "leaky_relu", "mish", "relu", "relu6", "sigmoid", "sqrt"),
    *("swish", "tanh"),
)
"""Fused into the op before them: conv_activation_onednn_fuse_pass.cc, GetSupportedActivations."""

_RESHAPES = ("reshape", "reshape2")


def fused_operand(graph: Graph, op: Op) -> Use | None:
    """The activation through which an op is fused into one that ignores its mark; None where it is not.

    The input of a product with a bias (fc_fuse_pass.cc), or the operand of a sum that comes from a convolution whose
    only reader the sum is, bias and batch normalization in between (conv_elementwise_add_onednn_fuse_pass.cc).
    """
    if op.type in PRODUCTS:
        weight = graph.sole_read(op, "Y")
        biased = any(
            reader.type == "elementwise_add" and adds_bias(graph, reader) for reader in real_readers(graph, op)
        )
        fused = weight is not None and is_param(graph, root(graph, weight)) and biased
        return Use(op.uid, "X", 0) if fused else None
    uses = activations(graph, op) if op.type == "elementwise_add" else []
    return next((use for use in uses if len(uses) == 2 and _takes_sum(graph, use, uses)), None)


def _takes_sum(graph: Graph, use: Use, uses: list[Use]) -> bool:
    """Whether the convolution behind one operand takes in the sum; the pattern excludes a sum with its own input."""
    layer = fused_convolution(graph, graph.read(graph.by_uid[use.op], use.slot))
    if layer is None:
        return False
    other = next(each for each in uses if each != use)
    return root(graph, graph.read(layer, "Input")) != root(graph, graph.read(graph.by_uid[other.op], other.slot))


def fused_convolution(graph: Graph, ref: ValueRef) -> Op | None:
    """The convolution that makes a value read once, bias and batch normalization in between; None where none does."""
    while True:
        ref = root(graph, ref)
        writer = graph.writer(ref)
        if writer is None or len(real_readers(graph, writer)) != 1:
            return None
        if writer.type in CONVOLUTIONS:
            return writer
        if writer.type != "batch_norm" and not (writer.type == "elementwise_add" and adds_bias(graph, writer)):
            return None
        ref = graph.read(writer, "X")


def residual_convolution(graph: Graph, op: Op) -> Op | None:
    """The convolution that a sum becomes part of; None where it does not."""
    operand = fused_operand(graph, op) if op.type == "elementwise_add" else None
    return None if operand is None else fused_convolution(graph, graph.read(op, operand.slot))


def fused_result(graph: Graph, add: Op) -> tuple[ValueRef, Op]:
    """What a convolution makes that took in the sum `add`, and the op that makes it: the activation function behind."""
    readers = real_readers(graph, add)
    last = readers[0] if len(readers) == 1 and readers[0].type in ACTIVATIONS else add
    return graph.written(last, "Out"), last


def source_of(graph: Graph, op: Op) -> ValueRef | None:
    """What one of `SAME_VALUES`, or a pool, takes its values from."""
    return graph.sole_read(op, "Input" if op.type == "slice" else "X")


def reshaped_bias(graph: Graph, op: Op) -> ValueRef | None:
    """The parameter that `op` adds to a convolution through a reshape, which nothing fuses (`FoldBias`)."""
    product, bias = (graph.sole_read(op, slot) for slot in ("X", "Y")) if op.type == "elementwise_add" else (None, None)
    layer = None if product is None else graph.writer(root(graph, product))
    reshape = None if bias is None else graph.writer(bias)
    if layer is None or layer.type not in CONVOLUTIONS or reshape is None or reshape.type not in _RESHAPES:
        return None
    source = graph.sole_read(reshape, "X")
    return source if source is not None and is_param(graph, source) else None


def activations(graph: Graph, op: Op) -> list[Use]:
    """The operands of an op that are float activations, not parameters."""
    reads = (Use(op.uid, slot, index) for slot, index, _ in op.reads() if slot in ("X", "Y", "Input"))
    return [use for use in reads if not is_param(graph, root(graph, graph.read(op, use.slot, use.index)))]


def real_readers(graph: Graph, op: Op) -> list[Op]:
    """Real ops that read what `op` makes, also through quantization ops."""
    waiting = [graph.written(op, slot, index) for slot, index, _ in op.writes()]
    found: list[Op] = []
    while waiting:
        for reader in graph.readers(waiting.pop()):
            out = data_out(graph, reader)
            if out is not None:
                waiting.append(out)
            else:
                found.append(reader)
    return found


def adds_bias(graph: Graph, add: Op) -> bool:
    """Whether what an op reads as Y is a parameter: a bias, if the op is a sum."""
    bias = graph.sole_read(add, "Y")
    return bias is not None and is_param(graph, root(graph, bias))
