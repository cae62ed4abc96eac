"""What ConvertEncoding refuses, and in which words."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from support.build import Builder
from support.corpus import corpus
from support.infer import infer
from support.quantized import quantized, residual_net, table

from qpass.errors import PassError, QuantError
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.passes import ConvertEncoding, InsertQuant, parse_passes
from qpass.quant.scales import ScaleTable

IMAGES = {"x": np.random.default_rng(7).standard_normal((4, 3, 8, 8)).astype(np.float32)}


@pytest.mark.parametrize(
    ("options", "to", "says"),
    [
        ({"activations": False}, "A", r"only the weight of this conv2d is quantized.*\n.*quantize both"),
        ({"weights": False}, "A", r"only the activation of this conv2d is quantized"),
    ],
)
def test_encoding_a_needs_weight_and_activation(options, to, says):
    with pytest.raises(QuantError, match=says):
        ConvertEncoding(to)(quantized(residual_net(), **options))
    with pytest.raises(QuantError, match=says):
        quantized(residual_net(), encoding="A", **options)


def test_encoding_a_scales_nothing_but_products():
    model = quantized(residual_net())
    conv = next(op for op in model.graph.ops if op.type == "depthwise_conv2d")
    ops = tuple(op.with_attrs(fuse_relu=Attr.bool(True)) if op is conv else op for op in model.graph.ops)
    model = model.replaced(graph=dataclasses.replace(model.graph, ops=ops))
    with pytest.raises(QuantError, match="depthwise_conv2d does more than multiply"):
        ConvertEncoding("A")(model)


def test_encoding_d_computes_its_own_thresholds():
    model = residual_net()
    scales = table(model)
    weights = {**scales.weights, "linear_0.w_0": scales.weights["linear_0.w_0"] * 1.5}
    made = InsertQuant(ScaleTable(scales.activations, weights, scales.weight_axes))(model)
    with pytest.raises(QuantError, match=r"linear_0.*do not reach the highest level.*\n.*use encoding B"):
        ConvertEncoding("D")(made)
    np.testing.assert_array_equal(infer(ConvertEncoding("C")(made), IMAGES)[0], infer(made, IMAGES)[0])
    # One threshold for the whole weight is stored: any will do.
    scales = table(model, per_channel=False)
    weights = {**scales.weights, "linear_0.w_0": scales.weights["linear_0.w_0"] * 1.5}
    made = InsertQuant(ScaleTable(scales.activations, weights, scales.weight_axes))(model)
    np.testing.assert_array_equal(infer(ConvertEncoding("D")(made), IMAGES)[0], infer(made, IMAGES)[0])


def with_param(model: Model, word: str, change) -> Model:
    name = next(n for n in model.params if word in n)
    return model.replaced(params=model.params.replaced({name: change(model.params[name])}))


def test_pairs_that_are_no_fake_quantization():
    model = quantized(residual_net(), encoding="C")
    with pytest.raises(QuantError, match=r"activation 'x': quantized at scale 6, dequantized at 3\n.*one scale"):
        ConvertEncoding("B")(with_param(model, "x@quantize_scale", lambda a: 2 * a))
    with pytest.raises(QuantError, match=r"zero point is not 0"):
        ConvertEncoding("D")(with_param(model, "x@dequantize_zero_point", lambda a: a + 1))
    with pytest.raises(QuantError, match=r"activation 'x': its scale is no finite parameter"):
        ConvertEncoding("B")(
            with_param(
                with_param(model, "x@quantize_scale", lambda a: a * np.nan), "x@dequantize_scale", lambda a: a * np.nan
            )
        )
    with pytest.raises(QuantError, match=r"weight 'conv2d_0.w_0': expected integers of 8 bits"):
        ConvertEncoding("B")(with_param(model, "conv2d_0.w_0", lambda a: a + np.float32(0.25)))


def test_thresholds_that_only_a_run_finds():
    b = Builder().feed("x", [-1, 4])
    b.declare("q", [-1, 4]).declare("s", [1])
    b.op("fake_quantize_dequantize_abs_max", {"X": "x"}, {"Out": "q", "OutScale": "s"}, {"bit_length": Attr.int(8)})
    model = b.at("q").matmul(3).model()
    with pytest.raises(QuantError, match=r"known only when the model runs\n.*calibrate"):
        ConvertEncoding("B")(model)


def test_programs_without_parameters():
    model = load(corpus("graphs/ch_PP-OCRv3_rec_slim_infer.pdmodel"), structure_only=True)
    with pytest.raises(QuantError, match="known only when the model runs"):
        ConvertEncoding("B")(model)


def test_wrong_options():
    with pytest.raises(PassError, match="encoding 'E', expected one of A, B, C, D"):
        ConvertEncoding("E")
    with pytest.raises(QuantError, match="no layer 'nope'"):
        ConvertEncoding("B", ("nope",))(quantized(residual_net(), encoding="D"))
    float_model = residual_net()
    assert ConvertEncoding("B")(float_model) is float_model
    assert parse_passes("convert-encoding{to=B layers=a,b}") == (ConvertEncoding("B", ("a", "b")),)
