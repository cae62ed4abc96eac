"""The figures of a sweep against the same figures computed by hand, in numpy, from values that the executor fetched."""

from __future__ import annotations

import numpy as np
import pytest

from qpass import demo
from qpass.analysis.ptq import analyze_ptq
from qpass.analysis.qat import analyze_qat, restore_weights
from qpass.analysis.result import AnalysisResult
from qpass.formats.files import load
from qpass.ir.graph import ValueRef
from qpass.ir.model import Model
from qpass.passes import StripQuant
from qpass.quant.encodings import find_sites
from qpass.quant.layers import find_layers
from qpass.runtime.calibrate import calibrate
from qpass.runtime.engines import get_engine

IMAGES = demo.calibration_data()[0]
LAST = "linear_1.w_0"


@pytest.fixture(scope="module")
def digits() -> Model:
    return load(demo.float_prefix())


@pytest.fixture(scope="module")
def quantized() -> Model:
    return load(demo.qat_prefix())


@pytest.fixture(scope="module")
def ptq(digits: Model) -> AnalysisResult:
    return analyze_ptq(digits, [IMAGES], engine="executor")


@pytest.fixture(scope="module")
def qat(digits: Model, quantized: Model) -> AnalysisResult:
    return analyze_qat(quantized, digits, data=[IMAGES], engine="executor")


def fetched(model: Model, *names: str) -> list[np.ndarray]:
    refs = [model.graph.last(name) if not name.endswith("@0") else ValueRef(name, 0) for name in names]
    return get_engine("executor").session(model, refs).run({model.feeds[0].name: IMAGES})


def tail(model: Model, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What the model makes of the input of its last layer: x W + b, softmax; in float64."""
    bias = next(op for op in model.graph.ops if op.type == "softmax").input("X")[0]
    add = model.graph.writer(model.graph.last(bias))
    assert add is not None
    logits = x.astype(np.float64) @ weight.astype(np.float64) + model.params[add.input("Y")[0]]
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def input_of_last(model: Model) -> str:
    layer = next(layer for layer in find_layers(model) if layer.name == LAST)
    return model.graph.by_uid[layer.ops[0].uid].input("X")[0]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def sqnr(reference: np.ndarray, variant: np.ndarray) -> float:
    return float(10 * np.log10((reference**2).sum() / ((variant - reference) ** 2).sum()))


def on_grid(x: np.ndarray, threshold: np.ndarray | float) -> np.ndarray:
    step = np.asarray(threshold, np.float64) / 127
    return np.clip(np.round(x / step), -128, 127) * step


def row(result: AnalysisResult, name: str = LAST):
    return next(r for r in result.rows if r.layer == name)


def test_ptq_of_the_last_layer(digits: Model, ptq: AnalysisResult) -> None:
    name = input_of_last(digits)
    x, expected = fetched(digits, name, digits.fetches[0].name)
    table = calibrate(digits, [IMAGES], engine="executor")
    weight = digits.params[LAST]
    made = tail(digits, on_grid(x, table.activations[name]), on_grid(weight, table.weights[LAST]))
    found = row(ptq)
    assert found.details["sqnr_db"] == pytest.approx(sqnr(expected.astype(np.float64), made), abs=0.01)
    # 1 - cosine is about 1e-7 here, the rounding of float32 outputs about 1e-9 of it
    assert found.sensitivity == pytest.approx(1 - cosine(expected.astype(np.float64), made), rel=0.02)
    assert found.details["activation_threshold"] == table.activations[name]
    assert found.details["weight_absmax"] == np.abs(weight).max()


def test_ptq_ends(digits: Model, ptq: AnalysisResult) -> None:
    assert ptq.baseline == 1.0
    assert ptq.reference is not None
    assert ptq.reference < min(r.metric for r in ptq.rows)
    assert ptq.metric_name == "cosine"
    assert [r.sensitivity for r in ptq.rows] == sorted((1 - r.metric for r in ptq.rows), reverse=True)
    assert sorted(r.layer for r in ptq.rows) == sorted(layer.name for layer in find_layers(digits))


def test_qat_of_the_last_layer(digits: Model, quantized: Model, qat: AnalysisResult) -> None:
    (expected,) = fetched(digits, digits.fetches[0].name)
    layer = next(layer for layer in find_layers(quantized) if layer.name == LAST)
    site = next(s for s in find_sites(quantized) if layer.ops[0].activation in s.uses)
    x, whole = fetched(quantized, site.value.name, quantized.fetches[0].name)
    made = tail(quantized, x, digits.params[LAST])
    reference = expected.astype(np.float64)
    found = row(qat)
    assert qat.baseline == pytest.approx(cosine(reference, whole.astype(np.float64)), abs=1e-9)
    assert found.metric == pytest.approx(cosine(reference, made), abs=1e-8)
    assert found.sensitivity == pytest.approx(found.metric - qat.baseline)
    assert found.details["sqnr_db"] == pytest.approx(sqnr(reference, made), abs=0.01)


def test_qat_with_its_own_weight(digits: Model, quantized: Model) -> None:
    (expected,) = fetched(digits, digits.fetches[0].name)
    layer = next(layer for layer in find_layers(quantized) if layer.name == LAST)
    site = next(s for s in find_sites(quantized) if layer.ops[0].activation in s.uses)
    (x,) = fetched(quantized, site.value.name)
    made = tail(quantized, x, quantized.params[LAST])
    result = analyze_qat(quantized, digits, data=[IMAGES], engine="executor", restore="self", op_types=("mul",))
    assert {r.family for r in result.rows} == {"matmul"}
    assert row(result).metric == pytest.approx(cosine(expected.astype(np.float64), made), abs=1e-8)
    assert row(result).metric != pytest.approx(cosine(expected, tail(quantized, x, digits.params[LAST])), abs=1e-8)


def test_qat_without_a_float_model_compares_with_the_stripped_one(quantized: Model) -> None:
    result = analyze_qat(quantized, None, data=[IMAGES], engine="executor", restore="self", op_types=("mul",))
    (whole,) = fetched(quantized, quantized.fetches[0].name)
    (bare,) = fetched(StripQuant()(quantized), quantized.fetches[0].name)
    assert result.reference == 1.0
    assert result.baseline == pytest.approx(cosine(bare.astype(np.float64), whole.astype(np.float64)), abs=1e-9)


def test_a_known_metric_of_the_quantized_model_is_taken(digits: Model, quantized: Model) -> None:
    result = analyze_qat(quantized, digits, evaluate=demo.accuracy, qat_metric=0.5, op_types=("mul",))
    assert result.baseline == 0.5
    assert all(r.sensitivity == r.metric - 0.5 for r in result.rows)


def test_engines_agree(digits: Model, ptq: AnalysisResult) -> None:
    other = analyze_ptq(digits, [IMAGES], engine="inference")
    for r in ptq.rows:
        assert row(other, r.layer).details["sqnr_db"] == pytest.approx(r.details["sqnr_db"], abs=0.3)


def test_two_runs_give_the_same_bytes(digits: Model, ptq: AnalysisResult) -> None:
    assert analyze_ptq(digits, [IMAGES], engine="executor").to_json() == ptq.to_json()
    assert AnalysisResult.from_json(ptq.to_json()) == ptq


def test_restored_weights_are_the_twins(digits: Model, quantized: Model) -> None:
    names = ["conv2d_0.w_0", LAST]
    stripped = StripQuant(layers=tuple(names))(quantized)
    made = restore_weights(stripped, names, digits, quantized=quantized)
    own = restore_weights(stripped, names, None, restore="self", quantized=quantized)
    assert own is stripped
    for name in (layer.name for layer in find_layers(quantized)):
        expected = digits if name in names else quantized
        np.testing.assert_array_equal(made.params[name], expected.params[name])
