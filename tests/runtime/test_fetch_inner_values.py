"""Fetching values of the root block: inner ones, overwritten ones, feeds, parameters, outputs."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from support.build import Builder
from support.corpus import corpus

from qpass.errors import EngineError
from qpass.formats.files import load
from qpass.ir.graph import ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.runtime.engines import get_engine
from qpass.runtime.inference import OneDNNWarning, PaddleInferenceEngine, PredictorSession
from qpass.runtime.targets import targets

ENGINES = ["inference", "executor"]
NO_VALUES = ("XShape", "SavedMean", "SavedVariance", "MeanOut", "VarianceOut")


def in_place() -> Model:
    """``t = relu(x); t = t * 2 (in place); t = t + w (in place)``."""
    b = Builder().feed("x", [-1, 3]).declare("t", [-1, 3])
    b.op("relu", {"X": "x"}, {"Out": "t"})
    scale = {"scale": Attr.float(2.0), "bias": Attr.float(0.0), "bias_after_scale": Attr.bool(True)}
    b.op("scale", {"X": "t"}, {"Out": "t"}, scale)
    weight = b.param("w", np.float32([10, 20, 30]))
    return b.op("elementwise_add", {"X": "t", "Y": weight}, {"Out": "t"}, {"axis": Attr.int(-1)}).at("t").model()


@pytest.mark.parametrize("engine", ENGINES)
def test_overwritten_names_feeds_parameters_and_repeats(engine: str) -> None:
    x = np.float32([[-1, 2, 3]])
    relu = np.maximum(x, 0)
    expected = {
        ValueRef("x", 1): x,
        ValueRef("w", 0): np.float32([10, 20, 30]),
        ValueRef("t", 1): relu,
        ValueRef("t", 2): 2 * relu,
        ValueRef("t", 3): 2 * relu + [10, 20, 30],
    }
    model = in_place()
    refs = [*expected, ValueRef("t", 1), ValueRef("x", 1)]
    session = get_engine(engine).session(model, refs)
    assert session.fetch_names == ("x", "w", "t@1", "t@2", "t", "t@1", "x")
    for _ in range(2):
        found = session.run({"x": x})
        for ref, array in zip(refs, found, strict=True):
            np.testing.assert_array_equal(array, expected[ref])
        found[0][:] = 99  # the caller's own: neither the next run nor the other copies may see it
        found[1][:] = 99
        np.testing.assert_array_equal(found[-1], x)
    assert model.fetches == in_place().fetches


@pytest.mark.parametrize("engine", ENGINES)
def test_only_feeds_and_parameters(engine: str) -> None:
    session = get_engine(engine).session(in_place(), [ValueRef("w", 0), ValueRef("x", 1)])
    w, x = session.run({"x": np.float32([[4, 5, 6]])})
    np.testing.assert_array_equal(w, [10, 20, 30])
    np.testing.assert_array_equal(x, [[4, 5, 6]])


@pytest.mark.parametrize("engine", ENGINES)
def test_an_output_that_is_an_input(engine: str) -> None:
    model = Builder().feed("x", [-1, 3]).relu().fetch("x", "relu_0.tmp_0").model()
    x = np.float32([[-1, 0, 1]])
    found = get_engine(engine).session(model).run({"x": x})
    np.testing.assert_array_equal(found[0], x)
    np.testing.assert_array_equal(found[1], np.maximum(x, 0))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ref", [ValueRef("nothing", 0), ValueRef("t", 9), ValueRef("t", 0)])
def test_values_that_do_not_exist(engine: str, ref: ValueRef) -> None:
    with pytest.raises(EngineError, match=f"no op of the root block computes {ref}"):
        get_engine(engine).session(in_place(), [ref])


@pytest.mark.parametrize(("name", "shape"), [("ppocr_cls", (1, 3, 48, 192)), ("resnet8_cifar10", (2, 3, 32, 32))])
def test_every_value_of_a_real_model(name: str, shape: tuple[int, ...]) -> None:
    # Among them: values between batch norm and activation, and reshaped parameters, on which framework passes fail
    model = load(corpus(f"models/{name}/inference.pdmodel"))
    graph = model.graph
    refs = [
        graph.written(op, slot, i)
        for op in graph.ops
        for slot, i, _ in op.writes()
        if op.type != "fetch" and slot not in NO_VALUES
    ]
    x = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    feed = {model.feeds[0].name: x}
    reference = get_engine("executor").session(model, refs).run(feed)
    for ref, a, b in zip(refs, get_engine("inference").session(model, refs).stream(feed), reference, strict=True):
        assert a.shape == b.shape, ref
        # float32, other order of sums: 1e-5 of the largest number of the tensor
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max(), err_msg=str(ref))


def test_a_constant_alone() -> None:
    model = load(corpus("models/resnet8_cifar10/inference.pdmodel"))
    graph = model.graph
    fed = graph.downstream({op.uid for op in graph.ops if op.type == "feed"})
    constant = next(op for op in graph.ops if op.type == "reshape2" and op not in fed)
    value = graph.written(constant, "Out")
    found = get_engine("inference").session(model, [value]).run({"image": np.zeros((1, 3, 32, 32), np.float32)})[0]
    np.testing.assert_array_equal(found.ravel(), model.params[constant.input("X")[0]].ravel())


def test_the_fetched_sum_of_a_bias_and_a_1x1_plane() -> None:
    # oneDNN refuses it in 3.3.1: the engine goes on without oneDNN
    model = load(corpus("models/ppocr_cls/inference.pdmodel"))
    graph = model.graph
    add = next(op for op in graph.ops if op.type == "elementwise_add" and op.input("Y") == ("conv2d_3.b_0",))
    refs = [graph.read(add, "X")]
    feed = {"x": np.random.default_rng(0).uniform(0, 1, (2, 3, 48, 192)).astype(np.float32)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OneDNNWarning)
        found = get_engine("inference").session(model, refs).run(feed)[0]
    reference = get_engine("executor").session(model, refs).run(feed)[0]
    np.testing.assert_allclose(found, reference, rtol=0, atol=1e-5 * np.abs(reference).max())


@pytest.mark.parametrize("when", ["made", "run"])
def test_a_predictor_that_fails_with_onednn_is_replaced_by_one_without(when: str) -> None:
    model = Builder().feed("x", [-1, 2]).relu().model()
    plain = PaddleInferenceEngine(onednn=False)
    tried: list[bool] = []

    class Broken:
        def get_input_handle(self, name: str) -> object:
            raise RuntimeError("could not create a primitive")

    def build(model: Model, onednn: bool) -> object:
        tried.append(onednn)
        if onednn and when == "made":
            raise RuntimeError("could not create a primitive")
        return Broken() if onednn else plain._predictor(model, False)

    def run_twice() -> list[np.ndarray]:
        session = PredictorSession(targets(model, None), build, onednn=True)
        return [session.run({"x": np.float32([row])})[0] for row in ([-1, 1], [2, -2])]

    with pytest.warns(OneDNNWarning, match="could not create a primitive"):
        found = run_twice()
    np.testing.assert_array_equal(found, [[[0, 1]], [[2, 0]]])
    assert tried == [True, False]
