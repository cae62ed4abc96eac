"""Layers: the ops with weights that quantization is about, each named by its weight parameter."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from qpass.errors import QuantError, UsageError
from qpass.ir.graph import Graph, Use, ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Op
from qpass.ir.schema import EMBEDDINGS, FAMILIES, OPERANDS
from qpass.quant.ops import DATA_SLOTS

EMBEDDING = "embedding"
"""Family of the layers of `find_embeddings`."""

DEFAULT_OP_TYPES = ("conv2d", "depthwise_conv2d", "conv2d_transpose", "mul")
"""One op type of every family: all layers."""


class LayerOp(NamedTuple):
    """One op of a layer: its uid, and its weight, activation and output operands."""

    uid: int
    weight: Use
    activation: Use
    output: Use


@dataclass(frozen=True)
class Layer:
    """A weight and the ops that multiply by it.

    Parameters
    ----------
    name : str
        Name of the weight parameter.
    family : str
        ``conv2d``, ``depthwise_conv2d``, ``conv2d_transpose`` or ``matmul``, by its first op.
    ops : tuple of LayerOp
        In program order; more than one where the weight is shared.
    weight : ValueRef
        The parameter.
    axis : int or None
        Output-channel axis of the weight; None where it has none (a matmul weight that is not 2-D).
    """

    name: str
    family: str
    ops: tuple[LayerOp, ...]
    weight: ValueRef
    axis: int | None


def families(op_types: Sequence[str] | None = None) -> frozenset[str]:
    """The families that op types belong to; all for None.

    Raises
    ------
    UsageError
        If an op type is none with weights.
    """
    for name in op_types or ():
        if name not in FAMILIES:
            raise UsageError(
                f"op type {name!r} has no quantizable weight, expected some of {sorted(FAMILIES)}",
                where="op types",
                hint=_near(name, FAMILIES),
            )
    return frozenset(FAMILIES[name] for name in (FAMILIES if op_types is None else op_types))


def find_layers(model: Model, op_types: Sequence[str] | None = None) -> tuple[Layer, ...]:
    """The layers of the root block, in program order of their first ops.

    In a quantized model the weight is found behind its quantize and dequantize ops. An op is part of a layer when its
    weight is a parameter and its activation is not; the product of two activations is none.

    Parameters
    ----------
    model : Model
    op_types : sequence of str, optional
        Op types whose families count; `mul`, `matmul` and `matmul_v2` are one family. None is all.

    Raises
    ------
    UsageError
        If an op type is none with weights.
    """
    wanted, graph = families(op_types), model.graph
    found: dict[ValueRef, list[Op]] = {}
    for op in graph.ops:
        if FAMILIES.get(op.type) in wanted:
            weight = _weight(graph, op)
            if weight is not None:
                found.setdefault(weight, []).append(op)
    return tuple(
        Layer(
            weight.name,
            FAMILIES[ops[0].type],
            tuple(_layer_op(op) for op in ops),
            weight,
            layer_axis(graph, weight, ops[0]),
        )
        for weight, ops in found.items()
    )


def find_embeddings(model: Model) -> tuple[Layer, ...]:
    """The weights of the root block that ops look rows up in; their `activation` operands are indices.

    The axis is that of the rows: each has its scale.
    """
    graph = model.graph
    found: dict[ValueRef, list[LayerOp]] = {}
    for op in graph.ops:
        weight = graph.sole_read(op, EMBEDDINGS[op.type][0]) if op.type in EMBEDDINGS else None
        if weight is not None and is_param(graph, root(graph, weight)):
            slots = (Use(op.uid, slot, 0) for slot in EMBEDDINGS[op.type])
            found.setdefault(root(graph, weight), []).append(LayerOp(op.uid, *slots))
    return tuple(Layer(weight.name, EMBEDDING, tuple(ops), weight, 0) for weight, ops in found.items())


def find_weights(model: Model, op_types: Sequence[str] | None = None) -> tuple[Layer, ...]:
    """Everything with a weight that can be quantized: layers, and embeddings where `op_types` names them.

    Parameters
    ----------
    model : Model
    op_types : sequence of str, optional
        As in `find_layers`, and embedding lookups besides. None is all.

    Raises
    ------
    UsageError
        If an op type is none with weights.
    """
    if op_types is None:
        found = (*find_layers(model), *find_embeddings(model))
    else:
        products = [name for name in op_types if name not in EMBEDDINGS]
        looked_up = find_embeddings(model) if len(products) < len(op_types) else ()
        found = (*find_layers(model, products), *looked_up)
    return tuple(sorted(found, key=lambda layer: model.graph.position[layer.ops[0].uid]))


def select(layers: Sequence[Layer], names: Iterable[str]) -> tuple[Layer, ...]:
    """The layers of these names, in program order.

    Raises
    ------
    QuantError
        If there is no layer of a name; the message shows the nearest names.
    """
    known = {layer.name: layer for layer in layers}
    wanted = dict.fromkeys(names)
    for name in wanted:
        if name not in known:
            raise QuantError(
                f"there is no layer {name!r} among the {len(known)} layers of this model",
                hint=_near(name, known) or "layers are named by their weight parameter; qpass inspect lists them",
            )
    return tuple(layer for layer in layers if layer.name in wanted)


def root(graph: Graph, ref: ValueRef) -> ValueRef:
    """The value that `ref` comes from through quantize and dequantize ops alone."""
    while True:
        op = graph.writer(ref)
        if op is None or op.type not in DATA_SLOTS:
            return ref
        source, target = DATA_SLOTS[op.type]
        before = graph.sole_read(op, source)
        if before is None or graph.sole_written(op, target) != ref:
            return ref
        ref = before


def is_param(graph: Graph, ref: ValueRef) -> bool:
    """Whether `ref` is a parameter as it stands in the file."""
    decl = graph.decls.get(ref.name)
    return ref.version == 0 and decl is not None and decl.persistable and decl.kind == "tensor"


def layer_axis(graph: Graph, weight: ValueRef, op: Op) -> int | None:
    """Output-channel axis of the weight of `op`; None where it has none."""
    # Paddle, static/quantization/utils.py: conv2d_transpose, mul, matmul and matmul_v2 have axis 1, all others 0.
    rank = len(graph.decls[weight.name].shape)
    if FAMILIES[op.type] == "matmul":
        if rank != 2:
            return None
        return 0 if op.attr("trans_y") or op.attr("transpose_Y") else 1
    axis = 1 if op.type == "conv2d_transpose" else 0
    return axis if axis < rank else None


def _weight(graph: Graph, op: Op) -> ValueRef | None:
    weight_slot, activation_slot, _ = OPERANDS[op.type]
    weight, activation = graph.sole_read(op, weight_slot), graph.sole_read(op, activation_slot)
    if weight is None or activation is None:
        return None
    weight = root(graph, weight)
    return weight if is_param(graph, weight) and not is_param(graph, root(graph, activation)) else None


def _layer_op(op: Op) -> LayerOp:
    weight, activation, output = (Use(op.uid, slot, 0) for slot in OPERANDS[op.type])
    return LayerOp(op.uid, weight, activation, output)


def _near(name: str, known: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(name, list(known), 3, 0.5)
    return f"the nearest are {', '.join(close)}" if close else None
