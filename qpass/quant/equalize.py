"""Pairs of layers whose channels can be scaled against each other, and by how much.

Nagel et al. 2019, *Data-Free Quantization Through Weight Equalization and Bias Correction* (arXiv:1906.04721), section
4.1. For a map f with ``f(s x) = s f(x)`` for every s > 0, and a positive number s for each channel between two layers,

    W2 f(W1 x + b1) = (W2 S) f(S^-1 W1 x + S^-1 b1),    S = diag(s)

    s_i = sqrt(r1_i / r2_i),    r1_i = max |W1[i, :]|,    r2_i = max |W2[:, i]|

makes both ranges of channel i the same, their geometric mean, which is where per-tensor precision is greatest. Pairs
share layers, so all are gone through again until nothing moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qpass.ir.graph import ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Op
from qpass.quant.bias import Bias, find_bias
from qpass.quant.encodings import find_sites
from qpass.quant.layers import Layer, find_layers
from qpass.quant.products import from_rows, to_rows
from qpass.rewrite.pattern import Miss
from qpass.rewrite.uses import used_names

HOMOGENEOUS = ("relu", "leaky_relu", "pool2d")
"""Ops of one input with ``f(s x) = s f(x)`` for s > 0, channel by channel. relu6 and hard_swish are not."""

_LINEAR_CONV = ("conv2d", "depthwise_conv2d", "conv2d_transpose")
_FUSED = ("fuse_with_relu", "fuse_relu", "fuse_activation", "fuse_residual_connection")
_ROUNDS = 50
_STILL = 1e-4  # a pair whose scales are all nearer to 1 is left as it is


@dataclass(frozen=True, eq=False)
class Pair:
    """Two layers with nothing but a bias and homogeneous ops in between.

    Parameters
    ----------
    first, second : Layer
    bias : Bias or None
        What is added to the product of the first.
    through : tuple of str
        Op types in between, the addition included.
    """

    first: Layer
    second: Layer
    bias: Bias | None
    through: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.first.name} -> {' -> '.join((*self.through, self.second.name))}"


def find_pairs(model: Model) -> tuple[tuple[Pair, ...], tuple[Miss, ...]]:
    """All pairs, in program order, and for each other layer why it is the first of none."""
    finder = _Finder(model)
    found = [finder.pair(layer) for layer in finder.layers]
    return tuple(f for f in found if isinstance(f, Pair)), tuple(f for f in found if isinstance(f, Miss))


def equalized(model: Model, pairs: Sequence[Pair]) -> tuple[Mapping[str, np.ndarray], Mapping[int, np.ndarray]]:
    """Weights by name, and biases by the index of their pair, float64, of all pairs that equalization changes."""
    graph = model.graph
    ops = {layer.name: graph.by_uid[layer.ops[0].uid] for p in pairs for layer in (p.first, p.second)}
    weights = {name: to_rows(model.params[name].astype(np.float64), op) for name, op in ops.items()}
    biases = {i: pair.bias.values.copy() for i, pair in enumerate(pairs) if pair.bias is not None}
    changed: set[int] = set()
    for _ in range(_ROUNDS):
        moved: set[int] = set()
        for i, pair in enumerate(pairs):
            first, second = weights[pair.first.name], weights[pair.second.name]
            scale = _scales(first, second)
            if np.abs(scale - 1).max(initial=0) <= _STILL:
                continue
            moved.add(i)
            weights[pair.first.name] = first / scale.reshape(*first.shape[:2], 1)
            by_input = _by_input(second, scale.size) * scale.reshape(len(second), 1, -1, 1)
            weights[pair.second.name] = by_input.reshape(second.shape)
            if i in biases:
                biases[i] = biases[i] / scale
        changed |= moved
        if not moved:
            break
    touched = {layer.name: None for i in sorted(changed) for layer in (pairs[i].first, pairs[i].second)}
    shaped = {n: from_rows(weights[n], ops[n], model.params[n].shape) for n in touched}
    return shaped, {i: values for i, values in biases.items() if i in changed}


def _scales(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """``sqrt(r1 / r2)`` of each channel in between; 1 where a channel has no weights on one side."""
    made = np.abs(first).max(axis=2, initial=0).reshape(-1)
    taken = np.abs(_by_input(second, made.size)).max(axis=(1, 3), initial=0).reshape(-1)
    live = (made > 0) & (taken > 0)
    scale: np.ndarray = np.sqrt(np.where(live, made, 1) / np.where(live, taken, 1))
    return scale


def _by_input(rows: np.ndarray, channels: int) -> np.ndarray:
    """[groups, rows, inputs of a group, taps of each]."""
    return rows.reshape(*rows.shape[:2], channels // len(rows), -1)


class _Finder:
    def __init__(self, model: Model) -> None:
        self.model, self.graph = model, model.graph
        self.layers = find_layers(model)
        self.readers = {op.activation: layer for layer in self.layers for op in layer.ops}
        self.quantized = {use for site in find_sites(model) for use in site.uses}
        self.elsewhere = used_names(model, without=model.graph) if len(model.blocks) > 1 else set()

    def pair(self, first: Layer) -> Pair | Miss:
        op = self.graph.by_uid[first.ops[0].uid]
        reason = self.unfit(first)
        if reason:
            return Miss(reason, op, first.name)
        rows = to_rows(self.model.params[first.name], op)
        channels = rows.shape[0] * rows.shape[1]
        bias = find_bias(self.model, first.ops[0].output, channels)
        through: list[str] = []
        ref, add = self.graph.written(op, first.ops[0].output.slot), bias.add if bias is not None else None
        while True:
            uses = self.graph.uses(ref)
            if len(uses) != 1 or ref.name in self.elsewhere:
                return Miss(f"{len(uses)} operands read {ref}, expected one", op, first.name)
            reader = self.graph.by_uid[uses[0].op]
            if uses[0] in self.readers:
                return self.joined(Pair(first, self.readers[uses[0]], bias, tuple(through)), channels)
            after = self.after(reader, ref, add)
            if after is None:
                return Miss(f"{reader.type} does not keep the scales of channels", reader, first.name)
            ref = after
            through.append(reader.type)

    def after(self, op: Op, ref: ValueRef, add: int | None) -> ValueRef | None:
        """What `op` makes of `ref`, if every channel of it grows with the same channel of `ref`."""
        if op.uid == add or (op.type in HOMOGENEOUS and len(list(op.reads())) == 1):
            return self.graph.sole_written(op, "Out")
        return None

    def joined(self, pair: Pair, channels: int) -> Pair | Miss:
        """The pair, if its second layer takes the channels that the first makes."""
        op = self.graph.by_uid[pair.second.ops[0].uid]
        reason = self.unfit(pair.second)
        if not reason and (pair.first.family in _LINEAR_CONV) is not (pair.second.family in _LINEAR_CONV):
            reason = "channels lie on different axes of the two layers"
        if not reason and "pool2d" in pair.through and pair.first.family not in _LINEAR_CONV:
            reason = "pool2d of what is no image"
        if not reason:
            rows = to_rows(self.model.params[pair.second.name], op)
            taps = np.prod(self.model.params[pair.second.name].shape[2:], dtype=int)
            if len(rows) * rows.shape[2] != channels * taps:
                reason = f"{pair.second.name!r} does not take the {channels} channels that {pair.first.name!r} makes"
        return Miss(reason, op, pair.first.name) if reason else pair

    def unfit(self, layer: Layer) -> str:
        """Why the weight of `layer` cannot be scaled; empty when it can."""
        return next(self.obstacles(layer), "")

    def obstacles(self, layer: Layer) -> Iterator[str]:
        op, weight = self.graph.by_uid[layer.ops[0].uid], self.model.params.get(layer.name)
        if len(self.graph.uses(layer.weight)) != 1 or layer.name in self.elsewhere:
            yield f"others use the weight {layer.name!r} too"
        if {layer.ops[0].weight, layer.ops[0].activation} & self.quantized:
            yield f"layer {layer.name!r} is quantized"
        if weight is None or weight.dtype != np.float32 or layer.axis is None:
            yield f"{layer.name!r} is no float32 weight with output channels"
        if op.attr("data_format", "NCHW") not in ("NCHW", "AnyLayout") or op.attr("trans_x") or op.attr("transpose_X"):
            yield f"{op.type} does not hold channels where they are looked for"
        if any(op.input("ResidualData")) or any(op.input("Bias")) or any(op.attr(name) for name in _FUSED):
            yield f"{op.type} does more than multiply"
