"""Rules about placement: ops between which, or at which, quantization stands or does not stand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qpass.ir.graph import ValueRef
from qpass.ir.op import Op
from qpass.quant.layers import Layer, is_param, root
from qpass.quant.lint.rule import Fix, Hit, Rule, Subject
from qpass.quant.onednn_placement import unsimulated
from qpass.quant.ops import OLD_DEQUANTIZE

_MARK = Fix("mark-skip-quant")
_ENGINES = ("onednn", "tensorrt", "lite")


def batch_norms_between(subject: Subject) -> Iterator[Hit]:
    """Batch normalizations with quantization ops between them and the layer before."""
    for op, layer, between in _after_layers(subject):
        if between:
            yield Hit(op, op.output("Y")[0], f"quantization ops stand between it and {layer.type}")


def unfolded_batch_norms(subject: Subject) -> Iterator[Hit]:
    """Batch normalizations right behind a float layer."""
    quantized = {use.op for use in subject.by_use}
    for op, layer, between in _after_layers(subject):
        if not between and layer.uid not in quantized and layer.uid not in subject.integers_alone:
            what = f"it follows {layer.type} and is not folded into it"
            yield Hit(op, op.output("Y")[0], what, Fix("fold-batch-norm"))


def _after_layers(subject: Subject) -> Iterator[tuple[Op, Op, bool]]:
    """(batch_norm, the layer before it, whether quantization ops stand between them)."""
    graph = subject.graph
    layers = {op.uid for layer in subject.layers for op in layer.ops}
    for op in graph.ops:
        source = graph.sole_read(op, "X") if op.type == "batch_norm" else None
        if source is None:
            continue
        before = graph.writer(root(graph, source))
        between = _is_behind_pair(subject, source)
        if before is not None and before.type == "elementwise_add":
            other, source = graph.sole_read(before, "Y"), graph.sole_read(before, "X")
            if source is None or other is None or not _is_bias(subject, root(graph, other)):
                continue
            between = between or _is_behind_pair(subject, source)
            before = graph.writer(root(graph, source))
        if before is not None and before.uid in layers:
            yield op, before, between


def _is_behind_pair(subject: Subject, ref: ValueRef) -> bool:
    """Whether quantization ops stand before `ref`; encoding A's dequantize ops belong to the layer itself."""
    while (op := subject.graph.writer(ref)) is not None and op.type in OLD_DEQUANTIZE:
        ref = subject.graph.read(op, "X")
    return root(subject.graph, ref) != ref


def _is_bias(subject: Subject, ref: ValueRef) -> bool:
    writer = subject.graph.writer(ref)
    if writer is not None and writer.type in ("reshape", "reshape2"):
        source = subject.graph.sole_read(writer, "X")
        return source is not None and is_param(subject.graph, root(subject.graph, source))
    return is_param(subject.graph, ref)


def not_simulated(subject: Subject) -> Iterator[Hit]:
    """Ops that the engine quantizes although nobody simulated it."""
    for op in unsimulated(subject.model):
        name = next((name for _, _, name in op.writes()), "")
        yield Hit(op, name, f"the engine will quantize this {op.type}: scales around it are known", _MARK)


def half_quantized(subject: Subject) -> Iterator[Hit]:
    """Layers of which the activation is quantized and the weight is not, or the other way round."""
    observed = {use for site in subject.sites if site.observer_only for use in site.uses}
    for layer in subject.layers:
        for op in layer.ops:
            weight, activation = op.weight in subject.by_use, op.activation in subject.by_use
            if weight and not activation:
                what = "its weight is quantized and its activation is not"
            elif activation and not weight and not _on_grid(subject, layer):
                what = "its activation is quantized and its weight is not"
            elif not activation and not weight and op.activation in observed:
                what = "nothing of it is quantized, but an observer pair stands before it"
            else:
                continue
            yield Hit(subject.graph.by_uid[op.uid], layer.name, what, Fix("strip-quant", layers=(layer.name,)))


def _on_grid(subject: Subject, layer: Layer) -> bool:
    """Whether a float weight lies on an int8 grid a channel, as `fold-quant{to=float}` leaves it."""
    array, axis = subject.model.params.get(layer.name), layer.axis or 0
    if array is None or array.dtype != np.float32 or array.size == 0:
        return False
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    peaks = np.abs(rows).max(1, keepdims=True)
    levels = np.divide(rows * 127, peaks, out=np.zeros_like(rows), where=peaks > 0)
    return bool(np.abs(levels - np.rint(levels)).max() < 1e-3)


PLACEMENT_RULES = (
    Rule(
        "batch-norm-between",
        _ENGINES,
        "quantization ops stand between a layer and its batch normalization",
        "the scale is that of a value which no longer exists once the two are fused; where they are not, each layer is "
        "an island of int8 in float, often slower than float",
        "users' reports; conv_bn_fuse_pass.cc",
        "",
        batch_norms_between,
    ),
    Rule(
        "batch-norm-unfolded",
        _ENGINES,
        "a batch normalization stands behind a float layer",
        "quantized like this, pairs come between the two, or scales belong to weights that fusion changes",
        "users' reports; conv_bn_fuse_pass.cc",
        "fold-batch-norm",
        unfolded_batch_norms,
    ),
    Rule(
        "half-quantized",
        _ENGINES,
        "of the weight and the activation of a layer only one is quantized, as after the framework's skip_tensor_list",
        "Lite runs the op in float; oneDNN quantizes the other half too, at a scale of its own",
        "quantization_parameters_propagation_pass.cc; compute_propagate_scales_onednn_pass.cc, ComputeWeightScales",
        "strip-quant",
        half_quantized,
    ),
    Rule(
        "not-simulated",
        ("onednn",),
        "an op that the engine quantizes although no pair stands before it",
        "its numbers are rounded where the simulation rounded nothing: ppocr_cls_qat falls from 96.25 to 87 by its 11 "
        "pools and one product",
        "cpu_quantize_pass.cc; compute_propagate_scales_onednn_pass.cc; measured on 2.6.2 and 3.3.1; PaddleSeg PR 3514",
        "mark-skip-quant",
        not_simulated,
    ),
)
