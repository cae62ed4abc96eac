"""Sites of models that Paddle wrote, against what its files say in so many words; and of models that qpass wrote."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from support.build import Builder
from support.corpus import corpus
from support.quantized import quantized, residual_net, table, written_by_paddle

from qpass.errors import QuantError
from qpass.formats.files import load
from qpass.ir.dtype import DType
from qpass.ir.op import Attr
from qpass.passes import InsertQuant
from qpass.quant.encodings import ENCODINGS, find_sites
from qpass.quant.fakequant import quantize
from qpass.quant.layers import find_layers
from qpass.quant.scales import ScaleTable
from qpass.quant.site import Role, Storage
from qpass.quant.spec import QuantSpec, Rounding


def of_layers(model):
    """Activation and weight site of each layer op, by weight name."""
    by_use = {use: site for site in find_sites(model) for use in site.uses}
    return {
        layer.name: [(by_use[op.activation], by_use[op.weight]) for op in layer.ops] for layer in find_layers(model)
    }


@pytest.mark.parametrize(
    ("kind", "storage", "rounding", "axes"),
    [
        ("a", Storage.INT_AS_FLOAT, Rounding.HALF_AWAY, (0, 0, 1)),
        ("t", Storage.INT_AS_FLOAT, Rounding.HALF_AWAY, (None, None, None)),
        ("b", Storage.INT, Rounding.HALF_EVEN, (0, 0, 1)),
        ("c", Storage.INT_AS_FLOAT, Rounding.HALF_EVEN, (None, None, None)),
    ],
)
def test_layers_that_paddle_quantized(kind, storage, rounding, axes):
    model, original = written_by_paddle(kind), written_by_paddle("float")
    found = of_layers(model)
    assert len(found) == 3
    for (name, sites), axis, value in zip(found.items(), axes, ("x", "relu_0.tmp_0", "mean_0.tmp_0"), strict=True):
        ((activation, weight),) = sites
        narrow = rounding is Rounding.HALF_AWAY
        assert {activation.encoding, weight.encoding} == {"A" if kind == "t" else kind.upper()}
        assert (activation.role, weight.role) == (Role.ACTIVATION, Role.WEIGHT)
        assert (activation.storage, weight.storage) == (Storage.FLOAT, storage)
        assert activation.value.name == value
        assert weight.value.name == name
        assert activation.spec == QuantSpec(8, None, rounding, narrow)
        assert weight.spec == QuantSpec(8, axis, rounding, narrow)
        assert activation.threshold.shape == ()
        assert not activation.observer_only
        # Calibrated by abs_max: the threshold of a weight is the original's largest absolute value.
        original_weight = np.abs(original.params[name.split("_deepcopy")[0]])
        over = None if axis is None else tuple(i for i in range(original_weight.ndim) if i != axis)
        np.testing.assert_allclose(weight.threshold, original_weight.max(axis=over), rtol=1e-6)


def test_output_observers_of_encoding_b():
    model = written_by_paddle("b")
    observers = [site for site in find_sites(model) if site.observer_only]
    values = [site.value.name for site in observers]
    pairs = sum(bool(op.attr("only_observer")) for op in model.graph.ops if op.type == "dequantize_linear")
    assert len(values) == pairs > 5
    assert "conv2d_0.tmp_0" in values
    assert "relu_0.tmp_0" in values


def test_a_name_that_two_pairs_write_is_two_sites():
    model = written_by_paddle("b")
    pairs = [site for site in find_sites(model) if site.value.name == "relu_0.tmp_0"]
    writes = [model.graph.written(model.graph.by_uid[site.ops[-1]], "Y") for site in pairs]
    assert [(ref.name, ref.version) for ref in writes] == [
        ("relu_0.tmp_0.quantized.dequantized", 1),
        ("relu_0.tmp_0.quantized.dequantized", 2),
    ]
    assert [site.observer_only for site in pairs] == [False, True]
    consumers = [{model.graph.by_uid[use.op].type for use in site.uses} for site in pairs]
    assert consumers == [{"depthwise_conv2d"}, {"elementwise_add"}]


def test_consumers_of_one_activation_quantizer():
    model = quantized(residual_net())
    (site,) = [site for site in find_sites(model) if site.value.name == "relu_0.tmp_0"]
    assert [model.graph.by_uid[use.op].type for use in site.uses] == ["depthwise_conv2d", "conv2d"]


def test_official_qat_models():
    sites = find_sites(load(corpus("models/ppocr_cls_qat")))
    assert Counter((site.encoding, site.role) for site in sites) == {("D", Role.ACTIVATION): 54, ("D", Role.WEIGHT): 54}
    assert all(len(site.uses) == 1 for site in sites if site.role is Role.WEIGHT)
    assert {site.spec for site in sites if site.role is Role.ACTIVATION} == {
        QuantSpec(8, None, Rounding.HALF_AWAY, narrow=True)
    }
    det = Counter(site.role for site in find_sites(load(corpus("models/ppocr_det_v3_qat"))))
    assert det == {Role.ACTIVATION: 72, Role.WEIGHT: 72}


def test_thresholds_of_the_official_qat_model_are_those_it_stores():
    model = load(corpus("models/ppocr_cls_qat"))
    for site in find_sites(model):
        op = model.graph.by_uid[site.ops[0]]
        stored = model.params[op.output("OutScale")[0]]
        np.testing.assert_array_equal(site.threshold.reshape(-1), stored)


def test_programs_without_parameters():
    model = load(corpus("graphs/ch_PP-OCRv3_rec_slim_infer.pdmodel"), structure_only=True)
    sites = find_sites(model)
    assert Counter(site.role for site in sites)[Role.WEIGHT] > 30
    assert all(np.isnan(site.threshold).all() for site in sites)


@pytest.mark.parametrize("encoding", ["A", "B", "C", "D"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_what_is_spelled_is_recognised(encoding, per_channel):
    model = residual_net()
    scales = table(model, per_channel=per_channel)
    made = InsertQuant(scales, encoding=encoding, weight_bits=5, activation_bits=7)(model)
    sites = find_sites(made)
    assert {site.encoding for site in sites} == {encoding}
    # Encoding A says other bits than 8 by channel only; how weights were rounded it does not say.
    axes = {layer.name: layer.axis for layer in find_layers(model)} if encoding == "A" else scales.weight_axes
    for site in sites:
        if site.role is Role.WEIGHT:
            name = site.value.name
            expected = np.broadcast_to(scales.weights[name], site.threshold.shape)
            np.testing.assert_array_equal(site.threshold, expected)
            assert (site.spec.bits, site.spec.axis) == (5, axes[name])
            assert site.storage is (Storage.INT_AS_FLOAT if encoding in "AC" else Storage.FLOAT)
            if encoding in "AC":
                ints = quantize(model.params[name], scales.weights[name], QuantSpec(5, scales.weight_axes[name]))
                np.testing.assert_array_equal(made.params[name], ints.astype(np.float32))
        else:
            assert site.threshold == scales.activations[site.value.name]
            assert site.spec == QuantSpec(7)


def test_every_op_of_a_site_belongs_to_one_encoding():
    for kind in ("a", "b", "t", "c"):
        model = written_by_paddle(kind)
        owners = [{uid for site in each.recognise(model) for uid in site.ops} for each in ENCODINGS.values()]
        found = {op.uid for op in model.graph.ops if "quantize" in op.type}
        assert sum(len(uids) for uids in owners) == len(set().union(*owners)) == len(found)


def test_encoding_d_refuses_thresholds_that_it_cannot_say():
    model = residual_net()
    scales = table(model)
    weights = {**scales.weights, "linear_0.w_0": scales.weights["linear_0.w_0"] / 2}
    halved = ScaleTable(scales.activations, weights, scales.weight_axes)
    with pytest.raises(QuantError, match=r"linear_0.*not the largest absolute values.*\n.*use encoding B"):
        InsertQuant(halved, encoding="D")(model)


def test_only_float32_values_are_quantized():
    b = Builder().feed("x", [2, 3], DType.FLOAT64)
    b.param("w", np.ones((3, 4)))
    b.declare("y", [2, 4], DType.FLOAT64).op("matmul_v2", {"X": "x", "Y": "w"}, {"Out": "y"}, {"a": Attr.int(1)})
    with pytest.raises(QuantError, match="value x@1: only float32 can be quantized, this is float64"):
        quantized(b.model())
