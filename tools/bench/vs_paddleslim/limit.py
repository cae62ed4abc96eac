"""The floating-point limit of an analysis: the multiply-adds that must be run again, at this machine's GEMM rate.

Changing a layer changes that layer and all that lies downstream of it, so for every layer those multiply-adds run once
again for every sample. Counted are convolutions and products with weights; calibration and the baseline are left out.

    python limit.py        prints the rate, in multiply-adds a second, of the threads that OMP_NUM_THREADS allows
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import networkx as nx
import numpy as np

from qpass.ir.model import Model
from qpass.quant.layers import Layer, find_layers
from qpass.runtime.engines import get_engine


def multiply_adds_again(model: Model, names: list[str], sample: np.ndarray) -> int:
    """Multiply-adds a sample: summed over the named layers, those of the layer and of all layers downstream.

    Parameters
    ----------
    model : Model
    names : list of str
        The layers that are changed, each alone.
    sample : np.ndarray
        One sample, [1, ...]: it is run once, to see shapes.
    """
    costs = multiply_adds(model, sample)
    graph = model.graph.nx
    total = 0
    for layer in find_layers(model):
        if layer.name in names:
            changed = {use.uid for use in layer.ops}
            again = changed.union(*(nx.descendants(graph, uid) for uid in changed))
            total += sum(cost for uid, cost in costs.items() if uid in again)
    return total


def multiply_adds(model: Model, sample: np.ndarray) -> Mapping[int, int]:
    """Multiply-adds a sample of every op of every layer, by uid."""
    graph = model.graph
    uses = [
        (layer, use, graph.written(graph.by_uid[use.uid], *use.output[1:]))
        for layer in find_layers(model)
        for use in layer.ops
    ]
    session = get_engine("inference").session(model, [ref for _, _, ref in uses])
    outputs = session.run({session.feed_names[0]: sample})
    return {use.uid: out.size * _a_number(model, layer) for (layer, use, _), out in zip(uses, outputs, strict=True)}


def _a_number(model: Model, layer: Layer) -> int:
    """Multiply-adds that make one number of a layer's output: numbers of the weight an output channel."""
    if layer.family == "conv2d_transpose" or layer.axis is None:
        raise ValueError(f"layer {layer.name}: the multiply-adds of its kind are not counted here")
    weight = model.graph.decls[layer.weight.name].shape
    numbers: int = math.prod(weight) // weight[layer.axis]
    return numbers


def gemm_rate(side: int = 2048, seconds: float = 2.0) -> float:
    """Multiply-adds a second of numpy's float32 matrix product: the best of as many as fit into some seconds."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, side, side), dtype=np.float32)
    out = np.empty_like(a)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        np.matmul(a, b, out=out)
        best = min(best, time.perf_counter() - start)
    return float(side**3 / best)


if __name__ == "__main__":
    print(gemm_rate())
