"""The diff names every difference once, aligned op by op, and nothing else."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.build import Builder
from support.strategies import models

from qpass.formats import pdmodel
from qpass.ir.diff import diff
from qpass.ir.dtype import DType
from qpass.ir.graph import Decl
from qpass.ir.model import Model
from qpass.ir.op import Attr, Op
from qpass.rewrite.edit import edit


@pytest.fixture
def model() -> Model:
    return Builder().feed("x", [-1, 3, 4, 4]).conv2d(2).batch_norm().relu().conv2d(2).relu().model()


def find(model: Model, kind: str, nth: int = 0) -> Op:
    return [op for op in model.graph.ops if op.type == kind][nth]


def lines(a: Model, b: Model) -> list[str]:
    return str(diff(a, b)).splitlines()


@given(models())
def test_a_model_does_not_differ_from_itself(model: Model):
    found = diff(model, Model(model.blocks, model.params, model.extra))
    assert not found
    assert found.to_dict() == {"equal": True, "differences": []}


@given(models(max_ops=4), models(max_ops=4))
def test_no_difference_means_equal_bytes_and_directions_mirror(a: Model, b: Model):
    there, back = diff(a, b), diff(b, a)
    # Attribute order inside an op is the one thing the diff passes over, and drawn models share no such order.
    if not there:
        assert pdmodel.encode(a.blocks, a.extra) == pdmodel.encode(b.blocks, b.extra)
        assert a.params == b.params
    opposite = {"added": "removed", "removed": "added", "changed": "changed"}
    subjects = ("block", "variable", "parameter")
    assert sorted((i.subject, i.change, i.where) for i in there if i.subject in subjects) == sorted(
        (i.subject, opposite[i.change], i.where) for i in back if i.subject in subjects
    )
    json.dumps(there.to_dict(), allow_nan=False)


def test_inserted_op_is_one_addition_and_one_rewired_operand(model: Model):
    conv = find(model, "conv2d", 1)
    with edit(model) as e:
        e.declare(Decl("scaled", shape=(-1, 2, 4, 4)))
        e.insert(Op.make("scale", {"X": "relu_0.tmp_0"}, {"Out": "scaled"}), before=conv)
        e.rewire(conv, "Input", 0, "scaled")
    assert lines(model, e.model) == [
        "+ block 0, variable 'scaled': var scaled: tensor float32[-1, 2, 4, 4]",
        "+ block 0, op 4 (scale): scale(X: [relu_0.tmp_0@1]) -> (Out: [scaled@1]) {}",
        "~ block 0, op 4 (conv2d): input Input: ['relu_0.tmp_0'] -> ['scaled']",
    ]
    assert [str(item)[0] for item in diff(e.model, model)] == ["-", "-", "~"]


def test_attributes_and_operands(model: Model):
    conv, relu = find(model, "conv2d"), find(model, "relu")
    with edit(model) as e:
        e.set_attr(conv, "groups", Attr.int(3))
        e.drop_attrs(conv, ["data_format"])
        e.set_attr(conv, "op_role", Attr.int(1))
        e.set_attr(relu, "alpha", Attr.float(0.5))
        e.replace(find(model, "relu", 1), Op.make("relu6", {"X": "conv2d_1.tmp_0"}, {"Out": "relu_1.tmp_0"}))
    assert lines(model, e.model) == [
        '~ block 0, op 1 (conv2d): attribute groups: int 1 -> int 3; attribute data_format: string "NCHW" -> absent; '
        "debug attributes (op_role)",
        "~ block 0, op 3 (relu): attribute alpha: absent -> float 0.5",
        "- block 0, op 5 (relu): relu(X: [conv2d_1.tmp_0@1]) -> (Out: [relu_1.tmp_0@1]) {}",
        "+ block 0, op 5 (relu6): relu6(X: [conv2d_1.tmp_0@1]) -> (Out: [relu_1.tmp_0@1]) {}",
    ]


def test_renamed_output_keeps_the_ops_aligned(model: Model):
    with edit(model) as e:
        e.rename("relu_0.tmp_0", "renamed")
    ops = [str(item) for item in diff(model, e.model) if item.subject == "op"]
    assert ops == [
        "~ block 0, op 3 (relu): output Out: ['relu_0.tmp_0'] -> ['renamed']",
        "~ block 0, op 4 (conv2d): input Input: ['relu_0.tmp_0'] -> ['renamed']",
    ]


def test_declarations_and_interface(model: Model):
    with edit(model, interface=True) as e:
        e.redeclare(Decl("x", dtype=DType.FLOAT16, shape=(1, 3, 4, 4), extra=e.decl("x").extra))
    assert lines(model, e.model) == [
        "~ feeds: x: float32[-1, 3, 4, 4] -> x: float16[1, 3, 4, 4]",
        "~ block 0, variable 'x': var x: tensor float32[-1, 3, 4, 4] -> var x: tensor float16[1, 3, 4, 4]",
    ]


def test_order_of_declarations_is_a_difference(model: Model):
    with edit(model) as e:
        decl = e.decl("x")
        e.undeclare("x")
        e.declare(decl)
    assert lines(model, e.model) == ["~ block 0: order of the declarations"]


@given(st.data())
@settings(max_examples=30)
def test_greatest_parameter_difference(data: st.DataObject):
    model = Builder().feed("x", [-1, 4]).matmul(3).model()
    weight = model.params["linear_0.w_0"]
    seed, count = data.draw(st.integers(0, 2**16)), data.draw(st.integers(1, 12))
    change = np.zeros(12, np.float32)
    change[:count] = np.random.default_rng(seed).uniform(0.5, 2, count)
    moved = (weight + change.reshape(4, 3)).astype(np.float32)
    (item,) = diff(model, model.replaced(params=model.params.replaced({"linear_0.w_0": moved})))
    assert item.max_abs == max(abs(float(a) - float(b)) for a, b in zip(moved.flat, weight.flat, strict=True))
    assert item.details[0].endswith(f"{count} of 12 values differ")


@pytest.mark.parametrize(
    ("old", "new", "most"),
    [
        (np.int8([-128, 0]), np.int8([127, 0]), 255.0),
        (np.uint16([0x3F80]), np.uint16([0x4000]), 1.0),  # bfloat16 1 and 2
        (np.float32([np.nan, 1]), np.float32([np.nan, 3]), 2.0),
        (np.float32([np.inf, 1]), np.float32([np.inf, 2]), 1.0),
        (np.float32([np.nan]), np.float32([0]), math.inf),
        (np.float32([0.0]), np.float32([-0.0]), 0.0),
        (np.bool_([True]), np.bool_([False]), 1.0),
    ],
)
def test_parameter_differences_of_every_type(old: np.ndarray, new: np.ndarray, most: float):
    build = Builder().feed("x", [-1, 4])
    build.param("p", old)
    model = build.model()
    found = diff(model, model.replaced(params=model.params.replaced({"p": new})))
    assert [item.max_abs for item in found] == [most]
    json.dumps(found.to_dict(), allow_nan=False)


def test_added_removed_and_reshaped_parameters(model: Model):
    other = {"conv2d_0.w_0": np.zeros((2, 3, 1, 1), np.float32), "new": np.zeros(2, np.int8)}
    assert lines(model, model.replaced(params=model.params.replaced(other, ["conv2d_1.w_0"]))) == [
        "~ parameter 'conv2d_0.w_0': float32[2, 3, 3, 3] -> float32[2, 3, 1, 1]",
        "- parameter 'conv2d_1.w_0': float32[2, 2, 3, 3]",
        "+ parameter 'new': int8[2]",
    ]
