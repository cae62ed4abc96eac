"""A program with `while` and nested `conditional_block`, exported by PaddlePaddle 2.6, survives whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.infer import infer

from qpass.errors import EditError, VerifyError
from qpass.formats import pdiparams, pdmodel
from qpass.ir.graph import Decl
from qpass.ir.model import Model
from qpass.ir.op import Attr, Op
from qpass.ir.params import Params
from qpass.ir.text import dump, parse
from qpass.ir.verify import persistable_tensors, verify
from qpass.rewrite.edit import edit

DATA = Path(__file__).resolve().parents[1] / "data"
PROGRAM = DATA / "control_flow.pdmodel"
PARAMS = DATA / "control_flow.pdiparams"


@pytest.fixture
def model() -> Model:
    blocks, extra = pdmodel.decode(PROGRAM.read_bytes(), PROGRAM.name)
    model = Model(blocks, extra=extra)
    names = list(persistable_tensors(model))
    arrays = pdiparams.decode(np.fromfile(PARAMS, np.uint8), names, PARAMS.name)
    return verify(model.replaced(params=Params(arrays)))


def encoded(model: Model) -> bytes:
    return pdmodel.encode(model.blocks, model.extra)


def find(model: Model, kind: str, block: int = 0) -> Op:
    return next(op for op in model.blocks[block].ops if op.type == kind)


def expected(model: Model, x: np.ndarray, rounds: int = 3) -> np.ndarray:
    """The program of `tools/make_control_flow_program.py`, written out in numpy."""
    for _ in range(rounds):
        x = np.tanh(x @ model.params["loop_weight"])
    if x.mean() > 0:
        return x * 2
    return x - model.params["branch_bias"] if x.mean() > -0.3 else x + 1


def test_shape_of_the_program(model: Model):
    assert [(graph.index, graph.parent) for graph in model.blocks] == [(0, -1), (1, 0), (2, 0), (3, 0), (4, 3), (5, 3)]
    assert [str(port) for port in model.feeds] == ["x: float32[-1, 4]"]
    assert find(model, "while").attr("sub_block") == 1


def test_round_trip_is_exact(model: Model):
    assert encoded(model) == PROGRAM.read_bytes()
    again = parse(dump(model, full=True))
    assert encoded(again) == PROGRAM.read_bytes()
    assert all(graph.topological() == graph.ops for graph in model.blocks)


def test_dump_is_golden(model: Model):
    assert dump(model) == (DATA / "control_flow.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(("scale", "shift"), [(0.3, -0.5), (-0.3, -0.5), (0.5, 1.0), (0.0, 0.01)])
def test_paddle_runs_what_we_write_and_every_branch_is_taken(model: Model, scale: float, shift: float):
    x = (np.arange(8, dtype=np.float32).reshape(2, 4) * scale + shift).astype(np.float32)
    np.testing.assert_allclose(infer(model, {model.feeds[0].name: x})[0], expected(model, x), rtol=1e-5, atol=1e-6)


def test_a_body_can_be_edited(model: Model):
    tanh = find(model, "tanh", block=1)
    with edit(model, block=1) as e:
        name = e.fresh("halved")
        e.declare(Decl(name, shape=(-1, 4)))
        half = Op.make("scale", {"X": tanh.output("Out")[0]}, {"Out": name}, {"scale": Attr.float(0.5)})
        e.insert(half, after=tanh)
        e.rewire(next(op for op in e.model.blocks[1].ops if op.input("X") == tanh.output("Out")), "X", 0, name)
    x = np.full((2, 4), 0.7, np.float32)
    value = x
    for _ in range(3):
        value = np.tanh(value @ model.params["loop_weight"]) * 0.5
    value = value * 2 if value.mean() > 0 else value - model.params["branch_bias"] * (value.mean() > -0.3)
    np.testing.assert_allclose(infer(e.model, {e.model.feeds[0].name: x})[0], value, rtol=1e-5, atol=1e-6)
    assert e.model.blocks[0] is model.blocks[0]


def test_captured_names_are_protected(model: Model):
    start = next(op for op in model.graph.ops if op.type == "fill_constant")
    counter = start.output("Out")[0]
    with pytest.raises(EditError, match="cannot rename"), edit(model) as e:
        e.rename(counter, "counter")
    with pytest.raises(EditError, match="would read another value"), edit(model) as e:
        e.remove(start)
    with pytest.raises(VerifyError, match="which is not declared"), edit(model) as e:
        e.undeclare("loop_weight")
