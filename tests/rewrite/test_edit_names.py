"""The edit transaction: names that are renamed, dropped, reserved or taken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.build import Builder
from support.strategies import models
from support.structure import encoded, find, producers

from qpass.errors import EditError
from qpass.ir.graph import Decl
from qpass.ir.model import Model
from qpass.rewrite.edit import edit


@pytest.fixture
def model() -> Model:
    return Builder().feed("x", [-1, 3, 4, 4]).conv2d(2).batch_norm().relu().add("batch_norm_0.tmp_2").model()


@given(models(sub_blocks=False), st.data())
def test_rename_there_and_back_is_byte_identical(model: Model, data: st.DataObject):
    inner = sorted(set(model.graph.decls) - {p.name for p in (*model.feeds, *model.fetches)})
    old = data.draw(st.sampled_from(inner))
    with edit(model) as e:
        e.rename(old, "a new name")
    assert producers(list(e.model.graph.ops)) == producers(list(model.graph.ops))
    assert list(e.model.graph.decls) == ["a new name" if n == old else n for n in model.graph.decls]
    assert ("a new name" in e.model.params) == (old in model.params)
    assert all(old not in names for op in e.model.graph.ops for _, names in (*op.inputs, *op.outputs))
    with edit(e.model) as back:
        back.rename("a new name", old)
    assert encoded(back.model) == encoded(model)
    assert back.model.params == model.params


def test_rename_twice_and_edit_what_was_renamed(model: Model):
    relu = find(model, "relu")
    with edit(model) as e:
        e.rename("relu_0.tmp_0", "one")
        e.rename("one", "two")
        e.rewire(relu, "X", 0, "batch_norm_0.tmp_2")
        e.rename("conv2d_0.w_0", "weight")
        e.set_param("weight", model.params["conv2d_0.w_0"] + 1)
    assert e.model.graph.by_uid[relu.uid].output("Out") == ("two",)
    np.testing.assert_array_equal(e.model.params["weight"], model.params["conv2d_0.w_0"] + 1)
    assert "conv2d_0.w_0" not in e.model.params


def test_undeclaring_drops_the_parameter():
    build = Builder().feed("x", [-1, 4]).relu()
    build.param("unused", (2,))
    with edit(build.model()) as e:
        e.undeclare("unused")
    assert "unused" not in e.model.params
    assert "unused" not in e.model.graph.decls


def test_fresh_names_are_new_and_reserved(model: Model):
    with edit(model) as e:
        assert [e.fresh("x"), e.fresh("x"), e.fresh("y"), e.fresh("y")] == ["x.1", "x.2", "y", "y.1"]
    assert e.model is model


def test_a_name_of_another_block_cannot_be_declared():
    @given(models().filter(lambda m: any(m.blocks[i].decls for i in range(1, len(m.blocks)))))
    @settings(max_examples=5)
    def check(model: Model) -> None:
        nested = next(graph for graph in model.blocks[1:] if graph.decls)
        with pytest.raises(EditError, match="already declared in block"), edit(model) as e:
            e.declare(Decl(next(iter(nested.decls))))

    check()
