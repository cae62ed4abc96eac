"""Quantized models that are in order, and the same with one fault planted for each rule of lint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from qpass.ir.dtype import DType
from qpass.ir.graph import Decl
from qpass.ir.model import Model
from qpass.ir.op import Attr, Op
from qpass.passes import ConvertEncoding, FoldBatchNorm, FoldQuant, LegalizeOnednn, QuantizeWeights, StripQuant
from qpass.quant.encoding import declare_param
from qpass.quant.layers import find_layers
from qpass.rewrite.edit import Edit, edit
from support.build import Builder
from support.quantized import quantized, written_by_paddle


class Fault(NamedTuple):
    """A rule, the engine that falls into it, and how to plant it into `clean()`."""

    target: str
    plant: Callable[[], Model]


def float_net(*, folded: bool = True) -> Model:
    b = Builder().feed("x", [-1, 3, 8, 8]).conv2d(4).batch_norm().relu().depthwise_conv2d().relu()
    b.pool2d("avg", whole=True).flatten().matmul(5)
    model = b.add(b.param("fc.b_0", (5,))).unary("softmax").model()
    return FoldBatchNorm()(model) if folded else model


def clean(target: str = "tensorrt") -> Model:
    """Nothing to find in it for that engine; only oneDNN wants the weight of the product otherwise than the rest."""
    inserted = quantized(float_net())
    if target != "onednn":
        return FoldQuant()(inserted)
    return FoldQuant(layers=("conv2d_0.w_0", "depthwise_conv2d_0.w_0"))(LegalizeOnednn()(inserted))


def changed(change: Callable[[Edit, Model], None], model: Model | None = None) -> Model:
    model = model or clean()
    with edit(model) as e:
        change(e, model)
    return e.model


def with_param(name: str, value: float) -> Model:
    return changed(lambda e, m: e.set_param(name, np.full(m.params[name].shape, value, np.float32)))


def dead_channel() -> Model:
    def plant(e: Edit, m: Model) -> None:
        for name in ("conv2d_0.w_0", "conv2d_0.w_0@scale"):
            array = np.array(m.params[name])
            array[1] = 0
            e.set_param(name, array)

    return changed(plant)


def two_scales(factor: float = 1.0) -> Model:
    def plant(e: Edit, m: Model) -> None:
        name = declare_param(e, "x@other_scale", np.asarray(m.params["x@scale"]) * np.float32(factor))
        op = next(op for op in m.graph.ops if op.type == "dequantize_linear" and op.input("Scale") == ("x@scale",))
        e.rewire(op, "Scale", 0, name)

    return changed(plant)


def without_zero_point() -> Model:
    def plant(e: Edit, m: Model) -> None:
        op = next(op for op in m.graph.ops if op.type == "quantize_linear")
        inputs = {slot: names for slot, names in op.inputs if slot != "ZeroPoint"}
        e.replace(op, Op.make(op.type, inputs, dict(op.outputs), op.attrs))

    return changed(plant)


def with_attr(name: str, attr: Attr, kind: str, model: Model | None = None) -> Model:
    def plant(e: Edit, m: Model) -> None:
        e.set_attr(next(op for op in m.graph.ops if op.type == kind), name, attr)

    return changed(plant, model)


def without_attr(name: str, kind: str) -> Model:
    return changed(lambda e, m: e.drop_attrs(next(op for op in m.graph.ops if op.type == kind), [name]) and None)


def floats_for(name: str, target: str) -> Model:
    def plant(e: Edit, m: Model) -> None:
        e.set_param(name, np.asarray(m.params[name]).astype(np.float32))
        e.redeclare(dataclasses.replace(e.decl(name), dtype=DType.FLOAT32))

    return changed(plant, clean(target))


def observed(kind: str) -> Model:
    """An op of `kind` observes what the last relu makes."""

    def plant(e: Edit, m: Model) -> None:
        relu = [op for op in m.graph.ops if op.type == "relu"][-1]
        value = relu.output("Out")[0]
        scale = declare_param(e, "seen@scale", np.full(1, 2.5, np.float32))
        e.declare(Decl("seen", dtype=DType.FLOAT32, shape=m.graph.decls[value].shape))
        attrs = {"bit_length": Attr.int(8), "round_type": Attr.int(1), "is_test": Attr.bool(True)}
        e.insert(Op.make(kind, {"X": value}, {"Out": "seen", "OutScale": scale}, attrs), after=relu)
        pool = next(op for op in m.graph.ops if op.type == "pool2d")
        e.rewire(pool, "X", 0, "seen")

    return changed(plant)


def transposed() -> Model:
    b = Builder().feed("x", [-1, 3, 8, 8])
    weight = b.param("up.w_0", (3, 4, 2, 2))
    b.declare("up.tmp_0", (-1, 4, 16, 16))
    attrs = {
        "strides": Attr.ints((2, 2)),
        "paddings": Attr.ints((0, 0)),
        "dilations": Attr.ints((1, 1)),
        "groups": Attr.int(1),
        "padding_algorithm": Attr.str("EXPLICIT"),
        "data_format": Attr.str("NCHW"),
    }
    b.op("conv2d_transpose", {"Input": "x", "Filter": weight}, {"Output": "up.tmp_0"}, attrs)
    return FoldQuant()(quantized(b.relu().model()))


def square() -> Model:
    return FoldQuant()(quantized(Builder().feed("x", [-1, 6]).matmul(6).model()))


def wrong_axis() -> Model:
    def plant(e: Edit, m: Model) -> None:
        op = next(op for op in m.graph.ops if op.input("X") == ("linear_0.w_0",))
        e.set_attr(op, "quant_axis", Attr.int(0))
        for suffix in ("@scale", "@zero_point"):
            e.set_param(f"linear_0.w_0{suffix}", np.resize(m.params[f"linear_0.w_0{suffix}"], 4))
            e.redeclare(dataclasses.replace(e.decl(f"linear_0.w_0{suffix}"), shape=(4,)))

    return changed(plant)


def concatenated() -> Model:
    """Two pairs of different scales before a concatenation, which is quantized because its output's scale is known."""
    b = Builder().feed("x", [-1, 3, 8, 8]).conv2d(4).relu()
    left = b.current
    right = b.at("x").conv2d(4).relu().current
    b.declare("both", (-1, 8, 8, 8)).op("concat", {"X": [left, right]}, {"Out": "both"}, {"axis": Attr.int(1)})
    model = FoldQuant()(quantized(b.conv2d(4).model()))

    def plant(e: Edit, m: Model) -> None:
        concat = next(op for op in m.graph.ops if op.type == "concat")
        for index, (value, scale) in enumerate(((left, 2.0), (right, 4.0))):
            names = pair(e, concat, value, scale)
            e.rewire(concat, "X", index, names)

    return changed(plant, model)


def pair(e: Edit, before: Op, value: str, scale: float, *, observer: bool = False) -> str:
    """Insert a pair; the name of what it makes."""
    decl = e.decl(value)
    names = [declare_param(e, f"{value}@scale", np.full(1, scale, np.float32)), declare_param(e, f"{value}@zero", ZERO)]
    attrs = {
        "quant_axis": Attr.int(-1),
        "bit_length": Attr.int(8),
        "qmin": Attr.int(-128),
        "qmax": Attr.int(127),
        "round_type": Attr.int(0),
        "is_test": Attr.bool(True),
        "only_observer": Attr.bool(observer),
    }
    for kind in ("quantize_linear", "dequantize_linear"):
        target = e.fresh(f"{value}.{kind}")
        e.declare(dataclasses.replace(decl, name=target))
        e.insert(
            Op.make(kind, {"X": value, "Scale": names[0], "ZeroPoint": names[1]}, {"Y": target}, attrs), before=before
        )
        value = target
    return value


ZERO = np.zeros(1, np.int32)


def residual() -> Model:
    b = Builder().feed("x", [-1, 3, 8, 8]).conv2d(4).relu()
    h = b.current
    return FoldQuant()(
        quantized(b.conv2d(4).relu().conv2d(4).add(h).relu().pool2d("avg", whole=True).flatten().model())
    )


def per_channel_activation() -> Model:
    def plant(e: Edit, m: Model) -> None:
        for name, kind in (("x@scale", np.float32), ("x@zero_point", np.int32)):
            e.set_param(name, np.resize(m.params[name], 3).astype(kind))
            e.redeclare(dataclasses.replace(e.decl(name), shape=(3,)))
        for op in m.graph.ops:
            if op.input("Scale") == ("x@scale",):
                e.set_attr(op, "quant_axis", Attr.int(1))

    return changed(plant)


def pair_before_batch_norm() -> Model:
    model = StripQuant(layers=("conv2d_0.w_0",))(FoldQuant()(quantized(float_net(folded=False))))

    def plant(e: Edit, m: Model) -> None:
        bn = next(op for op in m.graph.ops if op.type == "batch_norm")
        e.rewire(bn, "X", 0, pair(e, bn, bn.input("X")[0], 2.0))

    return changed(plant, model)


def half(*, weights: bool, activations: bool) -> Model:
    name = find_layers(float_net())[0].name
    whole = quantized(float_net(), skip=(name,))
    return quantized(whole, layers=(name,), weights=weights, activations=activations)


def signed_residual() -> Model:
    """A convolution without relu is added to another one, and a relu follows: all with scales."""
    b = Builder().feed("x", [-1, 3, 8, 8]).conv2d(4).relu()
    h = b.current
    shortcut = b.conv2d(4, 1).current
    model = FoldQuant()(quantized(b.at(h).conv2d(4).relu().conv2d(4).add(shortcut).relu().conv2d(4).model()))

    def plant(e: Edit, m: Model) -> None:
        total = next(op for op in m.graph.ops if op.type == "elementwise_add")
        for slot in ("X", "Y"):
            e.rewire(total, slot, 0, pair(e, total, total.input(slot)[0], 2.0))

    return changed(plant, model)


def squeezed() -> Model:
    """A convolution of what an average pool makes."""
    b = Builder().feed("x", [-1, 3, 8, 8]).conv2d(4).relu().pool2d("avg", whole=True)
    return FoldQuant()(quantized(b.conv2d(4, 1).model()))


def scaled() -> Model:
    """A scale op between a convolution and the quantization behind it."""
    b = Builder().feed("x", [-1, 3, 8, 8]).conv2d(4)
    source = b.current
    attrs = {"scale": Attr.float(0.5), "bias": Attr.float(0.0), "bias_after_scale": Attr.bool(True)}
    b.declare("half", b.shape()).op("scale", {"X": source}, {"Out": "half"}, attrs)
    return FoldQuant()(quantized(b.conv2d(4).model()))


def reshaped() -> Model:
    """A convolution whose two readers see it reshaped, and as it is."""
    b = Builder().feed("x", [-1, 3, 8, 8]).conv2d(4).relu()
    whole = b.current
    b.declare("half", (-1, 2, 8, 8))
    attrs = {
        "axes": Attr.ints((1,)),
        "starts": Attr.ints((0,)),
        "ends": Attr.ints((2,)),
        "decrease_axis": Attr.ints(()),
    }
    b.op("slice", {"Input": whole}, {"Out": "half"}, attrs)
    part = b.conv2d(4).current
    return FoldQuant()(quantized(b.at(whole).unary("tanh").add(part).model()))


def reshaped_bias() -> Model:
    b = Builder().feed("x", [-1, 3, 8, 8]).conv2d(4)
    product, bias = b.current, b.param("conv2d_0.b_0", (4,))
    b.declare("bias", (1, 4, 1, 1)).declare("bias.shape", (0, 4))
    shape = {"shape": Attr.ints((1, 4, 1, 1))}
    b.op("reshape2", {"X": bias}, {"Out": "bias", "XShape": "bias.shape"}, shape)
    return FoldQuant()(quantized(b.at(product).add("bias").relu().model()))


FAULTS: Mapping[str, tuple[Fault, ...]] = {
    "encoding-unsupported": (
        Fault("onednn", lambda: written_by_paddle("c")),
        Fault("lite", lambda: written_by_paddle("c")),
        Fault("tensorrt", lambda: ConvertEncoding(to="D")(clean())),
    ),
    "float-held-int8": (
        Fault("onednn", lambda: floats_for("conv2d_0.w_0", "onednn")),
        Fault("tensorrt", lambda: floats_for("linear_0.w_0", "tensorrt")),
    ),
    "weight-not-restored": (Fault("onednn", transposed),),
    "weights-alone": (
        Fault("onednn", lambda: QuantizeWeights()(float_net())),
        Fault("generic", lambda: QuantizeWeights(op_types=("matmul_v2",))(float_net())),
    ),
    "channel-axis": (Fault("lite", wrong_axis), Fault("tensorrt", wrong_axis)),
    "square-weight": (Fault("onednn", square),),
    "unhandled-op": (
        Fault("lite", lambda: observed("moving_average_abs_max_scale")),
        Fault("lite", lambda: observed("fake_quantize_abs_max")),
    ),
    "missing-round-type": (
        Fault("generic", lambda: without_attr("round_type", "quantize_linear")),
        Fault("onednn", lambda: written_by_paddle("a")),
    ),
    "boolean-skip-mark": (Fault("onednn", lambda: with_attr("skip_quant", Attr.bool(True), "pool2d")),),
    "zero-scale": (
        Fault("tensorrt", lambda: with_param("x@scale", 0.0)),
        Fault("onednn", dead_channel),
        Fault("lite", lambda: written_by_paddle("b")),
    ),
    "nan-scale": tuple(
        Fault("onednn", lambda value=value: with_param("x@scale", value))  # type: ignore[misc]
        for value in (float("nan"), float("inf"), -1.0)
    ),
    "two-scales": (
        Fault("tensorrt", two_scales),
        Fault("onednn", lambda: two_scales(2.0)),
        Fault("lite", lambda: written_by_paddle("c")),
    ),
    "zero-point-missing": (Fault("tensorrt", without_zero_point), Fault("lite", without_zero_point)),
    "bit-length": (Fault("onednn", lambda: quantized(float_net(), activation_bits=4)),),
    "unequal-concat-scales": (Fault("onednn", concatenated),),
    "missing-output-scale": (Fault("onednn", residual),),
    "activation-per-channel": (Fault("tensorrt", per_channel_activation),),
    "batch-norm-between": (Fault("tensorrt", pair_before_batch_norm),),
    "batch-norm-unfolded": (Fault("lite", lambda: float_net(folded=False)),),
    "half-quantized": (
        Fault("lite", lambda: half(weights=True, activations=False)),
        Fault("onednn", lambda: half(weights=False, activations=True)),
    ),
    "not-simulated": (Fault("onednn", lambda: with_attr("out_threshold", Attr.float(2.0), "pool2d")),),
    "lent-scale": (Fault("onednn", squeezed), Fault("onednn", reshaped), Fault("onednn", scaled)),
    "cut-product-weight": (Fault("onednn", clean),),
    "mixed-signs": (Fault("onednn", signed_residual),),
    "bias-behind-reshape": (Fault("onednn", reshaped_bias),),
}
"""Rule -> faults that it must find."""
