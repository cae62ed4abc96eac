"""The bundled model, its twin and its data: what they are, and what Paddle itself makes of them."""

from __future__ import annotations

import numpy as np
import pytest
from support.infer import infer

import qpass
from qpass import demo

# One of 500 images is 0.002; two of them may turn where sums are taken in another order.
ACCURACY_TOLERANCE = 0.004
PROBABILITY_TOLERANCE = 0.002


def predict_with_paddle(prefix):
    model = qpass.load(prefix)
    return lambda images: infer(model, {model.feeds[0].name: images})


@pytest.mark.parametrize(
    ("prefix", "accuracy", "probability"),
    [(demo.float_prefix(), 0.988, 0.9776), (demo.qat_prefix(), 0.976, 0.9678)],
    ids=["float", "twin"],
)
def test_accuracy_as_trained(prefix, accuracy, probability):
    predict = predict_with_paddle(prefix)
    assert demo.accuracy(predict) == pytest.approx(accuracy, abs=ACCURACY_TOLERANCE)
    assert demo.true_class_probability(predict) == pytest.approx(probability, abs=PROBABILITY_TOLERANCE)


def test_metrics_against_known_answers():
    images, labels = demo.test_data()
    position = {image.tobytes(): i for i, image in enumerate(images)}

    def mostly_right(batch):
        rows = np.array([position[image.tobytes()] for image in batch])
        given = np.where(rows < 100, (labels[rows] + 1) % 10, labels[rows])
        return [np.eye(10, dtype=np.float32)[given] * 0.75]

    assert demo.accuracy(mostly_right) == pytest.approx(400 / 500)
    assert demo.true_class_probability(mostly_right) == pytest.approx(0.75 * 400 / 500, rel=1e-6)


def test_eval_function_calls_the_executor_as_paddle_does():
    seen = []

    class Executor:
        def run(self, program, feed, fetch_list):
            seen.append((program, tuple(feed), tuple(fetch_list)))
            return [np.zeros((len(feed["image"]), 10), np.float32)]

    _, labels = demo.test_data()
    assert demo.eval_function(Executor(), "program", ["image"], ["out"]) == pytest.approx((labels == 0).mean())
    assert set(seen) == {("program", ("image",), ("out",))}


def test_data_is_held_out_and_covers_every_digit():
    images, labels = demo.test_data()
    calibration = np.concatenate(demo.calibration_data())
    assert (images.shape, images.dtype, labels.shape, labels.dtype) == ((500, 1, 8, 8), np.float32, (500,), np.int64)
    assert (calibration.shape, calibration.dtype) == ((128, 1, 8, 8), np.float32)
    assert (images.min(), images.max()) == (0, 1)
    assert np.bincount(labels, minlength=10).min() >= 30
    assert {i.tobytes() for i in images}.isdisjoint(i.tobytes() for i in calibration)


def test_the_twin_has_the_float_model_s_layers_with_fake_quantization():
    model, twin = qpass.load(demo.float_prefix()), qpass.load(demo.qat_prefix())
    layers = [layer.weight for layer in qpass.find_layers(model)]
    assert len(layers) == 8
    types = [op.type for op in twin.graph.ops]
    assert types.count("fake_quantize_dequantize_moving_average_abs_max") == len(layers)
    assert types.count("fake_channel_wise_quantize_dequantize_abs_max") == len(layers)
    assert all(twin.params[name].shape == model.params[name].shape for name in model.params)
    assert not any("op_callstack" in op.attrs for m in (model, twin) for op in m.graph.ops)


def test_the_package_data_stays_small():
    files = [p for p in demo.float_prefix().parent.iterdir() if p.suffix in {".pdmodel", ".pdiparams", ".npz"}]
    assert len(files) == 5
    assert sum(p.stat().st_size for p in files) < 400_000
