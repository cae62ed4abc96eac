from __future__ import annotations

import contextlib
import dataclasses
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.build import Builder
from support.corpus import corpus

from qpass.analysis.align import align
from qpass.errors import AlignError
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.quant.layers import find_layers
from qpass.rewrite.edit import edit


def chain(*channels: int, seed: int = 0) -> Model:
    builder = Builder(seed).feed("x", (-1, 4, 8, 8))
    for out in channels:
        builder.conv2d(out).relu()
    return builder.model()


def branches(seed: int = 0) -> Model:
    """Two layers of one shape that read the same value and are added."""
    builder = Builder(seed).feed("x", (-1, 4, 8, 8))
    left = builder.conv2d(4).relu().current
    right = builder.at("x").conv2d(4).relu().current
    return builder.at(left).add(right).model()


def names(model: Model) -> list[str]:
    return [layer.name for layer in find_layers(model)]


def renamed(model: Model, to: dict[str, str]) -> Model:
    with edit(model) as aside:
        for old in to:
            aside.rename(old, f"{old}.moving")
    with edit(aside.model) as e:
        for old, new in to.items():
            e.rename(f"{old}.moving", new)
    return e.model


def reordered(model: Model, seed: int) -> Model:
    """The same program with its ops in another valid order."""
    chance = random.Random(seed)
    graph = model.graph
    waiting, done, order = list(graph.ops), set(), []
    while waiting:
        ready = [op for op in waiting if all(w is None or w.uid in done for w in _writers(model, op.uid))]
        op = chance.choice(ready)
        waiting.remove(op)
        done.add(op.uid)
        order.append(op)
    return model.replaced(graph=dataclasses.replace(graph, ops=tuple(order)))


def _writers(model: Model, uid: int) -> list:
    graph = model.graph
    op = graph.by_uid[uid]
    return [graph.writer(graph.read(op, slot, index)) for slot, index, _ in op.reads()]


@pytest.mark.parametrize(
    ("quant", "twin", "layers"),
    [
        ("models/ppocr_cls_qat", "models/ppocr_cls", 54),
        ("models/ppocr_det_v3_qat", "models/ppocr_det_v3", 74),
    ],
)
def test_official_twins_are_found_and_their_weights_agree(quant: str, twin: str, layers: int) -> None:
    quantized = load(corpus(f"{quant}/inference.pdmodel"))
    float_model = load(corpus(f"{twin}/inference.pdmodel"))
    found = align(quantized, float_model)
    assert len(found) == len(set(found.values())) == layers

    def correlation(a: str, b: str) -> float:
        return float(np.corrcoef(quantized.params[a].ravel(), float_model.params[b].ravel())[0, 1])

    # An independent check: fine-tuning leaves a layer's weights close to where they were, other layers' are unrelated.
    assert min(correlation(a, b) for a, b in found.items()) > 0.65
    for name, mine in found.items():
        shape = quantized.params[name].shape
        rivals = [n for n in found.values() if float_model.params[n].shape == shape and n != mine]
        assert all(correlation(name, mine) > abs(correlation(name, other)) for other in rivals), name


def test_the_renamed_matmul_of_the_classifier_is_found() -> None:
    found = align(
        load(corpus("models/ppocr_cls_qat/inference.pdmodel")), load(corpus("models/ppocr_cls/inference.pdmodel"))
    )
    assert found["conv1_weights"] == "conv2d_0.w_0"
    assert found["fc_0.w_0"] == "fc_0.w_0"
    assert list(found.values()) == names(load(corpus("models/ppocr_cls/inference.pdmodel")))


def test_transformer_twins_align_without_parameters() -> None:
    quantized = load(corpus("graphs/ch_PP-OCRv3_rec_slim_infer.pdmodel"), structure_only=True)
    float_model = load(corpus("graphs/ch_PP-OCRv3_rec_infer.pdmodel"), structure_only=True)
    # Here the names agree, so they tell whether the structure alone finds the same.
    other = renamed(float_model, {name: f"twin_{i}" for i, name in enumerate(names(float_model))})
    truth = {name: f"twin_{i}" for i, name in enumerate(names(float_model))}
    assert align(quantized, other) == truth
    assert align(quantized, float_model) == {name: name for name in truth}


def test_another_model_is_refused_at_the_first_layer() -> None:
    with pytest.raises(
        AlignError, match=r"layer 'conv2_depthwise_weights'.*part here.*strides \(2, 1\).*strides \(2, 2\)"
    ):
        align(
            load(corpus("models/ppocr_cls_qat/inference.pdmodel")),
            load(corpus("models/mobilenetv3_small_x0_35/inference.pdmodel")),
        )


def test_renamed_weights_are_found() -> None:
    model = chain(4, 4, 4, 8)
    to = {"conv2d_0.w_0": "c", "conv2d_1.w_0": "a", "conv2d_2.w_0": "d", "conv2d_3.w_0": "b"}
    assert align(model, renamed(model, to)) == to


def test_a_missing_layer_is_refused_where_it_is_missing() -> None:
    with pytest.raises(
        AlignError, match=r"layer 'conv2d_2.w_0'.*the float model has no more.*3 layers.*2 in the float"
    ):
        align(chain(4, 4, 4), chain(4, 4))
    with pytest.raises(AlignError, match=r"float layer 'conv2d_2.w_0'.*2 layers.*3 in the float"):
        align(chain(4, 4), chain(4, 4, 4))


def test_a_layer_of_another_shape_is_refused_by_name() -> None:
    with pytest.raises(AlignError, match=r"layer 'conv2d_1.w_0'.*weight \[8, 4, 3, 3\],.*weight \[6, 4, 3, 3\]"):
        align(chain(4, 8, 4), chain(4, 6, 4))


def test_another_stride_is_refused() -> None:
    one = Builder().feed("x", (-1, 4, 8, 8)).conv2d(4).conv2d(4, stride=2).model()
    two = Builder().feed("x", (-1, 4, 8, 8)).conv2d(4, stride=2).conv2d(4).model()
    with pytest.raises(AlignError, match=r"layer 'conv2d_0.w_0'"):
        align(one, two)


def test_swapped_names_of_layers_of_one_shape_are_refused_not_confused() -> None:
    model = chain(4, 4, 4)
    swapped = renamed(model, {"conv2d_0.w_0": "conv2d_1.w_0", "conv2d_1.w_0": "conv2d_0.w_0"})
    with pytest.raises(AlignError, match=r"by its name .*'conv2d_0.w_0', by its place in the graph 'conv2d_1.w_0'"):
        align(model, swapped)
    right = {"conv2d_0.w_0": "conv2d_1.w_0", "conv2d_1.w_0": "conv2d_0.w_0"}
    assert align(model, swapped, right) == {**right, "conv2d_2.w_0": "conv2d_2.w_0"}


def test_branches_that_only_the_order_of_an_addition_tells_apart() -> None:
    model = branches()
    twin = reordered(renamed(model, {"conv2d_0.w_0": "b", "conv2d_1.w_0": "a"}), 3)
    assert align(model, twin) == {"conv2d_0.w_0": "b", "conv2d_1.w_0": "a"}


def test_an_addition_turned_round_is_not_confused() -> None:
    model = branches()
    twin = renamed(model, {"conv2d_0.w_0": "b", "conv2d_1.w_0": "a"})
    add = next(op for op in twin.graph.ops if op.type == "elementwise_add")
    with edit(twin) as e:
        x, y = add.input("X")[0], add.input("Y")[0]
        e.rewire(add, "X", 0, y)
        e.rewire(add, "Y", 0, x)
    with pytest.raises(AlignError, match="2 layers look alike"):
        align(model, e.model)
    given_ = {"conv2d_0.w_0": "b"}
    assert align(model, e.model, given_) == {"conv2d_0.w_0": "b", "conv2d_1.w_0": "a"}


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            {"conv2d_9.w_0": "conv2d_0.w_0"},
            r"quantized model has no layer 'conv2d_9.w_0'\n.*conv2d_0.w_0, conv2d_1.w_0",
        ),
        ({"conv2d_0.w_0": "nowhere"}, "float model has no layer 'nowhere'"),
        ({"conv2d_0.w_0": "conv2d_2.w_0"}, r"shape \[4, 4, 3, 3\], 'conv2d_2.w_0' has shape \[8, 4, 3, 3\]"),
        ({"conv2d_0.w_0": "conv2d_1.w_0", "conv2d_1.w_0": "conv2d_1.w_0"}, "both 'conv2d_0.w_0' and 'conv2d_1.w_0'"),
    ],
)
def test_a_wrong_mapping_is_refused(mapping: dict[str, str], message: str) -> None:
    with pytest.raises(AlignError, match=message):
        align(chain(4, 4, 8), chain(4, 4, 8), mapping)


def test_a_mapping_of_every_layer_needs_no_structure() -> None:
    one, two = chain(4, 4), branches()
    mapping = {"conv2d_0.w_0": "conv2d_1.w_0", "conv2d_1.w_0": "conv2d_0.w_0"}
    assert align(one, two, mapping) == mapping


def test_mul_and_matmul_are_one_family() -> None:
    one = Builder().feed("x", (-1, 6)).matmul(5).matmul(3).model()
    two = renamed(Builder().feed("x", (-1, 6)).mul(5).mul(3).model(), {"linear_0.w_0": "p", "linear_1.w_0": "q"})
    assert align(one, two) == {"linear_0.w_0": "p", "linear_1.w_0": "q"}


@st.composite
def nets(draw: st.DrawFn) -> Model:
    """Small nets of convolutions of few shapes, with additions and several readers of a value."""
    builder = Builder(draw(st.integers(0, 9))).feed("x", (-1, 4, 6, 6))
    values = [builder.current]
    for _ in range(draw(st.integers(1, 7))):
        builder.at(draw(st.sampled_from(values)))
        match draw(st.sampled_from(["conv", "conv", "add", "relu"])):
            case "conv":
                builder.conv2d(4)
            case "add":
                builder.add(draw(st.sampled_from(values)))
            case "relu":
                builder.relu()
        values.append(builder.current)
    return builder.fetch(*values[-2:]).model()


@given(nets(), st.randoms(use_true_random=False), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_names_and_order_may_change_without_confusion(model: Model, chance: random.Random, seed: int) -> None:
    mine = names(model)
    numbers = list(range(len(mine)))
    chance.shuffle(numbers)
    truth = {name: f"weight_{i}" for name, i in zip(mine, numbers, strict=True)}
    with contextlib.suppress(AlignError):
        assert align(model, reordered(renamed(model, truth), seed)) == truth
