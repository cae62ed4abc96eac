"""`FoldBatchNorm` against Paddle, for every kind of layer it folds into."""

from __future__ import annotations

import numpy as np
import pytest
from support.build import Builder
from support.infer import infer

from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.passes import FoldBatchNorm

# float32 sums of at most 36 products each: a few units in the last place of the largest term.
RTOL = 1e-5


def image(channels: int = 4) -> Builder:
    return Builder(seed=3).feed("x", (-1, channels, 6, 6))


def transposed(kind: str, groups: int, weight: tuple[int, int, int, int]) -> Builder:
    build = image()
    build.param("w_0", weight)
    build.declare("z", (-1, groups * weight[1], 12, 12))
    attrs = {
        "strides": Attr.ints((2, 2)),
        "paddings": Attr.ints((0, 0)),
        "dilations": Attr.ints((1, 1)),
        "groups": Attr.int(groups),
        "output_size": Attr.ints(()),
        "output_padding": Attr.ints(()),
        "padding_algorithm": Attr.str("EXPLICIT"),
        "data_format": Attr.str("NCHW"),
    }
    return build.op(kind, {"Input": "x", "Filter": "w_0"}, {"Output": "z"}, attrs)


def biased(build: Builder, shape: tuple[int, ...], axis: int) -> Builder:
    bias, source = build.param("bias", shape), build.current
    build.declare("biased", build.shape(source))
    return build.op("elementwise_add", {"X": source, "Y": bias}, {"Out": "biased"}, {"axis": Attr.int(axis)})


def rows() -> Builder:
    return Builder(seed=4).feed("x", (-1, 6))


def matmul(kind: str, attrs: dict[str, Attr], weight: tuple[int, int]) -> Builder:
    build = rows()
    build.param("w_0", weight)
    build.declare("z", (-1, 5))
    return build.op(kind, {"X": "x", "Y": "w_0"}, {"Out": "z"}, attrs)


CASES = {
    "conv2d": lambda: image().conv2d(5),
    "conv2d and bias on axis 1": lambda: biased(image().conv2d(5), (5,), 1),
    "conv2d and bias of full rank": lambda: biased(image().conv2d(5), (1, 5, 1, 1), -1),
    "conv2d and scalar bias": lambda: biased(image().conv2d(5), (1,), -1),
    "depthwise_conv2d": lambda: image().depthwise_conv2d(),
    "conv2d_transpose": lambda: transposed("conv2d_transpose", 1, (4, 3, 2, 2)),
    "conv2d_transpose in groups": lambda: transposed("conv2d_transpose", 2, (4, 3, 2, 2)),
    "depthwise_conv2d_transpose": lambda: transposed("depthwise_conv2d_transpose", 4, (4, 1, 2, 2)),
    "mul": lambda: rows().mul(5),
    "matmul_v2 and bias": lambda: biased(rows().matmul(5), (5,), -1),
    "matmul_v2, weight turned": lambda: matmul("matmul_v2", {"trans_y": Attr.bool(True)}, (5, 6)),
    "matmul with alpha": lambda: matmul("matmul", {"alpha": Attr.float(0.5)}, (6, 5)),
}


@pytest.mark.parametrize("name", CASES)
def test_folded_equals_paddle(name: str) -> None:
    model = CASES[name]().batch_norm().model()
    folded = FoldBatchNorm()(model)
    assert [op.type for op in folded.graph.ops][-2:] == ["elementwise_add", "fetch"]
    assert len(folded.params) == 2
    assert folded.fetches == model.fetches
    a, b = outputs(model), outputs(folded)
    assert np.abs(a - b).max() <= RTOL * np.abs(a).max()


def test_chain_of_folds_equals_paddle() -> None:
    model = image().conv2d(4).batch_norm().relu().conv2d(4).batch_norm().batch_norm().model()
    folded = FoldBatchNorm()(model)
    assert [op.type for op in folded.graph.ops].count("elementwise_add") == 2
    assert not any(op.type == "batch_norm" for op in folded.graph.ops)
    a, b = outputs(model), outputs(folded)
    assert np.abs(a - b).max() <= 4 * RTOL * np.abs(a).max()


def outputs(model: Model) -> np.ndarray:
    shape = [3 if d == -1 else d for d in model.feeds[0].shape]
    x = np.random.default_rng(7).normal(size=shape).astype(np.float32)
    return infer(model, {"x": x})[0]
