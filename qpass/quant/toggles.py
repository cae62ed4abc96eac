"""`Toggles`: one quantized program in which the quantization of every layer can be switched off and on."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from qpass.ir.graph import Graph, Use, ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Op
from qpass.quant.layers import is_param, root

_THRESHOLD_OF_BATCH = frozenset(
    {
        "fake_quantize_abs_max",
        "fake_quantize_dequantize_abs_max",
        "fake_channel_wise_quantize_abs_max",
        "fake_channel_wise_quantize_dequantize_abs_max",
    }
)


@dataclass(frozen=True)
class Switched:
    """Which layers compute quantized, by weight name.

    Parameters
    ----------
    weights, activations : frozenset of str
        Layers whose weight, whose input activation is quantized.
    """

    weights: frozenset[str]
    activations: frozenset[str]

    @classmethod
    def both(cls, layers: Collection[str]) -> Switched:
        """Weights and activations of the same layers."""
        return cls(frozenset(layers), frozenset(layers))


@dataclass(frozen=True)
class Toggles:
    """A program in which every layer is quantized, and what is needed to have any of them in float.

    Parameters
    ----------
    model : Model
        Weights hold the values that quantization leaves of them; the ops that quantize activations are there. May be
        what an engine's passes made of such a model.
    operands : Mapping[str, Mapping[Use, str]]
        By layer: its operands that read quantized activations, and the name of the value in float.
    float_weights : Mapping[str, np.ndarray]
        By layer: its weight in float.
    """

    model: Model
    operands: Mapping[str, Mapping[Use, str]]
    float_weights: Mapping[str, np.ndarray]

    def variant(self, on: Switched) -> Model:
        """The model with these layers quantized and the others in float; what is no layer's stays as it is."""
        bypassed = {
            use: name
            for layer, operands in self.operands.items()
            if layer not in on.activations
            for use, name in operands.items()
        }
        touched = {use.op for use in bypassed}
        graph = self.model.graph
        ops = tuple(_rewired(op, bypassed) if op.uid in touched else op for op in graph.ops)
        restored = {layer: array for layer, array in self.float_weights.items() if layer not in on.weights}
        return self.model.replaced(
            graph=dataclasses.replace(graph, ops=ops), params=self.model.params.replaced(restored)
        )


def find_toggles(model: Model, float_weights: Mapping[str, np.ndarray], quantized: Mapping[str, int]) -> Toggles | None:
    """The toggles of a quantized program; None where a layer cannot be switched on its own.

    Parameters
    ----------
    model : Model
        As in `Toggles`.
    float_weights : Mapping[str, np.ndarray]
        By layer; the parameter has the layer's name.
    quantized : Mapping[str, int]
        By layer: how many of its operands read quantized activations; fewer are found where a pass moved an op between
        them. A layer whose weight others read too is missing: it reads a copy of another name.
    """
    graph = model.graph
    operands: dict[str, dict[Use, str]] = {layer: {} for layer in float_weights}
    for op in graph.ops:
        for layer in [name for _, _, name in op.reads() if name in operands]:
            for slot, index, _ in op.reads():
                ref = graph.read(op, slot, index)
                source = root(graph, ref)
                if source != ref:
                    operands[layer][Use(op.uid, slot, index)] = source.name
                    if not _stands(graph, source, op):
                        return None
    if any(len(operands[layer]) != quantized.get(layer) or layer not in model.params for layer in float_weights):
        return None
    return Toggles(model, operands, dict(float_weights))


def mixes_samples(model: Model) -> bool:
    """Whether an activation is quantized at a threshold taken from the whole batch."""
    graph = model.graph
    return any(
        op.type in _THRESHOLD_OF_BATCH
        and not all(is_param(graph, graph.read(op, "X", i)) for i in range(len(op.input("X"))))
        for op in graph.ops
    )


def _rewired(op: Op, names: Mapping[Use, str]) -> Op:
    for slot, index, _ in op.reads():
        name = names.get(Use(op.uid, slot, index))
        if name is not None:
            op = op.with_input(slot, index, name)
    return op


def _stands(graph: Graph, ref: ValueRef, op: Op) -> bool:
    """Whether the name of `ref` still holds it when `op` runs."""
    overwriter = graph.writer(ValueRef(ref.name, ref.version + 1))
    return overwriter is None or graph.position[overwriter.uid] >= graph.position[op.uid]
