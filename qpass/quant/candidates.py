"""`Candidate`: an op of a model that could be quantized, whatever the recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qpass.ir.dtype import DType
from qpass.ir.graph import Graph, Use, ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Op
from qpass.ir.schema import ACTIVATION_OPERANDS, EMBEDDINGS, PURE
from qpass.quant.layers import Layer, find_weights, is_param, root
from qpass.quant.scales import key


@dataclass(frozen=True)
class Candidate:
    """An op with what of it could be quantized.

    Parameters
    ----------
    op : Op
    layer : Layer or None
        The layer that it is part of, or the embedding; None for an op without a weight.
    weight : Use or None
        The operand that is the weight.
    activations : tuple of Use
        The operands that are quantized besides.
    outputs : tuple of ValueRef
        What it makes, in its main slot.
    """

    op: Op
    layer: Layer | None
    weight: Use | None
    activations: tuple[Use, ...]
    outputs: tuple[ValueRef, ...]


def find_candidates(model: Model) -> tuple[Candidate, ...]:
    """The ops of the root block that could be quantized, in program order.

    An op without a weight is one when all its operands in the slots of `ACTIVATION_OPERANDS` are float32 and depend on
    the inputs of the model: sums with a bias, and whatever else has a constant for an operand, stay as they are.
    """
    graph = model.graph
    parts = {op.uid: (layer, op) for layer in find_weights(model) for op in layer.ops}
    constant = _constants(graph)
    made = []
    for op in graph.ops:
        if op.uid in parts:
            layer, part = parts[op.uid]
            activations = () if op.type in EMBEDDINGS else (part.activation,)
            made.append(Candidate(op, layer, part.weight, activations, _outputs(graph, op, part.output.slot)))
        elif op.type in ACTIVATION_OPERANDS:
            slots, out = ACTIVATION_OPERANDS[op.type]
            uses = tuple(Use(op.uid, slot, index) for slot, index, _ in op.reads() if slot in slots)
            refs = [graph.read(op, use.slot, use.index) for use in uses]
            if refs and all(is_float(graph, ref) and ref not in constant for ref in refs):
                made.append(Candidate(op, None, None, uses, _outputs(graph, op, out)))
    return tuple(made)


def is_float(graph: Graph, ref: ValueRef) -> bool:
    """Whether `ref` is a float32 tensor by its declaration."""
    decl = graph.decls.get(ref.name)
    return decl is not None and decl.kind == "tensor" and decl.dtype is DType.FLOAT32


def names_of(graph: Graph, candidate: Candidate) -> Iterator[tuple[str, str]]:
    """The names by which a candidate goes, each with what is called so: ``weight``, ``input`` or ``output``."""
    if candidate.layer is not None:
        yield candidate.layer.name, "weight"
    for use in candidate.activations:
        ref = root(graph, graph.read(candidate.op, use.slot, use.index))
        yield from ((name, "input") for name in dict.fromkeys((ref.name, key(graph, ref))))
    for ref in candidate.outputs:
        yield from ((name, "output") for name in dict.fromkeys((ref.name, key(graph, ref))))


def _outputs(graph: Graph, op: Op, wanted: str) -> tuple[ValueRef, ...]:
    return tuple(graph.written(op, slot, index) for slot, index, _ in op.writes() if slot == wanted)


def _constants(graph: Graph) -> frozenset[ValueRef]:
    """Values that are the same in every run: parameters, and what pure ops make of nothing else."""
    found: set[ValueRef] = set()
    for op in graph.ops:
        refs = [graph.read(op, slot, index) for slot, index, _ in op.reads()]
        found.update(ref for ref in refs if is_param(graph, ref))
        if op.type in PURE and all(ref in found for ref in refs):
            found.update(graph.written(op, slot, index) for slot, index, _ in op.writes())
    return frozenset(found)
