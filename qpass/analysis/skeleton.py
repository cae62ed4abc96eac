"""The skeleton of an analysis: one program of which every variant is a slice, made by the engine's passes once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qpass.errors import QuantError, UsageError
from qpass.ir.model import Model
from qpass.ir.params import same_array
from qpass.passes import ConvertEncoding, DropDebugInfo, FoldBatchNorm, FoldBias, FoldQuant
from qpass.quant.encodings import find_sites
from qpass.quant.layers import Layer, find_layers, root
from qpass.quant.onednn_pairs import with_onednn_pairs
from qpass.quant.toggles import Toggles, find_toggles
from qpass.runtime.engine import Engine
from qpass.runtime.executor import ExecutorEngine
from qpass.runtime.inference import PaddleInferenceEngine
from qpass.runtime.sliced import can_slice, slicing

_ENCODING = "D"  # one op a site: runs in half the time of the pairs of B (ppocr_cls and its QAT twin, 3.3.1)


@dataclass(frozen=True)
class Skeleton:
    """Toggles, and the engine that runs what they make.

    Parameters
    ----------
    toggles : Toggles
    engine : Engine
    """

    toggles: Toggles
    engine: Engine


def find_skeleton(
    quantized: Model, weights: Mapping[str, np.ndarray], layers: Sequence[Layer], engine: Engine, *, fast: bool = False
) -> Skeleton | None:
    """The skeleton of a quantized model; None where variants have to be evaluated as whole models.

    Parameters
    ----------
    quantized : Model
        All layers quantized, in any encoding.
    weights : Mapping[str, np.ndarray]
        By layer: the weight in float.
    layers : sequence of Layer
        The layers to switch, by the names that they have in `quantized`.
    engine : Engine
    fast : bool
        Quantize activations by oneDNN's own pair of ops; see `with_onednn_pairs`.

    Raises
    ------
    EngineError
        If the engine refuses the model.
    UsageError
        If it is to be fast on another engine.
    """
    if fast and not isinstance(engine, PaddleInferenceEngine):
        raise UsageError(f"fast=True is for the engine inference, this is {engine.name}", hint="leave one of them out")
    if not can_slice(engine) or len(quantized.blocks) > 1:
        return None
    try:
        folded = ConvertEncoding(to=_ENCODING)(_fold(quantized))
    except QuantError:
        return None
    folded = DropDebugInfo()(folded)
    wanted = {layer.name: weights[layer.name] for layer in layers}
    if not wanted.keys() <= folded.params.keys():
        return None
    in_float = folded.replaced(params=folded.params.replaced(wanted))
    if not isinstance(engine, ExecutorEngine):  # the executor's slices are to be equal bit for bit
        folded, in_float = (FoldBias()(FoldBatchNorm()(model)) for model in (folded, in_float))
    made = slicing(engine, folded)
    if made is None or not _alike(folded, in_float, wanted):
        return None
    program, runner = made
    if not _same_interface(program, folded):
        return None
    if all(same_array(program.params.get(name, _NOTHING), folded.params[name]) for name in wanted):
        float_params: Mapping[str, np.ndarray] = in_float.params
    else:
        other = slicing(engine, in_float)
        if other is None or not _alike(program, other[0], wanted):
            return None
        float_params = other[0].params
    if not wanted.keys() <= program.params.keys():
        return None
    toggles = find_toggles(program, {name: float_params[name] for name in wanted}, _quantized_operands(folded))
    if toggles is None:
        return None
    if fast:
        toggles = dataclasses.replace(toggles, model=with_onednn_pairs(toggles.model))
    return Skeleton(toggles, runner)


_NOTHING = np.empty(0)


def _fold(model: Model) -> Model:
    """Weights as the floats that they stand for, those of encoding A too, which takes scales out behind the op."""
    if any(site.encoding == "A" for site in find_sites(model)):
        model = ConvertEncoding(to="B")(model)
    return FoldQuant(to="float")(model)


def _alike(a: Model, b: Model, layers: Mapping[str, object]) -> bool:
    """Whether two models differ in the weights of these layers alone."""
    return a.graph.ops == b.graph.ops and all(
        name in layers or same_array(array, b.params[name]) for name, array in a.params.items()
    )


def _same_interface(program: Model, model: Model) -> bool:
    """Whether an engine left inputs and outputs as they were: it drops inputs that nobody reads, and returns once what
    is returned twice.
    """
    return program.feeds == model.feeds and [p.name for p in program.fetches] == [p.name for p in model.fetches]


def _quantized_operands(model: Model) -> Mapping[str, int]:
    """By layer: how many of its operands read quantized activations."""
    graph = model.graph
    counts: dict[str, int] = {}
    for layer in find_layers(model):
        refs = (graph.read(graph.by_uid[op.uid], op.activation.slot, op.activation.index) for op in layer.ops)
        counts[layer.name] = sum(root(graph, ref) != ref for ref in refs)
    return counts
