"""Layers made bad on purpose: a threshold 100 times too small, in a scale table or in a quantized model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qpass.ir.model import Model
from qpass.quant.encodings import find_sites
from qpass.quant.layers import find_layers
from qpass.quant.scales import ScaleTable
from qpass.quant.site import Role
from qpass.rewrite.edit import edit


def shrunk(table: ScaleTable, model: Model, name: str, *, weight: bool) -> ScaleTable:
    """The table with one layer's threshold 100 times too small."""
    if weight:
        return dataclasses.replace(table, weights={**table.weights, name: table.weights[name] / np.float32(100)})
    layer = next(layer for layer in find_layers(model) if layer.name == name)
    op = model.graph.by_uid[layer.ops[0].uid]
    value = op.input(layer.ops[0].activation.slot)[0]
    return dataclasses.replace(table, activations={**table.activations, value: table.activations[value] / 100})


def broken(model: Model, name: str) -> Model:
    """The quantized model with one layer's activation scale 100 times too small."""
    layer = next(layer for layer in find_layers(model) if layer.name == name)
    site = next(s for s in find_sites(model) if s.role is Role.ACTIVATION and layer.ops[0].activation in s.uses)
    before = float(site.threshold)
    with edit(model) as e:
        for uid in site.ops:
            for slot in ("InScale", "Scale"):
                for scale in model.graph.by_uid[uid].input(slot):
                    e.set_param(scale, model.params[scale] / np.float32(100))
    after = next(s for s in find_sites(e.model) if s.value == site.value and layer.ops[0].activation in s.uses)
    assert float(after.threshold) == pytest.approx(before / 100, rel=1e-6)
    return e.model
