"""Rules about scales: values that engines refuse, pairs that do not agree, scales that are missing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qpass.ir.graph import Use
from qpass.quant.layers import is_param
from qpass.quant.lint.rule import Fix, Hit, Rule, Subject
from qpass.quant.onednn_fusion import residual_convolution
from qpass.quant.onednn_placement import quantized_ops
from qpass.quant.site import QuantSite, Role

_ALL = ("onednn", "tensorrt", "lite", "generic")
_ENGINES = ("onednn", "tensorrt", "lite")
_MEND_SCALES = Fix("mend-scales")


def zero_scales(subject: Subject) -> Iterator[Hit]:
    """Sites with a threshold of 0."""
    for site in subject.sites:
        count = int((site.threshold == 0).sum())
        if count and site.threshold.size:
            share = f" in {count} of {site.threshold.size} channels" if site.threshold.size > 1 else ""
            what = f"the scale of this {site.role.value} is 0{share}{_bias(subject, site)}"
            yield Hit(subject.first_op(site), site.value.name, what, _MEND_SCALES)


def _bias(subject: Subject, site: QuantSite) -> str:
    writer = subject.graph.writer(site.value)
    source = subject.graph.sole_read(writer, "X") if writer is not None and writer.type.startswith("reshape") else None
    return ": a bias of zeros behind a reshape" if source is not None and is_param(subject.graph, source) else ""


def bad_scales(subject: Subject) -> Iterator[Hit]:
    """Sites whose threshold is NaN, infinite or negative, although the file holds it."""
    for site in subject.sites:
        stored = site.threshold if _is_stored(subject, site) else np.zeros(())
        bad = stored[~np.isfinite(stored) | (stored < 0)]
        if bad.size:
            what = f"the scale of this {site.role.value} is {bad.reshape(-1)[0]:g}"
            yield Hit(subject.first_op(site), site.value.name, what, _MEND_SCALES)


def _is_stored(subject: Subject, site: QuantSite) -> bool:
    op = subject.graph.by_uid[site.ops[-1]]
    names = [name for slot in ("Scale", "InScale", "Scales") for name in op.input(slot)[:1]]
    return any(name in subject.model.params for name in names)


def two_scales(subject: Subject) -> Iterator[Hit]:
    """Pairs of `quantize_linear` and `dequantize_linear` that read different Scale variables."""
    for site in subject.sites:
        if len(site.ops) != 2 or site.encoding not in ("B", "C"):
            continue
        quantize, dequantize = (subject.graph.by_uid[uid] for uid in site.ops)
        if quantize.input("Scale") == dequantize.input("Scale"):
            continue
        names = (quantize.input("Scale")[0], dequantize.input("Scale")[0])
        equal = _same_values(subject, *names)
        mend = Fix("convert-encoding", "to=B") if site.encoding == "C" else Fix("mend-pairs")
        what = f"the pair reads two scale variables, {names[0]} and {names[1]}"
        yield Hit(quantize, site.value.name, what if equal else f"{what}, of different values", mend if equal else None)


def _same_values(subject: Subject, left: str, right: str) -> bool:
    params = subject.model.params
    return left in params and right in params and np.array_equal(np.ravel(params[left]), np.ravel(params[right]))


def missing_zero_points(subject: Subject) -> Iterator[Hit]:
    """Linear ops without a ZeroPoint operand."""
    for op in subject.graph.ops:
        if op.type in ("quantize_linear", "dequantize_linear") and not op.input("ZeroPoint"):
            name = op.input("X")[0] if op.input("X") else ""
            yield Hit(op, name, "it has no ZeroPoint operand", Fix("mend-pairs"))


def wrong_bits(subject: Subject) -> Iterator[Hit]:
    """Sites of a bit length that the target does not take."""
    allowed = subject.target.bits
    for site in subject.sites:
        if site.spec.bits not in allowed:
            taken = " or ".join(map(str, allowed)) if len(allowed) < 4 else f"{allowed[0]} to {allowed[-1]}"
            what = f"quantized to {site.spec.bits} bits, the engine takes {taken}"
            yield Hit(subject.first_op(site), site.value.name, what)


def unequal_concat(subject: Subject) -> Iterator[Hit]:
    """Concatenations whose quantized inputs have different thresholds."""
    for op in subject.graph.ops:
        uses = [use for site in subject.sites if not site.observer_only for use in site.uses if use.op == op.uid]
        found = (float(subject.by_use[use].threshold.reshape(-1)[0]) for use in uses)
        scales = {scale for scale in found if np.isfinite(scale)}
        if op.type == "concat" and len(scales) > 1:
            values = ", ".join(f"{scale:.4g}" for scale in sorted(scales))
            yield Hit(op, op.output("Out")[0], f"its inputs have the scales {values}", Fix("tie-concat-scales"))


def missing_output_scales(subject: Subject) -> Iterator[Hit]:
    """Quantized convolutions that a sum becomes part of, without scales for the sum."""
    graph = subject.graph
    quantized = {op.uid for op in quantized_ops(subject.model)}
    for op in graph.ops:
        layer = residual_convolution(graph, op)
        if layer is not None and layer.uid not in quantized and Use(layer.uid, "Input", 0) in subject.by_use:
            what = f"the sum {op.output('Out')[0]} becomes part of it, and its scale or an operand's is missing"
            yield Hit(layer, layer.output("Output")[0], what, Fix("legalize-onednn"))


def per_channel_activations(subject: Subject) -> Iterator[Hit]:
    """Activations with a scale per channel."""
    for site in subject.sites:
        if site.role is Role.ACTIVATION and site.threshold.size > 1:
            yield Hit(subject.first_op(site), site.value.name, f"it has {site.threshold.size} scales")


SCALE_RULES = (
    Rule(
        "zero-scale",
        _ALL,
        "a scale is 0",
        "TensorRT rejects it; oneDNN drops the pair, so that the op runs in float or at another scale",
        "users' reports (TensorRT); quant_dequant_onednn_pass.cc, CollectInputScalesFromQuantize; seen on 2.6.2, 3.3.1",
        "mend-scales",
        zero_scales,
    ),
    Rule(
        "nan-scale",
        _ALL,
        "a scale is NaN, infinite or negative",
        "oneDNN drops a NaN like a 0, and fails on an infinite one when it runs (`Quantization scale must be different "
        "than 0.0f`); other engines compute NaN or garbage",
        "quant_dequant_onednn_pass.cc; phi/kernels/onednn/quantize_kernel.cc; seen on 2.6.2 and 3.3.1",
        "mend-scales",
        bad_scales,
    ),
    Rule(
        "two-scales",
        _ENGINES,
        "quantize_linear and dequantize_linear of a pair read different Scale variables",
        "oneDNN and TensorRT take the scale of the quantize op, the simulation uses both; Lite does not see the pair",
        "quant_dequant_onednn_pass.cc, CollectInputScalesFromQuantize; delete_quant_dequant_linear_op_pass.cc; "
        "lite/core/optimizer/mir/fusion/quant_dequant_op_fuser.cc, QuantDequantLinearOpFuser",
        "mend-pairs, where the values are equal; convert-encoding",
        two_scales,
    ),
    Rule(
        "zero-point-missing",
        ("tensorrt", "lite"),
        "a linear quantization op has no ZeroPoint operand",
        "TensorRT's passes read the operand without asking whether it is there; Lite does not recognise the pair",
        "delete_quant_dequant_linear_op_pass.cc; trt_delete_weight_dequant_linear_op_pass.cc; "
        "lite/core/optimizer/mir/fusion/quant_dequant_op_fuser.cc",
        "mend-pairs",
        missing_zero_points,
    ),
    Rule(
        "bit-length",
        _ENGINES,
        "a bit length that the engine does not take",
        "oneDNN stops at activations (`Unsupported number quantization bits`) and takes integers of weights for 8 "
        "bits, unchecked: silent garbage; TensorRT has kernels for 8 bits, Lite for 8 and 16",
        "quant_dequant_onednn_pass.cc, seen on 2.6.2 and 3.3.1; quant_conv2d_dequant_fuse_pass.cc",
        "",
        wrong_bits,
    ),
    Rule(
        "unequal-concat-scales",
        ("onednn",),
        "the inputs of a concatenation have different scales",
        "the engine quantizes all of them at the one scale of the output",
        "cpu_quantize_pass.cc, QuantizeInputs; compute_propagate_scales_onednn_pass.cc",
        "tie-concat-scales",
        unequal_concat,
    ),
    Rule(
        "missing-output-scale",
        ("onednn",),
        "a quantized layer whose output is added to another value, and no scale for the sum",
        "the engine fuses the sum into the convolution, and then leaves it in float: `Conv op with ResidualData input "
        "cannot be quantized without output scale`",
        "cpu_quantize_pass.cc, QuantizeConv",
        "legalize-onednn",
        missing_output_scales,
    ),
    Rule(
        "activation-per-channel",
        ("onednn", "tensorrt"),
        "an activation has more than one scale",
        "oneDNN and TensorRT use the first one for all",
        "quant_dequant_onednn_pass.cc (`scale_data[0]`); delete_quant_dequant_linear_op_pass.cc "
        "(`input_scale_data[0]`)",
        "",
        per_channel_activations,
    ),
)
