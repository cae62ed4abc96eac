"""Local errors and estimates of a net whose noise can be computed by hand, and of layers made bad on purpose."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from support.build import Builder
from support.planted import shrunk
from support.quantized import residual_net, table

from qpass.analysis.estimate import PROJECTIONS, estimate_layers
from qpass.analysis.gathering import Units
from qpass.analysis.local_error import LocalError, Subject, local_errors
from qpass.errors import UsageError
from qpass.ir.dtype import DType
from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.passes import InsertQuant
from qpass.quant.fakequant import fake_quantize
from qpass.quant.layers import find_layers
from qpass.quant.scales import ScaleTable
from qpass.quant.spec import QuantSpec
from qpass.runtime.replay import Recording

SPEC = QuantSpec(8)
X = np.random.default_rng(2).standard_normal((12, 4)).astype(np.float32)


def linear(outputs: int = 3) -> Model:
    """No step between the layers: what is true to first order is true."""
    return Builder(seed=3).feed("x", [-1, 4]).matmul(6).matmul(outputs).model()


def subject(model: Model, scales: ScaleTable) -> Subject:
    return Subject(InsertQuant(scales=scales)(model), model.params, find_layers(model))


def units(model: Model, x: np.ndarray, size: int) -> Units:
    recording = Recording(model)
    for start in range(0, len(x), size):
        recording.add(recording.checked({model.feeds[0].name: x[start : start + size]}), [])
    return Units(recording, single=True)


def by_hand(model: Model, scales: ScaleTable) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By layer of `linear`: the float output of its op and the change of it, in float64."""
    found = {}
    x = X
    for layer in find_layers(model):
        op = model.graph.by_uid[layer.ops[0].uid]
        weight, threshold = model.params[layer.name], scales.activations[op.input("X")[0]]
        spec = QuantSpec(8, scales.weight_axes[layer.name])
        noisy = fake_quantize(x, threshold, SPEC).astype(np.float64) @ fake_quantize(
            weight, scales.weights[layer.name], spec
        )
        exact = x.astype(np.float64) @ weight
        found[layer.name] = exact, noisy - exact
        x = exact.astype(np.float32)
    return found


def test_two_layers_by_hand() -> None:
    model = linear()
    scales = table(model, threshold=1.5)
    errors = local_errors(subject(model, scales), ["linear_0.w_0", "linear_1.w_0"], lambda: [{"x": X}], 1 << 20)
    x = X
    for name, (exact, noise) in by_hand(model, scales).items():
        error = errors[name]
        assert error.signal == pytest.approx(np.square(exact).sum(), rel=1e-5)
        assert error.noise == pytest.approx(np.square(noise).sum(), rel=1e-3)
        assert error.sqnr_db == pytest.approx(10 * np.log10(np.square(exact).sum() / np.square(noise).sum()), abs=0.01)
        op = next(op for op in model.graph.ops if name in op.input("Y"))
        threshold = scales.activations[op.input("X")[0]]
        beyond = np.clip(np.abs(x) - threshold * np.where(x < 0, 128 / 127, 1), 0, None)
        assert error.activation.clipping == pytest.approx(np.square(beyond).sum(), rel=1e-4)
        assert 0 < error.activation.rounding < x.size * (threshold / 127 / 2) ** 2
        assert error.weight.clipping == pytest.approx(0, abs=1e-12)
        assert error.weight.rounding > 0
        x = exact.astype(np.float32)


def test_batches_and_memory_do_not_matter() -> None:
    model = residual_net()
    names = [layer.name for layer in find_layers(model)]
    x = np.random.default_rng(4).standard_normal((6, 3, 8, 8)).astype(np.float32)
    whole = local_errors(subject(model, table(model)), names, lambda: [{"x": x}], 1 << 30)
    parts = local_errors(subject(model, table(model)), names, lambda: [{"x": x[:2]}, {"x": x[2:]}], 1)
    for name in names:
        for a, b in zip(flat(whole[name]), flat(parts[name]), strict=True):
            assert a == pytest.approx(b, rel=1e-5, abs=1e-12)


def flat(error: LocalError) -> list[float]:
    parts = (error.activation, error.weight)
    return [error.signal, error.noise, *(v for part in parts for v in dataclasses.astuple(part))]


def test_both_ops_of_a_shared_weight_count() -> None:
    b = Builder(seed=3).feed("x", [-1, 4]).matmul(4)
    one = b.current
    model = b.matmul(4, weight="linear_0.w_0").fetch(b.current, one).model()
    (error,) = local_errors(subject(model, table(model)), ["linear_0.w_0"], lambda: [{"x": X}], 1 << 20).values()
    first = X @ model.params["linear_0.w_0"]
    second = first @ model.params["linear_0.w_0"]
    assert error.signal == pytest.approx(np.square(first).sum() + np.square(second).sum(), rel=1e-5)
    assert error.activation.signal == pytest.approx(np.square(X).sum() + np.square(first).sum(), rel=1e-5)


@pytest.mark.parametrize("outputs", [3, PROJECTIONS + 8], ids=["value by value", "projections"])
def test_estimates_of_a_linear_net_are_the_noise_of_its_outputs(outputs: int) -> None:
    model = linear(outputs)
    scales = table(model, threshold=1.5)
    errors = by_hand(model, scales)
    answer = errors["linear_1.w_0"][0]
    moved = {
        "linear_0.w_0": errors["linear_0.w_0"][1] @ model.params["linear_1.w_0"],
        "linear_1.w_0": errors["linear_1.w_0"][1],
    }
    found = estimate_layers(subject(model, scales), units(model, X, 5), 1 << 20)
    assert found.samples == len(X)
    assert "first order" in found.name
    for name, change in moved.items():
        expected = np.mean(np.square(change).sum(1) / np.square(answer).sum(1))
        # Of 12 samples and 4 random projections each the mean errs by about sqrt(2 / 48) = 0.2.
        assert found.scores[name] == pytest.approx(expected, rel=1e-2 if outputs <= PROJECTIONS else 0.6)


@pytest.mark.parametrize("name", ["conv2d_0.w_0", "depthwise_conv2d_0.w_0", "linear_1.w_0"])
@pytest.mark.parametrize("weight", [False, True], ids=["activation", "weight"])
def test_a_tiny_threshold_is_found_and_is_clipping(name: str, weight: bool) -> None:
    model = residual_net()
    wrong = shrunk(table(model), model, name, weight=weight)
    x = np.random.default_rng(4).standard_normal((8, 3, 8, 8)).astype(np.float32)
    of = subject(model, wrong)
    error = local_errors(of, [name], lambda: [{"x": x}], 1 << 20)[name]
    bad = error.weight if weight else error.activation
    assert bad.clipping > 0.99 * bad.noise
    assert bad.noise > 0.9 * bad.signal
    if not weight:
        assert error.weight.clipping < 1e-6 * error.weight.noise
    assert error.sqnr_db < 6
    assert next(iter(estimate_layers(of, units(model, x, 4), 1 << 20).scores)) == name


def test_an_estimate_without_gradients_is_the_local_error() -> None:
    b = Builder(seed=3).feed("x", [-1, 4]).matmul(6).relu().matmul(5)
    scores = b.current
    b.declare("best", (-1,), DType.INT64)
    attrs = {"axis": Attr.int(1), "keepdims": Attr.bool(False), "dtype": Attr.int(3), "flatten": Attr.bool(False)}
    model = b.op("arg_max", {"X": scores}, {"Out": "best"}, attrs).model()
    of = subject(model, table(model))
    found = estimate_layers(of, units(model, X, 12), 1 << 20)
    errors = local_errors(of, list(found.scores), lambda: [{"x": X}], 1 << 20)
    assert "no output is float32" in found.why
    for name, score in found.scores.items():
        assert score == pytest.approx(errors[name].noise / errors[name].signal, rel=1e-6)


def test_nothing_to_estimate_from() -> None:
    model = linear()
    with pytest.raises(UsageError, match="on nothing"):
        estimate_layers(subject(model, table(model)), units(model, X[:0], 1), 1 << 20)


def test_an_encoding_that_takes_scales_out_behind_the_op() -> None:
    model = linear()
    scales = table(model, threshold=1.5)
    quantized = InsertQuant(scales=scales, encoding="A")(model)
    of = Subject(quantized, model.params, find_layers(quantized))
    names = [layer.name for layer in of.layers]
    ours = local_errors(of, names, lambda: [{"x": X}], 1 << 20)
    plain = local_errors(subject(model, scales), names, lambda: [{"x": X}], 1 << 20)
    for name in names:
        assert flat(ours[name]) == pytest.approx(flat(plain[name]), rel=1e-4)
