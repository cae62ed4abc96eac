"""CrossLayerEqualization: the function stays, ranges become alike, and pairs are those of the paper."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from support.build import Builder
from support.corpus import corpus
from support.infer import infer
from support.quantized import quantized, residual_net
from support.strategies import models, runnable_models

from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.passes import CrossLayerEqualization, FoldBatchNorm
from qpass.quant.layers import find_layers
from qpass.quant.products import to_rows

CLE = CrossLayerEqualization()


def feed(model: Model, *shape: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    x = scale * np.random.default_rng(0).normal(size=shape)
    return {model.feeds[0].name: x.astype(np.float32)}


@settings(max_examples=20)
@given(model=runnable_models())
def test_paddle_computes_the_same(model: Model) -> None:
    made = CLE(model)
    given_ = feed(model, *[2 if d == -1 else d for d in model.feeds[0].shape])
    for a, b in zip(infer(model, given_), infer(made, given_), strict=True):
        # Two roundings a weight, over at most a handful of layers whose terms may cancel.
        assert np.abs(a - b).max() <= 1e-4 * max(np.abs(a).max(), 1.0)
    assert CLE(made) is made


@given(model=models())
def test_any_valid_program_is_taken(model: Model) -> None:
    made = CLE(model)
    assert made.blocks == model.blocks


@pytest.mark.parametrize(
    ("name", "shape", "scale", "pairs"),
    [
        ("resnet8_cifar10", (4, 3, 32, 32), 60, 3),
        ("ppocr_cls", (2, 3, 48, 192), 1, 15),
        ("ppocr_det_v3", (1, 3, 64, 64), 1, 22),
        ("mobilenetv3_small_x0_35", (1, 3, 64, 64), 1, 15),
    ],
)
def test_real_models_compute_the_same(name, shape, scale, pairs):
    model = FoldBatchNorm()(load(corpus(f"models/{name}/inference.pdmodel")))
    found = CLE.pairs(model)
    assert len(found) == pairs
    assert len(found) + len(CLE.explain(model)) == len(find_layers(model))
    made = CLE(model)
    given_ = feed(model, *shape, scale=scale)
    for a, b in zip(infer(model, given_), infer(made, given_), strict=True):
        # Measured 2e-7 to 2e-5 of the largest output, which for the detector is 4e-8 in the sum of its sigmoids.
        assert np.abs(a - b).max() <= 1e-4 * np.abs(a).max()
    for pair in found:
        first, second = ranges(made, pair.first.name, pair.second.name)
        live = (first > 0) & (second > 0)
        assert np.abs(first[live] / second[live] - 1).max() < 1e-3


def ranges(model: Model, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """Largest absolute weight of each channel between two layers, on either side."""
    layers = {layer.name: model.graph.by_uid[layer.ops[0].uid] for layer in find_layers(model)}
    made = to_rows(model.params[first], layers[first])
    taken = to_rows(model.params[second], layers[second])
    channels = made.shape[0] * made.shape[1]
    by_channel = np.abs(taken).reshape(len(taken), taken.shape[1], channels // len(taken), -1)
    return np.abs(made).max(axis=2).reshape(-1), by_channel.max(axis=(1, 3)).reshape(-1)


def test_two_layers_by_the_formula():
    model = Builder(seed=1).feed("x", [-1, 5]).matmul(4).relu().matmul(3).model()
    w1, w2 = (model.params[n].astype(np.float64) for n in ("linear_0.w_0", "linear_1.w_0"))
    r1, r2 = np.abs(w1).max(axis=0), np.abs(w2).max(axis=1)
    s = np.sqrt(r1 / r2)
    made = CLE(model)
    assert np.allclose(made.params["linear_0.w_0"], w1 / s, rtol=1e-6)
    assert np.allclose(made.params["linear_1.w_0"], w2 * s[:, None], rtol=1e-6)
    assert [str(pair) for pair in CLE.pairs(model)] == ["linear_0.w_0 -> relu -> linear_1.w_0"]


def test_ranges_a_thousand_times_apart_are_made_alike():
    model = Builder(seed=1).feed("x", [-1, 3, 8, 8]).conv2d(4).relu().depthwise_conv2d().relu().conv2d(5, k=1).model()
    weight = model.params["conv2d_0.w_0"] * np.float32([1000, 1, 0.001, 0])[:, None, None, None]
    model = model.replaced(params=model.params.replaced({"conv2d_0.w_0": weight}))
    made = CLE(model)
    given_ = feed(model, 2, 3, 8, 8)
    a, b = infer(model, given_)[0], infer(made, given_)[0]
    assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()
    spread = np.abs(made.params["conv2d_0.w_0"]).max(axis=(1, 2, 3))[:3]
    assert spread.max() / spread.min() < 200  # three layers share what were six orders of magnitude in one
    assert (made.params["conv2d_0.w_0"][3] == 0).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: b.unary("relu6", {"threshold": Attr.float(6.0)}), "relu6 does not keep the scales"),
        (lambda b: b.unary("sigmoid"), "sigmoid does not keep the scales"),
        (lambda b: b.unary("softmax", {"axis": Attr.int(1)}), "softmax does not keep the scales"),
        (lambda b: b.add(b.current), "2 operands read"),
        (lambda b: b.batch_norm(), "batch_norm does not keep the scales"),
        (lambda b: b.pool2d(whole=True).flatten(), "flatten_contiguous_range does not keep the scales"),
        (lambda b: b.fetch(b.current), "2 operands read"),
    ],
)
def test_where_scales_are_not_kept_nothing_happens(change, said):
    b = Builder().feed("x", [-1, 3, 8, 8]).conv2d(4)
    change(b)
    b = b.matmul(3) if len(b.shape()) == 2 else b.conv2d(3)
    model = b.model()
    assert CLE(model) is model
    assert said in str(CLE.explain(model)[0])


def test_quantized_layers_stay():
    model = quantized(residual_net())
    assert CLE(model) is model
    assert any("is quantized" in str(miss) for miss in CLE.explain(model))
