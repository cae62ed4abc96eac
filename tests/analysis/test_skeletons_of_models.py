"""The one program that variants are sliced from, against models made one by one; and when there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.build import Builder
from support.corpus import corpus
from support.quantized import quantized, residual_net, table, written_by_paddle
from support.strategies import runnable_models

from qpass.analysis.ptq import analyze_ptq
from qpass.analysis.skeleton import Skeleton, find_skeleton
from qpass.analysis.sweep import Plan
from qpass.formats.files import load
from qpass.ir.graph import ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.ir.params import Params
from qpass.ir.verify import persistable_tensors
from qpass.passes import FoldQuant, InsertQuant, StripQuant
from qpass.quant.layers import find_layers
from qpass.quant.toggles import Switched
from qpass.rewrite.edit import edit
from qpass.runtime.engine import Engine, Session
from qpass.runtime.engines import get_engine
from qpass.runtime.inference import PaddleInferenceEngine

EXECUTOR, INFERENCE = get_engine("executor"), get_engine("inference")


def names_of(model: Model) -> list[str]:
    return [layer.name for layer in find_layers(model)]


def skeleton_of(model: Model, twin: Model, engine: Engine = EXECUTOR) -> Skeleton:
    found = find_skeleton(model, twin.params, find_layers(model), engine)
    assert found is not None
    return found


def run(engine: Engine, model: Model, count: int = 2) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    feed = {p.name: random.standard_normal((count, *p.shape[1:])).astype(np.float32) for p in model.feeds}
    return engine.session(model).run(feed)


def stripped(model: Model, twin: Model, off: Sequence[str]) -> Model:
    """The whole model, made the plain way: some layers un-quantized, their weights the twin's."""
    if not off:
        return FoldQuant(to="float")(model)
    with edit(StripQuant(layers=tuple(off))(model)) as e:
        for name in off:
            e.set_param(name, twin.params[name])
    return FoldQuant(to="float")(e.model)


def assert_equal(made: Sequence[np.ndarray], whole: Sequence[np.ndarray]) -> None:
    assert len(made) == len(whole)
    for a, b in zip(made, whole, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_close(made: Sequence[np.ndarray], whole: Sequence[np.ndarray]) -> None:
    """To 1e-5 of the largest output: sums in another order differ by about 1e-6 of it, and no rounding flips here."""
    for a, b in zip(made, whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(np.abs(b).max()))


@given(runnable_models(), st.sampled_from("BCD"), st.data())
def test_slices_are_the_stripped_models(model: Model, encoding: str, data: st.DataObject) -> None:
    names = names_of(model)
    assume(names)
    whole = quantized(model, encoding=encoding)
    off = data.draw(st.lists(st.sampled_from(names), unique=True))
    made = skeleton_of(whole, model).toggles.variant(Switched.both(set(names) - set(off)))
    assert_equal(run(EXECUTOR, made), run(EXECUTOR, stripped(whole, model, off)))


@given(runnable_models(), st.data())
@settings(max_examples=20)
def test_weights_and_activations_are_switched_apart(model: Model, data: st.DataObject) -> None:
    names = names_of(model)
    assume(names)
    weights = data.draw(st.frozensets(st.sampled_from(names)))
    activations = data.draw(st.frozensets(st.sampled_from(names)))
    whole, scales = model, table(model)
    if weights:
        whole = FoldQuant(to="float")(InsertQuant(scales, layers=tuple(sorted(weights)), activations=False)(whole))
    if activations:
        whole = InsertQuant(scales, layers=tuple(sorted(activations)), weights=False)(whole)
    made = skeleton_of(quantized(model), model).toggles.variant(Switched(weights, activations))
    assert_equal(run(EXECUTOR, made), run(EXECUTOR, whole))


@pytest.mark.parametrize("encoding", "ABCD")
@pytest.mark.parametrize("engine", [EXECUTOR, INFERENCE], ids=["executor", "inference"])
def test_residual_nets_in_every_encoding(encoding: str, engine: Engine) -> None:
    model = residual_net()
    whole = quantized(model, encoding=encoding)
    made = skeleton_of(whole, model, engine)
    exact = engine is EXECUTOR and encoding != "A"  # which takes scales out behind the products: other last bits
    for off in ([], *([name] for name in names_of(model)), names_of(model)):
        slice_ = made.toggles.variant(Switched.both(set(names_of(model)) - set(off)))
        expected = run(EXECUTOR, stripped(whole, model, off))
        (assert_equal if exact else assert_close)(run(made.engine, slice_), expected)


def shared_net() -> Model:
    """A weight in three ops, and a value that two layers read."""
    b = Builder().feed("x", [-1, 6])
    weight = b.param("linear_0.w_0", (6, 6))
    h = b.matmul(6, weight=weight).relu().current
    left = b.matmul(6, weight=weight).current
    right = b.at(h).matmul(6).relu().matmul(6, weight=weight).current
    return b.at(left).add(right).relu().matmul(3).model()


@pytest.mark.parametrize("engine", [EXECUTOR, INFERENCE], ids=["executor", "inference"])
def test_shared_weights_and_shared_activations(engine: Engine) -> None:
    model = shared_net()
    whole = quantized(model)
    made = skeleton_of(whole, model, engine)
    assert [len(operands) for operands in made.toggles.operands.values()] == [3, 1, 1]
    for name in names_of(model):
        slice_ = made.toggles.variant(Switched.both(set(names_of(model)) - {name}))
        expected = run(EXECUTOR, stripped(whole, model, [name]))
        (assert_equal if engine is EXECUTOR else assert_close)(run(made.engine, slice_), expected)


@pytest.mark.parametrize("kind", ["weights", "activations"])
def test_layers_of_which_only_one_operand_is_quantized(kind: str) -> None:
    model = residual_net()
    first, *others = names_of(model)
    whole = quantized(model, layers=(first,), **{kind: False})
    whole = InsertQuant(table(model), layers=tuple(others))(whole)
    made = skeleton_of(whole, model)
    for name in (first, others[0]):
        slice_ = made.toggles.variant(Switched.both(set(names_of(model)) - {name}))
        assert_equal(run(EXECUTOR, slice_), run(EXECUTOR, stripped(whole, model, [name])))


@pytest.mark.parametrize("name", "abt")
def test_what_paddle_quantized(name: str) -> None:
    whole, twin = written_by_paddle(name), written_by_paddle("float")
    made = skeleton_of(whole, twin)
    for layer in names_of(whole):
        slice_ = made.toggles.variant(Switched.both(set(names_of(whole)) - {layer}))
        expected = run(EXECUTOR, stripped(whole, twin, [layer]))
        (assert_equal if name == "b" else assert_close)(run(EXECUTOR, slice_), expected)


def test_a_recogniser_with_quantized_matrix_products() -> None:
    model = with_random_parameters(load(corpus("graphs/ch_PP-OCRv3_rec_slim_infer.pdmodel"), structure_only=True))
    made = skeleton_of(model, model)
    names = [*[layer.name for layer in find_layers(model) if layer.family == "matmul"][::3], "conv2d_37.w_0"]
    feed = {"x": np.random.default_rng(1).standard_normal((1, 3, 48, 64)).astype(np.float32)}
    outputs = []
    for name in names:
        slice_ = made.toggles.variant(Switched.both(set(names_of(model)) - {name}))
        outputs.append(EXECUTOR.session(slice_).run(feed))
        assert_equal(outputs[-1], EXECUTOR.session(stripped(model, model, [name])).run(feed))
    assert not np.array_equal(outputs[0], outputs[-1])


def with_random_parameters(model: Model) -> Model:
    random = np.random.default_rng(0)
    made = {}
    for name in persistable_tensors(model):
        decl = model.graph.decls[name]
        assert decl.dtype is not None
        size = int(np.prod(decl.shape[1:])) if len(decl.shape) == 4 else decl.shape[0]
        wide = random.standard_normal(decl.shape) * (2 / size) ** 0.5
        made[name] = (wide if len(decl.shape) > 1 else np.ones(decl.shape)).astype(decl.dtype.numpy)
    return model.replaced(params=Params(made))


class Foreign:
    """An engine that the library does not know."""

    name = "foreign"

    def session(self, model: Model, fetch: Sequence[ValueRef] | None = None) -> Session:
        return EXECUTOR.session(model, fetch)


def read_elsewhere() -> Model:
    b = Builder().feed("x", [-1, 6]).matmul(6)
    h = b.current
    b.declare("rectified", (6, 6)).op("relu", {"X": "linear_0.w_0"}, {"Out": "rectified"}).declare("out", (-1, 6))
    attrs = {"trans_x": Attr.bool(False), "trans_y": Attr.bool(False)}
    return b.op("matmul_v2", {"X": h, "Y": "rectified"}, {"Out": "out"}, attrs).matmul(4).model()


def returned_weight() -> Model:
    b = Builder().feed("x", [-1, 6]).matmul(6).relu().matmul(4)
    return b.fetch(b.current, "linear_0.w_0").model()


def unread_input() -> Model:
    return Builder().feed("unread", [-1, 2]).feed("x", [-1, 6]).matmul(6).relu().matmul(3).model()


def returned_twice() -> Model:
    b = Builder().feed("x", [-1, 6]).matmul(6)
    h = b.current
    b.at("x").matmul(5)  # a layer that no output depends on
    return b.at(h).matmul(4).fetch(h, b.current, h, "x").model()


def one_value_under_two_names() -> Model:
    b = Builder().feed("x", [-1, 6]).matmul(6)
    h = b.current
    first, second = b.relu().current, b.at(h).relu().current
    return b.matmul(3).fetch(first, b.current, second).model()


def in_place() -> Model:
    b = Builder().feed("x", [-1, 6])
    for width in (6, 5):
        b.matmul(width)
        b.op("relu", {"X": b.current}, {"Out": b.current})
    return b.matmul(3).model()


def equal_parameters() -> Model:
    """Two layers whose weights are equal, and a bias that equals another."""
    b = Builder().feed("x", [-1, 6])
    for name in ("first", "second"):
        weight = b.param(f"{name}.w_0", np.eye(6, dtype=np.float32) / 3)
        b.matmul(6, weight=weight).add(b.param(f"{name}.b_0", np.full(6, 0.25, np.float32))).relu()
    return b.matmul(3).model()


def mixing_samples() -> Model:
    b = Builder().feed("x", [-1, 6]).matmul(6)
    h = b.current
    b.declare("mean", (1, 6)).op(
        "reduce_mean", {"X": h}, {"Out": "mean"}, {"dim": Attr.ints((0,)), "keep_dim": Attr.bool(True)}
    )
    b.declare("centred", (-1, 6)).op("elementwise_sub", {"X": h, "Y": "mean"}, {"Out": "centred"})
    return b.matmul(3).model()


ODD = (
    shared_net,
    read_elsewhere,
    returned_weight,
    unread_input,
    returned_twice,
    one_value_under_two_names,
    in_place,
    equal_parameters,
    mixing_samples,
)


@pytest.mark.parametrize("engine", ["executor", "inference"])
@pytest.mark.parametrize("make", ODD)
def test_odd_models_have_the_figures_of_whole_models(
    make: Callable[[], Model], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    random = np.random.default_rng(0)
    data = [
        {p.name: random.standard_normal((n, *p.shape[1:])).astype(np.float32) for p in model.feeds} for n in (2, 2, 3)
    ]
    found = analyze_ptq(model, table(model), data=data, engine=engine)
    monkeypatch.setattr("qpass.analysis.skeleton.can_slice", lambda engine: False)
    whole = analyze_ptq(model, table(model), data=data, engine=engine)
    exact = {"rel": 0, "abs": 0} if engine == "executor" else {"rel": 1e-3, "abs": 1e-9}
    assert found.baseline == pytest.approx(whole.baseline, **exact)
    assert found.reference == pytest.approx(whole.reference, **exact)
    expected = {row.layer: row.metric for row in whole.rows}
    assert {row.layer: row.metric for row in found.rows} == pytest.approx(expected, **exact)


@pytest.mark.parametrize("engine", [Foreign(), get_engine("inference")], ids=["foreign", "inference"])
def test_where_there_is_no_skeleton(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine of somebody else, and a weight that is read elsewhere: whole models are measured."""
    model = residual_net() if isinstance(engine, Foreign) else read_elsewhere()
    whole = quantized(model)
    assert find_skeleton(whole, model.params, find_layers(whole), engine) is None
    monkeypatch.delattr(Plan, "_measure_slices")
    random = np.random.default_rng(0)
    data = [random.standard_normal((2, *model.feeds[0].shape[1:])).astype(np.float32)]
    result = analyze_ptq(model, table(model), data=data, engine=engine)
    assert sorted(row.layer for row in result.rows) == sorted(names_of(model))


@pytest.mark.parametrize("options", [{"onednn": False}, {"passes": False}, {"int8": True}])
def test_only_the_default_way_of_paddle_inference_is_sliced(options: dict[str, bool]) -> None:
    model = residual_net()
    whole = quantized(model)
    assert find_skeleton(whole, model.params, find_layers(whole), PaddleInferenceEngine(**options)) is None
