"""The functions of the public interface that combine several layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from qpass import passes
from qpass.deploy import spelled_for
from qpass.errors import UsageError
from qpass.ir.model import Model
from qpass.quant.encodings import find_sites
from qpass.quant.layers import DEFAULT_OP_TYPES
from qpass.quant.points import find_points
from qpass.quant.presets import find_target
from qpass.quant.recipe import Recipe
from qpass.quant.scales import ScaleTable, key


def check_float(model: Model) -> None:
    """Refuse a model that holds quantization sites.

    Raises
    ------
    UsageError
        What can be done with it instead.
    """
    if sites := find_sites(model):
        raise UsageError(
            f"the model is quantized already: {len(sites)} sites, the first of encoding {sites[0].encoding}",
            where=model.source.program,
            hint="its ranking comes from analyze_qat; the pass strip-quant makes it a float model, "
            "fold-quant{to=int8} stores its weights as int8",
        )


def quantize(
    model: Model,
    scales: ScaleTable,
    *,
    skip_tensor_list: Sequence[str] = (),
    op_types: Sequence[str] = DEFAULT_OP_TYPES,
    weight_bits: int = 8,
    activation_bits: int = 8,
    target: str | None = None,
) -> Model:
    """Quantize every layer but the skipped ones; weights are stored as int8 (encoding B).

    Parameters
    ----------
    model : Model
        A float model.
    scales : ScaleTable
        What `calibrate` found for it.
    skip_tensor_list : sequence of str
        Layers, by weight name, that stay in float.
    op_types : sequence of str
        Op types to quantize; `mul`, `matmul` and `matmul_v2` count as one family.
    weight_bits, activation_bits : int
        2 to 8; weights are stored as int8.
    target : {None, "onednn", "tensorrt", "lite", "generic"}
        An engine to write for: its op types where `op_types` says nothing else, its encoding and its marks; sums that
        it computes in one with a layer where `scales` has scales for them. Calibrate and pass the model that
        `qpass.deploy.prepared_for` makes; `qpass.post_training.post_training_quantize` does all of it.

    Raises
    ------
    UsageError
        If the model is quantized already, or there is no such target, or it does not take these bits.
    QuantError
        If a skipped layer does not exist, or the table lacks a tensor.
    """
    check_float(model)
    recipe = Recipe(op_types=tuple(op_types), weight_bits=weight_bits, activation_bits=activation_bits)
    if target is not None:
        recipe = _for_target(model, scales, target, recipe)
    inserted = passes.InsertQuant(
        scales=scales,
        skip=tuple(skip_tensor_list),
        op_types=recipe.op_types,
        activation_op_types=recipe.activation_op_types,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
    )(model)
    return passes.FoldQuant(to="int8")(inserted) if target is None else spelled_for(inserted, target)


def _for_target(model: Model, scales: ScaleTable, target: str, recipe: Recipe) -> Recipe:
    """The recipe with the op types of a target; its sums only where the table has scales for them."""
    preset = find_target(target)
    preset.check_bits(recipe.weight_bits, "weight_bits")
    preset.check_bits(recipe.activation_bits, "activation_bits")
    op_types = preset.op_types if recipe.op_types == DEFAULT_OP_TYPES else recipe.op_types
    whole = dataclasses.replace(recipe, op_types=op_types, activation_op_types=preset.sums)
    observed = {key(model.graph, ref) for ref in find_points(model, whole).observed}
    return whole if observed <= scales.activations.keys() else dataclasses.replace(whole, activation_op_types=())
