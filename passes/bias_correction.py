"""Take the mean error that quantized weights make out of the bias.

Nagel et al. 2019, *Data-Free Quantization Through Weight Equalization and Bias Correction* (arXiv:1906.04721), section
4.2, its empirical form. With float weights W, quantized ones W_q and inputs x of the layer,

    b' = b + E[W x] - E[W_q x] = b + (W - W_q) E[x]

the mean of each output channel over the calibration data is what it was before the weight was quantized.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qpass.errors import QuantError
from qpass.ir.model import Model
from qpass.quant.bias import add_bias, find_bias, set_bias
from qpass.quant.encoding import check_threshold
from qpass.quant.encodings import find_sites
from qpass.quant.fakequant import dequantize, fake_quantize
from qpass.quant.layers import Layer, find_layers, select
from qpass.quant.moments import MomentTable
from qpass.quant.products import to_rows
from qpass.quant.site import QuantSite, Role, Storage
from qpass.rewrite.edit import edit
from qpass.rewrite.passes import Pass


@dataclass(frozen=True)
class BiasCorrection(Pass):
    """Take the mean error that quantized weights make out of the bias of their layers.

    A layer without a bias gets one, ``<weight>.bias``. Weights may be stored as floats or as integers; those of layers
    that are not quantized, or only observed, stay as they are. To be run once: a second time would count the error
    twice.

    Parameters
    ----------
    moments : MomentTable or str
        What `collect_moments` found for the float model, or the path of such a table; means are enough.
    layers : tuple of str
        Layers by weight name; empty is all.

    Raises
    ------
    QuantError
        If there is no layer of a name, or the table has no moments of a layer, or those of another.
    """

    moments: MomentTable | str
    layers: tuple[str, ...] = ()

    def run(self, model: Model) -> Model:
        """The model with other biases, or `model` itself when no weight is quantized."""
        found = find_layers(model)
        chosen = select(found, self.layers) if self.layers else found
        sites = {
            use: site for site in find_sites(model) if site.role is Role.WEIGHT and not site.observer_only
            for use in site.uses
        }  # fmt: skip
        if not any(op.weight in sites for layer in chosen for op in layer.ops):
            return model
        table = MomentTable.load(self.moments) if isinstance(self.moments, str) else self.moments
        with edit(model) as e:
            for layer in chosen:
                for op in layer.ops:
                    if op.weight not in sites:
                        continue
                    error = _mean_error(model, sites[op.weight], layer, table)
                    bias = find_bias(model, op.output, error.size)
                    if bias is not None:
                        set_bias(e, model, bias, bias.values - error)
                    else:
                        add_bias(e, model, op.output, -error, f"{layer.name}.bias")
        return e.model


def _mean_error(model: Model, site: QuantSite, layer: Layer, table: MomentTable) -> np.ndarray:
    """``E[W_q x] - E[W x]`` of each output channel, float64."""
    if site.value.name not in model.params:
        raise QuantError("the model has no parameters", where=f"weight {site.value.name!r}")
    weight = model.params[site.value.name]
    check_threshold(site, weight)
    stand = fake_quantize if site.storage is Storage.FLOAT else dequantize
    op = model.graph.by_uid[layer.ops[0].uid]
    rows = to_rows(stand(weight, site.threshold, site.spec).astype(np.float64), op)
    moments = table.of(layer, rows)
    error: np.ndarray = (rows @ moments.mean[:, :, None]).reshape(-1) - moments.output
    return error
