"""Recipes and skip lists: what they choose in small nets, what is tied, what a skipped op keeps, what is refused."""

from __future__ import annotations

import dataclasses

import pytest
from support.build import Builder

from qpass.errors import QPassError, QuantError, UsageError
from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.passes import InsertQuant, StripQuant
from qpass.quant.encodings import find_sites
from qpass.quant.layers import find_layers
from qpass.quant.points import Points, find_points
from qpass.quant.recipe import FULL_OP_TYPES, Override, Recipe
from qpass.quant.scales import ScaleTable, key
from qpass.quant.site import Role
from qpass.quant.skip import check_skipped, unskipped
from qpass.quant.weight_observers import weight_scale


def net() -> Model:
    """Two convolutions of one value, joined, pooled, multiplied by a weight, and by itself."""
    b = Builder().feed("x", [-1, 3, 8, 8]).relu()
    source = b.current
    b.conv2d(4)
    left = b.current
    b.at(source).conv2d(4)
    right = b.current
    b.declare("joined", [-1, 8, 8, 8]).op("concat", {"X": [left, right]}, {"Out": "joined"}, {"axis": Attr.int(1)})
    b.at("joined").pool2d("avg", whole=True).flatten().matmul(5)
    return b.model()


def scaled(model: Model, points: Points) -> ScaleTable:
    """Absolute maxima of weights; for the nth value that is observed, n."""
    weights = {s.value.name: s for s in points.sites if s.role is Role.WEIGHT}
    return ScaleTable(
        activations={key(model.graph, ref): float(n) for n, ref in enumerate(points.observed, 1)},
        weights={name: weight_scale(model.params[name], s.spec.axis, name) for name, s in weights.items()},
        weight_axes={name: s.spec.axis for name, s in weights.items()},
    )


def inserted(recipe: Recipe, **options: object) -> tuple[Model, Points, ScaleTable]:
    model = net()
    table = scaled(model, find_points(model, dataclasses.replace(recipe, skip=())))
    insert = InsertQuant(
        scales=table,
        activation_op_types=recipe.activation_op_types,
        skip=recipe.skip,
        overrides=tuple(str(each) for each in recipe.overrides),
        outputs=recipe.outputs,
        **options,  # type: ignore[arg-type]
    )
    assert insert.recipe == recipe
    return insert(model), find_points(model, recipe), table


FULL = Recipe(activation_op_types=FULL_OP_TYPES)


def readers(model: Model) -> set[str]:
    """Types of the ops that read quantized activations."""
    sites = (site for site in find_sites(model) if site.role is Role.ACTIVATION and not site.observer_only)
    return {model.graph.by_uid[use.op].type for site in sites for use in site.uses}


def test_ops_without_weights_come_in_by_their_types() -> None:
    assert readers(inserted(Recipe())[0]) == {"conv2d", "matmul_v2"}
    assert readers(inserted(Recipe(activation_op_types=("pool2d",)))[0]) == {"conv2d", "matmul_v2", "pool2d"}
    assert readers(inserted(FULL)[0]) >= {"conv2d", "matmul_v2", "pool2d", "concat", "relu"}


def test_one_pair_serves_all_readers_of_a_value() -> None:
    made = inserted(Recipe())[0]
    by_value = [site.value.name for site in find_sites(made) if site.role is Role.ACTIVATION]
    assert len(by_value) == 2
    assert by_value[0] == "relu_0.tmp_0"


def test_what_a_concatenation_joins_shares_the_largest_threshold() -> None:
    made, points, table = inserted(FULL)
    (group,) = points.ties
    assert {ref.name for ref in group} == {"conv2d_0.tmp_0", "conv2d_1.tmp_0", "joined"}
    largest = max(table.activations[ref.name] for ref in group)
    tied = {str(s.value.name): float(s.threshold) for s in find_sites(made) if s.value.name in {r.name for r in group}}
    assert tied == {ref.name: largest for ref in group}


def test_scales_of_outputs_are_observed_or_said() -> None:
    recipe = Recipe(outputs=True)
    made, points, table = inserted(recipe)
    observers = {site.value.name for site in find_sites(made) if site.observer_only}
    assert observers == {"conv2d_0.tmp_0", "conv2d_1.tmp_0"}  # nothing but the fetch reads the product
    said, _, _ = inserted(recipe, encoding="A")
    assert not any(site.observer_only for site in find_sites(said))
    found = {op.attr("out_threshold") for op in said.graph.ops if "out_threshold" in op.attrs}
    assert found == {table.activations[ref.name] for ref in points.outputs}
    assert len(found) == 3


@pytest.mark.parametrize(
    ("entry", "floats"),
    [
        ("conv2d_1.w_0", {"conv2d_1.tmp_0"}),
        ("conv2d_1.tmp_0", {"conv2d_1.tmp_0", "joined"}),
        (r"conv2d_\d\.w_0", {"conv2d_0.tmp_0", "conv2d_1.tmp_0"}),
        ("relu_0.tmp_0", {"relu_0.tmp_0", "conv2d_0.tmp_0", "conv2d_1.tmp_0"}),
        ("joined", {"joined", "pool2d_0.tmp_0"}),
    ],
)
def test_an_entry_means_every_op_with_that_tensor(entry: str, floats: set[str]) -> None:
    recipe = dataclasses.replace(FULL, skip=(entry,), outputs=True)
    made, points, _ = inserted(recipe)
    assert {ref.name for row in points.skipped for ref in row.outputs} == floats
    assert all(row.mention.entry == entry for row in points.skipped)
    check_skipped(made, points.skipped)
    whole = inserted(dataclasses.replace(FULL, outputs=True))[0]
    with pytest.raises(QuantError, match="skipped, but"):
        check_skipped(whole, points.skipped)


def test_a_value_that_a_skipped_op_shares_is_quantized_for_the_others() -> None:
    _, points, _ = inserted(Recipe(skip=("conv2d_1.w_0",)))
    (row,) = points.skipped
    assert (row.stays_float, row.shared) == (("conv2d_1.w_0",), ("relu_0.tmp_0",))
    assert str(row) == (
        "conv2d -> conv2d_1.tmp_0: skipped for its weight conv2d_1.w_0; in float: conv2d_1.w_0; "
        "quantized for other ops only: relu_0.tmp_0"
    )


def test_layers_that_are_skipped_by_any_name_are_not_among_the_unskipped() -> None:
    model = net()
    left = [layer.name for layer in unskipped(model, find_layers(model), ["conv2d_0.tmp_0", r"linear.*"])]
    assert left == ["conv2d_1.w_0"]


def test_overrides_are_for_some_ops_and_the_last_counts() -> None:
    overrides = (Override("conv2d_.*", 4), Override("conv2d_1.w_0", 6, 16))
    made, _, _ = inserted(Recipe(overrides=overrides))
    weights = {s.value.name: s.spec.bits for s in find_sites(made) if s.role is Role.WEIGHT}
    assert weights == {"conv2d_0.w_0": 4, "conv2d_1.w_0": 6, "linear_0.w_0": 8}
    shared = sorted(s.spec.bits for s in find_sites(made) if s.value.name == "relu_0.tmp_0")
    assert shared == [8, 16]


@pytest.mark.parametrize("text", ["a:w4", "a:a16", "conv2d_1.*:w4a16", "x:y:w8"])
def test_overrides_are_read_as_they_are_written(text: str) -> None:
    assert str(Override.parse(text)) == text


def test_stripping_takes_everything_back() -> None:
    recipe = dataclasses.replace(FULL, outputs=True, overrides=(Override("conv2d_1.w_0", 6, 16),))
    assert StripQuant()(inserted(recipe)[0]) == net()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Recipe(op_types=("conv3d",)), UsageError, "has no quantizable weight"),
        (lambda: Recipe(activation_op_types=("poold",)), UsageError, "the nearest are pool2d"),
        (lambda: Recipe(weight_bits=17), QuantError, "expected 2 to 16"),
        (lambda: Override("a"), QuantError, "it says no bits"),
        (lambda: Override("a", 1), QuantError, "expected 2 to 16"),
        (lambda: Override.parse("a:b4"), UsageError, "NAME:w4, NAME:a16 or NAME:w4a16"),
        (lambda: find_points(net(), Recipe(skip=("conv2d_0.w_1",))), QuantError, "the nearest are conv2d_0.w_0"),
        (lambda: find_points(net(), Recipe(skip=("(",))), QuantError, "by name (no regular expression)"),
        (lambda: find_points(net(), Recipe(overrides=(Override("nothing", 4),))), QuantError, "override nothing:w4"),
    ],
)
def test_what_cannot_be_is_refused(make: object, error: type[QPassError], words: str) -> None:
    assert callable(make)
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value)
