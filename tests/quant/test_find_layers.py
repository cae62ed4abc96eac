"""Layers: found in float and quantized models alike, named by their weights."""

from __future__ import annotations

import pytest
from support.build import Builder
from support.corpus import corpus
from support.quantized import quantized, residual_net, written_by_paddle

from qpass.errors import QuantError, UsageError
from qpass.formats.files import load
from qpass.ir.graph import ValueRef
from qpass.ir.op import Attr
from qpass.quant.layers import DEFAULT_OP_TYPES, families, find_layers, select


def names(model, op_types=None):
    return [layer.name for layer in find_layers(model, op_types)]


def test_families_and_axes():
    layers = find_layers(residual_net())
    assert [(layer.name, layer.family, layer.axis) for layer in layers] == [
        ("conv2d_0.w_0", "conv2d", 0),
        ("depthwise_conv2d_0.w_0", "depthwise_conv2d", 0),
        ("conv2d_1.w_0", "conv2d", 0),
        ("linear_0.w_0", "matmul", 1),
        ("linear_1.w_0", "matmul", 1),
    ]


@pytest.mark.parametrize("name", ["mul", "matmul", "matmul_v2"])
def test_products_are_one_family(name):
    assert names(residual_net(), [name]) == ["linear_0.w_0", "linear_1.w_0"]


def test_default_op_types_are_all_families():
    assert families(DEFAULT_OP_TYPES) == families(None)


def test_an_op_type_without_weights_is_refused():
    with pytest.raises(UsageError, match=r"op type 'conv2'.*\n.*nearest are conv2d"):
        find_layers(residual_net(), ["conv2"])


def test_a_shared_weight_is_one_layer_with_all_its_ops():
    b = Builder().feed("x", [-1, 4, 8, 8]).conv2d(4)
    model = b.relu().conv2d(4, weight="conv2d_0.w_0").model()
    (layer,) = find_layers(model)
    uids = [op.uid for op in model.graph.ops if op.type == "conv2d"]
    assert [op.uid for op in layer.ops] == uids
    assert [(op.weight.op, op.weight.slot, op.activation.slot, op.output.slot) for op in layer.ops] == [
        (uid, "Filter", "Input", "Output") for uid in uids
    ]


def test_the_product_of_two_activations_is_no_layer():
    b = Builder().feed("x", [4, 4])
    b.declare("y", [4, 4]).op("matmul_v2", {"X": "x", "Y": "x"}, {"Out": "y"})
    assert names(b.model()) == []


@pytest.mark.parametrize(
    ("kind", "shape", "attrs", "axis"),
    [
        ("matmul_v2", (4, 3), {"trans_y": Attr.bool(True)}, 0),
        ("matmul", (4, 3), {"transpose_Y": Attr.bool(True)}, 0),
        ("matmul", (3, 4), {"transpose_Y": Attr.bool(False)}, 1),
        ("matmul_v2", (2, 3, 4), {}, None),
    ],
)
def test_axis_of_products(kind, shape, attrs, axis):
    b = Builder().feed("x", [2, 3])
    b.param("w", shape)
    b.declare("y", [2, 4]).op(kind, {"X": "x", "Y": "w"}, {"Out": "y"}, attrs)
    assert find_layers(b.model())[0].axis == axis


def test_axis_of_transposed_convolutions():
    b = Builder().feed("x", [2, 3, 4, 4])
    b.param("w", (3, 5, 2, 2))
    b.param("v", (5, 1, 2, 2))
    b.declare("y", [2, 5, 8, 8]).op("conv2d_transpose", {"Input": "x", "Filter": "w"}, {"Output": "y"})
    b.declare("z", [2, 5, 16, 16]).op("depthwise_conv2d_transpose", {"Input": "y", "Filter": "v"}, {"Output": "z"})
    layers = find_layers(b.model())
    assert [(layer.family, layer.axis) for layer in layers] == [("conv2d_transpose", 1), ("conv2d_transpose", 0)]


@pytest.mark.parametrize("encoding", ["B", "D"])
def test_quantized_models_have_the_layers_of_their_originals(encoding):
    model = residual_net()
    before, after = find_layers(model), find_layers(quantized(model, encoding=encoding))
    assert [(a.name, a.family, a.axis) for a in after] == [(a.name, a.family, a.axis) for a in before]
    assert all(layer.weight == ValueRef(layer.name, 0) for layer in after)


@pytest.mark.parametrize("kind", ["a", "b", "t", "c"])
def test_what_paddle_quantized_has_the_layers_of_its_original(kind):
    expected = names(written_by_paddle("float"))
    assert expected == ["conv2d_0.w_0", "conv2d_1.w_0", "linear_0.w_0"]
    assert [name.split("_deepcopy")[0] for name in names(written_by_paddle(kind))] == expected


def test_layers_of_real_models():
    assert len(names(load(corpus("models/ppocr_cls")))) == 54
    assert len(names(load(corpus("models/ppocr_cls_qat")))) == 54
    assert len(names(load(corpus("models/ppocr_det_v3_qat")))) == 74
    assert len(names(load(corpus("models/ppocr_det_v3_qat")), ["conv2d", "depthwise_conv2d", "mul"])) == 72


def test_select():
    layers = find_layers(residual_net())
    assert [layer.name for layer in select(layers, ["linear_0.w_0", "conv2d_0.w_0", "linear_0.w_0"])] == [
        "conv2d_0.w_0",
        "linear_0.w_0",
    ]
    with pytest.raises(QuantError, match=r"no layer 'linear_0' among the 5 layers.*\n.*linear_0\.w_0"):
        select(layers, ["linear_0"])
    with pytest.raises(QuantError, match="layers are named by their weight parameter"):
        select(layers, ["?"])
