"""What `runnable_models()` and `Builder` make, Paddle runs; the numbers are those of numpy."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from support.build import Builder
from support.infer import infer
from support.strategies import runnable_models

from qpass.ir.model import Model


@given(runnable_models())
def test_paddle_runs_generated_models(model: Model):
    x = np.random.default_rng(0).standard_normal((2, *model.feeds[0].shape[1:])).astype(np.float32)
    out = infer(model, {model.feeds[0].name: x})[0]
    assert out.shape == (2, *model.fetches[0].shape[1:])
    assert np.isfinite(out).all()


def test_a_small_perceptron_in_closed_form():
    build = Builder(seed=3).feed("x", [-1, 5]).matmul(4).relu().mul(3)
    model = build.add(build.param("bias", (3,))).add(build.current).model()
    x = np.random.default_rng(1).standard_normal((6, 5)).astype(np.float32)
    p = model.params
    expected = 2 * (np.maximum(x @ p["linear_0.w_0"], 0) @ p["linear_1.w_0"] + p["bias"])
    np.testing.assert_allclose(infer(model, {model.feeds[0].name: x})[0], expected, rtol=1e-5, atol=1e-6)


def test_a_small_convolution_in_closed_form():
    model = Builder(seed=4).feed("x", [-1, 2, 4, 4]).conv2d(3, 1).batch_norm().relu().pool2d("avg", whole=True).model()
    x = np.random.default_rng(1).standard_normal((2, 2, 4, 4)).astype(np.float32)
    p = {
        name.removeprefix("batch_norm_0."): array[:, None, None]
        for name, array in model.params.items()
        if array.ndim == 1
    }
    y = np.einsum("nchw,oc->nohw", x, model.params["conv2d_0.w_0"][:, :, 0, 0])
    y = (y - p["w_1"]) / np.sqrt(p["w_2"] + 1e-5) * p["w_0"] + p["b_0"]
    expected = np.maximum(y, 0).mean(axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(infer(model, {model.feeds[0].name: x})[0], expected, rtol=1e-5, atol=1e-6)
