"""Which ops Paddle Inference's oneDNN int8 engine quantizes, whether anybody simulated them or not.

It does not look at where quantization ops stood. It collects a scale for every value that some pair or `out_threshold`
names, spreads scales over ops that do not change values, removes the pairs, and then quantizes every op of its list
whose values have scales (Paddle, fluid/framework/ir/onednn/: `quant_dequant_onednn_pass.cc`,
`compute_propagate_scales_onednn_pass.cc`, `cpu_quantize_placement_pass.cc`, `cpu_quantize_pass.cc`; the same in 2.6, in
the folder mkldnn). An op is spared by the attribute ``skip_quant``, which must be an *integer* 1: the engine dies of a
boolean one. Fusion loses the attribute: a matrix product with a bias becomes an `fc`, a sum with the output of a
convolution becomes part of that convolution. These ops are spared only if the fusion, or the scale, does not reach them
(`fused_operand`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qpass.ir.graph import Graph, Use, ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Op
from qpass.quant.encoding import data_in, data_out
from qpass.quant.encodings import find_sites
from qpass.quant.layers import is_param, root
from qpass.quant.onednn_fusion import (
    CONVOLUTIONS,
    PRODUCTS,
    SAME_VALUES,
    activations,
    fused_operand,
    fused_result,
    real_readers,
    residual_convolution,
)
from qpass.quant.ops import DATA_SLOTS, scale_names

SKIP = "skip_quant"
_SPREADS = (*SAME_VALUES, "pool2d", "shape")
_ELEMENTWISE = ("elementwise_add", "elementwise_mul", "elementwise_sub")
SUPPORTED = (*CONVOLUTIONS, *PRODUCTS, *SAME_VALUES, *_ELEMENTWISE, "pool2d", "concat", "prior_box")
"""Op types that it quantizes, as they are before fusion: cpu_quantize_placement_pass.cc."""

_GIVES_SCALE = (
    "quantize_linear",
    "fake_quantize_moving_average_abs_max",
    "fake_quantize_range_abs_max",
    "fake_quantize_dequantize_moving_average_abs_max",
)
"""CollectInputScalesFromQuantize."""


def unsimulated(model: Model) -> tuple[Op, ...]:
    """Ops of the root block that the engine will quantize although no pair stands before them, in program order.

    An op that only moves values, and whose readers all quantize what it makes, counts as simulated: to quantize before
    moving is the same.
    """
    graph = model.graph
    simulated = {use for site in find_sites(model) if not site.observer_only for use in site.uses}
    return tuple(op for op in quantized_ops(model) if not _is_simulated(graph, op, simulated))


def quantized_ops(model: Model) -> tuple[Op, ...]:
    """Ops of the root block that the engine will quantize, in program order."""
    graph, known = model.graph, known_scales(model)
    if not known:
        return ()
    chosen = {op.uid for op in graph.ops if op.type in SUPPORTED and _is_chosen(graph, op, known)}
    for op in graph.ops:
        layer = residual_convolution(graph, op)
        if layer is not None and _residual_is_scaled(graph, op, known):
            chosen |= {op.uid} if layer.uid in chosen else set()
        elif layer is not None:  # "cannot be quantized without output scale": the convolution stays in float too
            chosen -= {op.uid, layer.uid}
    movers = [op for op in graph.ops if op.type in SAME_VALUES and not is_skipped(op)]
    for op in movers:  # in program order: a chain of them needs one int8 op before it, or only int8 ops after it
        if _out(graph, op) in known and (_follows(graph, op, chosen) or _feeds(graph, op, chosen)):
            chosen.add(op.uid)
    return tuple(op for op in graph.ops if op.uid in chosen)


def is_skipped(op: Op) -> bool:
    """Whether the op carries the mark that spares it (of either kind)."""
    return op.attr(SKIP) in (1, True)


def _residual_is_scaled(graph: Graph, op: Op, known: frozenset[ValueRef]) -> bool:
    """Whether the other operand of a fused sum has a scale, and what comes out behind its activation function."""
    operand, (out, _) = fused_operand(graph, op), fused_result(graph, op)
    others = [use for use in activations(graph, op) if use != operand]
    return out in known and all(root(graph, graph.read(op, use.slot, use.index)) in known for use in others)


def known_scales(model: Model) -> frozenset[ValueRef]:
    """Values, before quantization, for which the engine has a scale."""
    graph = model.graph
    known = set(_stated(model))
    if not known:
        return frozenset()
    before = -1
    while before != len(known):
        before = len(known)
        for op in graph.ops:
            known.update(_spread(graph, op, known))
    return frozenset(known)


def _stated(model: Model) -> Iterator[ValueRef]:
    graph = model.graph
    for op in graph.ops:
        if op.type in _GIVES_SCALE:
            source, array = data_in(graph, op), model.params.get((*scale_names(op), "")[0])
            usable = array is not None and array.size > 0 and _usable(float(np.ravel(array)[0]))
            if source is not None and usable and not is_param(graph, root(graph, source)):
                yield root(graph, source)
        threshold = op.attr("out_threshold")
        if isinstance(threshold, float) and threshold != 0 and op.type not in DATA_SLOTS:
            yield from (graph.written(op, s, i) for s, i, _ in op.writes())


def _usable(scale: float) -> bool:
    return bool(np.isfinite(scale)) and scale != 0


def _spread(graph: Graph, op: Op, known: set[ValueRef]) -> Iterator[ValueRef]:
    out = _out(graph, op)
    if out is None:
        return
    sources = [root(graph, graph.read(op, use.slot, use.index)) for use in activations(graph, op)]
    if op.type in _SPREADS or op.type == "scale":
        if sources and sources[0] in known:
            yield out
        elif sources and out in known:
            yield sources[0]
    elif op.type == "concat" and out in known:
        yield from sources


def _is_chosen(graph: Graph, op: Op, known: frozenset[ValueRef]) -> bool:
    uses = activations(graph, op)
    scaled = bool(uses) and all(root(graph, graph.read(op, u.slot, u.index)) in known for u in uses)
    if op.type in PRODUCTS and fused_operand(graph, op) is not None:
        return scaled
    if is_skipped(op) or op.type in SAME_VALUES or (op.type in (*CONVOLUTIONS, *PRODUCTS) and _spared(graph, op)):
        return False
    if op.type in CONVOLUTIONS or op.type == "prior_box":
        return scaled
    if op.type == "concat":
        return _out(graph, op) in known
    both = len(uses) == 2 or op.type == "pool2d"
    return scaled and both and (op.type in PRODUCTS or _out(graph, op) in known)


def _spared(graph: Graph, op: Op) -> bool:
    """MarkSkipQuantizedOps: without `quantization_type`, an op that reads from an op of another kind is spared."""
    if "quantization_type" in op.attrs:
        return False
    writers = (graph.writer(graph.read(op, slot, index)) for slot, index, _ in op.reads())
    return any(writer is not None and "quantize" not in writer.type for writer in writers)


def _is_simulated(graph: Graph, op: Op, simulated: set[Use]) -> bool:
    uses = activations(graph, op)
    if uses and simulated.issuperset(uses):
        return True
    moves = op.type in SAME_VALUES or (op.type == "pool2d" and op.attr("pooling_type") == "max")
    out = _out(graph, op)
    if not moves or out is None:
        return False
    readers = [use for use in graph.uses(out) if graph.by_uid[use.op].type not in DATA_SLOTS]
    behind = [ref for use in graph.uses(out) if (ref := data_out(graph, graph.by_uid[use.op])) is not None]
    return not readers and bool(behind) and any(simulated & set(graph.uses(_end(graph, ref))) for ref in behind)


def _end(graph: Graph, ref: ValueRef) -> ValueRef:
    while True:
        outs = [out for op in graph.readers(ref) if (out := data_out(graph, op)) is not None]
        if len(outs) != 1:
            return ref
        ref = outs[0]


def _out(graph: Graph, op: Op) -> ValueRef | None:
    slot = next((s for s in ("Out", "Output") if op.output(s)), None)
    return graph.written(op, slot) if slot is not None else None


def _follows(graph: Graph, op: Op, chosen: set[int]) -> bool:
    writers = (graph.writer(root(graph, graph.read(op, use.slot, use.index))) for use in activations(graph, op))
    return any(writer is not None and writer.uid in chosen for writer in writers)


def _feeds(graph: Graph, op: Op, chosen: set[int]) -> bool:
    readers = real_readers(graph, op)
    return bool(readers) and all(reader.uid in chosen for reader in readers)
