"""Gradients of outputs against closed forms, also through ops that lost what their backward ops read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from support.build import Builder

from qpass.errors import EngineError
from qpass.ir.dtype import DType
from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.runtime.gradients import Gradients, differentiable

X = np.random.default_rng(5).standard_normal((6, 4)).astype(np.float32)


def two_layers() -> Model:
    return Builder().feed("x", [-1, 4]).matmul(5).relu().matmul(3).model()


def test_a_chain_by_hand() -> None:
    model = two_layers()
    first, last = (op.output("Out")[0] for op in model.graph.ops if op.type == "matmul_v2")
    hidden = X @ model.params["linear_0.w_0"]
    direction = np.random.default_rng(6).standard_normal((6, 3)).astype(np.float32)
    found = Gradients(model, [last], [first, last]).run({"x": X}, {last: direction})
    expected = direction @ model.params["linear_1.w_0"].T * (hidden > 0)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[1], direction)


def without_xshape(model: Model) -> Model:
    """As a model is that the framework saved for inference."""
    ops = tuple(
        dataclasses.replace(op, outputs=tuple(held for held in op.outputs if held[0] != "XShape"))
        for op in model.graph.ops
    )
    return model.replaced(graph=dataclasses.replace(model.graph, ops=ops))


@pytest.mark.parametrize("dropped", [False, True], ids=["as built", "as saved"])
def test_convolution_batch_norm_pooling_and_flattening(dropped: bool) -> None:
    b = Builder().feed("x", [-1, 2, 4, 4]).conv2d(3)
    inner = b.current
    model = b.batch_norm().pool2d("avg").flatten().model()
    model = without_xshape(model) if dropped else model
    (out,) = (port.name for port in model.fetches)
    x = np.random.default_rng(7).standard_normal((2, 2, 4, 4)).astype(np.float32)
    direction = np.ones((2, 12), np.float32)
    (found,) = Gradients(model, [out], [inner]).run({"x": x}, {out: direction})
    op = next(op for op in model.graph.ops if op.type == "batch_norm")
    scale, variance = (model.params[op.input(slot)[0]] for slot in ("Scale", "Variance"))
    slope = (scale / np.sqrt(variance + 1e-5) / 4).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(found, np.broadcast_to(slope, (2, 3, 4, 4)), rtol=1e-5)


def test_what_the_outputs_do_not_depend_on() -> None:
    b = Builder().feed("x", [-1, 4]).matmul(5)
    dead, inner = b.current, b.at("x").matmul(3).current
    model = b.fetch(inner, dead).model()
    made = Gradients(model, [inner], [dead, inner])
    assert made.reached == (False, True)
    found = made.run({"x": X}, {inner: np.ones((6, 3), np.float32)})
    assert found[0] is None


def test_an_output_on_the_way_to_another_output() -> None:
    b = Builder().feed("x", [-1, 4]).matmul(5)
    first = b.current
    last = b.matmul(3).current
    model = b.fetch(first, last).model()
    ones = {first: np.ones((6, 5), np.float32), last: np.ones((6, 3), np.float32)}
    (found,) = Gradients(model, [first, last], [first]).run({"x": X}, ones)
    expected = np.broadcast_to(1 + model.params["linear_1.w_0"].sum(axis=1), (6, 5))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_steps_have_no_slope() -> None:
    b = Builder().feed("x", [-1, 4]).matmul(5)
    inner = b.current
    model = b.unary("floor").model()
    (out,) = (port.name for port in model.fetches)
    (found,) = Gradients(model, [out], [inner]).run({"x": X}, {out: np.ones((6, 5), np.float32)})
    np.testing.assert_array_equal(found, np.zeros((6, 5)))


def test_whole_numbers_have_none() -> None:
    b = Builder().feed("x", [-1, 4]).matmul(5)
    scores = b.current
    b.declare("best", (-1,), DType.INT64)
    attrs = {"axis": Attr.int(1), "keepdims": Attr.bool(False), "dtype": Attr.int(3), "flatten": Attr.bool(False)}
    model = b.op("arg_max", {"X": scores}, {"Out": "best"}, attrs).model()
    assert differentiable(model, [port.name for port in model.fetches]) == []


def test_a_model_that_paddle_refuses() -> None:
    model = Builder().feed("x", [-1, 4]).unary("no_such_op").model()
    with pytest.raises(EngineError, match="Paddle"):
        Gradients(model, [model.fetches[0].name], [model.fetches[0].name])
