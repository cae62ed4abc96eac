"""Rules about what oneDNN's int8 engine makes of a file: scales of its own, and biases that it does not fuse."""

from __future__ import annotations

from collections.abc import Iterator

from qpass.quant.lint.rule import Fix, Hit, Rule, Subject
from qpass.quant.onednn_fusion import fused_convolution, reshaped_bias
from qpass.quant.onednn_placement import quantized_ops
from qpass.quant.onednn_scales import cut_product_weights, lent_scales
from qpass.quant.onednn_sums import spoiling_sums

_LEGALIZE = Fix("legalize-onednn")


def lent(subject: Subject) -> Iterator[Hit]:
    """Scales that the engine lends to the value before an op."""
    for value, sites in lent_scales(subject.model).items():
        maker = subject.graph.writer(value)
        kind = "" if maker is None else maker.type
        yield Hit(subject.first_op(sites[0]), value.name, f"its scale is lent across {kind}", _LEGALIZE)


def cut(subject: Subject) -> Iterator[Hit]:
    """Weights of products that the engine quantizes along the wrong axis."""
    for site in cut_product_weights(subject.model):
        what = "the engine computes its scales over the wrong axis"
        yield Hit(subject.first_op(site), site.value.name, what, _LEGALIZE)


def reshaped_biases(subject: Subject) -> Iterator[Hit]:
    """Biases of convolutions that are added through a reshape."""
    for op in subject.graph.ops:
        bias = reshaped_bias(subject.graph, op)
        if bias is not None:
            yield Hit(op, bias.name, "the bias is added through a reshape", Fix("fold-bias"))


def mixed_signs(subject: Subject) -> Iterator[Hit]:
    """Residual sums of a signed and an unsigned value that the engine computes inside an int8 convolution."""
    quantized = {op.uid for op in quantized_ops(subject.model)}
    for uid, uses in spoiling_sums(subject.model).items():
        op = subject.graph.by_uid[uid]
        fused = [fused_convolution(subject.graph, subject.graph.read(op, use.slot)) for use in uses]
        if any(layer is not None and layer.uid in quantized for layer in fused):
            what = "of the sum and what is added only one is unsigned"
            yield Hit(op, op.output("Out")[0], what, _LEGALIZE)


ENGINE_RULES = (
    Rule(
        "lent-scale",
        ("onednn",),
        "a quantized value comes from an average pool, from a scale op, or from a reshape2, transpose2, slice, split "
        "or interpolation of a value that others read too",
        "the engine gives the value before the same scale (before a scale op: one that is off by the factor squared): "
        "behind a squeeze-and-excite pool the map is clipped to the range of its means (ppocr_cls: 97.3 simulated, "
        "55.5 in the engine)",
        "compute_propagate_scales_onednn_pass.cc, UpdateScales, UpdateScaleOpInOutScales; measured on 2.6.2 and 3.3.1",
        "legalize-onednn",
        lent,
    ),
    Rule(
        "cut-product-weight",
        ("onednn",),
        "the weight of a product with a bias is quantized per channel, or stored as integers",
        "the engine computes scales from runs of numbers that are no columns, and cuts what is larger",
        "compute_propagate_scales_onednn_pass.cc, GetScales; measured on 2.6.2 and 3.3.1",
        "legalize-onednn",
        cut,
    ),
    Rule(
        "mixed-signs",
        ("onednn",),
        "a residual sum that becomes part of a quantized convolution adds a signed value to an unsigned one",
        "the engine reads the added bytes with the wrong sign (resnet8_cifar10: 77.25 simulated, 74.70 in the engine)",
        "measured on 2.6.2 and 3.3.1",
        "legalize-onednn",
        mixed_signs,
    ),
    Rule(
        "bias-behind-reshape",
        ("onednn",),
        "the bias of a convolution is added through a reshape",
        "it is not fused: it is added in an op of its own, in int8 where scales are known",
        "conv_bias_onednn_fuse_pass.cc; seen on 2.6.2 and 3.3.1",
        "fold-bias",
        reshaped_biases,
    ),
)
