"""InsertQuant and StripQuant: exactly inverse, layer by layer, on made, generated and real models."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from support.build import Builder
from support.corpus import corpus
from support.infer import infer
from support.quantized import all_float, count, quantized, residual_net, table
from support.strategies import models, runnable_models

from qpass.errors import PassError, QuantError
from qpass.formats.files import load, to_bytes
from qpass.ir.model import Model
from qpass.passes import InsertQuant, StripQuant, parse_passes
from qpass.quant.encodings import find_sites
from qpass.quant.fakequant import fake_quantize
from qpass.quant.layers import find_layers
from qpass.quant.scales import ScaleTable
from qpass.quant.site import Role
from qpass.quant.spec import QuantSpec

FLOAT_MODELS = ("ppocr_cls", "ppocr_det_v3", "resnet8_cifar10", "mobilenetv3_small_x0_35")


def images(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(5).standard_normal(shape).astype(np.float32)}


@pytest.mark.parametrize("encoding", ["B", "D"])
@pytest.mark.parametrize("name", FLOAT_MODELS)
def test_strip_is_the_inverse_of_insert_on_real_models(name, encoding):
    model = load(corpus(f"models/{name}"))
    made = quantized(model, encoding=encoding)
    assert len(find_sites(made)) > 10
    assert to_bytes(StripQuant()(made)) == to_bytes(model)


@pytest.mark.parametrize("encoding", ["B", "D"])
def test_strip_is_the_inverse_of_insert_layer_by_layer(encoding):
    model = residual_net()
    whole = quantized(model, encoding=encoding)
    stepwise = whole
    for layer in find_layers(model):
        one = quantized(model, encoding=encoding, layers=(layer.name,))
        assert count(one, "quantize") > 0
        assert to_bytes(StripQuant((layer.name,))(one)) == to_bytes(model)
        rest = quantized(model, encoding=encoding, skip=(layer.name,))
        assert len(find_sites(StripQuant((layer.name,))(whole))) == len(find_sites(rest))
        stepwise = StripQuant((layer.name,))(stepwise)
    assert to_bytes(stepwise) == to_bytes(model)


@given(model=runnable_models())
def test_strip_is_the_inverse_of_insert_on_networks(model):
    for encoding in ("B", "D"):
        assert to_bytes(StripQuant()(quantized(model, encoding=encoding))) == to_bytes(model)


def dequantized(model: Model) -> Model:
    """`model` with the weights of its layers as 8 bits at the thresholds of `table` leave them, without minus zeros."""
    scales = table(model)
    weights = {}
    for name, threshold in scales.weights.items():
        spec = QuantSpec(8, scales.weight_axes[name])
        weights[name] = fake_quantize(model.params[name], threshold, spec) + np.float32(0)
    return model.replaced(params=model.params.replaced(weights))


@pytest.mark.parametrize("encoding", ["A", "C"])
@pytest.mark.parametrize("name", FLOAT_MODELS[::2])
def test_stored_integers_come_back_as_the_floats_they_stand_for_on_real_models(name, encoding):
    model = load(corpus(f"models/{name}"))
    made = quantized(model, encoding=encoding)
    assert len(find_sites(made)) > 10
    assert to_bytes(StripQuant()(made)) == to_bytes(dequantized(model))


@given(model=runnable_models())
def test_stored_integers_come_back_as_the_floats_they_stand_for_on_networks(model):
    for encoding in ("A", "C"):
        stripped = StripQuant()(quantized(model, encoding=encoding))
        assert to_bytes(stripped) == to_bytes(dequantized(model))


@pytest.mark.parametrize("encoding", ["A", "C"])
def test_stored_integers_layer_by_layer(encoding):
    model = residual_net()
    stepwise = quantized(model, encoding=encoding)
    for layer in find_layers(model):
        stepwise = StripQuant((layer.name,))(stepwise)
        assert layer.name not in {site.value.name for site in find_sites(stepwise)}
    assert to_bytes(stepwise) == to_bytes(dequantized(model))


@settings(max_examples=40)
@given(model=models())
def test_strip_is_the_inverse_of_insert_on_odd_programs(model):
    model = all_float(model)
    names = tuple(layer.name for layer in find_layers(model))
    assume(names)
    made = quantized(model, layers=names)
    assert {s.value.name for s in find_sites(made) if s.role is Role.WEIGHT} == set(names)
    assert to_bytes(StripQuant(names)(made)) == to_bytes(model)
    assert to_bytes(StripQuant()(made)) == to_bytes(model)


def test_only_chosen_consumers_read_the_quantized_value():
    model = residual_net()
    made = quantized(model, layers=("depthwise_conv2d_0.w_0",))
    (site,) = [site for site in find_sites(made) if site.role is Role.ACTIVATION]
    assert [made.graph.by_uid[use.op].type for use in site.uses] == ["depthwise_conv2d"]
    others = {op.type for op in made.graph.readers(site.value)}
    assert others == {"quantize_linear", "elementwise_add", "conv2d"}


def test_a_shared_pair_stays_for_its_other_consumer():
    model = residual_net()
    made = StripQuant(("conv2d_1.w_0",))(quantized(model))
    (site,) = [site for site in find_sites(made) if site.value.name == "relu_0.tmp_0"]
    assert [made.graph.by_uid[use.op].type for use in site.uses] == ["depthwise_conv2d"]
    conv = next(op for op in made.graph.ops if op.output("Output") == ("conv2d_1.tmp_0",))
    assert (conv.input("Input"), conv.input("Filter")) == (("relu_0.tmp_0",), ("conv2d_1.w_0",))
    assert "quantization_type" not in conv.attrs


@pytest.mark.parametrize("encoding", ["B", "D"])
@pytest.mark.parametrize("bits", [8, 4])
def test_what_is_inserted_computes_the_fake_quantization(encoding, bits):
    b = Builder(seed=3).feed("x", [-1, 6])
    model = b.matmul(4).model()
    scales = table(model, threshold=1.5)
    made = InsertQuant(scales, encoding=encoding, weight_bits=bits, activation_bits=bits)(model)
    x = images(16, 6)
    weight = fake_quantize(model.params["linear_0.w_0"], scales.weights["linear_0.w_0"], QuantSpec(bits, 1))
    # The judge multiplies as Paddle does: the float model, fed with what quantization leaves of its input and weight.
    judge = model.replaced(params=model.params.replaced({"linear_0.w_0": weight}))
    expected = infer(judge, {"x": fake_quantize(x["x"], 1.5, QuantSpec(bits))})[0]
    np.testing.assert_array_equal(infer(made, x)[0], expected)


def test_all_encodings_compute_the_same():
    model, x = residual_net(), images(4, 3, 8, 8)
    old, linear, float_zero, fake = (infer(quantized(model, encoding=encoding), x)[0] for encoding in "ABCD")
    np.testing.assert_array_equal(linear, fake)
    np.testing.assert_array_equal(linear, float_zero)
    # Its layers add up integers and scale the sums: other float32 roundings.
    np.testing.assert_allclose(old, linear, rtol=0, atol=1e-6)
    assert np.abs(linear - infer(model, x)[0]).max() > 1e-4


def test_weights_or_activations_alone():
    model = residual_net()
    assert {site.role for site in find_sites(quantized(model, activations=False))} == {Role.WEIGHT}
    assert {site.role for site in find_sites(quantized(model, weights=False))} == {Role.ACTIVATION}
    assert quantized(model, weights=False, activations=False) is model


def test_a_value_that_is_overwritten_later():
    b = Builder().feed("x", [-1, 4])
    b.param("w", (4, 4))
    b.declare("y", [-1, 4]).op("mul", {"X": "x", "Y": "w"}, {"Out": "y"})
    b.op("relu", {"X": "x"}, {"Out": "x"})
    b.declare("z", [-1, 4]).op("mul", {"X": "x", "Y": "w"}, {"Out": "z"})
    model = b.add("y").model()
    scales = ScaleTable({"x@1": 2.0, "x": 3.0}, table(model).weights, table(model).weight_axes)
    made = InsertQuant(scales)(model)
    thresholds = [(str(s.value), float(s.threshold)) for s in find_sites(made) if s.role is Role.ACTIVATION]
    assert thresholds == [("x@1", 2.0), ("x@2", 3.0)]
    assert to_bytes(StripQuant()(made)) == to_bytes(model)


def test_quantized_layers_are_left_as_they_are():
    model = residual_net()
    made = quantized(model)
    assert InsertQuant(table(model))(made) is made
    assert StripQuant()(model) is model
    partly = quantized(model, layers=("linear_0.w_0",))
    assert len(find_sites(quantized(partly))) == len(find_sites(made))


def test_scales_from_a_file(tmp_path):
    model = residual_net()
    table(model).save(tmp_path / "scales.json")
    (each,) = parse_passes(f'insert-quant{{scales="{tmp_path}/scales.json" skip=linear_0.w_0}}')
    assert to_bytes(each(model)) == to_bytes(quantized(model, skip=("linear_0.w_0",)))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"layers": ("conv2d_7.w_0",)}, QuantError, "no layer 'conv2d_7.w_0' among the 5"),
        ({"skip": ("conv2d_7.w_0",)}, QuantError, "'conv2d_7.w_0' matches no"),
        ({"layers": ("linear_0.w_0",), "op_types": ("conv2d",)}, QuantError, "no layer 'linear_0.w_0' among the 2"),
        ({"encoding": "E"}, PassError, "encoding 'E', expected one of A, B, C, D"),
        ({"weight_bits": 1}, QuantError, "bits is 1, expected 2 to 16"),
    ],
)
def test_wrong_options(options, error, says):
    with pytest.raises(error, match=says):
        quantized(residual_net(), **options)


def test_a_skipped_layer_of_another_family_is_no_mistake():
    model = residual_net()
    made = quantized(model, op_types=("conv2d",), skip=("linear_0.w_0",))
    assert {s.value.name for s in find_sites(made) if s.role is Role.WEIGHT} == {"conv2d_0.w_0", "conv2d_1.w_0"}


def test_a_table_that_lacks_a_tensor():
    model, scales = residual_net(), table(residual_net())
    fewer = {name: t for name, t in scales.activations.items() if name != "relu_0.tmp_0"}
    with pytest.raises(QuantError, match=r"activation 'relu_0.tmp_0': .* no threshold .*\n.*calibrate"):
        InsertQuant(ScaleTable(fewer, scales.weights, scales.weight_axes))(model)
    weights = {**scales.weights, "linear_0.w_0": np.ones(3, np.float32)}
    with pytest.raises(QuantError, match=r"weight 'linear_0.w_0': 3 thresholds on axis 1, .* shape \[4, 5\]"):
        InsertQuant(ScaleTable(scales.activations, weights, scales.weight_axes))(model)
