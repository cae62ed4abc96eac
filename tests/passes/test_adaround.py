"""AdaRound: what the pass promises about outputs, integers, encodings and other readers."""

from __future__ import annotations

import numpy as np
import pytest
from support.build import Builder
from support.infer import infer
from support.quantized import quantized, residual_net, table

from qpass.errors import QuantError
from qpass.ir.model import Model
from qpass.passes import AdaRound, ConvertEncoding, FoldQuant, InsertQuant
from qpass.quant.adaround import rounding_loss
from qpass.quant.encodings import find_sites
from qpass.quant.fakequant import quantize
from qpass.quant.layers import find_layers
from qpass.quant.moments import LayerMoments, MomentTable
from qpass.quant.products import to_rows
from qpass.quant.site import Role
from qpass.rewrite.edit import edit
from qpass.runtime.moments import collect_moments

ONE_LAYER = {
    "conv2d": lambda: Builder(seed=7).feed("x", [-1, 4, 8, 8]).conv2d(6, stride=2).model(),
    "depthwise": lambda: Builder(seed=7).feed("x", [-1, 4, 8, 8]).depthwise_conv2d().model(),
    "matmul": lambda: Builder(seed=7).feed("x", [-1, 20]).matmul(6).model(),
}


def batch(model: Model, count: int = 16) -> np.ndarray:
    """Inputs as behind a relu: correlated, and no less than 0."""
    random, shape = np.random.default_rng(1), [count, *model.feeds[0].shape[1:]]
    return np.maximum(random.normal(size=shape) + random.normal(size=(count, *[1] * (len(shape) - 1))), 0).astype("f4")


def levels(model: Model) -> dict[str, np.ndarray]:
    """The integers that plain rounding gives now."""
    sites = [site for site in find_sites(model) if site.role is Role.WEIGHT]
    return {s.value.name: quantize(model.params[s.value.name], s.threshold, s.spec) for s in sites}


@pytest.mark.parametrize("kind", ONE_LAYER)
def test_the_loss_is_the_error_of_the_output_that_paddle_computes(kind):
    model = ONE_LAYER[kind]()
    x = batch(model)
    moments = collect_moments(model, [x], engine="executor")
    nearest = InsertQuant(table(model), weight_bits=4, activations=False)(model)
    chosen = AdaRound(moments)(nearest)
    true = infer(model, {"x": x})[0]
    errors = [((infer(m, {"x": x})[0] - true) ** 2).sum() for m in (nearest, chosen)]
    positions = true.size // true.shape[1]
    layer = find_layers(model)[0]
    op = model.graph.by_uid[layer.ops[0].uid]
    for made, error in zip((nearest, chosen), errors, strict=True):
        stored = to_rows(FoldQuant("float")(made).params[layer.name].astype(np.float64), op)
        rows = to_rows(model.params[layer.name].astype(np.float64), op)
        second = moments.layers[layer.name].second
        assert second is not None
        loss = rounding_loss(stored, rows, np.ones(rows.shape), second).sum()
        assert np.isclose(loss * positions, error, rtol=1e-3)  # outputs and moments are sums in float32
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("encoding", ["B", "D"])
def test_stored_integers_are_the_chosen_ones_in_every_encoding(encoding):
    model = residual_net()
    moments = collect_moments(model, [batch(model)], engine="executor")
    rounded = AdaRound(moments)(quantized(model, weight_bits=4, encoding=encoding))
    chosen, plain = levels(rounded), levels(quantized(model, weight_bits=4, encoding=encoding))
    assert any(not np.array_equal(chosen[name], plain[name]) for name in plain)
    assert all(np.abs(chosen[name].astype(int) - plain[name]).max() <= 1 for name in plain)
    folded = FoldQuant()(rounded)
    assert all(np.array_equal(folded.params[name], ints) for name, ints in chosen.items())
    x = batch(model)
    assert np.array_equal(infer(rounded, {"x": x})[0], infer(folded, {"x": x})[0])
    other = ConvertEncoding(to="D" if encoding == "B" else "B")(rounded)
    assert all(np.array_equal(FoldQuant()(other).params[name], ints) for name, ints in chosen.items())
    assert AdaRound(moments)(rounded) is rounded
    assert AdaRound(moments)(folded) is folded


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_thresholds_that_follow_from_the_weight_stay(bits):
    model = Builder(seed=7).feed("x", [-1, 20]).matmul(200).model()
    moments = collect_moments(model, [batch(model, 64)], engine="executor")
    inserted = quantized(model, weight_bits=bits, encoding="D")
    rounded = AdaRound(moments)(inserted)
    before, after = (
        next(site.threshold for site in find_sites(m) if site.role is Role.WEIGHT) for m in (inserted, rounded)
    )
    assert np.array_equal(before, after)
    assert not np.array_equal(levels(rounded)["linear_0.w_0"], levels(inserted)["linear_0.w_0"])


def test_only_chosen_layers_and_nothing_in_a_float_model():
    model = residual_net()
    moments = collect_moments(model, [batch(model)], engine="executor")
    inserted = quantized(model, weight_bits=4)
    made = AdaRound(moments, layers=("conv2d_1.w_0",))(inserted)
    assert [n for n in model.params if not np.array_equal(made.params[n], inserted.params[n])] == ["conv2d_1.w_0"]
    assert AdaRound(moments)(model) is model


def test_a_table_in_a_file_does_the_same(tmp_path):
    model = residual_net()
    moments = collect_moments(model, [batch(model)], engine="executor")
    moments.save(tmp_path / "moments.npz")
    inserted = quantized(model, weight_bits=4)
    first, second = AdaRound(moments)(inserted), AdaRound(str(tmp_path / "moments.npz"))(inserted)
    assert all(np.array_equal(first.params[n], second.params[n]) for n in first.params)


def test_readers_of_the_float_weight_keep_it():
    b = Builder(seed=7).feed("x", [-1, 20]).matmul(20)
    y = b.current
    b.declare("sum", [-1, 20]).op("mul", {"X": "x", "Y": "linear_0.w_0"}, {"Out": "sum"})
    model = b.add(y).model()
    x = batch(model)
    moments = collect_moments(model, [x], engine="executor")
    inserted = InsertQuant(table(model), weight_bits=4, activations=False)(model)
    pair = inserted.graph.ops[-3]
    with edit(inserted) as e:  # let `mul` read the float weight
        assert pair.type == "mul"
        e.rewire(pair, "Y", 0, "linear_0.w_0")
    made = AdaRound(moments)(e.model)
    assert np.array_equal(made.params["linear_0.w_0"], model.params["linear_0.w_0"])
    assert not np.array_equal(made.params["linear_0.w_0.rounded"], model.params["linear_0.w_0"])
    assert [op.input("Y")[0] for op in made.graph.ops if op.type == "mul"] == ["linear_0.w_0"]


def test_channels_of_zeros_stay_zeros():
    model = ONE_LAYER["conv2d"]()
    weight = np.array(model.params["conv2d_0.w_0"])
    weight[2] = 0
    model = model.replaced(params=model.params.replaced({"conv2d_0.w_0": weight}))
    moments = collect_moments(model, [batch(model)], engine="executor")
    made = AdaRound(moments)(InsertQuant(table(model), weight_bits=4, activations=False)(model))
    assert (made.params["conv2d_0.w_0"][2] == 0).all()


def test_wrong_moments_are_refused():
    model = ONE_LAYER["conv2d"]()
    inserted = quantized(model, weight_bits=4)
    good = collect_moments(model, [batch(model)], engine="executor").layers["conv2d_0.w_0"]
    assert good.second is not None
    cases = {
        "not of this one": {},
        "no second moments": {"conv2d_0.w_0": LayerMoments(good.mean, good.output)},
        "those of another weight": {"conv2d_0.w_0": LayerMoments(good.mean, 2 * good.output, good.second)},
        r"moments of \[1, 35\] inputs and 6 outputs, expected \[1, 36\] and 6": {
            "conv2d_0.w_0": LayerMoments(good.mean[:, 1:], good.output, good.second[:, 1:, 1:])
        },
    }
    for said, layers in cases.items():
        with pytest.raises(QuantError, match=said) as caught:
            AdaRound(MomentTable(layers))(inserted)
        assert "conv2d_0.w_0" in str(caught.value)
        assert caught.value.hint
    with pytest.raises(QuantError, match="there is no layer"):
        AdaRound(MomentTable({}), layers=("conv2d_9.w_0",))(inserted)
    with pytest.raises(QuantError, match="no_such"):
        AdaRound("no_such.npz")(inserted)
