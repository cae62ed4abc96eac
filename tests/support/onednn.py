"""Nets on which oneDNN's int8 arithmetic is exact on every processor, and runs of them."""

from __future__ import annotations

import numpy as np

from qpass.api import quantize
from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.rewrite.edit import edit
from qpass.runtime.calibrate import calibrate
from qpass.runtime.engines import get_engine
from support.build import Builder

_OUT = {"conv2d": "Output", "depthwise_conv2d": "Output", "relu": "Out", "pool2d": "Out", "elementwise_add": "Out"}


def conv(b: Builder, out: int = 8, seed: int = 0) -> Builder:
    """A 1x1 convolution of which every other input channel has weight zero: sums of two products stay below 2**15."""
    weight = np.random.default_rng(seed).standard_normal((out, b.shape()[1], 1, 1)).astype(np.float32)
    weight[:, 1::2] = 0
    n = sum(name.startswith("conv2d_") and name.endswith(".w_0") for name in b._params)
    return b.conv2d(out, 1, weight=b.param(f"conv2d_{n}.w_0", weight))


def image() -> Builder:
    return Builder().feed("x", [-1, 8, 8, 8])


def batch(model: Model, n: int = 4) -> dict[str, np.ndarray]:
    port = model.feeds[0]
    return {port.name: np.random.default_rng(0).standard_normal((n, *port.shape[1:])).astype(np.float32)}


def run(model: Model, x: dict[str, np.ndarray], engine: str = "executor", *fetch: str) -> np.ndarray:
    """The first output, or a value."""
    refs = [model.graph.last(name) for name in fetch] or None
    return get_engine(engine).session(model, refs).run(x)[0]


def calibrated(model: Model, *, outputs: bool = False) -> Model:
    """`model` in int8, thresholds being the largest values of `batch`; `outputs`: those of op outputs too."""
    x = batch(model)
    made = quantize(model, calibrate(model, [x], algo="abs_max"))
    if outputs:
        with edit(made) as e:
            for op in made.graph.ops:
                if op.type in _OUT:
                    top = np.abs(run(made, x, "executor", op.output(_OUT[op.type])[0])).max()
                    e.set_attr(op, "out_threshold", Attr.float(float(np.float32(top))))
        made = e.model
    return made


def sqnr(a: np.ndarray, b: np.ndarray) -> float:
    """Signal to noise of `a` against `b`, in dB."""
    return float(10 * np.log10((b**2).sum(dtype=np.float64) / ((a - b) ** 2).sum(dtype=np.float64)))
