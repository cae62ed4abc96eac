"""Layers as products: rows times patches is what Paddle's own kernels compute."""

from __future__ import annotations

import numpy as np
import pytest
from support.build import Builder
from support.infer import infer

from qpass.errors import QuantError
from qpass.ir.model import Model
from qpass.ir.op import Attr, Op
from qpass.quant.products import from_rows, to_patches, to_rows

# float32 sums of at most 54 products; measured 2e-7 of the largest output.
TOLERANCE = 2e-6


def conv(kind: str, weight: tuple[int, ...], out: int, **attrs: Attr) -> Model:
    b = Builder(seed=3).feed("x", [-1, 4, 9, 8])
    w = b.param("w", weight)
    b.declare("y", [-1, out, -1, -1])
    given = {
        "strides": Attr.ints((1, 1)),
        "paddings": Attr.ints((0, 0)),
        "dilations": Attr.ints((1, 1)),
        "groups": Attr.int(1),
        "padding_algorithm": Attr.str("EXPLICIT"),
        "data_format": Attr.str("NCHW"),
    }
    return b.op(kind, {"Input": "x", "Filter": w}, {"Output": "y"}, given | attrs).model()


def product(kind: str, x: tuple[int, ...], weight: tuple[int, ...], **attrs: Attr) -> Model:
    b = Builder(seed=4).feed("x", x)
    w = b.param("w", weight)
    b.declare("y", [-1] * len(x))
    return b.op(kind, {"X": "x", "Y": w}, {"Out": "y"}, attrs).model()


PAIR, SAME, VALID = Attr.ints((2, 2)), Attr.str("SAME"), Attr.str("VALID")
MODELS = {
    "plain": conv("conv2d", (5, 4, 3, 3), 5),
    "strides and padding": conv("conv2d", (5, 4, 3, 2), 5, strides=Attr.ints((2, 3)), paddings=Attr.ints((1, 2))),
    "four paddings": conv("conv2d", (5, 4, 3, 3), 5, paddings=Attr.ints((2, 0, 1, 3))),
    "dilation": conv("conv2d", (5, 4, 3, 2), 5, dilations=Attr.ints((2, 3)), paddings=Attr.ints((1, 1))),
    "groups": conv("conv2d", (6, 2, 3, 3), 6, groups=Attr.int(2)),
    "same": conv("conv2d", (5, 4, 3, 4), 5, padding_algorithm=SAME, strides=PAIR, dilations=PAIR),
    "valid": conv("conv2d", (5, 4, 3, 3), 5, padding_algorithm=VALID, paddings=PAIR),
    "depthwise": conv("depthwise_conv2d", (4, 1, 3, 3), 4, groups=Attr.int(4), strides=PAIR),
    "depthwise, two a channel": conv("depthwise_conv2d", (8, 1, 3, 3), 8, groups=Attr.int(4)),
    "transpose": conv("conv2d_transpose", (4, 5, 3, 2), 5, strides=PAIR, paddings=Attr.ints((1, 0))),
    "transpose, padded output": conv(
        "conv2d_transpose", (4, 5, 3, 3), 5, strides=PAIR, output_padding=Attr.ints((1, 0))
    ),
    "transpose, groups": conv("conv2d_transpose", (4, 3, 2, 2), 6, groups=Attr.int(2), strides=PAIR),
    "transpose, dilation": conv("conv2d_transpose", (4, 5, 2, 3), 5, dilations=Attr.ints((3, 2))),
    "mul": product("mul", (-1, 6), (6, 3), x_num_col_dims=Attr.int(1), y_num_col_dims=Attr.int(1)),
    "mul of three dimensions": product(
        "mul", (-1, 2, 6), (12, 3), x_num_col_dims=Attr.int(1), y_num_col_dims=Attr.int(1)
    ),
    "matmul_v2": product("matmul_v2", (-1, 5, 6), (6, 3), trans_x=Attr.bool(False), trans_y=Attr.bool(False)),
    "both transposed": product("matmul_v2", (-1, 6, 5), (3, 6), trans_x=Attr.bool(True), trans_y=Attr.bool(True)),
    "matmul with a factor": product(
        "matmul", (-1, 6), (6, 3), transpose_X=Attr.bool(False), transpose_Y=Attr.bool(False), alpha=Attr.float(2.5)
    ),
}


def layer(model: Model) -> tuple[Op, np.ndarray]:
    return next(op for op in model.graph.ops if op.type not in ("feed", "fetch")), np.array(model.params["w"])


@pytest.mark.parametrize("name", MODELS)
def test_rows_times_patches_is_what_paddle_computes(name):
    model = MODELS[name]
    op, weight = layer(model)
    x = np.random.default_rng(5).normal(size=[2 if d == -1 else d for d in model.feeds[0].shape]).astype(np.float32)
    made = to_rows(weight, op) @ to_patches(x, op, weight.shape)
    expected = infer(model, {"x": x})[0]
    if op.type.startswith(("conv", "depthwise")):
        made = made.reshape(-1, 2, *expected.shape[2:]).swapaxes(0, 1)
    else:
        made = np.moveaxis(made[0], 0, -1).reshape(expected.shape)
    assert made.shape == expected.shape
    assert np.abs(made - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("name", MODELS)
def test_rows_become_the_weight_again(name):
    op, weight = layer(MODELS[name])
    assert np.array_equal(from_rows(to_rows(weight, op), op, weight.shape), weight)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("plain", {"data_format": Attr.str("NHWC")}, "expected NCHW"),
        ("plain", {"paddings": Attr.ints((1,))}, "expected 2 or 4 numbers"),
        ("plain", {"strides": Attr.ints((1, 1, 1))}, "expected two numbers"),
        ("plain", {"dilations": Attr.ints((9, 9))}, "does not fit its weight"),
        ("transpose", {"padding_algorithm": SAME}, "SAME padding of a transposed convolution"),
        ("transpose", {"output_size": Attr.ints((20, 20))}, "output size is given apart"),
        ("transpose", {"paddings": Attr.ints((5, 5))}, "more than its kernel reaches"),
        ("mul", {"y_num_col_dims": Attr.int(2)}, "does not fit its weight"),
    ],
)
def test_what_is_not_known_is_refused(name, change, said):
    op, weight = layer(MODELS[name])
    x = np.zeros([2 if d == -1 else d for d in MODELS[name].feeds[0].shape], np.float32)
    with pytest.raises(QuantError, match=said):
        to_patches(x, op.with_attrs(**change), weight.shape)


def test_a_weight_that_does_not_fit_is_refused():
    conv_op, _ = layer(MODELS["groups"])
    mul_op, _ = layer(MODELS["mul"])
    with pytest.raises(QuantError, match="does not go into 2 groups"):
        to_rows(np.zeros((5, 2, 3, 3)), conv_op)
    with pytest.raises(QuantError, match="expected two dimensions"):
        to_rows(np.zeros((5, 2, 3)), mul_op)
