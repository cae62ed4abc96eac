"""The two engines give the same numbers, on real models and on small programs, in any mode of the process."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from support.build import Builder
from support.corpus import corpus
from support.strategies import runnable_models

from qpass.formats.files import load
from qpass.ir.dtype import DType
from qpass.ir.graph import ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.runtime.engines import get_engine
from qpass.runtime.inference import PaddleInferenceEngine

FLOAT = {
    "ppocr_cls": (2, 3, 48, 192),
    "ppocr_det_v3": (1, 3, 64, 64),
    "mobilenetv3_small_x0_35": (1, 3, 64, 64),
    "resnet8_cifar10": (8, 3, 32, 32),
}


def smooth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Seeded pictures in [-1, 1] without single-pixel noise: each sample a sum of few waves."""
    random = np.random.default_rng(seed)
    n, c, h, w = shape
    y, x = np.mgrid[0:h, 0:w]
    waves = [
        np.sin(
            random.uniform(0.02, 0.3, (n, c, 1, 1)) * x
            + random.uniform(0.02, 0.3, (n, c, 1, 1)) * y
            + random.uniform(0, 6, (n, c, 1, 1))
        )
        for _ in range(4)
    ]
    return (sum(waves) / 4).astype(np.float32)


def both(model: Model, feed: dict[str, np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return get_engine("inference").session(model).run(feed), get_engine("executor").session(model).run(feed)


def logits(model: Model) -> list[ValueRef]:
    """What enters the last softmax or sigmoid: that would hide, or blow up, differences."""
    op = model.graph.writer(model.graph.last(model.fetches[0].name))
    while op is not None and op.type not in ("softmax", "sigmoid"):
        op = model.graph.writer(model.graph.read(op, "X"))
    assert op is not None
    return [model.graph.read(op, "X")]


@pytest.mark.parametrize("name", FLOAT)
def test_float_models(name: str) -> None:
    model = load(corpus(f"models/{name}/inference.pdmodel"))
    x = smooth(FLOAT[name])
    feed = {model.feeds[0].name: (x + 1) * np.float32(127) if name == "resnet8_cifar10" else x}
    for fetch in (None, logits(model)):
        a, b = (get_engine(engine).session(model, fetch).run(feed)[0] for engine in ("inference", "executor"))
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        # float32 with reordered sums and folded batch norms: 1e-5 of the largest logit, and as much in the exponent
        # of an output, none of which exceeds 32 here
        tolerance = 1e-5 if fetch else 32e-5
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize(("name", "shape"), [("ppocr_cls_qat", (10, 3, 48, 192)), ("ppocr_det_v3_qat", (4, 3, 64, 64))])
def test_fake_quantized_models(name: str, shape: tuple[int, ...]) -> None:
    model = load(corpus(f"models/{name}/inference.pdmodel"))
    feed, fetch = {"x": smooth(shape)}, logits(model)
    reference = get_engine("executor").session(model, fetch).run(feed)[0].reshape(shape[0], -1)
    fast = get_engine("inference").session(model, fetch).run(feed)[0].reshape(shape[0], -1)
    # A difference of one ulp before a fake-quant op can flip a rounding, and one flip spreads over its whole sample:
    # that sample then says nothing. Samples do not mix, so an engine that computes something else would spoil all of
    # them; what is asked is that at least half agree to 1e-5.
    errors = np.abs(fast - reference).max(axis=1) / np.abs(reference).max()
    assert (errors < 1e-5).mean() >= 0.5, errors


def test_without_onednn_and_passes_the_engines_are_bit_equal() -> None:
    model = load(corpus("models/ppocr_cls_qat/inference.pdmodel"))
    feed = {"x": smooth((2, 3, 48, 192))}
    plain = PaddleInferenceEngine(onednn=False, passes=False).session(model).run(feed)[0]
    np.testing.assert_array_equal(plain, get_engine("executor").session(model).run(feed)[0])


@settings(max_examples=12)
@given(runnable_models())
def test_small_programs(model: Model) -> None:
    random = np.random.default_rng(0)
    feed = {
        port.name: random.standard_normal([2 if d == -1 else d for d in port.shape]).astype(np.float32)
        for port in model.feeds
    }
    fast, reference = both(model, feed)
    for a, b in zip(fast, reference, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(b).max(initial=0))))


def folded_twice(case: str) -> Model:
    """Two convolutions, each before a batch norm, that share something Paddle folds the batch norms into in place."""
    b = Builder().feed("x", [-1, 4, 6, 6])
    if case == "weight":
        return b.conv2d(4).batch_norm().relu().conv2d(4, weight="conv2d_0.w_0").batch_norm().model()
    if case == "computed weight":
        w = b.param("w", (4, 4, 3, 3))
        b.declare("w2", [4, 4, 3, 3]).op("assign", {"X": w}, {"Out": "w2"}).at("x")
        return b.conv2d(4, weight="w2").batch_norm().relu().conv2d(4, weight="w2").batch_norm().model()
    b.conv2d(4).batch_norm()
    first = next(op for op in b.model().graph.ops if op.type == "batch_norm")
    second = first.with_input("X", 0, "conv2d_1.tmp_0").with_output("Y", 0, "y")
    b = Builder().feed("x", [-1, 4, 6, 6]).conv2d(4).batch_norm().relu().conv2d(4).declare("y", [-1, 4, 6, 6])
    return b.op("batch_norm", dict(second.inputs), dict(second.outputs), second.attrs).at("y").model()


@pytest.mark.parametrize("case", ["weight", "computed weight", "batch norm"])
def test_shared_constants_are_not_folded_twice(case: str) -> None:
    x = np.random.default_rng(1).standard_normal((2, 4, 6, 6)).astype(np.float32)
    fast, reference = both(folded_twice(case), {"x": x})
    np.testing.assert_allclose(fast[0], reference[0], rtol=0, atol=1e-5 * np.abs(reference[0]).max())


def quantized(declared: DType) -> Model:
    """Linear layer in format B: int8 weight, coarse activation scale, as Paddle's PTQ writes it."""
    b = Builder().feed("x", [-1, 4])
    scale, zero = b.param("x.scale", np.float32([12.7])), b.param("x.zero", np.int32([0]))
    attrs = {"quant_axis": Attr.int(-1), "bit_length": Attr.int(8), "round_type": Attr.int(0)}
    b.declare("x.q", [-1, 4]).declare("x.dq", [-1, 4]).declare("w.dq", [4, 3])
    b.op("quantize_linear", {"X": "x", "Scale": scale, "ZeroPoint": zero}, {"Y": "x.q"}, {**attrs, **TEST})
    b.op("dequantize_linear", {"X": "x.q", "Scale": scale, "ZeroPoint": zero}, {"Y": "x.dq"}, {**attrs, **TEST})
    weight = b.param("w", np.arange(-60, 60, 10, dtype=np.int8).reshape(4, 3))
    ws, wz = b.param("w.scale", np.float32([127, 254, 63.5])), b.param("w.zero", np.int32([0, 0, 0]))
    b.op(
        "dequantize_linear",
        {"X": weight, "Scale": ws, "ZeroPoint": wz},
        {"Y": "w.dq"},
        {**attrs, **TEST, "quant_axis": Attr.int(1)},
    )
    b.declare("y", [-1, 3])
    b.op(
        "matmul_v2",
        {"X": "x.dq", "Y": "w.dq"},
        {"Out": "y"},
        {"trans_x": Attr.bool(False), "trans_y": Attr.bool(False)},
    )
    model = b.model()
    if declared is DType.INT8:
        return model
    decls = {**model.graph.decls, "w": dataclasses.replace(model.graph.decls["w"], dtype=declared)}
    return model.replaced(graph=dataclasses.replace(model.graph, decls=decls))


TEST = {"is_test": Attr.bool(True), "only_observer": Attr.bool(False)}


@pytest.mark.parametrize("declared", [DType.INT8, DType.FLOAT32])
def test_quantize_dequantize_pairs_stay_in_force(declared: DType) -> None:
    # scale 12.7 is a step of 0.1: every input below lies off the grid, so dropping the pair would show
    x = np.float32([[0.26, -1.04, 3.33, 0.0], [0.12, 0.17, -0.93, 20.0]])
    grid = np.clip(np.rint(x / 0.1), -128, 127) * 0.1
    w = np.arange(-60, 60, 10).reshape(4, 3) * np.array([127, 254, 63.5]) / 127
    for outputs in both(quantized(declared), {"x": x}):
        np.testing.assert_allclose(outputs[0], grid @ w, rtol=1e-5, atol=1e-4)
        assert np.abs(outputs[0] - x @ w).max() > 1


@pytest.mark.parametrize("name", ["inference", "executor"])
def test_any_mode_and_it_is_restored(name: str) -> None:
    import paddle

    model = Builder().feed("x", [-1, 4]).relu().model()
    x = np.float32([[-1, 0, 2, 3]])
    assert paddle.in_dynamic_mode()
    dynamic = get_engine(name).session(model).run({"x": x})[0]
    assert paddle.in_dynamic_mode()
    assert float(paddle.to_tensor([2.0]).sum()) == 2.0
    paddle.enable_static()
    try:
        static = get_engine(name).session(model).run({"x": x})[0]
        assert not paddle.in_dynamic_mode()
    finally:
        paddle.disable_static()
    np.testing.assert_array_equal(dynamic, np.maximum(x, 0))
    np.testing.assert_array_equal(static, dynamic)


@pytest.mark.parametrize("name", ["inference", "executor"])
def test_outputs_belong_to_the_caller(name: str) -> None:
    session = get_engine(name).session(Builder().feed("x", [-1, 2]).relu().model())
    first = session.run({"x": np.float32([[1, 2]])})[0]
    session.run({"x": np.float32([[5, 6], [7, 8]])})
    np.testing.assert_array_equal(first, [[1, 2]])
    assert (session.feed_names, session.fetch_names) == (("x",), ("relu_0.tmp_0",))
