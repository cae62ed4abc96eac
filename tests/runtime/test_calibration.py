"""Calibration against Paddle's own scales, and of one engine against the other."""

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
from qpass.quant.observer_options import ObserverOptions
from qpass.quant.observers import ACTIVATION_ALGOS
from qpass.runtime.calibrate import calibrate, calibrate_many
from qpass.runtime.data import Batches


@pytest.fixture(scope="module")
def resnet8() -> Model:
    return load(corpus("models/resnet8_cifar10/inference.pdmodel"))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    with np.load(golden("resnet8_calibration.npz")) as found:
        return found["x"].astype(np.float32)


PADDLE = ("abs_max", "avg", "hist", "KL", "mse", "emd", "ptf")


@pytest.mark.parametrize("spelling", ["old", "onnx"])
def test_scales_are_those_of_paddle(resnet8: Model, images: np.ndarray, spelling: str) -> None:
    """Goldens of Paddle 3.3.1; the old format matters for mse and emd only, and emd takes long."""
    algos = PADDLE if spelling == "onnx" else ("mse",)
    options = ObserverOptions(onnx_format=spelling == "onnx")
    tables = calibrate_many(resnet8, images, algos=algos, compat="paddle", options=options)
    for algo, table in tables.items():
        expected = json.loads(golden(f"resnet8_scales/{algo}_{spelling}.json").read_text())
        assert table.weights.keys() == expected["weight_abs_max"].keys()
        for name, scale in table.weights.items():
            np.testing.assert_array_equal(scale, np.float32(expected["weight_abs_max"][name]))
        assert len(table.activations) == 8
        for name, scale in table.activations.items():
            # Which convolution kernel runs depends on the CPU: float32 sums of up to 576 products, 1e-5 relative.
            assert scale == pytest.approx(expected["activation_threshold"][name], rel=1e-5), (algo, name)
        assert table.samples == 320


def test_one_pass_for_all_algorithms(resnet8: Model, images: np.ndarray) -> None:
    """Together they give what each gives alone, and read the data once; Paddle's histogram reads them twice."""
    seen: list[int] = []
    together = calibrate_many(resnet8, images[:64], algos=tuple(ACTIVATION_ALGOS), progress=seen.append)
    assert seen == [1, 2]
    for algo in ("avg", "hist", "mse"):
        assert calibrate(resnet8, images[:64], algo=algo).activations == together[algo].activations
    calibrate_many(resnet8, images[:64], algos=("KL", "hist", "avg"), compat="paddle", progress=seen.append)
    assert seen == [1, 2, 1, 2, 3, 4]


def test_statistics(resnet8: Model, images: np.ndarray) -> None:
    table = calibrate(resnet8, images[:40], algo="mse", weight_algo="channel_wise_mse")
    known = table.statistics["image"]
    x = images[:40].astype(np.float64)
    assert (known.minimum, known.maximum, known.count) == (x.min(), x.max(), x.size)
    # half a bin: 255 / 16384 / 2
    assert known.mean == pytest.approx(x.mean(), abs=0.008)
    assert known.std == pytest.approx(x.std(), abs=0.008)
    plain = calibrate(resnet8, images[:40], algo="avg")
    assert plain.statistics["image"].mean is None
    assert table.weight_algo == "channel_wise_mse"
    for name, scale in plain.weights.items():
        assert (table.weights[name] <= scale).all()
        assert (table.weights[name] >= 0.05 * scale).all()


@pytest.mark.parametrize("algo", ["abs_max", "avg"])
def test_engines_agree(resnet8: Model, images: np.ndarray, algo: str) -> None:
    fast, reference = (calibrate(resnet8, images[:32], algo=algo, engine=e) for e in ("inference", "executor"))
    assert fast.activations == pytest.approx(reference.activations, rel=1e-5)
    assert fast.activations["image"] == reference.activations["image"]
    assert fast.statistics.keys() == reference.statistics.keys() == fast.activations.keys()


def test_min_max_ranges_and_batch_limit(resnet8: Model, images: np.ndarray) -> None:
    seen: list[int] = []
    table = calibrate(resnet8, images, algo="min_max", batches=2, batch_size=4, progress=seen.append)
    assert (table.samples, seen) == (8, [1, 2])
    assert table.statistics["image"].minimum == images[:8].min()
    assert table.statistics["image"].absmax == images[:8].max()
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
    # two passes: what was read is kept
    twice = calibrate(model, batches(), algo="hist", compat="paddle").activations["x"]
    # the framework divides what lies between 1 and 3 into 2048 bins, and counts the last of them from 0
    assert twice == 2047.5 * (2 / 2048)


def test_a_large_generator_is_not_enough_for_two_passes() -> None:
    model = two_layers()

    def batches() -> Iterator[np.ndarray]:
        yield from (np.ones((1, 2, 4, 4), np.float32) for _ in range(5))

    source = Batches(model.feeds, batches(), cache_bytes=300)
    with pytest.raises(DataError, match="a generator that was read before and is too large to be kept"):
        calibrate(model, source, algo="KL", compat="paddle")
    assert calibrate(model, Batches(model.feeds, batches(), cache_bytes=300), algo="KL").samples == 5


def test_other_values_than_the_inputs_of_layers() -> None:
    model = two_layers()
    relu = next(op for op in model.graph.ops if op.type == "relu")
    ref = model.graph.written(relu, "Out")
    table = calibrate(model, [np.ones((1, 2, 4, 4), np.float32)], values=[ref])
    assert list(table.activations) == [ref.name]


def test_refusals() -> None:
    model = two_layers()
    x = np.ones((1, 2, 4, 4), np.float32)
    with pytest.raises(UsageError, match="unknown algo 'best', expected one of"):
        calibrate(model, [x], algo="best")
    with pytest.raises(UsageError, match="no algo is given"):
        calibrate_many(model, [x], algos=())
    with pytest.raises(UsageError, match="unknown compat 'torch'"):
        calibrate(model, [x], compat="torch")
    with pytest.raises(UsageError, match="quant_bits is 20"):
        calibrate(model, [x], weight_bits=20)
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
