"""The verifier finds each broken invariant, says where, and stays short."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from support.build import Builder, block_attr, holder
from support.strategies import models

from qpass.errors import VerifyError
from qpass.ir.dtype import DType
from qpass.ir.graph import Decl, Graph
from qpass.ir.model import Model
from qpass.ir.op import Attr, AttrKind, Op
from qpass.ir.params import Params
from qpass.ir.verify import verify

LONGEST_MESSAGE = 1200


@pytest.fixture
def model() -> Model:
    return Builder().feed("x", [-1, 3, 4, 4]).conv2d(2).batch_norm().relu().model()


def broken(model: Model) -> str:
    with pytest.raises(VerifyError) as found:
        verify(model)
    message = str(found.value)
    assert len(message) < LONGEST_MESSAGE
    return message


def with_ops(model: Model, *ops: Op) -> Model:
    return model.replaced(graph=dataclasses.replace(model.graph, ops=ops))


def with_decl(model: Model, decl: Decl) -> Model:
    return model.replaced(graph=dataclasses.replace(model.graph, decls={**model.graph.decls, decl.name: decl}))


def changed(model: Model, kind: str, op: Op) -> Model:
    return with_ops(model, *(op if old.type == kind else old for old in model.graph.ops))


def find(model: Model, kind: str) -> Op:
    return next(op for op in model.graph.ops if op.type == kind)


@given(models())
def test_valid_models_pass_and_come_back(model: Model):
    assert verify(model) is model


def test_undeclared_read(model: Model):
    message = broken(changed(model, "relu", find(model, "relu").with_input("X", 0, "ghost")))
    assert message.startswith("block 0, op 3 (relu), slot X: reads 'ghost', which is not declared")
    assert "-> 3: relu(X=['ghost'])" in message
    assert "2: batch_norm(" in message


def test_undeclared_write(model: Model):
    message = broken(changed(model, "relu", find(model, "relu").with_output("Out", 0, "ghost")))
    assert message.startswith("block 0, op 3 (relu), slot Out: writes 'ghost', which is not declared")


def test_read_before_write(model: Model):
    feed, conv, norm, *rest = model.graph.ops
    message = broken(with_ops(model, feed, norm, conv, *rest))
    assert message.startswith("block 0, op 1 (batch_norm), slot X: reads 'conv2d_0.tmp_0' before any op has written it")


def test_duplicate_uid(model: Model):
    ops = [dataclasses.replace(op, uid=min(op.uid, 2)) for op in model.graph.ops]
    assert "two ops have the same uid" in broken(with_ops(model, *ops))


def test_declaration_under_another_name(model: Model):
    graph = dataclasses.replace(model.graph, decls={**model.graph.decls, "alias": Decl("x")})
    assert "'x' is declared under the name 'alias'" in broken(model.replaced(graph=graph))


def test_slot_given_twice(model: Model):
    relu = find(model, "relu")
    twice = dataclasses.replace(relu, inputs=(*relu.inputs, *relu.inputs))
    assert "op 3 (relu): a slot is given twice: ['X', 'X']" in broken(changed(model, "relu", twice))


def test_broken_in_place_pair(model: Model):
    norm = find(model, "batch_norm")
    message = broken(changed(model, "batch_norm", norm.with_output("MeanOut", 0, "batch_norm_0.tmp_0")))
    assert message.startswith("block 0, op 2 (batch_norm), slot MeanOut: writes 'batch_norm_0.tmp_0'")
    assert "expected 'batch_norm_0.w_1' in place (Mean)" in message


@pytest.mark.parametrize(("index", "parent"), [(1, 1), (1, 2), (1, -1), (2, 0)])
def test_block_tree(model: Model, index: int, parent: int):
    blocks = (*model.blocks, Graph(index=index, parent=parent))
    assert broken(dataclasses.replace(model, blocks=blocks)).startswith("block 1: block 1 calls itself")


@pytest.mark.parametrize(
    ("attr", "what"),
    [
        (block_attr(3), "runs block 3, which does not exist"),
        (block_attr(0), "runs block 0, which does not exist"),
        (block_attr(-1), "runs block -1, which does not exist"),
        (block_attr(2), "runs block 2, which is not nested here"),
        (Attr(AttrKind.BLOCKS, (1, 2)), "runs block 2, which is not nested here"),
    ],
)
def test_block_attributes(model: Model, attr: Attr, what: str):
    nested = (Graph(index=1, parent=0), Graph(index=2, parent=1))
    control = dataclasses.replace(find(model, "relu"), attrs={"sub_block": attr})
    message = broken(dataclasses.replace(model, blocks=(changed(model, "relu", control).graph, *nested)))
    assert message.startswith(f"block 0, op 3 (relu): {what}")


def nest(model: Model, owner: str, body: Graph, **slots: dict) -> Model:
    """`model` with `relu` replaced by an op that runs `body` and lists no more than relu did."""
    relu = find(model, "relu")
    control = dataclasses.replace(relu, type=owner, attrs={"sub_block": block_attr(1)}, **slots)
    return dataclasses.replace(model, blocks=(changed(model, "relu", control).graph, body))


def test_bodies_may_read_and_write_outer_names(model: Model):
    ops = (Op.make("scale", {"X": "x"}, {"Out": "t"}), Op.make("assign", {"X": "t"}, {"Out": "relu_0.tmp_0"}))
    body = Graph(tuple(dataclasses.replace(op, uid=i) for i, op in enumerate(ops)), {"t": Decl("t")}, 1, 0)
    verify(nest(model, "conditional_block", body))
    # A body that writes a name counts as its writer even where the control-flow op does not list it.
    verify(nest(model, "conditional_block", body, outputs=()))
    undeclared = dataclasses.replace(body, decls={})
    assert broken(nest(model, "while", undeclared)).startswith("block 1, op 0 (scale), slot Out: writes 't'")


def test_bodies_of_bodies_may_write_outer_names(model: Model):
    assign = Op.make("assign", {"X": "x"}, {"Out": "relu_0.tmp_0"})
    middle = dataclasses.replace(Op.make("conditional_block", {}, {}, {"sub_block": block_attr(2)}), uid=0)
    outer = nest(model, "conditional_block", Graph((middle,), {}, 1, 0), outputs=())
    verify(dataclasses.replace(outer, blocks=(*outer.blocks, Graph((dataclasses.replace(assign, uid=0),), {}, 2, 1))))
    empty = dataclasses.replace(outer, blocks=(*outer.blocks, Graph((), {}, 2, 1)))
    assert "op 4 (fetch), slot X: reads 'relu_0.tmp_0' before any op has written it" in broken(empty)


def test_only_loops_may_read_what_they_write_later(model: Model):
    ops = (Op.make("scale", {"X": "t"}, {"Out": "relu_0.tmp_0"}), Op.make("assign", {"X": "x"}, {"Out": "t"}))
    body = Graph(tuple(dataclasses.replace(op, uid=i) for i, op in enumerate(ops)), {"t": Decl("t")}, 1, 0)
    verify(nest(model, "while", body))
    message = broken(nest(model, "conditional_block", body))
    assert message.startswith("block 1, op 0 (scale), slot X: reads 't' before any op has written it")


def test_kinds_that_are_no_tensors_need_no_writer(model: Model):
    array = dataclasses.replace(holder("scope"), name="array")
    relu = find(model, "relu")
    reader = dataclasses.replace(relu, inputs=(*relu.inputs, ("Scope", ("array",))))
    verify(with_decl(changed(model, "relu", reader), array))


@pytest.mark.parametrize(("kind", "slot"), [("feed", "outputs"), ("fetch", "inputs")])
def test_feed_and_fetch_name_one_value(model: Model, kind: str, slot: str):
    op = find(model, kind)
    name = "Out" if kind == "feed" else "X"
    wrong = dataclasses.replace(op, **{slot: ((name, ("x", "x")),)})
    assert f"a {kind} op must name one value, found ['x', 'x']" in broken(changed(model, kind, wrong))


def test_feed_column_must_be_a_number(model: Model):
    wrong = dataclasses.replace(find(model, "feed"), attrs={"col": Attr.str("first")})
    assert "attribute 'col' is 'first', expected an integer" in broken(changed(model, "feed", wrong))


def test_missing_parameter(model: Model):
    message = broken(model.replaced(params=model.params.replaced({}, ["conv2d_0.w_0"])))
    assert message.startswith("variable 'conv2d_0.w_0': declared persistable, but there is no such parameter")


def test_structure_without_any_parameters_is_valid(model: Model):
    verify(model.replaced(params=Params()))


def test_parameter_without_declaration(model: Model):
    extra = model.params.replaced({"ghost": np.zeros(1, np.float32)})
    assert broken(model.replaced(params=extra)).startswith("parameter 'ghost': there is a parameter of this name")
    temporary = model.params.replaced({"x": np.zeros(1, np.float32)})
    assert broken(model.replaced(params=temporary)).startswith("parameter 'x'")


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.zeros((2, 3, 3, 3), np.float64), "the parameter is float64, its declaration says float32"),
        (np.zeros((2, 3, 3, 3), np.uint8), "the parameter is uint8, its declaration says float32"),
        (np.zeros((2, 3, 3, 3), object), "the parameter is object, which no tensor of Paddle can hold"),
        (np.zeros((2, 3, 3), np.float32), "the parameter has shape [2, 3, 3], its declaration says [2, 3, 3, 3]"),
        (np.zeros((3, 2, 3, 3), np.float32), "the parameter has shape [3, 2, 3, 3], its declaration says"),
    ],
)
def test_parameter_against_declaration(model: Model, array: np.ndarray, what: str):
    message = broken(model.replaced(params=model.params.replaced({"conv2d_0.w_0": array})))
    assert message.startswith(f"parameter 'conv2d_0.w_0': {what}")


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
def test_stored_integers_under_float_declarations_are_legal(model: Model, dtype: type):
    verify(model.replaced(params=model.params.replaced({"conv2d_0.w_0": np.zeros((2, 3, 3, 3), dtype)})))


def test_scalar_parameters_may_have_no_or_one_dimension(model: Model):
    for declared, stored in (((), (1,)), ((1,), ()), ((-1,), (5,))):
        decl = Decl("s", dtype=DType.FLOAT32, shape=declared, persistable=True)
        params = model.params.replaced({"s": np.zeros(stored, np.float32)})
        verify(with_decl(model, decl).replaced(params=params))


def test_messages_stay_short_for_ops_with_thousands_of_operands(model: Model):
    wide = dataclasses.replace(find(model, "relu"), inputs=(("X", tuple(f"ghost_{i}" for i in range(5000))),))
    assert "reads 'ghost_0', which is not declared" in broken(changed(model, "relu", wide))
