"""The functions of the public interface that combine several layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from qpass import passes
from qpass.deploy import spelled_for, with_stored_weights
from qpass.errors import UsageError
from qpass.ir.model import Model
from qpass.quant.encodings import check_float
from qpass.quant.layers import DEFAULT_OP_TYPES
from qpass.quant.points import find_points
from qpass.quant.presets import find_target
from qpass.quant.recipe import Recipe
from qpass.quant.scales import ScaleTable, key
from qpass.quant.skip import check_skipped


def quantize(
    model: Model,
    scales: ScaleTable,
    *,
    skip_tensor_list: Sequence[str] = (),
    op_types: Sequence[str] = DEFAULT_OP_TYPES,
    weight_bits: int = 8,
    activation_bits: int = 8,
    target: str | None = None,
    recipe: Recipe | None = None,
) -> Model:
    """Quantize every layer but the skipped ones, or what a recipe says; weights are stored as int8 (encoding B).

    Parameters
    ----------
    model : Model
        A float model.
    scales : ScaleTable
        What `calibrate` found for it.
    skip_tensor_list : sequence of str
        What stays in float: weights, activations or outputs by name, or regular expressions; see `qpass.quant.skip`.
    op_types : sequence of str
        Op types to quantize; `mul`, `matmul` and `matmul_v2` count as one family.
    weight_bits, activation_bits : int
        2 to 16; weights of more than 8 stay float behind a pair that quantizes them when the model runs.
    target : {None, "onednn", "tensorrt", "lite", "generic"}
        An engine to write for: its op types where `op_types` says nothing else, its encoding and its marks; sums that
        it computes in one with a layer where `scales` has scales for them. Calibrate and pass the model that
        `qpass.deploy.prepared_for` makes; `qpass.post_training.post_training_quantize` does all of it.
    recipe : Recipe, optional
        In place of `op_types` and bits; `skip_tensor_list` adds to what it skips.

    Raises
    ------
    UsageError
        If the model is quantized already, or there is no such target, or it does not take these bits; if arguments are
        given twice.
    QuantError
        If a name to skip matches nothing, or the table lacks a tensor.
    """
    check_float(model)
    flat = Recipe(op_types=tuple(op_types), weight_bits=weight_bits, activation_bits=activation_bits)
    if recipe is not None and flat != Recipe():
        raise UsageError("op types and bits are given twice", hint="leave them to the recipe")
    recipe = flat if recipe is None else recipe
    recipe = dataclasses.replace(recipe, skip=(*recipe.skip, *skip_tensor_list))
    if target is not None:
        recipe = _for_target(model, scales, target, recipe)
    skipped = find_points(model, recipe).skipped
    inserted = passes.InsertQuant.of(scales, recipe)(model)
    made = with_stored_weights(inserted) if target is None else spelled_for(inserted, target)
    check_skipped(made, skipped)
    return made


def _for_target(model: Model, scales: ScaleTable, target: str, recipe: Recipe) -> Recipe:
    """The recipe with the op types of a target; its sums only where the table has scales for them."""
    whole = find_target(target).fitted(recipe)
    observed = {key(model.graph, ref) for ref in find_points(model, whole).observed}
    if recipe.activation_op_types or observed <= scales.activations.keys():
        return whole
    return dataclasses.replace(whole, activation_op_types=())
