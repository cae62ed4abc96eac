"""`qpass.calibrate` and `qpass.quantize` with a recipe: the same as flat arguments, and more."""

from __future__ import annotations

import numpy as np
import pytest
from support.quantized import residual_net

from qpass import Override, Recipe, ScaleTable, calibrate, quantize, to_bytes
from qpass.errors import QuantError, UsageError
from qpass.quant.encodings import find_sites
from qpass.quant.layers import find_layers
from qpass.quant.points import find_points
from qpass.quant.recipe import FULL_OP_TYPES
from qpass.quant.site import Role, Storage
from qpass.quant.weight_observers import weight_scale

MODEL = residual_net()
IMAGES = np.random.default_rng(5).standard_normal((8, 3, 8, 8)).astype(np.float32)


def calibrated(recipe: Recipe, **options: object) -> ScaleTable:
    return calibrate(MODEL, [IMAGES], recipe=recipe, **options)  # type: ignore[arg-type]


def test_flat_arguments_are_a_recipe() -> None:
    table = calibrate(MODEL, [IMAGES], op_types=("conv2d",))
    flat = quantize(MODEL, table, op_types=("conv2d",), weight_bits=6, skip_tensor_list=("conv2d_1.w_0",))
    recipe = Recipe(op_types=("conv2d",), weight_bits=6, skip=("conv2d_1.w_0",))
    assert to_bytes(flat) == to_bytes(quantize(MODEL, table, recipe=recipe))
    assert calibrated(recipe).activations == table.activations


def test_a_table_has_what_the_recipe_needs_whatever_it_skips() -> None:
    recipe = Recipe(activation_op_types=FULL_OP_TYPES, outputs=True, skip=("conv2d_.*",))
    table = calibrated(recipe)
    whole = Recipe(activation_op_types=FULL_OP_TYPES, outputs=True)
    assert set(table.activations) == {ref.name for ref in find_points(MODEL, whole).observed}
    assert set(table.weights) == {layer.name for layer in find_layers(MODEL)}
    quantize(MODEL, table, recipe=whole)
    with pytest.raises(QuantError, match=r"no threshold for it.*the nearest is") as caught:
        quantize(MODEL, calibrated(Recipe()), recipe=whole)
    assert "calibrate this model with the same" in str(caught.value)


def test_weights_are_calibrated_for_their_own_bits() -> None:
    recipe = Recipe(overrides=(Override("conv2d_0.w_0", 3),))
    table = calibrated(recipe, weight_algo="channel_wise_mse")
    for layer in find_layers(MODEL):
        bits = 3 if layer.name == "conv2d_0.w_0" else 8
        weight = MODEL.params[layer.name]
        expected = weight_scale(weight, layer.axis, layer.name, algo="channel_wise_mse", bits=bits)
        np.testing.assert_array_equal(table.weights[layer.name], expected)


def test_weights_of_more_than_8_bits_stay_simulated() -> None:
    recipe = Recipe(overrides=(Override("conv2d_0.w_0", 12, 16),))
    made = quantize(MODEL, calibrated(recipe), recipe=recipe)
    stored = {site.value.name: site.storage for site in find_sites(made) if site.role is Role.WEIGHT}
    assert stored.pop("conv2d_0.w_0") is Storage.FLOAT
    assert set(stored.values()) == {Storage.INT}


def test_one_weight_at_two_widths_is_stored_for_none_of_them() -> None:
    from support.build import Builder

    b = Builder().feed("x", [-1, 4])
    weight = b.param("shared.w_0", (4, 4))
    model = b.matmul(4, weight=weight).unary("relu").matmul(4, weight=weight).model()
    recipe = Recipe(overrides=(Override("x", 12),))
    table = calibrate(model, [IMAGES[0, 0, :, :4]], recipe=recipe)
    sites = [site for site in find_sites(quantize(model, table, recipe=recipe)) if site.role is Role.WEIGHT]
    assert sorted(site.spec.bits for site in sites) == [8, 12]
    assert {site.storage for site in sites} == {Storage.FLOAT}


@pytest.mark.parametrize("given", [{"weight_bits": 4}, {"activation_bits": 4}, {"op_types": ("mul",)}])
def test_arguments_given_twice_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="given twice"):
        quantize(MODEL, calibrated(Recipe()), recipe=Recipe(), **given)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="values are given too"):
        calibrated(Recipe(), values=())


def test_the_skip_lists_of_both_count() -> None:
    recipe = Recipe(skip=("conv2d_0.w_0",))
    made = quantize(MODEL, calibrated(recipe), recipe=recipe, skip_tensor_list=(r"linear_\d.w_0",))
    left = {site.value.name for site in find_sites(made) if site.role is Role.WEIGHT}
    assert left == {"depthwise_conv2d_0.w_0", "conv2d_1.w_0"}


@pytest.mark.parametrize("bits", [4, 16])
def test_a_target_refuses_overrides_that_its_engine_cannot_run(bits: int) -> None:
    recipe = Recipe(overrides=(Override("conv2d_0.w_0", bits),))
    with pytest.raises(UsageError, match=r"override conv2d_0\.w_0"):
        quantize(MODEL, calibrated(recipe), recipe=recipe, target="onednn")
