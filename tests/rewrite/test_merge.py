"""Models put side by side in one program, on random nets: the outputs of each, with everything shared that is equal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.build import Builder
from support.quantized import FOLDER, quantized
from support.strategies import models, runnable_models

from qpass.errors import PassError
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.ir.verify import verify
from qpass.quant.layers import find_layers
from qpass.rewrite.edit import edit
from qpass.rewrite.merge import Merged, is_shareable, merge
from qpass.runtime.engines import get_engine

EXECUTOR = get_engine("executor")


@st.composite
def variants(draw: st.DrawFn) -> list[Model]:
    """A random net, and some that differ from it in a weight, in the quantization of a layer, or in both."""
    model = draw(runnable_models())
    layers = [layer.name for layer in find_layers(model)]
    made = [model]
    for _ in range(draw(st.integers(1, 4))):
        variant = model
        if draw(st.booleans()) and layers:
            variant = quantized(
                model, layers=tuple(draw(st.sets(st.sampled_from(layers), min_size=1))), encoding=draw(encodings())
            )
        weights = [name for name in variant.params if variant.params[name].ndim > 1]
        if draw(st.booleans()) and weights:
            name = draw(st.sampled_from(weights))
            with edit(variant) as e:
                e.set_param(name, -variant.params[name])
            variant = e.model
        made.append(variant)
    return made


def encodings() -> st.SearchStrategy[str]:
    """B and D, twice as often: merging sees ops, not encodings."""
    return st.sampled_from("ABBCDD")


def some_input(model: Model, count: int = 3) -> dict[str, np.ndarray]:
    shape = [count, *model.feeds[0].shape[1:]]
    return {model.feeds[0].name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def separately(all_models: Sequence[Model], feed: dict[str, np.ndarray]) -> list[list[np.ndarray]]:
    return [EXECUTOR.session(model).run(feed) for model in all_models]


def together(merged: Merged, feed: dict[str, np.ndarray]) -> list[list[np.ndarray]]:
    outputs = EXECUTOR.session(merged.model).run(feed)
    return [[outputs[column] for column in columns] for columns in merged.columns]


def same(a: Sequence[Sequence[np.ndarray]], b: Sequence[Sequence[np.ndarray]]) -> bool:
    return len(a) == len(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y)
        for xs, ys in zip(a, b, strict=True)
        for x, y in zip(xs, ys, strict=True)
    )


def work(model: Model) -> list[str]:
    """Op types without feed and fetch ops."""
    return [op.type for op in model.graph.ops if op.type not in ("feed", "fetch")]


@given(variants())
def test_every_model_keeps_its_outputs(all_models: list[Model]) -> None:
    merged = merge(all_models)
    verify(merged.model)
    feed = some_input(all_models[0])
    assert same(together(merged, feed), separately(all_models, feed))


@given(variants())
def test_what_is_equal_is_computed_once(all_models: list[Model]) -> None:
    merged = merge(all_models).model
    counts = [Counter(work(model)) for model in all_models]
    found = Counter(work(merged))
    for kind in found:
        assert found[kind] <= sum(count[kind] for count in counts)
    keys = [
        (op.type, op.inputs, tuple(sorted(op.attrs.items())), tuple((slot, len(names)) for slot, names in op.outputs))
        for op in merged.graph.ops
        if op.type != "fetch"
    ]
    assert len(keys) == len(set(keys))  # no op is there twice
    digests = [merged.params.digest(name) for name in merged.params]
    assert len(digests) == len(set(digests))  # nor any parameter
    fetched = [op.input("X") for op in merged.graph.ops if op.type == "fetch"]
    assert len(fetched) == len(set(fetched))
    assert [op.int_attr("col", -1) for op in merged.graph.ops if op.type == "fetch"] == list(range(len(fetched)))


@given(runnable_models())
def test_a_model_beside_itself_is_the_model_once(model: Model) -> None:
    once, twice = merge([model]), merge([model, model])
    assert twice.model == once.model
    assert twice.columns == once.columns * 2
    assert len(work(once.model)) <= len(work(model))


@given(models(sub_blocks=False))
def test_what_is_not_known_to_be_pure_stays_apart(model: Model) -> None:
    merged = merge([model, model]).model
    verify(merged)
    alone = Counter(op.type for op in merge([model]).model.graph.ops if op.type != "fetch" and not is_shareable(op))
    assert Counter(op.type for op in merged.graph.ops if op.type in alone) == Counter(
        {k: 2 * n for k, n in alone.items()}
    )


@given(variants())
def test_inputs_stay_in_place(all_models: list[Model]) -> None:
    assert merge(all_models).model.feeds == all_models[0].feeds


def chain(weight: np.ndarray | None = None) -> Builder:
    builder = Builder().feed("x", [-1, 6])
    return builder.matmul(6, weight=None if weight is None else builder.param("linear_0.w_0", weight)).relu()


def test_models_share_up_to_where_they_differ() -> None:
    model = chain().matmul(5).relu().matmul(4).model()
    with edit(model) as e:
        e.set_param("linear_1.w_0", 2 * model.params["linear_1.w_0"])
    merged = merge([model, e.model])
    assert work(merged.model) == ["matmul_v2", "relu", *["matmul_v2", "relu", "matmul_v2"] * 2]
    assert sorted(merged.model.params) == ["linear_0.w_0", "linear_1.w_0", "linear_1.w_0.1", "linear_2.w_0"]
    assert merged.columns == ((0,), (1,))


def test_parameters_are_told_apart_by_content_not_by_name() -> None:
    weight = np.arange(36, dtype=np.float32).reshape(6, 6)
    first = chain(weight).model()
    renamed = Builder().feed("x", [-1, 6])
    other = renamed.matmul(6, weight=renamed.param("w", weight)).relu().model()
    merged = merge([first, other])
    assert work(merged.model) == ["matmul_v2", "relu"]
    assert merged.columns == ((0,), (0,))
    assert sorted(merged.model.params) == ["linear_0.w_0"]


def test_attributes_tell_ops_apart() -> None:
    def scaled(by: float) -> Model:
        return chain().unary("scale", {"scale": Attr.float(by), "bias": Attr.float(0.0)}).model()

    merged = merge([scaled(2.0), scaled(3.0), scaled(2.0)])
    assert work(merged.model) == ["matmul_v2", "relu", "scale", "scale"]
    assert merged.columns == ((0,), (1,), (0,))


def test_names_written_twice_and_outputs_returned_twice() -> None:
    builder = chain()
    name = builder.current
    builder.op("relu", {"X": name}, {"Out": name}).matmul(4).fetch(name, builder.current, name, "x")
    model = builder.model()
    with edit(model) as e:
        e.set_param("linear_1.w_0", 2 * model.params["linear_1.w_0"])
    merged = merge([model, e.model])
    assert merged.columns == ((0, 1, 0, 2), (0, 3, 0, 2))
    feed = some_input(model)
    assert same(together(merged, feed), separately([model, e.model], feed))


def test_an_input_that_nobody_reads_stays_an_input() -> None:
    model = Builder().feed("unread", [-1, 2]).feed("x", [-1, 6]).matmul(3).model()
    assert [port.name for port in merge([model]).model.feeds] == ["unread", "x"]


def test_running_statistics_are_read_and_written_under_one_name() -> None:
    first = Builder().feed("x", [-1, 3, 8, 8]).batch_norm().model()
    with edit(first) as e:
        e.set_param("batch_norm_0.w_1", first.params["batch_norm_0.w_1"] + np.float32(1))
    merged = merge([first, e.model])
    norms = [op for op in merged.model.graph.ops if op.type == "batch_norm"]
    assert [(op.output("MeanOut"), op.output("VarianceOut")) for op in norms] == [
        (op.input("Mean"), op.input("Variance")) for op in norms
    ]
    assert len({op.input("Mean") for op in norms}) == 2
    feed = some_input(first)
    assert same(together(merged, feed), separately([first, e.model], feed))


def test_control_flow_and_other_inputs_are_refused() -> None:
    looped = load(FOLDER.parent / "control_flow.pdmodel")
    with pytest.raises(PassError, match="control flow"):
        merge([looped])
    narrow = Builder().feed("x", [-1, 6]).matmul(2).model()
    wide = Builder().feed("x", [-1, 7]).matmul(2).model()
    with pytest.raises(PassError, match=r"inputs differ: \['x: float32\[-1, 6\]'\] and"):
        merge([wide, narrow])
