"""The edit transaction: nothing or all of it, and untouched operands keep their producers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.build import Builder
from support.corpus import PROGRAMS, corpus
from support.strategies import models
from support.structure import encoded, find, producers

from qpass.errors import EditError, QPassError, VerifyError
from qpass.formats import pdmodel
from qpass.ir.graph import Decl
from qpass.ir.model import Model
from qpass.ir.op import Attr, Op
from qpass.ir.verify import verify
from qpass.rewrite.edit import edit


@pytest.fixture
def model() -> Model:
    return Builder().feed("x", [-1, 3, 4, 4]).conv2d(2).batch_norm().relu().add("batch_norm_0.tmp_2").model()


def types(model: Model) -> list[str]:
    return [op.type for op in model.graph.ops]


@given(models())
def test_an_edit_of_nothing_is_the_same_object(model: Model):
    with edit(model) as e:
        pass
    assert e.model is model
    with edit(model) as e:
        for op in model.graph.ops:
            e.replace(op, op)
            e.drop_attrs(op, ["no such attribute"])
        for name, array in model.params.items():
            e.set_param(name, array.copy())
    assert e.model is model


@given(models())
def test_insert_then_remove_is_byte_identical(model: Model):
    anchor = model.graph.ops[0]
    with edit(model) as e:
        e.declare(Decl("inserted"))
        made = e.insert(Op.make("fill_constant", {}, {"Out": "inserted"}), after=anchor)
    assert encoded(e.model) != encoded(model)
    with edit(e.model) as back:
        back.remove(made)
        back.undeclare("inserted")
    assert encoded(back.model) == encoded(model)
    assert back.model == model
    with edit(model) as once:
        once.remove(once.insert(Op.make("fill_constant", {}, {}), before=anchor))
    assert once.model is model


@pytest.mark.parametrize("path", PROGRAMS[:2])
def test_insert_then_remove_on_the_corpus(path: str):
    data = corpus(path).read_bytes()
    blocks, extra = pdmodel.decode(data, path)
    model = Model(blocks, extra=extra)
    with edit(model) as e:
        inserted = [e.insert(Op.make("nop", {}, {}), after=op) for op in model.graph.ops]
    assert types(e.model) == [kind for op in model.graph.ops for kind in (op.type, "nop")]
    with edit(e.model) as back:
        for op in inserted:
            back.remove(op)
    assert encoded(back.model) == data


@st.composite
def plans(draw: st.DrawFn, model: Model) -> list[tuple]:
    """Random changes of the root block; each op is an anchor at most once, so that the order is plain."""
    ops = [op for op in model.graph.ops if op.type not in ("feed", "fetch")]
    names = st.sampled_from(sorted(n for n, d in model.graph.decls.items() if d.kind == "tensor"))
    plan: list[tuple] = []
    for op in draw(st.lists(st.sampled_from(ops), unique_by=lambda op: op.uid, max_size=4)) if ops else []:
        kind = draw(st.sampled_from(("remove", "after", "before", "rewire", "redirect", "attr")))
        reads, writes = list(op.reads()), list(op.writes())
        if kind in ("after", "before"):
            plan.append((kind, op.uid, Op.make("new", {"X": draw(names)}, {"Out": draw(names)})))
        elif kind == "rewire" and reads:
            slot, index, _ = draw(st.sampled_from(reads))
            plan.append((kind, op.uid, slot, index, draw(names)))
        elif kind == "redirect" and writes:
            slot, index, _ = draw(st.sampled_from(writes))
            plan.append((kind, op.uid, slot, index, draw(names)))
        elif kind in ("remove", "attr"):
            plan.append((kind, op.uid))
    return plan


def by_hand(model: Model, plan: list[tuple]) -> tuple[list[Op], set[tuple[int, str, int]]]:
    """The op list after `plan`, and the operands that it mentions."""
    ops, mentioned, new = list(model.graph.ops), set(), len(model.graph.ops)
    for kind, uid, *rest in plan:
        at = next(i for i, op in enumerate(ops) if op.uid == uid)
        if kind == "remove":
            del ops[at]
        elif kind == "attr":
            ops[at] = ops[at].with_attrs(changed=Attr.int(1))
        elif kind == "rewire":
            ops[at] = ops[at].with_input(*rest)
            mentioned.add((uid, rest[0], rest[1]))
        elif kind == "redirect":
            ops[at] = ops[at].with_output(*rest)
        else:
            made = Op(rest[0].type, rest[0].inputs, rest[0].outputs, uid=new)
            new += 1
            ops.insert(at + (kind == "after"), made)
            mentioned.add((made.uid, "X", 0))
    return ops, mentioned


def apply(model: Model, plan: list[tuple]) -> Model:
    with edit(model) as e:
        for kind, uid, *rest in plan:
            if kind == "remove":
                e.remove(uid)
            elif kind == "attr":
                e.set_attr(uid, "changed", Attr.int(1))
            elif kind == "rewire":
                e.rewire(uid, *rest)
            elif kind == "redirect":
                e.redirect(uid, *rest)
            elif kind == "after":
                e.insert(rest[0], after=uid)
            else:
                e.insert(rest[0], before=uid)
    return e.model


def attempt(model: Model, plan: list[tuple]) -> Model | QPassError:
    try:
        return apply(model, plan)
    except QPassError as error:
        return error


@given(models(), st.data())
@settings(max_examples=120)
def test_an_edit_does_what_it_says_or_nothing(model: Model, data: st.DataObject):
    """Against a naive list: the edit succeeds just when no unmentioned operand changes its producer."""
    plan = data.draw(plans(model))
    ops, mentioned = by_hand(model, plan)
    before, after = producers(list(model.graph.ops)), producers(ops)
    kept = all(after[use] == before[use] for use in after if use not in mentioned)
    bytes_before = encoded(model)
    outcome = attempt(model, plan)
    assert encoded(model) == bytes_before
    if isinstance(outcome, Model):
        assert kept
        assert list(outcome.graph.ops) == ops
        assert outcome.graph.decls == model.graph.decls
    elif kept:
        # Sound for every operand, so it must be the program itself that is wrong now.
        assert isinstance(outcome, VerifyError)
        with pytest.raises(VerifyError):
            verify(model.replaced(graph=dataclasses.replace(model.graph, ops=tuple(ops))))


def test_an_exception_inside_the_block_changes_nothing(model: Model):
    before = encoded(model)
    with pytest.raises(ZeroDivisionError), edit(model) as e:
        e.set_attr(e.insert(Op.make("nop", {}, {}), after=find(model, "relu")), "axis", Attr.int(1 // 0))
    assert e.model is model
    assert encoded(model) == before


def test_a_failed_commit_changes_nothing(model: Model):
    with pytest.raises(EditError), edit(model) as e:
        e.remove(find(model, "relu"))
    assert e.model is model


def test_removed_producer_is_named(model: Model):
    with pytest.raises(EditError) as found, edit(model) as e:
        e.remove(find(model, "batch_norm"))
    message = str(found.value)
    assert message.startswith("block 0, op 2 (relu), slot X: an operand that the edit did not mention")
    assert "'batch_norm_0.tmp_2' written by op 2 (batch_norm, Y) before, as it stood at the start after" in message
    assert "-> 2: relu(X=['batch_norm_0.tmp_2'])" in message


def test_a_new_write_may_not_hide_the_old_value(model: Model):
    norm = find(model, "batch_norm")
    words = r"written by op 2 \(batch_norm, Y\) before, written by op 3 \(scale, Out\)"
    with pytest.raises(EditError, match=words), edit(model) as e:
        e.insert(Op.make("scale", {"X": "x"}, {"Out": norm.output("Y")[0]}), after=norm)


def test_bypassing_an_op(model: Model):
    add = find(model, "elementwise_add")
    with edit(model) as e:
        e.rewire(add, "X", 0, "batch_norm_0.tmp_2")
        e.remove(find(model, "relu"))
        e.undeclare("relu_0.tmp_0")
    assert types(e.model) == ["feed", "conv2d", "batch_norm", "elementwise_add", "fetch"]
    assert e.model.graph.by_uid[add.uid].input("X") == ("batch_norm_0.tmp_2",)


def test_several_insertions_keep_the_order_of_the_calls(model: Model):
    relu = find(model, "relu")
    with edit(model) as e:
        first = e.insert(Op.make("a1", {}, {}), after=relu)
        e.insert(Op.make("b1", {}, {}), before=relu)
        gone = e.insert(Op.make("a2", {}, {}), after=relu)
        e.insert(Op.make("b2", {}, {}), before=relu)
        e.insert(Op.make("a1.after", {}, {}), after=first)
        e.insert(Op.make("a1.before", {}, {}), before=first)
        e.remove(gone)
        e.insert(Op.make("a3", {}, {}), after=relu)
    assert types(e.model)[3:9] == ["b1", "b2", "relu", "a1.before", "a1", "a1.after"]
    assert types(e.model)[9] == "a3"


def test_a_long_chain_of_insertions(model: Model):
    with edit(model) as e:
        last = find(model, "feed")
        for i in range(3000):
            last = e.insert(Op.make(f"n{i}", {}, {}), after=last)
    assert types(e.model)[1:3001] == [f"n{i}" for i in range(3000)]


def test_insertions_stay_where_their_anchor_was(model: Model):
    relu, add = find(model, "relu"), find(model, "elementwise_add")
    with edit(model) as e:
        e.insert(Op.make("relu6", {"X": "batch_norm_0.tmp_2"}, {"Out": "relu_0.tmp_0"}), after=relu)
        e.remove(relu)
        e.rewire(add, "X", 0, "relu_0.tmp_0")
    assert types(e.model) == ["feed", "conv2d", "batch_norm", "relu6", "elementwise_add", "fetch"]


def test_uids_are_new_and_stay(model: Model):
    with edit(model) as e:
        made = e.insert(Op.make("nop", {}, {}), after=find(model, "feed"))
        changed = e.set_attr(made, "axis", Attr.int(1))
        assert e.op(made) is changed
    assert made.uid not in model.graph.by_uid
    assert e.model.graph.by_uid[made.uid].attr("axis") == 1


@pytest.mark.parametrize("places", [{}, {"after": 0, "before": 1}])
def test_insert_needs_exactly_one_place(model: Model, places: dict[str, int]):
    with pytest.raises(EditError, match="exactly one of"), edit(model) as e:
        e.insert(Op.make("nop", {}, {}), **places)


def test_impossible_requests(model: Model):
    relu = find(model, "relu")
    requests = {
        "already has uid": lambda e: e.insert(relu, after=relu),
        "is not in block 0, or was removed": lambda e: e.remove(99),
        "no operand X[1]": lambda e: e.rewire(relu, "X", 1, "x"),
        "no operand Y[0]": lambda e: e.rewire(relu, "Y", 0, "x"),
        "no operand Out[-1]": lambda e: e.redirect(relu, "Out", -1, "x"),
        "'x' is already declared in block 0": lambda e: e.declare(Decl("x")),
        "'ghost' is not declared": lambda e: e.redeclare(Decl("ghost")),
        "'nobody' is not declared": lambda e: e.undeclare("nobody"),
        "'nothing' is not declared": lambda e: e.decl("nothing"),
        "cannot rename 'ghost'": lambda e: e.rename("ghost", "y"),
        "the name is taken": lambda e: e.rename("x", "relu_0.tmp_0"),
    }
    for message, request in requests.items():
        with pytest.raises(EditError) as found, edit(model) as e:
            request(e)
        assert message in str(found.value)
        assert e.model is model


def test_removed_ops_are_gone_inside_the_transaction(model: Model):
    relu = find(model, "relu")
    with edit(model) as e:
        again = e.insert(dataclasses.replace(relu, uid=-1), after=relu)
        e.rewire(find(model, "elementwise_add"), "X", 0, "relu_0.tmp_0")
        e.remove(relu)
        with pytest.raises(EditError, match="was removed"):
            e.op(relu)
        assert e.op(again) == relu


def test_undeclared_output_is_refused(model: Model):
    with pytest.raises(VerifyError, match="writes 'ghost', which is not declared"), edit(model) as e:
        e.insert(Op.make("scale", {"X": "x"}, {"Out": "ghost"}), after=find(model, "feed"))


def test_the_interface_is_protected(model: Model):
    fetch, add = find(model, "fetch"), find(model, "elementwise_add")
    changes = {
        "another fetch": lambda e: e.rewire(fetch, "X", 0, "relu_0.tmp_0"),
        "no fetch": lambda e: e.remove(fetch),
        "renamed feed": lambda e: e.rename("x", "input"),
        "renamed fetch": lambda e: e.rename(add.output("Out")[0], "output"),
        "other shape": lambda e: e.redeclare(Decl("x", shape=(1, 3, 4, 4), extra=e.decl("x").extra)),
    }
    for change in changes.values():
        with pytest.raises(EditError, match="changes the interface"), edit(model) as e:
            change(e)
        assert e.model is model
        with edit(model, interface=True) as e:
            change(e)
        assert (e.model.feeds, e.model.fetches) != (model.feeds, model.fetches)


def test_parameters_follow_the_edit(model: Model):
    weight = model.params["conv2d_0.w_0"]
    with edit(model) as e:
        e.set_param("conv2d_0.w_0", weight * 2)
    np.testing.assert_array_equal(e.model.params["conv2d_0.w_0"], weight * 2)
    assert e.model.graph is model.graph
    assert e.model.params["batch_norm_0.w_0"].base is model.params["batch_norm_0.w_0"].base
    with pytest.raises(VerifyError, match="there is no such parameter"), edit(model) as e:
        e.drop_param("conv2d_0.w_0")
    with pytest.raises(VerifyError, match="no persistable declaration"), edit(model) as e:
        e.set_param("ghost", weight)
    with pytest.raises(VerifyError, match="shape"), edit(model) as e:
        e.set_param("conv2d_0.w_0", weight[:1])
