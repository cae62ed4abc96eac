"""InsertQuant by recipes, on generated, odd and real models: it is stripped without a trace, and skips what it says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.corpus import corpus
from support.infer import infer
from support.quantized import all_float, quantized, residual_net, scaled
from support.strategies import models, runnable_models

from qpass import Override, Recipe, calibrate, demo, load, load_bytes, quantize, to_bytes
from qpass.errors import QuantError
from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.passes import InsertQuant, StripQuant
from qpass.quant.candidates import find_candidates, names_of
from qpass.quant.encoding_b import EncodingB
from qpass.quant.encodings import find_sites
from qpass.quant.marks import mark
from qpass.quant.points import find_points
from qpass.quant.recipe import FULL_OP_TYPES
from qpass.quant.skip import check_skipped
from qpass.rewrite.edit import edit

FULL = Recipe(activation_op_types=FULL_OP_TYPES, outputs=True)
FLOAT_MODELS = ("ppocr_cls", "ppocr_det_v3", "resnet8_cifar10", "mobilenetv3_small_x0_35")


def inserted(model: Model, recipe: Recipe, encoding: str = "B") -> Model:
    return InsertQuant.of(scaled(model, recipe), recipe, encoding=encoding)(model)


@pytest.mark.parametrize("encoding", ["B", "D"])
@pytest.mark.parametrize("name", FLOAT_MODELS)
def test_real_models_come_back(name: str, encoding: str) -> None:
    model = load(corpus(f"models/{name}"))
    made = inserted(model, FULL, encoding)
    assert len(find_sites(made)) > 40
    assert to_bytes(StripQuant()(made)) == to_bytes(model)


@settings(max_examples=40)
@given(model=runnable_models(), encoding=st.sampled_from("BD"), bits=st.integers(2, 16))
def test_networks_come_back(model: Model, encoding: str, bits: int) -> None:
    names = sorted({name for each in find_candidates(model) for name, _ in names_of(model.graph, each)})
    recipe = dataclasses.replace(FULL, overrides=(Override(names[-1], bits, bits),))
    made = inserted(model, recipe, encoding)
    assert made is not model
    assert to_bytes(StripQuant()(made)) == to_bytes(model)


@settings(max_examples=60)
@given(model=models(), encoding=st.sampled_from("BD"))
def test_odd_programs_come_back(model: Model, encoding: str) -> None:
    model = all_float(model)
    made = inserted(model, FULL, encoding)
    assert to_bytes(StripQuant()(made)) == to_bytes(model)


@pytest.mark.parametrize("encoding", ["B", "D"])
def test_what_other_tools_wrote_on_ops_comes_back(encoding: str) -> None:
    model = load(corpus("models/resnet8_cifar10"))
    with edit(model) as e:
        for op in model.graph.ops:
            if op.type in ("conv2d", "relu"):
                e.set_attr(op, "quantization_type", Attr.str("of another tool"))
                e.set_attr(op, "with_quant_attr", Attr.bool(op.type == "relu"))
            if op.type == "batch_norm":
                e.set_attr(op, "out_threshold", Attr.float(1.5))
    recipe = Recipe(outputs=True)
    made = inserted(e.model, recipe, encoding)
    marks = {str(op.attr("quantization_type")) for op in made.graph.ops if op.type == "conv2d"}
    assert marks == {
        "qpass over of another tool" if encoding == "B" else "qpass+thresholds+raised over of another tool"
    }
    assert to_bytes(StripQuant()(made)) == to_bytes(e.model)


@settings(max_examples=60)
@given(data=st.data(), model=st.one_of(runnable_models(), models()), encoding=st.sampled_from("BD"))
def test_what_is_skipped_is_proved_to_be_float(data: st.DataObject, model: Model, encoding: str) -> None:
    model = all_float(model)
    names = sorted({name for each in find_candidates(model) for name, _ in names_of(model.graph, each)})
    assume(names)
    skip = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))
    recipe = dataclasses.replace(FULL, skip=tuple(skip))
    points = find_points(model, recipe)
    assert points.skipped
    check_skipped(inserted(model, recipe, encoding), points.skipped)
    if any(row.planned for row in points.skipped):
        with pytest.raises(QuantError, match="skipped"):
            check_skipped(inserted(model, FULL, encoding), points.skipped)


@pytest.mark.parametrize(("name", "least"), [("resnet8_cifar10", 15.0), ("digits", 5.0)])
def test_more_that_is_quantized_costs_more_and_not_too_much(name: str, least: float) -> None:
    """Signal to noise of the outputs in dB; measured 20.9 and 18.1 for ResNet-8, 8.9 and 5.5 for the digits."""
    if name == "digits":
        model, x = load(demo.float_prefix()), np.concatenate(demo.calibration_data())[:32]
    else:
        model = load(corpus(f"models/{name}"))
        x = np.random.default_rng(0).standard_normal((16, 3, 32, 32)).astype(np.float32)
    feed = {model.feeds[0].name: x}
    scales = calibrate(model, [x], algo="abs_max", recipe=FULL)
    reference = infer(model, feed)[0]

    def sqnr(recipe: Recipe) -> float:
        noise = infer(quantize(model, scales, recipe=recipe), feed)[0] - reference
        return float(10 * np.log10(np.sum(reference**2.0) / np.sum(noise**2.0)))

    layers, everything = sqnr(Recipe()), sqnr(dataclasses.replace(FULL, outputs=False))
    wide = sqnr(Recipe(weight_bits=16, activation_bits=16))
    assert wide > layers + 30
    assert layers > everything > least
    # Outputs only observe: Paddle runs those pairs as identity.
    assert sqnr(Recipe(outputs=True)) == layers
    assert sqnr(Recipe(overrides=(Override(".*", 4),))) < layers - 3
    assert quantize(model, scales, recipe=dataclasses.replace(FULL, skip=(".*",))) is model


@pytest.mark.parametrize(
    ("recipe", "encoding", "words"),
    [
        (Recipe(op_types=("conv2d",)), "B", "dequantize_linear makes"),
        (Recipe(op_types=("conv2d",)), "D", "fake_quantize_dequantize_moving_average_abs_max makes"),
        (Recipe(op_types=("conv2d",)), "A", "makes the output of the skipped conv2d"),
        (
            Recipe(op_types=("depthwise_conv2d",), activation_op_types=("relu",), outputs=True),
            "B",
            "relu_0.tmp_0.quantized",
        ),
    ],
)
def test_planted_faults_around_a_skipped_op_are_seen(recipe: Recipe, encoding: str, words: str) -> None:
    model = residual_net()
    (row,) = find_points(model, Recipe(skip=("conv2d_1.w_0",))).skipped
    check_skipped(quantized(model, skip=("conv2d_1.w_0",)), [row])
    with pytest.raises(QuantError, match=words):
        check_skipped(load_bytes(*to_bytes(inserted(model, recipe, encoding))), [row])


def test_an_observer_at_the_output_of_a_skipped_op_is_seen() -> None:
    model = residual_net()
    (row,) = find_points(model, Recipe(skip=("conv2d_1.w_0",))).skipped
    (points,) = find_points(model, Recipe(op_types=("depthwise_conv2d",), outputs=True)).observers
    uses = model.graph.uses(row.outputs[0])
    site = dataclasses.replace(points, value=row.outputs[0], uses=uses, threshold=np.float32(2))
    with edit(model) as e:
        EncodingB().spell(e, model.graph, [site])
    with pytest.raises(QuantError, match="an observer stands at its output"):
        check_skipped(e.model, [row])


def test_a_mark_on_a_skipped_op_is_seen() -> None:
    model = residual_net()
    (row,) = find_points(model, Recipe(skip=("conv2d_1.w_0",))).skipped
    op = model.graph.writer(row.outputs[0])
    assert op is not None
    with edit(model) as e:
        mark(e, op.uid)
    with pytest.raises(QuantError, match="marked as quantized"):
        check_skipped(e.model, [row])
