"""BiasCorrection: the mean output of every channel is the float layer's again."""

from __future__ import annotations

import numpy as np
import pytest
from support.build import Builder
from support.infer import infer
from support.quantized import quantized, residual_net, table

from qpass.errors import QuantError
from qpass.ir.dtype import DType
from qpass.ir.graph import Decl
from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.passes import AdaRound, BiasCorrection, ConvertEncoding, FoldBatchNorm, FoldQuant, InsertQuant
from qpass.quant.moments import LayerMoments, MomentTable
from qpass.rewrite.edit import edit
from qpass.runtime.moments import collect_moments

X = np.random.default_rng(2).uniform(0, 2, size=(16, 4, 8, 8)).astype(np.float32)
# The bias is rounded once to float32 and outputs are float32 sums; measured 1e-7 of the largest output.
TOLERANCE = 2e-6


def biased(kind: str) -> Model:
    """One layer: without a bias, with one, with one behind a reshape, with a scalar, with one that others read."""
    b = Builder(seed=5).feed("x", [-1, 4, 8, 8])
    b = b.depthwise_conv2d() if kind == "depthwise" else b.conv2d(6)
    if kind in ("none", "depthwise"):
        return b.model()
    y, attrs = b.current, {"axis": Attr.int(1)}
    name = b.param("bias", (1,) if kind == "scalar" else (6,))
    if kind == "reshaped":
        b.declare("b4.xshape", [0, 6]).declare("b4", [1, 6, 1, 1])
        b.op("reshape2", {"X": name}, {"Out": "b4", "XShape": "b4.xshape"}, {"shape": Attr.ints((1, -1, 1, 1))})
        name, attrs = "b4", {"axis": Attr.int(-1)}
    b.declare("sum", b.shape(y)).op("elementwise_add", {"X": y, "Y": name}, {"Out": "sum"}, attrs)
    if kind == "shared":
        x = b.current
        b.declare("again", b.shape(x)).op("elementwise_add", {"X": x, "Y": name}, {"Out": "again"}, attrs)
    return b.model()


def means(model: Model) -> np.ndarray:
    return infer(model, {"x": X})[0].astype(np.float64).mean(axis=(0, 2, 3))


@pytest.mark.parametrize("kind", ["none", "depthwise", "plain", "reshaped", "scalar", "shared"])
@pytest.mark.parametrize("encoding", ["A", "B", "D"])
def test_mean_outputs_are_those_of_the_float_model(kind, encoding):
    model = biased(kind)
    moments = collect_moments(model, [X], engine="executor", second=False)
    # Encoding A quantizes activations too: at 16 bits, which adds 3e-5 of the largest output here.
    alone = encoding != "A"
    inserted = InsertQuant(table(model), weight_bits=3, activation_bits=16, activations=not alone)(model)
    if encoding != "B":
        inserted = ConvertEncoding(to=encoding)(inserted)
    corrected = BiasCorrection(moments)(inserted)
    scale = np.abs(infer(model, {"x": X})[0]).max()
    assert np.abs(means(inserted) - means(model)).max() > 0.01 * scale
    assert np.abs(means(corrected) - means(model)).max() <= (TOLERANCE if alone else 1e-4) * scale
    assert corrected.fetches == model.fetches
    if kind in ("plain", "reshaped"):
        assert [op.type for op in corrected.graph.ops] == [op.type for op in inserted.graph.ops]
    if kind == "shared":
        assert np.array_equal(corrected.params["bias"], model.params["bias"])


def test_matrix_products():
    model = Builder(seed=5).feed("x", [-1, 20]).matmul(6).mul(3).model()
    x = X.reshape(16, -1)[:, :20]
    moments = collect_moments(model, [x], engine="executor", second=False)
    inserted = InsertQuant(table(model), weight_bits=3, activations=False, layers=("linear_0.w_0",))(model)
    corrected = BiasCorrection(moments)(inserted)
    true, made = (infer(m, {"x": x})[0].astype(np.float64).mean(axis=0) for m in (model, corrected))
    assert np.abs(made - true).max() <= TOLERANCE * np.abs(true).max()
    assert list(set(corrected.params) - set(inserted.params)) == ["linear_0.w_0.bias"]


def test_folded_weights_are_corrected_alike():
    model = residual_net()
    x = X[:, :3]
    moments = collect_moments(model, [x], engine="executor", second=False)
    inserted = quantized(model, weight_bits=4)
    first, second = FoldQuant()(BiasCorrection(moments)(inserted)), BiasCorrection(moments)(FoldQuant()(inserted))
    assert sorted(first.params) == sorted(second.params)
    assert all(np.array_equal(first.params[name], second.params[name]) for name in first.params)
    assert np.array_equal(infer(first, {"x": x})[0], infer(second, {"x": x})[0])


def test_corrects_what_adaround_left():
    model = biased("plain")
    moments = collect_moments(model, [X], engine="executor")
    rounded = AdaRound(moments)(InsertQuant(table(model), weight_bits=3, activations=False)(model))
    corrected = BiasCorrection(moments)(rounded)
    scale = np.abs(infer(model, {"x": X})[0]).max()
    assert np.abs(means(corrected) - means(model)).max() <= TOLERANCE * scale


def test_the_bias_of_a_folded_batch_norm_is_found():
    model = FoldBatchNorm()(Builder().feed("x", [-1, 4, 8, 8]).conv2d(6).batch_norm().relu().model())
    moments = collect_moments(model, [X], engine="executor", second=False)
    inserted = quantized(model, weight_bits=4)
    corrected = BiasCorrection(moments)(inserted)
    changed = [n for n in inserted.params if not np.array_equal(corrected.params[n], inserted.params[n])]
    assert changed == ["batch_norm_0.b_0"]
    assert len(corrected.graph.ops) == len(inserted.graph.ops)


def test_float_layers_and_others_stay():
    model = residual_net()
    moments = collect_moments(model, [X[:, :3]], engine="executor", second=False)
    assert BiasCorrection(moments)(model) is model
    inserted = quantized(model, layers=("conv2d_0.w_0",))
    assert BiasCorrection(moments, layers=("conv2d_1.w_0",))(inserted) is inserted


def test_what_cannot_be_corrected_is_told():
    model = biased("none")
    inserted = quantized(model)
    with pytest.raises(QuantError, match="not of this one"):
        BiasCorrection(MomentTable({}))(inserted)
    wrong = LayerMoments(np.zeros((1, 36)), np.zeros(5))
    with pytest.raises(QuantError, match="expected \\[1, 36\\] and 6"):
        BiasCorrection(MomentTable({"conv2d_0.w_0": wrong}))(inserted)
    moments = collect_moments(model, [X], engine="executor", second=False)
    output = model.fetches[0].name
    with edit(inserted) as e:
        conv = next(op for op in inserted.graph.ops if op.type == "conv2d")
        e.declare(Decl("other", dtype=DType.FLOAT32, shape=(-1, 6, 8, 8)))
        e.redirect(conv, "Output", 0, "other")
        e.insert(conv.__class__.make("relu", {"X": "other"}, {"Out": "other"}), after=conv)
        e.insert(conv.__class__.make("relu", {"X": "other"}, {"Out": output}), before=inserted.graph.ops[-1])
        e.rewire(inserted.graph.ops[-1], "X", 0, output)
    with pytest.raises(QuantError, match="its output is overwritten"):
        BiasCorrection(moments)(e.model)
