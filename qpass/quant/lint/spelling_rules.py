"""Rules about spelling: encodings and storage that an engine reads wrongly, or not at all."""

from __future__ import annotations

from collections.abc import Iterator

from qpass.ir.op import AttrKind
from qpass.quant.encodings import find_sites
from qpass.quant.lint.rule import Fix, Hit, Rule, Subject
from qpass.quant.onednn_placement import SKIP
from qpass.quant.ops import DATA_SLOTS, OBSERVERS, OLD_DEQUANTIZE
from qpass.quant.site import Role, Storage

_ALL = ("onednn", "tensorrt", "lite", "generic")
_ENGINES = ("onednn", "tensorrt", "lite")
_RESTORED = ("conv2d", "depthwise_conv2d", "mul", "matmul", "matmul_v2")
_TO_B = Fix("convert-encoding", "to=B")
_SLOTS_LOST = ("fake_quantize_abs_max", *OBSERVERS)


def unsupported_encodings(subject: Subject) -> Iterator[Hit]:
    """Sites of an encoding that the target does not read."""
    for site in subject.sites:
        unread = site.encoding not in subject.target.accepts
        if unread and subject.first_op(site).type not in _SLOTS_LOST:
            what = f"encoding {site.encoding}, the engine reads {', '.join(subject.target.accepts)}"
            yield Hit(subject.first_op(site), site.value.name, what, _TO_B)


def float_held_integers(subject: Subject) -> Iterator[Hit]:
    """Weights of encoding B or C whose integers are held in float32."""
    for site in subject.sites:
        if site.encoding in ("B", "C") and site.storage is Storage.INT_AS_FLOAT:
            fix = Fix("fold-quant", "to=int8") if site.encoding == "B" else _TO_B
            yield Hit(subject.first_op(site), site.value.name, "integers of this weight are stored as float32", fix)


def unrestored_weights(subject: Subject) -> Iterator[Hit]:
    """Stored integer weights of ops whose weights the engine does not turn into floats again."""
    for site in subject.sites:
        if site.role is not Role.WEIGHT or site.storage is Storage.FLOAT:
            continue
        users = [subject.graph.by_uid[use.op] for use in site.uses]
        lost = next((op for op in users if op.type not in _RESTORED), None)
        if lost is not None:
            fix = Fix("strip-quant", layers=(site.value.name,))
            yield Hit(lost, site.value.name, f"the integers of this weight reach the {lost.type} kernel", fix)


def weights_alone(subject: Subject) -> Iterator[Hit]:
    """Integer weights that ops read with no quantization op between."""
    for uid, name in subject.integers_alone.items():
        op = subject.graph.by_uid[uid]
        yield Hit(op, name, f"{op.type} reads {subject.model.params[name].dtype} where it expects floats")


def wrong_axes(subject: Subject) -> Iterator[Hit]:
    """Weights with a scale per channel of an axis that is not the output channels."""
    layers = {layer.name: layer for layer in subject.layers}
    for site in subject.sites:
        layer = layers.get(site.value.name)
        if site.role is Role.WEIGHT and layer is not None and site.spec.axis not in (None, layer.axis):
            what = f"scales along axis {site.spec.axis}, its output channels are axis {layer.axis}"
            yield Hit(subject.first_op(site), site.value.name, what)


def ambiguous_axes(subject: Subject) -> Iterator[Hit]:
    """Square matrices with a scale per column, stored as integers."""
    for site in subject.sites:
        shape = subject.graph.decls[site.value.name].shape if site.role is Role.WEIGHT else ()
        if site.storage is not Storage.FLOAT and site.spec.axis == 1 and len(shape) > 1 and shape[0] == shape[1]:
            fix = Fix("fold-quant", "to=float", (site.value.name,)) if site.encoding == "B" else None
            yield Hit(subject.first_op(site), site.value.name, f"scales along axis 1 of a weight {list(shape)}", fix)


def unhandled_ops(subject: Subject) -> Iterator[Hit]:
    """Quantization ops that the engine's fusers do not know."""
    for op in subject.graph.ops:
        if op.type in _SLOTS_LOST:
            fix = Fix("drop-observers") if op.type in OBSERVERS else None
            yield Hit(op, op.input("X")[0] if op.input("X") else "", f"the engine knows no {op.type}", fix)


def missing_round_types(subject: Subject) -> Iterator[Hit]:
    """Quantization ops without `round_type`."""
    for op in subject.graph.ops:
        if op.type in DATA_SLOTS and op.type not in (*OBSERVERS, *OLD_DEQUANTIZE) and "round_type" not in op.attrs:
            name = op.input("X")[0] if op.input("X") else ""
            yield Hit(op, name, "it has no attribute round_type", Fix("add-quant-defaults"))


def boolean_skip_marks(subject: Subject) -> Iterator[Hit]:
    """Marks `skip_quant` that are stored as booleans, in a model that is quantized."""
    if not find_sites(subject.model):
        return
    for op in subject.graph.ops:
        mark = op.attrs.get(SKIP)
        if mark is not None and mark.kind is AttrKind.BOOLEAN:
            yield Hit(op, "", "its mark skip_quant is a boolean", Fix("mark-skip-quant"))


SPELLING_RULES = (
    Rule(
        "encoding-unsupported",
        _ENGINES,
        "an encoding that the engine does not read",
        "oneDNN gives silent garbage on C, and quantizes weights of D at scales of its own; TensorRT reads the float32 "
        "integers of C as int8; Lite does not recognise C",
        "measured on 2.6.2 and 3.3.1 (oneDNN); trt_delete_weight_dequant_linear_op_pass.cc; quant_dequant_op_fuser.cc",
        "convert-encoding{to=B}",
        unsupported_encodings,
    ),
    Rule(
        "float-held-int8",
        ("onednn", "tensorrt"),
        "a weight behind dequantize_linear is stored as integers in float32",
        "oneDNN and TensorRT read the bytes of the floats as int8, unchecked: silent garbage",
        "quant_dequant_onednn_pass.cc, DequantizeOpWeightsFromONNXFormat (`mutable_data<int8_t>`); "
        "trt_delete_weight_dequant_linear_op_pass.cc (`data<int8_t>`)",
        "fold-quant{to=int8}, or convert-encoding{to=B}",
        float_held_integers,
    ),
    Rule(
        "weight-not-restored",
        ("onednn",),
        "integers are stored for a weight of an op other than conv2d, depthwise_conv2d, mul, matmul and matmul_v2",
        "the engine removes the dequantize op and does not dequantize the weight: the kernel fails on int8 data",
        "quant_dequant_onednn_pass.cc, DequantizeWeights; seen with conv2d_transpose on 2.6.2 and 3.3.1",
        "strip-quant",
        unrestored_weights,
    ),
    Rule(
        "weights-alone",
        ("onednn", "tensorrt", "generic"),
        "a weight is stored as integers and no op makes floats of it, as quantize-weights and Paddle's dynamic "
        "quantization write it",
        "only Paddle Lite restores it when it loads the model; Paddle's kernels stop at the integers (quantize the "
        "float model for this target instead)",
        "lite/core/optimizer/mir/post_quant_dynamic_pass.cc; seen on 2.6.2 and 3.3.1, with oneDNN and without",
        "",
        weights_alone,
    ),
    Rule(
        "channel-axis",
        _ENGINES,
        "scales along another axis than the output channels",
        "Lite stops (`quant_axis must be equal filter_dims out_channel`); oneDNN goes by the number of scales and may "
        "take the wrong axis; TensorRT wants -1, 0 (4-D) or 1",
        "quant_dequant_op_fuser.cc; quant_dequant_onednn_pass.cc, ConvertFromINT8ToFP32; "
        "trt_delete_weight_dequant_linear_op_pass.cc",
        "",
        wrong_axes,
    ),
    Rule(
        "square-weight",
        ("onednn",),
        "a square weight is stored as integers with scales along axis 1",
        "the engine looks at the number of scales only and finds it in axis 0 first: the weight comes out wrong",
        "quant_dequant_onednn_pass.cc, ConvertFromINT8ToFP32 (`size == weight_dims[0]`)",
        "fold-quant{to=float}",
        ambiguous_axes,
    ),
    Rule(
        "unhandled-op",
        ("onednn", "lite"),
        "a quantization op that the engine does not know: fake_quantize_abs_max, moving_average_abs_max_scale",
        "it stays in the program, and what is around it runs in float or at the wrong scale",
        "lite/core/optimizer/mir/fusion/quant_dequant_fuse_pass.cc; quant_dequant_onednn_pass.cc, ApplyImpl",
        "drop-observers, for moving_average_abs_max_scale",
        unhandled_ops,
    ),
    Rule(
        "missing-round-type",
        _ALL,
        "a quantization op has no attribute round_type",
        "the rounding depends on the version of Paddle, and Paddle 3's translator of old programs refuses the file "
        '(`attributes.at("round_type")`)',
        "paddle/fluid/ir_adaptor/translator; phi/ops/yaml/ops.yaml",
        "add-quant-defaults",
        missing_round_types,
    ),
    Rule(
        "boolean-skip-mark",
        ("onednn",),
        "the mark skip_quant is a boolean, as the framework's own passes write it",
        "the engine reads an integer and stops: `cannot get value (GetAttr(name)) by type int, its type is bool`",
        "cpu_quantize_placement_pass.cc (`GetAttrIfExists<int>`); seen on 2.6.2 and 3.3.1",
        "mark-skip-quant",
        boolean_skip_marks,
    ),
)
