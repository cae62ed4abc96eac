"""StripQuant and FoldQuant on models that Paddle's own tools quantized, judged by Paddle's own engine."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from support.build import Builder
from support.corpus import corpus
from support.infer import infer
from support.quantized import count, quantized, residual_net, written_by_paddle
from support.strategies import runnable_models

from qpass.errors import PassError, QuantError
from qpass.formats.files import load, to_bytes
from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.passes import FoldQuant, StripQuant
from qpass.quant.encodings import find_sites
from qpass.quant.fakequant import dequantize
from qpass.quant.layers import find_layers
from qpass.quant.site import Role, Storage
from qpass.quant.spec import QuantSpec

KINDS = ("a", "b", "t", "c")


def images() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(7).standard_normal((4, 3, 8, 8)).astype(np.float32)}


def with_weights_of(model: Model, other: Model) -> Model:
    """`model` with the parameters of `other`, by the names they had before they were copied."""
    of = {name.split("_deepcopy")[0]: array for name, array in other.params.items()}
    return model.replaced(params=model.params.replaced({name: of[name] for name in model.params}))


@pytest.mark.parametrize("kind", KINDS)
def test_stripped_models_are_their_originals_with_rounded_weights(kind):
    stripped, original = StripQuant()(written_by_paddle(kind)), written_by_paddle("float")
    assert count(stripped, "quantize") == 0
    assert not [
        n for n in stripped.graph.decls if "quant" in n or "scale@" in n or n.endswith(("@scale", "zero_point"))
    ]
    assert not [
        a for op in stripped.graph.ops for a in op.attrs if a.endswith("_threshold") or a == "quantization_type"
    ]
    kept = [op.type for op in stripped.graph.ops if op.type != "scale"]
    assert kept == [op.type for op in original.graph.ops]
    judge = with_weights_of(original, stripped)
    np.testing.assert_array_equal(infer(stripped, images())[0], infer(judge, images())[0])
    for layer in find_layers(stripped):
        before = original.params[layer.name.split("_deepcopy")[0]]
        step = np.abs(before).max() / 127
        after = stripped.params[layer.name]
        assert after.dtype == np.float32
        assert np.abs(after - before).max() <= 0.501 * step
        assert not np.array_equal(after, before)


@pytest.mark.parametrize("kind", KINDS)
def test_one_stripped_layer_leaves_the_others_quantized(kind):
    model = written_by_paddle(kind)
    everything = infer(StripQuant()(model), images())[0]
    for layer in find_layers(model):
        made = StripQuant((layer.name,))(model)
        left = {use for site in find_sites(made) for use in site.uses if not site.observer_only}
        for other in find_layers(made):
            for op in other.ops:
                assert (op.activation in left, op.weight in left) == 2 * (other.name != layer.name,)
        alone = [other.name for other in find_layers(model) if other.name != layer.name]
        back = infer(StripQuant(tuple(alone))(made), images())[0]
        np.testing.assert_array_equal(back, everything)


def test_observers_of_a_stripped_layer_go_with_it():
    model = written_by_paddle("b")
    made = StripQuant(("conv2d_1.w_0",))(model)
    gone = {s.value.name for s in find_sites(model)} - {s.value.name for s in find_sites(made)}
    assert gone == {"conv2d_1.w_0", "depthwise_conv2d_0.tmp_0"}
    relu = [s for s in find_sites(made) if s.value.name == "relu_0.tmp_0"]
    assert [s.observer_only for s in relu] == [True]


@pytest.mark.parametrize("kind", ["b", "c"])
@pytest.mark.parametrize("to", ["int8", "float"])
def test_folding_what_paddle_quantized_computes_the_same(kind, to):
    model = written_by_paddle(kind)
    made = FoldQuant(to)(model)
    np.testing.assert_array_equal(infer(made, images())[0], infer(model, images())[0])
    weights = [site for site in find_sites(made) if site.role is Role.WEIGHT]
    if to == "float":
        assert weights == []
    else:
        assert {(site.encoding, site.storage) for site in weights} == {("B", Storage.INT)}
        assert {made.params[site.value.name].dtype.name for site in weights} == {"int8"}
        assert (made is model) == (kind == "b")


@pytest.mark.parametrize("to", ["int8", "float"])
@pytest.mark.parametrize("encoding", ["B", "D"])
def test_folding_what_was_inserted_computes_the_same(encoding, to):
    model = quantized(residual_net(), encoding=encoding, weight_bits=6)
    made = FoldQuant(to)(model)
    np.testing.assert_array_equal(infer(made, images())[0], infer(model, images())[0])
    assert FoldQuant(to)(made) is made
    assert count(made, "quantize_linear") + count(made, "fake_") == len(find_sites(made)) + (
        sum(s.role is Role.ACTIVATION for s in find_sites(made)) if encoding == "B" else 0
    )


@settings(max_examples=15)
@given(model=runnable_models())
def test_folding_of_any_network_computes_the_same(model):
    made = quantized(model)
    x = {"x": np.random.default_rng(0).standard_normal((2, *model.feeds[0].shape[1:])).astype(np.float32)}
    expected = infer(made, x)[0]
    for to in ("int8", "float"):
        np.testing.assert_array_equal(infer(FoldQuant(to)(made), x)[0], expected)


@pytest.mark.parametrize("to", ["int8", "float"])
def test_paddle_inference_with_its_own_passes_runs_folded_models(to):
    model = quantized(residual_net())
    found = infer(FoldQuant(to)(model), images(), optimise=True)[0]
    # Its fusions change last bits, and a value next to a tie may then fall to the next of 127 levels.
    np.testing.assert_allclose(found, infer(model, images())[0], atol=2e-2)


def test_folded_weights_are_the_integers():
    model = residual_net()
    made = FoldQuant("int8", layers=("linear_0.w_0",))(quantized(model))
    ints, floats = made.params["linear_0.w_0"], model.params["linear_0.w_0"]
    assert ints.dtype == np.int8
    thresholds = np.abs(floats).max(axis=0)
    assert np.abs(np.abs(ints).max(axis=0) - 127).max() == 0
    assert np.abs(dequantize(ints, thresholds, QuantSpec(8, 1)) - floats).max() <= 0.501 * thresholds.max() / 127
    assert [n for n, a in made.params.items() if a.dtype == np.int8] == ["linear_0.w_0"]
    assert made.params.nbytes < quantized(model).params.nbytes


def test_a_weight_that_is_also_read_in_float_is_copied():
    b = Builder().feed("x", [-1, 4]).matmul(4)
    y = b.current
    b.declare("z", [-1, 4]).op("elementwise_add", {"X": y, "Y": "linear_0.w_0"}, {"Out": "z"}, {"axis": Attr.int(-1)})
    model = quantized(b.model())
    x = {"x": np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)}
    for to in ("int8", "float"):
        made = FoldQuant(to)(model)
        np.testing.assert_array_equal(made.params["linear_0.w_0"], model.params["linear_0.w_0"])
        np.testing.assert_array_equal(infer(made, x)[0], infer(model, x)[0])


def test_strip_after_fold_gives_the_quantized_weights_as_floats():
    model = residual_net()
    folded = FoldQuant("int8")(quantized(model))
    stripped = StripQuant()(folded)
    assert stripped.graph == model.graph
    for name in ("conv2d_0.w_0", "linear_0.w_0"):
        assert stripped.params[name].dtype == np.float32
        assert 0 < np.abs(stripped.params[name] - model.params[name]).max() < 0.02


@pytest.mark.parametrize("kind", ["a", "t"])
def test_encoding_a_is_not_folded(kind):
    model = written_by_paddle(kind)
    assert FoldQuant("int8")(model) is model
    assert FoldQuant("float")(model) is model


def test_official_qat_model():
    model = load(corpus("models/ppocr_cls_qat"))
    x = {"x": np.random.default_rng(0).standard_normal((2, 3, 48, 192)).astype(np.float32)}
    expected = infer(model, x)[0]
    for to in ("int8", "float"):
        np.testing.assert_array_equal(infer(FoldQuant(to)(model), x)[0], expected)
    stripped = StripQuant()(model)
    assert len(stripped.graph.ops) == 294 - 108
    assert count(stripped, "fake_") == 0
    latent = {layer.name for layer in find_layers(model)}
    assert all(stripped.params[name].tobytes() == model.params[name].tobytes() for name in latent)
    assert len(stripped.params) == len(model.params) - 108
    plain = load(corpus("models/ppocr_cls"))
    assert sorted(a.shape for a in stripped.params.values()) == sorted(a.shape for a in plain.params.values())


def test_official_qat_program_without_parameters():
    model = load(corpus("graphs/ch_PP-OCRv3_rec_slim_infer.pdmodel"), structure_only=True)
    stripped = StripQuant()(model)
    assert count(stripped, "fake_") == 0
    with pytest.raises(QuantError, match="no parameters to fold"):
        FoldQuant("int8")(model)


def test_a_fetched_quantized_value_keeps_its_name():
    model = residual_net()
    made = quantized(model)
    site = next(s for s in find_sites(made) if s.value.name == "relu_0.tmp_0")
    name = made.graph.by_uid[site.ops[-1]].output("Y")[0]
    fetch = made.graph.ops[-1]
    ops = tuple(
        dataclasses.replace(op.with_input("X", 0, name), uid=op.uid) if op is fetch else op for op in made.graph.ops
    )
    made = made.replaced(graph=dataclasses.replace(made.graph, ops=ops))
    stripped = StripQuant()(made)
    assert [port.name for port in stripped.fetches] == [name]
    assert count(stripped, "quantize") == 0
    (assign,) = [op for op in stripped.graph.ops if op.type == "assign"]
    assert (assign.input("X"), assign.output("Out")) == (("relu_0.tmp_0",), (name,))
    infer(stripped, images())


def test_wrong_options():
    with pytest.raises(PassError, match="fold to 'int4', expected one of int8, float"):
        FoldQuant("int4")
    with pytest.raises(QuantError, match="no layer 'nope'"):
        FoldQuant(layers=("nope",))(residual_net())
    with pytest.raises(QuantError, match="no layer 'nope'"):
        StripQuant(("nope",))(residual_net())
    with pytest.raises(QuantError, match="12 bits do not fit int8"):
        FoldQuant("int8")(quantized(residual_net(), weight_bits=12))


def test_nothing_to_strip_is_the_same_object():
    model = quantized(residual_net(), layers=("linear_0.w_0",))
    assert StripQuant(("conv2d_0.w_0",))(model) is model
    assert to_bytes(model) == to_bytes(StripQuant(("conv2d_0.w_0",))(model))
