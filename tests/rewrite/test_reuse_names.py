"""Names as registers, on random programs: the same outputs under fewer names, no value overwritten while needed."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.build import Builder
from support.quantized import quantized
from support.strategies import runnable_models

from qpass.ir.model import Model
from qpass.ir.verify import verify
from qpass.quant.layers import find_layers
from qpass.rewrite.distinct import distinct_names
from qpass.rewrite.merge import merge
from qpass.rewrite.reuse import reuse_names
from qpass.runtime.engines import get_engine
from qpass.runtime.inference import PaddleInferenceEngine

ENGINES = (get_engine("executor"), PaddleInferenceEngine(threads=1).of_made_programs())


@st.composite
def merged_models(draw: st.DrawFn) -> Model:
    """A net beside variants of it with one layer quantized: the programs that names are reused in."""
    model = draw(runnable_models())
    layers = [layer.name for layer in find_layers(model)]
    chosen = draw(st.lists(st.sampled_from(layers), unique=True, max_size=4)) if layers else []
    return merge([model, *(quantized(model, layers=(name,), encoding="D") for name in chosen)]).model


def some_input(model: Model, count: int = 3) -> dict[str, np.ndarray]:
    shape = [count, *model.feeds[0].shape[1:]]
    return {model.feeds[0].name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def lives(model: Model) -> list[tuple[str, int, int]]:
    """Of every value that an op writes: its name, where it is written and where it is read for the last time."""
    graph = model.graph
    found = []
    for i, op in enumerate(graph.ops):
        for slot, index, name in op.writes():
            uses = graph.uses(graph.written(op, slot, index))
            found.append((name, i, max((graph.position[use.op] for use in uses), default=i)))
    return found


@given(merged_models())
def test_outputs_keep_every_bit(model: Model) -> None:
    made = reuse_names(model)
    verify(made)
    for engine in ENGINES:
        before, after = engine.session(model), engine.session(made)
        for count in (3, 1, 3):
            feed = some_input(model, count)
            for a, b in zip(before.run(feed), after.run(feed), strict=True):
                np.testing.assert_array_equal(a, b)


@given(merged_models())
def test_ops_read_the_values_that_they_read_before(model: Model) -> None:
    made = reuse_names(model)
    assert [op.type for op in made.graph.ops] == [op.type for op in model.graph.ops]
    for before, after in zip(model.graph.ops, made.graph.ops, strict=True):
        for slot, index, _ in before.reads():
            assert writer(made, after.uid, slot, index) == writer(model, before.uid, slot, index)


def writer(model: Model, uid: int, slot: str, index: int) -> tuple[int, str, int] | str:
    """What wrote an operand, or its name where no op did."""
    graph = model.graph
    ref = graph.read(graph.by_uid[uid], slot, index)
    wrote = graph.definition(ref)
    return ref.name if wrote is None else (graph.position[wrote.op], wrote.slot, wrote.index)


@given(merged_models())
def test_no_name_holds_two_values_at_once(model: Model) -> None:
    made = reuse_names(model)
    persistable = {name for name, decl in made.graph.decls.items() if decl.persistable}
    held = [life for life in lives(made) if life[0] not in persistable]
    for i, (name, start, end) in enumerate(held):
        for other, begin, finish in held[i + 1 :]:
            assert name != other or end < begin or finish < start, (name, (start, end), (begin, finish))


@given(merged_models())
def test_names_of_inputs_outputs_and_parameters_stay_and_no_name_is_new(model: Model) -> None:
    made = reuse_names(model)
    assert (made.feeds, made.fetches, made.params) == (model.feeds, model.fetches, model.params)
    assert made.graph.decls.keys() <= model.graph.decls.keys()
    for name, decl in made.graph.decls.items():
        assert decl == model.graph.decls[name]


@given(merged_models())
def test_distinct_names_take_it_back(model: Model) -> None:
    once = reuse_names(model)
    assert len(reuse_names(distinct_names(once)).graph.decls) == len(once.graph.decls)


def test_a_long_chain_needs_few_names() -> None:
    builder = Builder().feed("x", [-1, 6])
    for _ in range(20):
        builder.matmul(6).relu()
    model = builder.model()
    made = reuse_names(model)
    temporary = {name for name, decl in made.graph.decls.items() if not decl.persistable}
    assert temporary == {"x", "matmul_v2_0.tmp_0", "relu_0.tmp_0", model.fetches[0].name}


def test_values_of_other_shapes_and_ops_have_names_of_their_own() -> None:
    model = Builder().feed("x", [-1, 6]).matmul(6).matmul(5).mul(6).relu().unary("tanh").matmul(6).model()
    used = [op.outputs[0][1][0] for op in reuse_names(model).graph.ops if op.type not in ("feed", "fetch")]
    assert len(used) == len(set(used))
