"""Quantized models and scale tables for tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from qpass.formats.files import load
from qpass.ir.dtype import DType
from qpass.ir.model import Model
from qpass.ir.params import Params
from qpass.ir.verify import verify
from qpass.passes import InsertQuant
from qpass.quant.layers import find_layers
from qpass.quant.points import find_points
from qpass.quant.recipe import Recipe
from qpass.quant.scales import ScaleTable, key
from qpass.quant.site import Role
from support.build import Builder

FOLDER = Path(__file__).resolve().parents[1] / "data" / "quant"


def written_by_paddle(name: str) -> Model:
    """One of ``a``, ``b``, ``t``, ``c`` and ``float``: see `tools/make_quant_fixtures.py`."""
    return load(FOLDER / f"{name}.pdmodel")


def residual_net() -> Model:
    """Two layers read the value after the first relu, and so does an addition."""
    b = Builder().feed("x", [-1, 3, 8, 8]).conv2d(4).batch_norm().relu()
    h = b.current
    b.depthwise_conv2d().add(h).relu()
    left = b.current
    b.at(h).conv2d(4, k=1).add(left).relu().pool2d("avg", whole=True).flatten()
    return b.matmul(5).mul(3).unary("softmax").model()


def table(model: Model, *, per_channel: bool = True, threshold: float = 3.0) -> ScaleTable:
    """Made-up thresholds of activations, all different; absmax of weights."""
    graph, layers = model.graph, find_layers(model)
    refs = dict.fromkeys(graph.read(graph.by_uid[op.uid], op.activation.slot) for layer in layers for op in layer.ops)
    axes = {layer.name: layer.axis if per_channel else None for layer in layers}
    return ScaleTable(
        activations={key(graph, ref): threshold + i / 8 for i, ref in enumerate(refs)},
        weights={name: _absmax(model.params[name], axis) for name, axis in axes.items()},
        weight_axes=axes,
    )


def scaled(model: Model, recipe: Recipe) -> ScaleTable:
    """Made-up thresholds of everything that a recipe quantizes or skips, all different; absmax of weights."""
    points = find_points(model, dataclasses.replace(recipe, skip=(), overrides=()))
    weights = {site.value.name: site.spec.axis for site in points.sites if site.role is Role.WEIGHT}
    return ScaleTable(
        activations={key(model.graph, ref): 3 + i / 8 for i, ref in enumerate(points.observed)},
        weights={name: _absmax(model.params[name], axis) for name, axis in weights.items()},
        weight_axes=weights,
    )


def quantized(model: Model, **options: object) -> Model:
    return InsertQuant(table(model), **options)(model)  # type: ignore[arg-type]


def all_float(model: Model) -> Model:
    """`model` with every tensor of it called float32, so that whatever is a layer can be quantized."""
    blocks = tuple(
        dataclasses.replace(
            graph,
            decls={n: dataclasses.replace(d, dtype=DType.FLOAT32) if d.dtype else d for n, d in graph.decls.items()},
        )
        for graph in model.blocks
    )
    params = Params({name: np.asarray(array, np.float32) for name, array in model.params.items()})
    return verify(dataclasses.replace(model, blocks=blocks, params=params))


def count(model: Model, word: str) -> int:
    """How many ops have `word` in their type."""
    return sum(word in op.type for op in model.graph.ops)


def _absmax(weight: np.ndarray, axis: int | None) -> np.ndarray:
    if axis is None:
        return np.float32(np.abs(weight).max())
    return np.array([np.abs(np.take(weight, c, axis)).max() for c in range(weight.shape[axis])], np.float32)
