"""Embedding lookups: their weights are quantized by rows, their indices are left alone."""

from __future__ import annotations

import numpy as np
import pytest
from support.build import Builder
from support.infer import infer

from qpass import Recipe, calibrate, find_layers, quantize, to_bytes
from qpass.errors import UsageError
from qpass.ir.dtype import DType
from qpass.ir.model import Model
from qpass.ir.op import Attr, AttrKind
from qpass.options import QuantOptions
from qpass.passes import InsertQuant, StripQuant
from qpass.post_training import post_training_quantize
from qpass.quant.encodings import find_sites
from qpass.quant.fakequant import fake_quantize
from qpass.quant.spec import QuantSpec

WORDS = np.random.default_rng(0).integers(0, 10, (8, 4))
OP_TYPES = ("mul", "lookup_table_v2")


def net() -> Model:
    b = Builder(seed=1).feed("ids", [-1, 4], DType.INT64)
    inputs = {"W": b.param("words.w_0", (10, 6)), "Ids": "ids"}
    b.declare("looked_up", [-1, 4, 6])
    b.op("lookup_table_v2", inputs, {"Out": "looked_up"}, {"padding_idx": Attr(AttrKind.LONG, -1)})
    return b.flatten().matmul(5).model()


def test_weights_are_rounded_by_rows() -> None:
    model = net()
    table = calibrate(model, [WORDS], recipe=Recipe(op_types=OP_TYPES))
    assert table.weights["words.w_0"].shape == (10,)
    assert list(table.activations) == ["flatten_0.tmp_0"]
    made = quantize(model, table, recipe=Recipe(op_types=("lookup_table_v2",)))
    assert made.params["words.w_0"].dtype == np.int8
    assert made.params["linear_0.w_0"].dtype == np.float32
    rows = fake_quantize(model.params["words.w_0"], np.abs(model.params["words.w_0"]).max(1), QuantSpec(8, 0))
    judge = model.replaced(params=model.params.replaced({"words.w_0": rows}))
    # The int8 weight times scale / 127 in another order of operations: a few units in the last place.
    np.testing.assert_allclose(infer(made, {"ids": WORDS})[0], infer(judge, {"ids": WORDS})[0], rtol=0, atol=1e-6)


def test_they_are_stripped_one_by_one() -> None:
    model = net()
    recipe = Recipe(op_types=OP_TYPES)
    made = InsertQuant.of(calibrate(model, [WORDS], recipe=recipe), recipe)(model)
    assert {site.value.name for site in find_sites(made)} == {"words.w_0", "flatten_0.tmp_0", "linear_0.w_0"}
    rest = StripQuant(("words.w_0",))(made)
    assert {site.value.name for site in find_sites(rest)} == {"flatten_0.tmp_0", "linear_0.w_0"}
    assert to_bytes(StripQuant()(made)) == to_bytes(model)


def test_the_whole_way_by_options() -> None:
    made = post_training_quantize(net(), [WORDS], QuantOptions(op_types=OP_TYPES, skip=("linear_0.w_0",)))
    assert made.layers == ("words.w_0",)
    assert [row.op for row in made.skipped] == ["matmul_v2"]


def test_they_are_no_layers_of_an_analysis() -> None:
    assert [layer.name for layer in find_layers(net())] == ["linear_0.w_0"]
    with pytest.raises(UsageError, match="lookup_table_v2"):
        find_layers(net(), OP_TYPES)
