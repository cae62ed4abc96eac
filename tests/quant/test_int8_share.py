"""How much of a model runs in int8: against counts by hand, and against the engine's own plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.build import Builder
from support.commands import qpass as command
from support.corpus import corpus
from support.onednn import calibrated, conv, image
from support.quantized import quantized

import qpass
from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.passes import ConvertEncoding, FoldBatchNorm, FoldBias, LegalizeOnednn, MarkSkipQuant
from qpass.quant.int8_share import int8_share
from qpass.runtime.onednn_plan import onednn_plan


def gated() -> Model:
    """Two convolutions, a gate in float, a convolution."""
    b = conv(image().relu()).relu()
    h = b.current
    gate = conv(b, seed=1).unary("sigmoid").current
    b.at(h).declare("gated", b.shape(h)).op("elementwise_mul", {"X": h, "Y": gate}, {"Out": "gated"})
    return calibrated(conv(b, seed=2).model())


def test_counts_by_hand() -> None:
    share = int8_share(gated())
    one = 8 * 8 * 8 * 8  # 8 channels of 8 x 8 places, each of 8 products
    assert (share.macs, share.int8_macs, share.unknown) == (3 * one, 3 * one, 0)
    assert (share.layers, share.int8_layers) == (3, 3)
    assert (share.quantized, share.dequantized) == (2, 2)
    assert share.float_between == ("elementwise_mul", "relu")


@pytest.mark.parametrize(("kind", "expected"), [("matmul_v2", 16 * 6), ("mul", 16 * 6)])
def test_products_count_their_weights(kind: str, expected: int) -> None:
    model = calibrated(Builder().feed("x", [-1, 16]).matmul(6, kind=kind).model())
    share = int8_share(model)
    assert (share.macs, share.int8_macs, share.int8_layers) == (expected, 0, 0)  # no fc without a bias


def test_depthwise_and_strided_convolutions() -> None:
    model = quantized(Builder().feed("x", [-1, 3, 8, 8]).conv2d(4, stride=2).depthwise_conv2d().model())
    assert int8_share(model).macs == 4 * 4 * 4 * 3 * 9 + 4 * 4 * 4 * 9


def test_shapes_that_the_program_does_not_say() -> None:
    model = quantized(Builder().feed("x", [-1, 3, -1, -1]).conv2d(4).model())
    share = int8_share(model)
    assert (share.macs, share.unknown) == (0, 1)


def test_what_is_not_fused() -> None:
    b = Builder().feed("x", [-1, 3, 8, 8]).conv2d(4)
    out, bias = b.current, b.param("conv2d_0.b_0", (4,))
    b.declare("r.xshape", (0, 4)).declare("r", (1, 4, 1, 1))
    b.op("reshape2", {"X": bias}, {"Out": "r", "XShape": "r.xshape"}, {"shape": Attr.ints((1, -1, 1, 1))})
    b.declare("sum", b.shape(out)).op("elementwise_add", {"X": out, "Y": "r"}, {"Out": "sum"}, {"axis": Attr.int(-1)})
    float_model = b.batch_norm().relu().model()
    share = int8_share(quantized(float_model))
    assert (share.batch_norms, share.reshaped_biases) == (1, 1)
    for made in (FoldBias()(float_model), FoldBatchNorm()(float_model)):
        assert int8_share(quantized(made)).reshaped_biases == 0
    assert int8_share(quantized(FoldBatchNorm()(float_model))).batch_norms == 0


def test_the_engine_s_plan_agrees_on_conversions() -> None:
    qat = qpass.load(corpus("models/ppocr_cls_qat"))
    for model in (gated(), LegalizeOnednn()(MarkSkipQuant()(ConvertEncoding("B")(qat)))):
        plan, share = onednn_plan(model), int8_share(model)
        assert sum(op.int8 and op.weight is not None for op in plan.ops) == share.int8_layers
        assert len(plan.quantized) == share.quantized


def test_inspect_says_so(tmp_path: Path) -> None:
    qpass.save(gated(), tmp_path / "int8")
    text = command("inspect", tmp_path / "int8").out
    assert "in oneDNN's int8 engine: 3 of 3 layers, 100.0% of 0.01229 million multiply-adds a sample" in text
    assert "2 values are quantized and 2 dequantized between its ops; float ops between: elementwise_mul, relu" in text
    body = json.loads(command("inspect", tmp_path / "int8", "--engine", "int8", "--json").out)
    assert body["int8"]["int8_layers"] == 3
    assert body["engine"] == {"int8": {"fused_conv2d": 3}, "float": {"relu": 1, "fused_elementwise_mul": 1}}
    float_model = Builder().feed("x", [-1, 3, 8, 8]).conv2d(4).model()
    qpass.save(float_model, tmp_path / "float")
    assert json.loads(command("inspect", tmp_path / "float", "--json").out)["int8"] is None
    failed = command("inspect", tmp_path / "float", "--engine", "int8")
    assert (failed.code, "not quantized" in failed.err) == (1, True)
