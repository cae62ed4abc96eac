"""How large batches and programs may be: what they take of the memory, estimated from the program before it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from qpass.errors import UsageError
from qpass.ir.model import Model
from qpass.quant.toggles import Switched, Toggles
from qpass.rewrite.merge import merge
from qpass.rewrite.reuse import reuse_names
from qpass.runtime.replay import Recording
from qpass.runtime.shapes import infer_shapes

DEFAULT_MEMORY = 1 << 30
"""1 GiB."""

_VALUE_BYTES = 4 << 20
"""Size that the largest value of a batch should have, in bytes: about what caches hold. With a quarter of it a sample
takes 1.1 to 1.3 times as long, with four times as much up to 2 (resnet8 and ppocr_cls_qat, 2 cores, Paddle 3.3.1)."""

_FEWEST = 4
"""Samples of a batch, however large they are: weights are read once a batch."""

_PROGRAM_BYTES = 64 << 20
"""What a program may take even where there is more room, in bytes: 160 MiB took ppocr_cls 7.8 s and 758 MB at its peak,
this 7.5 s and 734 MB (2 cores, Paddle 3.3.1)."""

_OP_BYTES = 32 << 10
"""What an op of a program takes besides weights and values, in bytes: 2,756 ops took 87 MB, 4,296 took 101 (Paddle
3.3.1; three times as much with 2.6, which has no way to load a made program as it is)."""

_WEIGHT_COPIES = 2
"""A parameter as it was loaded, and in the order that oneDNN wants, for each op that reads it."""

T = TypeVar("T")


class Budget:
    """Sizes that keep one program within a budget.

    Parameters
    ----------
    toggles : Toggles
    recording : Recording
    memory_bytes : int
        Half of what the sweep may take; the other half is for feeds and outputs.

    Attributes
    ----------
    samples : int
        Of a batch, where batches can be put together.
    """

    def __init__(self, toggles: Toggles, recording: Recording, memory_bytes: int) -> None:
        self._toggles = toggles
        both = merge([toggles.variant(Switched.both(())), toggles.variant(Switched.both(toggles.operands))]).model
        sizes = _sample_bytes(both, recording)
        self._sample_bytes = max(1, sum(sizes.get(name, 0) for name in reuse_names(both).graph.decls))
        largest = max(sizes.values(), default=1)
        preferred = max(_FEWEST, _VALUE_BYTES // max(1, largest))
        self.samples = max(1, min(preferred, memory_bytes // 4 // self._sample_bytes))
        self._most = max((recording.samples(i) for i in range(recording.calls)), default=1)
        self._memory = memory_bytes
        self._program_bytes = min(_PROGRAM_BYTES, memory_bytes // 8)
        self._costs = _costs(toggles)

    def check(self, samples: int | None = None) -> None:
        """Refuse batches that need more than half of the memory.

        Parameters
        ----------
        samples : int, optional
            Of a batch; default those of the largest recorded one.

        Raises
        ------
        UsageError
            Saying how much they need.
        """
        count = self._most if samples is None else samples
        if 2 * count * self._sample_bytes > self._memory:
            raise UsageError(
                f"the memory is too little for one batch of {count} samples: it needs about "
                f"{_words(2 * count * self._sample_bytes)}, and has {_words(self._memory)}",
                where="memory",
                hint="give more memory or smaller batches",
            )

    def chunks(self, variants: Sequence[T], on: Callable[[T], Switched], least: int) -> list[list[T]]:
        """Cut variants into runs of which each makes one program, `least` of them where there are so many variants.

        Parameters
        ----------
        variants : sequence
        on : callable
            What of a variant is quantized.
        least : int
        """
        costs = [self._cost(on(variant)) for variant in variants]
        limit = min(self._program_bytes, math.ceil(sum(costs) / least))
        return list(_cut(variants, costs, limit))

    def _cost(self, on: Switched) -> int:
        """Bytes of what lies downstream of the layers in which a variant differs from most others."""
        layers = self._costs.keys()
        odd = min((on.weights | on.activations, layers - (on.weights & on.activations)), key=len)
        return max((self._costs[layer] for layer in odd), default=0) + _OP_BYTES


def _costs(toggles: Toggles) -> Mapping[str, int]:
    """By layer: bytes of the program that lies downstream of it."""
    graph, params = toggles.model.graph, toggles.model.params
    first: dict[str, int] = {}
    for op in graph.ops:
        for _, _, name in op.reads():
            if name in toggles.operands:
                first.setdefault(name, op.uid)
    sizes = {
        op.uid: _OP_BYTES + _WEIGHT_COPIES * sum(params[name].nbytes for _, _, name in op.reads() if name in params)
        for op in graph.ops
    }
    return {layer: sizes[uid] + sum(sizes[op.uid] for op in graph.downstream({uid})) for layer, uid in first.items()}


def _cut(variants: Sequence[T], costs: Sequence[int], limit: int) -> Iterator[list[T]]:
    chunk: list[T] = []
    total = 0
    for variant, cost in zip(variants, costs, strict=True):
        if chunk and total + cost > limit:
            yield chunk
            chunk, total = [], 0
        chunk.append(variant)
        total += cost
    if chunk:
        yield chunk


def _sample_bytes(model: Model, recording: Recording) -> Mapping[str, int]:
    """Bytes of one sample of every value, by name, for the largest recorded inputs."""
    shapes = [recording.shapes(i) for i in range(recording.calls)]
    declared: list[tuple[int, ...]] = [port.shape for port in model.feeds]
    largest = max(shapes, key=lambda each: sum(math.prod(shape[1:]) for shape in each), default=declared)
    one = {port.name: (1, *shape[1:]) for port, shape in zip(model.feeds, largest, strict=True)}
    inferred = infer_shapes(model, one)
    return {
        name: math.prod(max(1, size) for size in inferred[name]) * np.dtype(decl.dtype.numpy).itemsize
        for name, decl in model.graph.decls.items()
        if decl.dtype is not None and name in inferred and not decl.persistable
    }


def _words(count: int) -> str:
    """A size as `--memory` takes it, rounded up."""
    unit, letter = (1 << 20, "M") if count >= 1 << 20 else (1 << 10, "K")
    return f"{math.ceil(count / unit)} {letter}iB"
