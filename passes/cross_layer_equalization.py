"""Scale the channels between two layers so that both have the same range there; the function stays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qpass.ir.model import Model
from qpass.quant.bias import set_bias
from qpass.quant.equalize import Pair, equalized, find_pairs
from qpass.rewrite.edit import edit
from qpass.rewrite.passes import Pass
from qpass.rewrite.pattern import Miss


@dataclass(frozen=True)
class CrossLayerEqualization(Pass):
    """Scale the channels between layers so that their ranges are alike; the function stays, up to float32 rounding.

    For layers with nothing but a bias, relu, leaky_relu or pool2d in between, and no other reader there. Meant for
    float models with batch norms folded (`FoldBatchNorm`), before calibration. Helps where one threshold a tensor is
    used; per-channel weights need it for their inputs only. The formula and its source: `qpass.quant.equalize`.
    """

    def run(self, model: Model) -> Model:
        """The model with scaled weights and biases, or `model` itself when there is no pair, or none to scale."""
        pairs, _ = find_pairs(model)
        weights, biases = equalized(model, pairs)
        with edit(model) as e:
            for name, array in weights.items():
                e.set_param(name, array.astype(np.float32))
            for i, values in biases.items():
                bias = pairs[i].bias
                if bias is not None:
                    set_bias(e, model, bias, values)
        return e.model

    def pairs(self, model: Model) -> tuple[Pair, ...]:
        """The pairs of layers that are scaled against each other, in program order."""
        return find_pairs(model)[0]

    def explain(self, model: Model) -> tuple[Miss, ...]:
        """Why other layers are not: one `Miss` for each that is the first of no pair."""
        return find_pairs(model)[1]
