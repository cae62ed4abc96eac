"""ConvertEncoding: every pair of encodings, judged by Paddle's own kernels; what it refuses; what it keeps."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from support.build import Builder
from support.corpus import corpus
from support.infer import infer
from support.quantized import all_float, count, quantized, residual_net, table, written_by_paddle
from support.strategies import models, runnable_models

from qpass.formats.files import load, to_bytes
from qpass.ir.model import Model
from qpass.ir.op import Attr
from qpass.passes import ConvertEncoding, InsertQuant, StripQuant
from qpass.quant.encodings import find_sites
from qpass.quant.fakequant import quantize
from qpass.quant.layers import find_layers
from qpass.quant.scales import ScaleTable
from qpass.quant.site import Role, Storage
from qpass.quant.spec import QuantSpec, Rounding

NAMES = ("A", "B", "C", "D")
PAIRS = [(a, b) for a, b in product(NAMES, NAMES) if a != b]
# Sums of a few dozen products: some float32 roundings, relative to the largest output.
LAST_BITS = 2e-6


def images(n: int = 4, *shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(7).standard_normal((n, *(shape or (3, 8, 8)))).astype(np.float32)}


def many_ops() -> Model:
    """Every family of layers, a shared weight, shared activations, residuals, a product over three axes."""
    b = Builder(seed=4).feed("x", [-1, 3, 8, 8]).conv2d(4).relu()
    h = b.current
    shared = b.param("shared.w_0", (4, 4, 3, 3), scale=0.2)
    b.conv2d(4, weight=shared).relu().conv2d(4, weight=shared).add(h)
    left = b.current
    b.at(h).depthwise_conv2d().add(left)
    attrs = {
        "strides": Attr.ints((2, 2)),
        "paddings": Attr.ints((0, 0)),
        "dilations": Attr.ints((1, 1)),
        "groups": Attr.int(1),
        "padding_algorithm": Attr.str("EXPLICIT"),
        "data_format": Attr.str("NCHW"),
        "output_padding": Attr.ints(()),
        "output_size": Attr.ints(()),
    }
    x, weight = b.current, b.param("up.w_0", (4, 3, 3, 3), scale=0.3)
    b.declare("up.tmp_0", [-1, 3, 17, 17])
    b.op("conv2d_transpose", {"Input": x, "Filter": weight, "Bias": ()}, {"Output": "up.tmp_0"}, attrs)
    weight = b.param("rows.w_0", (17, 6), scale=0.3)
    b.declare("rows.tmp_0", [-1, 3, 17, 6])
    flags = {"trans_x": Attr.bool(False), "trans_y": Attr.bool(False)}
    b.op("matmul_v2", {"X": "up.tmp_0", "Y": weight}, {"Out": "rows.tmp_0"}, flags)
    return b.pool2d("avg", whole=True).flatten().matmul(5).relu().mul(3).model()


def same(a: Model, b: Model, feed: dict[str, np.ndarray], *, exact: bool) -> None:
    left, right = infer(a, feed)[0], infer(b, feed)[0]
    if exact:
        np.testing.assert_array_equal(left, right)
    else:
        assert np.abs(left - right).max() <= LAST_BITS * np.abs(left).max()


def facts(model: Model) -> list[tuple[object, ...]]:
    """What must survive: for each layer operand its threshold, bits, axis, rounding of activations, and integers."""
    made = []
    for site in find_sites(model):
        if site.observer_only:
            continue
        ints = rounding = None
        if site.role is Role.WEIGHT:
            held = model.params[site.value.name]
            ints = quantize(held, site.threshold, site.spec) if site.storage is Storage.FLOAT else held
            ints = np.asarray(ints, np.int32).tolist()
        else:
            rounding = site.spec.rounding
        threshold = np.asarray(site.threshold, np.float32).reshape(-1).tolist()
        made += [(use, site.role, threshold, site.spec.bits, site.spec.axis, rounding, ints) for use in site.uses]
    return sorted(made, key=lambda row: row[0])


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("source", "to"), PAIRS)
def test_every_pair_on_every_kind_of_layer(source, to, per_channel):
    model = many_ops()
    made = InsertQuant(table(model, per_channel=per_channel), encoding=source)(model)
    converted = ConvertEncoding(to)(made)
    assert {site.encoding for site in find_sites(converted)} == {to}
    same(made, converted, images(), exact="A" not in (source, to))
    assert ConvertEncoding(to)(converted) is converted
    if per_channel:
        assert facts(converted) == facts(made)
    back = ConvertEncoding(source)(converted)
    same(made, back, images(), exact="A" not in (source, to))


@pytest.mark.parametrize("to", NAMES)
@pytest.mark.parametrize("kind", ["a", "b", "t", "c"])
def test_what_paddle_wrote(kind, to):
    model = written_by_paddle(kind)
    converted = ConvertEncoding(to)(model)
    active = [site for site in find_sites(converted) if not site.observer_only]
    assert {site.encoding for site in active} == {to}
    assert Counter(site.role for site in active) == {Role.WEIGHT: 3, Role.ACTIVATION: 3}
    own = "A" if kind == "t" else kind.upper()
    assert (converted is model) == (own == to)
    same(model, converted, images(), exact=own == to or "A" not in (own, to))
    if (kind, to) != ("c", "A") and kind != "t":
        assert facts(converted) == facts(model)


@pytest.mark.parametrize(("kind", "to"), [("c", "A"), ("t", "B"), ("t", "D")])
def test_thresholds_of_whole_weights_pass_max_range_but_for_the_last_bit(kind, to):
    model = written_by_paddle(kind)
    before, after = facts(model), facts(ConvertEncoding(to)(model))
    for a, b in zip(before, after, strict=True):
        assert (*a[:2], *a[3:]) == (*b[:2], *b[3:])
        np.testing.assert_allclose(a[2], b[2], rtol=1.2e-7)


@settings(max_examples=12, deadline=None)
@given(model=runnable_models())
def test_conversions_between_b_c_and_d_are_exact_on_any_network(model):
    x = {"x": np.random.default_rng(0).standard_normal((2, *model.feeds[0].shape[1:])).astype(np.float32)}
    made = quantized(model)
    expected = infer(made, x)[0]
    for to in ("C", "D", "B", "D", "C", "B"):
        made = ConvertEncoding(to)(made)
        np.testing.assert_array_equal(infer(made, x)[0], expected)


@settings(max_examples=25, deadline=None)
@given(model=runnable_models())
def test_conversions_through_a_keep_integers_and_thresholds_on_any_network(model):
    made = quantized(model)
    through = ConvertEncoding("A")(made)
    assert facts(through) == facts(made)
    assert facts(ConvertEncoding("D")(through)) == facts(made)


@pytest.mark.parametrize(("source", "to"), PAIRS)
@pytest.mark.parametrize("bits", [(4, 8), (8, 5), (12, 10)])
def test_other_bits(bits, source, to):
    model = residual_net()
    made = InsertQuant(table(model), encoding=source, weight_bits=bits[0], activation_bits=bits[1])(model)
    converted = ConvertEncoding(to)(made)
    assert facts(converted) == facts(made)
    if "A" in (source, to):
        # At 12 bits the sums of encoding A leave the integers that float32 holds exactly.
        np.testing.assert_allclose(infer(converted, images())[0], infer(made, images())[0], atol=1e-3)
    else:
        same(made, converted, images(), exact=True)
    if to == "B" and source != "B":
        stored = {site.storage for site in find_sites(converted) if site.role is Role.WEIGHT}
        assert stored == {Storage.INT if bits[0] <= 8 else Storage.FLOAT}


@pytest.mark.parametrize("to", ["A", "B", "C"])
def test_official_qat_model(to):
    model = load(corpus("models/ppocr_cls_qat"))
    x = {"x": np.random.default_rng(0).standard_normal((2, 3, 48, 192)).astype(np.float32)}
    made = ConvertEncoding(to)(model)
    assert Counter((s.encoding, s.role) for s in find_sites(made)) == {(to, r): 54 for r in Role}
    assert facts(made) == facts(model)
    found, expected = infer(made, x)[0], infer(model, x)[0]
    if to == "A":
        # 54 layers on each other: last bits next to ties become levels.
        assert np.abs(found - expected).max() < 0.05
    else:
        np.testing.assert_array_equal(found, expected)
    if to == "B":
        assert made.params.nbytes < 0.4 * model.params.nbytes
        assert {s.spec.rounding for s in find_sites(made)} == {Rounding.HALF_AWAY}


def test_quantized_corpus_classifier():
    model = load(corpus("models/resnet8_cifar10"))
    made = quantized(model)
    x = {"image": np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32)).astype(np.float32)}
    expected = infer(made, x)[0]
    for to in ("D", "C", "B"):
        made = ConvertEncoding(to)(made)
        np.testing.assert_array_equal(infer(made, x)[0], expected)
    assert facts(ConvertEncoding("A")(made)) == facts(made)


def test_c_is_mended():
    made = ConvertEncoding("B")(written_by_paddle("c"))
    for op in made.graph.ops:
        if op.type.endswith("quantize_linear"):
            assert made.params[op.input("ZeroPoint")[0]].dtype == np.int32
    for site in find_sites(made):
        if site.role is Role.WEIGHT:
            assert made.params[site.value.name].dtype == np.int8
        else:
            first, second = (made.graph.by_uid[uid] for uid in site.ops)
            assert first.input("Scale") == second.input("Scale")
    assert not [name for name in made.graph.decls if "eager_tmp" in name or "quant_dequant" in name]


def test_encoding_a_as_paddle_wrote_it_for_the_same_net():
    ours, theirs = ConvertEncoding("A")(written_by_paddle("b")), written_by_paddle("a")
    renamed = {"fake_quantize_range_abs_max": "fake_quantize_moving_average_abs_max"}
    assert Counter(op.type for op in ours.graph.ops) == Counter(
        renamed.get(op.type, op.type) for op in theirs.graph.ops
    )
    assert [row[:6] for row in activations(ours)] == [row[:6] for row in activations(theirs)]
    for layer in find_layers(theirs):
        np.testing.assert_array_equal(ours.params[layer.name], theirs.params[layer.name])
        assert ours.params[layer.name].dtype == np.float32


def activations(model: Model) -> list[tuple[object, ...]]:
    return [(s.role, s.threshold.tolist(), s.spec.bits) for s in find_sites(model) if s.role is Role.ACTIVATION]


@pytest.mark.parametrize("to", ["A", "D"])
def test_observers_become_the_thresholds_that_paddle_writes_for_the_same_net(to):
    model, theirs = written_by_paddle("b"), written_by_paddle("a")
    observed = {site.value.name for site in find_sites(model) if site.observer_only}
    ours = ConvertEncoding(to)(model)
    compared = 0
    for made in ours.graph.ops:
        if "out_threshold" not in made.attrs:
            continue
        out = next(name for _, _, name in made.writes()).removesuffix(".quantized")
        other = next(op for op in theirs.graph.ops if out in {name for _, _, name in op.writes()})
        slots = [name for name in made.attrs if name.endswith("0_threshold")]
        assert {name: made.attr(name) for name in ("out_threshold", *slots)} == {
            name: other.attr(name) for name in ("out_threshold", *slots)
        }
        assert made.attr("with_quant_attr") is True
        compared += len(slots)
        observed.discard(out)
    assert compared > 5
    assert observed <= {"x"}


def test_observers_stay_pairs_in_c():
    model = written_by_paddle("b")
    made = ConvertEncoding("C")(model)
    before, after = ([s.value.name for s in find_sites(m) if s.observer_only] for m in (model, made))
    assert after == before
    assert len(after) > 5


def test_observers_of_encoding_d():
    b = Builder(seed=1).feed("x", [-1, 6]).matmul(4)
    y = b.current
    b.param("seen@scale", np.array([2.5], np.float32))
    b.declare("seen", [-1, 4]).op(
        "moving_average_abs_max_scale",
        {"X": y},
        {"Out": "seen", "OutScale": "seen@scale"},
        {"is_test": Attr.bool(True), "moving_rate": Attr.float(0.5)},
    )
    model = b.relu().model()
    made = ConvertEncoding("B")(model)
    (site,) = find_sites(made)
    assert (site.encoding, site.observer_only, float(site.threshold)) == ("B", True, 2.5)
    assert count(made, "moving_average") == 0
    same(model, made, images(2, 6), exact=True)


def test_some_layers_only():
    model = quantized(residual_net(), encoding="D")
    for to in ("A", "B", "C"):
        made = ConvertEncoding(to, layers=("conv2d_1.w_0", "linear_0.w_0"))(model)
        by_use = {use: site for site in find_sites(made) for use in site.uses}
        for layer in find_layers(made):
            chosen = layer.name in ("conv2d_1.w_0", "linear_0.w_0")
            for op in layer.ops:
                found = {by_use[op.weight].encoding, by_use[op.activation].encoding}
                assert found == {to if chosen else "D"}
        same(model, made, images(), exact=to != "A")
        rest = ConvertEncoding(to)(made)
        assert facts(rest) == facts(ConvertEncoding(to)(model))


def test_from_a_some_layers_only():
    model = quantized(residual_net(), encoding="A")
    made = ConvertEncoding("B", layers=("conv2d_1.w_0",))(model)
    kinds = Counter(site.encoding for site in find_sites(made))
    assert kinds == {"A": 8, "B": 2}
    same(model, made, images(), exact=False)


def test_activations_of_sums_stay_simulated_under_a():
    model = residual_net()
    made = quantized(model)
    add = next(op for op in model.graph.ops if op.type == "elementwise_add")
    site = next(s for s in find_sites(made) if s.value.name == add.input("Y")[0])
    name = made.graph.by_uid[site.ops[-1]].output("Y")[0]
    ops = tuple(
        dataclasses.replace(op.with_input("Y", 0, name), uid=op.uid) if op.uid == add.uid else op
        for op in made.graph.ops
    )
    made = made.replaced(graph=dataclasses.replace(made.graph, ops=ops))
    converted = ConvertEncoding("A")(made)
    assert ConvertEncoding("A")(converted) is converted
    assert Counter(s.encoding for s in find_sites(converted) if s.role is Role.ACTIVATION) == {"A": 4, "D": 1}
    same(made, converted, images(), exact=False)


@pytest.mark.parametrize(("source", "to"), PAIRS)
def test_a_fetched_quantized_value_keeps_its_name(source, to):
    b = Builder(seed=2).feed("x", [-1, 6]).matmul(4).mul(3)
    model = b.fetch(b.current, "matmul_v2_0.tmp_0").model()
    made = quantized(model, encoding=source)
    converted = ConvertEncoding(to)(made)
    assert converted.fetches == model.fetches
    for a, c in zip(infer(made, images(3, 6)), infer(converted, images(3, 6)), strict=True):
        np.testing.assert_allclose(a, c, rtol=0, atol=2e-6)


def test_two_quantizations_in_a_row():
    model = quantized(Builder(seed=2).feed("x", [-1, 6]).matmul(4).model())
    site = next(s for s in find_sites(model) if s.role is Role.ACTIVATION)
    scales = ScaleTable({"x.quantized.dequantized": 0.7}, *_weights_of(model))
    twice = _requantized(model, site.uses[0], scales)
    for to in ("C", "D", "A", "B"):
        made = ConvertEncoding(to)(twice)
        found, expected = infer(made, images(3, 6))[0], infer(twice, images(3, 6))[0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=0 if to != "A" else 1e-6)
        assert "B" not in {s.encoding for s in find_sites(made)} or to == "B"
    assert not np.array_equal(expected, infer(model, images(3, 6))[0])


def _weights_of(model):
    weights = table(StripQuant()(model))
    return weights.weights, weights.weight_axes


def _requantized(model, use, scales):
    from qpass.quant.encodings import ENCODINGS
    from qpass.quant.site import QuantSite
    from qpass.rewrite.edit import edit

    value = model.graph.read(model.graph.by_uid[use.op], use.slot)
    site = QuantSite(
        Role.ACTIVATION, value, (use,), np.float32(scales.activations[value.name]), QuantSpec(), "B", ops=()
    )
    with edit(model) as e:
        ENCODINGS["B"].spell(e, model.graph, [site])
    return e.model


def test_a_weight_that_is_also_read_in_float_is_copied():
    b = Builder().feed("x", [-1, 4]).matmul(4)
    y = b.current
    b.declare("z", [-1, 4]).op("elementwise_add", {"X": y, "Y": "linear_0.w_0"}, {"Out": "z"}, {"axis": Attr.int(-1)})
    model = quantized(b.model(), encoding="D")
    x = images(4, 4)
    for to in ("A", "B", "C"):
        made = ConvertEncoding(to)(model)
        np.testing.assert_array_equal(made.params["linear_0.w_0"], model.params["linear_0.w_0"])
        same(model, made, x, exact=to != "A")


def test_latent_floats_stay_where_there_are_some():
    model = residual_net()
    for source in ("B", "D"):
        made = ConvertEncoding("D" if source == "B" else "B")(quantized(model, encoding=source))
        stripped = StripQuant()(made)
        assert (to_bytes(stripped) == to_bytes(model)) == (source == "B")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(model=models())
def test_odd_programs_keep_their_interface_and_their_quantization(model):
    model = all_float(model)
    names = tuple(layer.name for layer in find_layers(model))
    assume(names)
    made = quantized(model, layers=names)
    for to in ("C", "D", "A", "B"):
        made = ConvertEncoding(to)(made)
        assert {site.encoding for site in find_sites(made)} == {to}
        assert (made.feeds, made.fetches) == (model.feeds, model.fetches)
    stripped = StripQuant()(made)
    if not any(".folded" in name for name in stripped.graph.decls):
        assert stripped.graph == model.graph
