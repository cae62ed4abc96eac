"""InsertQuant, StripQuant and FoldQuant where others left marks, share stored weights, or wrote nonsense."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from support.build import Builder
from support.infer import infer
from support.quantized import quantized, residual_net, table, written_by_paddle

from qpass.errors import QPassError, QuantError
from qpass.formats.files import to_bytes
from qpass.ir.dtype import DType
from qpass.ir.graph import Decl
from qpass.ir.model import Model
from qpass.ir.op import Attr, AttrKind, Op
from qpass.passes import FoldQuant, InsertQuant, StripQuant
from qpass.quant.encodings import find_sites
from qpass.quant.layers import find_layers
from qpass.rewrite.edit import edit

W = "linear_0.w_0"
READERS = (find_sites, StripQuant(), StripQuant((W,)), FoldQuant("int8"), FoldQuant("float"), quantized)


def first(model: Model, kind: str) -> Op:
    return next(op for op in model.graph.ops if op.type == kind)


def with_attr(model: Model, op: Op, name: str, attr: Attr) -> Model:
    with edit(model) as e:
        e.set_attr(op, name, attr)
    return e.model


def one_matmul() -> Model:
    return Builder().feed("x", [-1, 4]).mul(4).model()


def with_output(model: Model, *ops: Op, reads: str, shape: tuple[int, ...] = (-1, 4)) -> Model:
    """`model` with more ops before its end, and what they make as its output."""
    with edit(model, interface=True) as e:
        fetch = first(model, "fetch")
        for op in ops:
            for _, _, name in op.writes():
                e.declare(Decl(name, dtype=DType.FLOAT32, shape=shape))
            e.insert(op, before=fetch)
        e.rewire(fetch, "X", 0, reads)
    return e.model


@pytest.mark.parametrize("encoding", ["B", "D"])
@pytest.mark.parametrize(
    ("kind", "name", "attr"),
    [
        ("conv2d", "quantization_type", Attr.str("post_hist")),
        ("conv2d", "quantization_type", Attr.str("qpass")),
        ("conv2d", "out_threshold", Attr.float(1.5)),
        ("conv2d", "Output0_threshold", Attr.float(1.5)),
        ("mul", "bit_length", Attr.int(8)),
        ("relu", "out_threshold", Attr.float(1.5)),
        ("relu", "quantization_type", Attr.str("qat_without_weight")),
    ],
)
def test_what_others_left_on_float_ops_stays(encoding, kind, name, attr):
    model = residual_net()
    model = with_attr(model, first(model, kind), name, attr)
    whole = quantized(model, encoding=encoding)
    stepwise = whole
    for layer in find_layers(model):
        stepwise = StripQuant((layer.name,))(stepwise)
    assert to_bytes(StripQuant()(whole)) == to_bytes(model)
    assert to_bytes(stepwise) == to_bytes(model)


@pytest.mark.parametrize("kind", ["a", "b"])
def test_a_layer_that_paddle_left_in_float_comes_back_as_it_was(kind):
    model = written_by_paddle(kind)
    name = find_layers(model)[0].name
    model = StripQuant((name,))(model)
    uid = next(layer for layer in find_layers(model) if layer.name == name).ops[0].uid
    model = with_attr(model, model.graph.by_uid[uid], "out_threshold", Attr.float(2.0))
    made = quantized(model, layers=(name,))
    assert made is not model
    assert to_bytes(StripQuant((name,))(made)) == to_bytes(model)


def test_attributes_that_only_end_like_a_threshold_stay():
    model = written_by_paddle("a")
    model = with_attr(model, first(model, "relu"), "nms_top2_threshold", Attr.float(0.5))
    assert "nms_top2_threshold" in first(StripQuant()(model), "relu").attrs


def test_layers_of_two_encodings_are_stripped_in_any_order():
    model = residual_net()
    names = [layer.name for layer in find_layers(model)]
    mixed = quantized(quantized(model, layers=tuple(names[::2])), encoding="D")
    assert {site.encoding for site in find_sites(mixed)} == {"B", "D"}
    assert to_bytes(StripQuant()(mixed)) == to_bytes(model)
    for order in (names, names[::-1], names[1:] + names[:1]):
        made = mixed
        for name in order:
            made = StripQuant((name,))(made)
        assert to_bytes(made) == to_bytes(model)


def test_stored_integers_that_another_pair_still_reads_are_not_overwritten():
    model = FoldQuant()(quantized(one_matmul()))
    pair = next(op for op in model.graph.ops if op.input("X") == (W,))
    again = Op.make("dequantize_linear", dict(pair.inputs), {"Y": "again"}, pair.attrs)
    product = Op.make("mul", {"X": "x", "Y": "again"}, {"Out": "sum"}, first(model, "mul").attrs)
    added = Op.make("elementwise_add", {"X": "sum", "Y": "again"}, {"Out": "odd"}, {"axis": Attr.int(-1)})
    model = with_output(model, again, product, added, reads="odd", shape=(4, 4))
    with pytest.raises(QuantError, match=rf"weight '{W}': .*dequantize_linear.* reads the stored integers"):
        StripQuant((W,))(model)
    assert not find_sites(StripQuant()(model))


def test_stored_integers_that_an_op_reads_as_such_are_not_overwritten():
    model = FoldQuant()(quantized(one_matmul()))
    codes = {"in_dtype": Attr.int(21), "out_dtype": Attr.int(5)}
    model = with_output(model, Op.make("cast", {"X": W}, {"Out": "whole"}, codes), reads="whole", shape=(4, 4))
    x = {"x": np.ones((2, 4), np.float32)}
    for strip in (StripQuant(), StripQuant((W,))):
        with pytest.raises(QuantError, match=r"op \d+ \(cast\) reads the stored integers.*\n.*fold this weight"):
            strip(model)
    np.testing.assert_array_equal(infer(StripQuant()(FoldQuant("float")(model)), x)[0], infer(model, x)[0])


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_weight_whose_scale_is_computed_cannot_be_folded(per_channel):
    model = one_matmul()
    model = FoldQuant()(InsertQuant(table(model, per_channel=per_channel))(model))
    pair = next(op for op in model.graph.ops if op.input("X") == (W,))
    with edit(model) as e:
        e.declare(Decl("computed", dtype=DType.FLOAT32, shape=(4 if per_channel else 1,)))
        e.insert(Op.make("assign", {"X": pair.input("Scale")}, {"Out": "computed"}), before=pair)
        e.rewire(pair, "Scale", 0, "computed")
    for each in (StripQuant(), StripQuant((W,)), FoldQuant("float")):
        with pytest.raises(QuantError, match=rf"weight '{W}': its scale is no finite parameter"):
            each(e.model)


@pytest.mark.parametrize("encoding", ["B", "D"])
def test_the_model_does_not_change_with_the_scale_table(encoding):
    model = residual_net()
    scales = table(model)
    made = InsertQuant(scales, encoding=encoding)(model)
    before = to_bytes(made)
    for array in scales.weights.values():
        array[...] = 1
    assert to_bytes(made) == before


def place_of_the_error(each: Callable[[Model], object], model: Model) -> str | None:
    """Where `each` says that it failed; None when it did not."""
    try:
        each(model)
    except QPassError as e:
        return e.where or ""
    return None


HOSTILE = {
    "quant_axis": (Attr.str("a"), Attr.int(17), Attr.int(-3)),
    "round_type": (Attr.int(9), Attr(AttrKind.INT, None)),
    "bit_length": (Attr.int(99), Attr.int(1), Attr.float(8.0)),
    "quant_bits": (Attr.str("8"), Attr.ints(()), Attr.ints((99, 8)), Attr.strs(("a",))),
    "max_range": (Attr.float(0.0), Attr.str("a"), Attr.float(float("nan"))),
    "only_observer": (Attr.str("x"), Attr.ints((1,))),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("model", ["a", "t", "b", "c", "B", "D"])
def test_nonsense_in_attributes_is_refused_or_passed_over(name, model):
    model = quantized(residual_net(), encoding=model) if model.isupper() else written_by_paddle(model)
    for attr in HOSTILE[name]:
        for kind in dict.fromkeys(op.type for op in model.graph.ops if "quantize" in op.type):
            hostile = with_attr(model, first(model, kind), name, attr)
            for each in (*READERS[:2], *READERS[3:]):
                assert place_of_the_error(each, hostile) != ""


@pytest.mark.parametrize("model", ["a", "B", "D"])
@pytest.mark.parametrize("names", [(), ("",), ("", "x")])
def test_absent_operands_are_refused_or_passed_over(model, names):
    model = quantized(one_matmul(), encoding=model) if model.isupper() else written_by_paddle(model)
    ops = model.graph.ops
    for op in ops:
        for side, slots in (("inputs", op.inputs), ("outputs", op.outputs)):
            for slot, _ in slots:
                made = tuple((s, names if s == slot else n) for s, n in slots)
                odd = tuple(dataclasses.replace(op, **{side: made}) if each is op else each for each in ops)
                for each in READERS:
                    place_of_the_error(each, model.replaced(graph=dataclasses.replace(model.graph, ops=odd)))
