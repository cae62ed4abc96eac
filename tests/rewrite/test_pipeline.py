"""Pipelines and reports."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from support.build import Builder

from qpass.errors import PassError
from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.passes import DropDebugInfo, DropIdentity, FoldBatchNorm, RemoveUnused
from qpass.rewrite.edit import edit
from qpass.rewrite.passes import Pass
from qpass.rewrite.pipeline import Pipeline, run, run_with_report


@dataclass(frozen=True)
class Mark(Pass):
    """Append a word to an attribute of every relu."""

    word: str = "a"

    def run(self, model: Model) -> Model:
        with edit(model) as e:
            for op in model.graph.ops:
                if op.type == "relu":
                    e.set_attr(op, "mark", Attr.str(f"{op.attr('mark', '')}{self.word}"))
        return e.model


@dataclass(frozen=True)
class Nothing(Pass):
    """Do nothing."""

    def run(self, model: Model) -> Model:
        return model


@dataclass(frozen=True)
class Turncoat(Pass):
    """Fetch another value."""

    def run(self, model: Model) -> Model:
        with edit(model, interface=True) as e:
            e.rewire(model.graph.ops[-1], "X", 0, "x")
        return e.model


@pytest.fixture
def model() -> Model:
    return Builder().feed("x", (-1, 3, 8, 8)).conv2d(4).batch_norm().relu().unary("assign").relu().model()


def mark(model: Model) -> set[object]:
    return {op.attr("mark") for op in model.graph.ops if op.type == "relu"}


def test_order_is_the_users(model: Model) -> None:
    assert mark(run(model, [Mark("b"), Mark("a"), Mark("b")])) == {"bab"}
    assert mark(run(model, Mark("c"))) == {"c"}


def test_a_composition_is_a_pass(model: Model) -> None:
    inner = Pipeline((Mark("1"), Mark("2")))
    nested = Pipeline((Mark("0"), inner, Pipeline(()), Mark("3")))
    assert isinstance(nested, Pass)
    assert mark(nested(model)) == {"0123"}
    assert eval(repr(nested), {"Pipeline": Pipeline, "Mark": Mark}) == nested


def test_identity_answers(model: Model) -> None:
    assert run(model, []) is model
    assert Pipeline((Nothing(), DropDebugInfo(), Pipeline((RemoveUnused(),))))(model) is model
    made, report = run_with_report(model, [Nothing()])
    assert made is model
    assert not report.changed


def test_a_pass_inside_may_not_change_the_interface(model: Model) -> None:
    with pytest.raises(PassError, match="Turncoat"):
        Pipeline((Mark(), Turncoat()))(model)


def test_report(model: Model) -> None:
    made, report = run_with_report(model, [Pipeline((FoldBatchNorm(), Nothing())), DropIdentity(), Mark('"')])
    assert made == run(model, [FoldBatchNorm(), DropIdentity(), Mark('"')])
    assert [r.spec for r in report.records] == ["fold-batch-norm", "nothing", "drop-identity", 'mark{word="\\""}']
    assert [r.changed for r in report.records] == [True, False, True, True]
    fold, _, drop, _ = report.records
    # 4 filters of 3*3*3 and five vectors of 4 before; filters and one vector after; 4 bytes a number.
    assert (fold.before.params, fold.before.param_bytes) == (5, 4 * (4 * 27 + 4 * 4))
    assert (fold.after.params, fold.after.param_bytes) == (2, 4 * (4 * 27 + 4))
    assert (drop.before.ops, drop.after.ops) == (7, 6)
    assert drop.after.program_bytes < drop.before.program_bytes
    assert all(a.after == b.before for a, b in zip(report.records, report.records[1:], strict=False))
    assert report.to_dicts()[0]["spec"] == "fold-batch-norm"
    lines = str(report).splitlines()
    assert lines[0].startswith("fold-batch-norm: params 5 -> 2, param bytes 496 -> 448, program bytes ")
    assert lines[1].startswith("nothing: nothing to do (")
