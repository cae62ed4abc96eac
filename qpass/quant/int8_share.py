"""How much of a quantized model Paddle Inference's oneDNN int8 engine computes in int8, told without running it.

A small net gains little where much of its work stays float, where float islands between int8 ops cost a conversion at
each border, or where exporters' forms keep batch norms and biases from being fused, which then run on their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from qpass.ir.graph import Graph, ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Op
from qpass.quant.encoding import data_out
from qpass.quant.layers import Layer, LayerOp, find_layers, root
from qpass.quant.onednn_fusion import (
    ACTIVATIONS,
    CONVOLUTIONS,
    PRODUCTS,
    activations,
    adds_bias,
    real_readers,
    reshaped_bias,
)
from qpass.quant.onednn_placement import quantized_ops

_OUTSIDE = ("feed", "fetch")


@dataclass(frozen=True)
class Int8Share:
    """What runs in int8, and what keeps the rest from it.

    Parameters
    ----------
    layers, int8_layers : int
        Layers with weights, and those of which every op computes in int8.
    macs, int8_macs : int
        Multiply-adds of one sample, and those in int8; layers of unknown shape are left out.
    unknown : int
        Layers whose shape the program does not say.
    quantized, dequantized : int
        Float values that are converted for int8 ops, and values of int8 ops that are converted for float ops.
    float_between : tuple of str
        Types of the float ops that read what int8 ops make and make what int8 ops read, most frequent first.
    batch_norms : int
        Batch norms that no convolution in front takes in.
    reshaped_biases : int
        Biases of convolutions that are added through a reshape, which nothing fuses (`FoldBias`).
    """

    layers: int
    int8_layers: int
    macs: int
    int8_macs: int
    unknown: int
    quantized: int
    dequantized: int
    float_between: tuple[str, ...]
    batch_norms: int
    reshaped_biases: int


def int8_share(model: Model) -> Int8Share:
    """The share of int8 in a quantized model, as `quantized_ops` tells it.

    Parameters
    ----------
    model : Model
        With parameters: scales are among them.
    """
    graph = model.graph
    chosen = {op.uid for op in quantized_ops(model)}
    layers = find_layers(model)
    int8_layers = [layer for layer in layers if chosen.issuperset(use.uid for use in layer.ops)]
    macs = {layer.name: _macs(graph, layer) for layer in layers}
    inside = chosen | {op.uid for uid in chosen for op in _fused(graph, graph.by_uid[uid], chosen)}
    to_int8, to_float = _borders(graph, inside)
    return Int8Share(
        layers=len(layers),
        int8_layers=len(int8_layers),
        macs=sum(n for n in macs.values() if n is not None),
        int8_macs=sum(macs[layer.name] or 0 for layer in int8_layers),
        unknown=sum(n is None for n in macs.values()),
        quantized=len(to_int8),
        dequantized=len(to_float),
        float_between=_between(graph, to_int8, to_float),
        batch_norms=sum(op.type == "batch_norm" and not _is_taken_in(graph, op) for op in graph.ops),
        reshaped_biases=sum(reshaped_bias(graph, op) is not None for op in graph.ops),
    )


def _macs(graph: Graph, layer: Layer) -> int | None:
    counts = [_macs_of(graph, use, layer.family) for use in layer.ops]
    return None if None in counts else sum(n for n in counts if n is not None)


def _macs_of(graph: Graph, use: LayerOp, family: str) -> int | None:
    """Of a convolution: numbers of the output times those of one filter; of a transposed one, of the input."""
    op = graph.by_uid[use.uid]
    weight = graph.decls[root(graph, graph.read(op, use.weight.slot)).name].shape
    name = op.input(use.activation.slot)[0] if family == "conv2d_transpose" else op.output(use.output.slot)[0]
    places = graph.decls[name].shape[1:] if name in graph.decls else ()
    if not weight or not places or min(*places, *weight) < 1:
        return None
    numbers = math.prod(places)
    if family != "matmul":
        return numbers * math.prod(weight[1:])
    return numbers * math.prod(weight) // places[-1]


def _fused(graph: Graph, op: Op, chosen: set[int]) -> Iterator[Op]:
    """Ops behind a convolution or product that become part of it: bias, batch norm, residual sum, activation."""
    while op.type in (*CONVOLUTIONS, *PRODUCTS, "elementwise_add", "batch_norm"):
        behind = real_readers(graph, op)
        if len(behind) != 1:
            return
        op = behind[0]
        if not (op.type in (*ACTIVATIONS, "batch_norm") or adds_bias(graph, op) or op.uid in chosen):
            return
        if op.type in (*CONVOLUTIONS, *PRODUCTS):
            return
        yield op


def _borders(graph: Graph, inside: set[int]) -> tuple[set[ValueRef], set[ValueRef]]:
    to_int8: set[ValueRef] = set()
    to_float: set[ValueRef] = set()
    for op in graph.ops:
        if data_out(graph, op) is not None or op.type in _OUTSIDE[:1]:
            continue
        for use in activations(graph, op):
            value = root(graph, graph.read(op, use.slot, use.index))
            maker = graph.writer(value)
            if maker is None:
                continue
            if op.uid in inside and maker.uid not in inside:
                to_int8.add(value)
            elif op.uid not in inside and maker.uid in inside and op.type not in _OUTSIDE:
                to_float.add(value)
    return to_int8, to_float


def _between(graph: Graph, to_int8: set[ValueRef], to_float: set[ValueRef]) -> tuple[str, ...]:
    makers = [writer.type for value in to_int8 if (writer := graph.writer(value)) is not None]
    counts = {kind: makers.count(kind) for kind in makers if kind not in _OUTSIDE} if to_float else {}
    return tuple(sorted(counts, key=lambda kind: (-counts[kind], kind)))


def _is_taken_in(graph: Graph, op: Op) -> bool:
    writer = graph.writer(root(graph, graph.read(op, "X")))
    return writer is not None and writer.type in CONVOLUTIONS and len(real_readers(graph, writer)) == 1
