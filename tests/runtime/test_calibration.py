"""Calibration against Paddle's own thresholds, and of one engine against the other."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from support.build import Builder
from support.corpus import corpus, golden

from qpass.errors import DataError, QuantError, UsageError
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.runtime.calibrate import calibrate


@pytest.fixture(scope="module")
def resnet8() -> Model:
    return load(corpus("models/resnet8_cifar10/inference.pdmodel"))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    with np.load(golden("resnet8_calibration.npz")) as found:
        return found["x"].astype(np.float32)


@pytest.mark.parametrize("algo", ["abs_max", "avg"])
def test_thresholds_are_those_of_paddle(resnet8: Model, images: np.ndarray, algo: str) -> None:
    # Which convolution kernel runs depends on the CPU: float32 sums of up to 576 products, 1e-5 relative.
    engines = ("inference", "executor") if algo == "abs_max" else ("inference",)
    tables = {engine: calibrate(resnet8, images, algo=algo, engine=engine) for engine in engines}
    for spelling in ("old", "onnx"):
        expected = json.loads(golden(f"resnet8_scales/{algo}_{spelling}.json").read_text())
        for table in tables.values():
            assert table.weights.keys() == expected["weight_abs_max"].keys()
            for name, threshold in table.weights.items():
                np.testing.assert_array_equal(threshold, np.float32(expected["weight_abs_max"][name]))
            assert len(table.activations) == 8
            for name, threshold in table.activations.items():
                assert threshold == pytest.approx(expected["activation_threshold"][name], rel=1e-5), name
        assert table.samples == 320


@pytest.mark.parametrize("algo", ["abs_max", "avg"])
def test_engines_agree(resnet8: Model, images: np.ndarray, algo: str) -> None:
    fast, reference = (calibrate(resnet8, images[:32], algo=algo, engine=e) for e in ("inference", "executor"))
    assert fast.activations == pytest.approx(reference.activations, rel=1e-5)
    assert fast.activations["image"] == reference.activations["image"]
    assert fast.ranges.keys() == reference.ranges.keys() == fast.activations.keys()


def test_min_max_ranges_and_batch_limit(resnet8: Model, images: np.ndarray) -> None:
    seen: list[int] = []
    table = calibrate(resnet8, images, algo="min_max", batches=2, batch_size=4, progress=seen.append)
    assert (table.samples, seen) == (8, [1, 2])
    assert table.ranges["image"] == (images[:8].min(), images[:8].max())
    assert table.activations["image"] == images[:8].max()
    whole = calibrate(resnet8, images[:8], algo="min_max", batch_size=4)
    assert whole.data_digest == table.data_digest
    assert whole.activations == table.activations


def two_layers() -> Model:
    """conv2d and relu, then a linear layer; the sums are exact in float32 on small integers."""
    b = Builder().feed("x", [-1, 2, 4, 4]).conv2d(3, 1, weight=None).relu().flatten().matmul(2)
    return b.model()


def test_closed_form_on_a_small_net() -> None:
    model = two_layers()
    x = np.random.default_rng(3).standard_normal((6, 2, 4, 4)).astype(np.float32)
    w = model.params["conv2d_0.w_0"][:, :, 0, 0]
    hidden = np.maximum(np.einsum("oc,nchw->nohw", w.astype(np.float64), x), 0)
    table = calibrate(model, [x[:4], x[4:]], algo="avg", weight_algo="abs_max", engine="executor")
    sample = np.abs(hidden).reshape(6, -1).max(1)
    assert table.activations["flatten_0.tmp_0"] == pytest.approx((sample[:4].mean() + sample[4:].mean()) / 2, rel=1e-6)
    assert table.weights["conv2d_0.w_0"].shape == ()
    assert table.weights["conv2d_0.w_0"] == np.abs(w).max()
    assert table.weight_axes == {"conv2d_0.w_0": None, "linear_0.w_0": None}
    assert (table.program_digest, table.params_digest) == (model.program_digest(), model.params_digest())


def test_only_some_layers() -> None:
    model = two_layers()
    x = np.ones((1, 2, 4, 4), np.float32)
    assert list(calibrate(model, [x], layers=["linear_0.w_0"]).activations) == ["flatten_0.tmp_0"]
    assert list(calibrate(model, [x], op_types=["conv2d"]).weights) == ["conv2d_0.w_0"]


def test_a_generator_is_enough() -> None:
    model = two_layers()
    x = np.ones((1, 2, 4, 4), np.float32)

    def batches() -> Iterator[np.ndarray]:
        yield x
        yield 3 * x

    assert calibrate(model, batches(), algo="abs_max").activations["x"] == 3.0


def test_refusals() -> None:
    model = two_layers()
    x = np.ones((1, 2, 4, 4), np.float32)
    with pytest.raises(UsageError, match="unknown algo 'best', expected one of"):
        calibrate(model, [x], algo="best")
    with pytest.raises(UsageError, match="unknown weight_algo"):
        calibrate(model, [x], weight_algo="best")
    with pytest.raises(QuantError, match=r"no layer 'conv2d_9\.w_0'"):
        calibrate(model, [x], layers=["conv2d_9.w_0"])
    with pytest.raises(DataError, match="there is no batch"):
        calibrate(model, [])
    with pytest.raises(QuantError, match="no layer to quantize"):
        calibrate(Builder().feed("x", [-1, 4]).relu().model(), [x])
    broken = model.params["conv2d_0.w_0"].copy()
    broken[0, 0] = np.nan
    with pytest.raises(QuantError, match=r"weight 'conv2d_0\.w_0'"):
        calibrate(model.replaced(params=model.params.replaced({"conv2d_0.w_0": broken})), [x])


def test_an_overflow_inside_names_the_tensor() -> None:
    model = two_layers()
    huge = np.full((1, 2, 4, 4), 3e38, np.float32)
    big = np.full((3, 2, 1, 1), 2.0, np.float32)
    wild = model.replaced(params=model.params.replaced({"conv2d_0.w_0": big}))
    with pytest.raises(QuantError, match=r"activation 'flatten_0\.tmp_0', batch 2"):
        calibrate(wild, [huge / 1e30, huge])
