"""What the framework does to weights under ``bias_correction=True``, for comparison with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qpass.errors import QuantError
from qpass.ir.model import Model
from qpass.quant.apart import set_apart
from qpass.quant.encoding import check_threshold
from qpass.quant.encodings import find_sites
from qpass.quant.fakequant import dequantize
from qpass.quant.layers import find_layers, select
from qpass.quant.site import Role, Storage
from qpass.quant.weight_correction import corrected_like_paddle
from qpass.rewrite.edit import edit
from qpass.rewrite.passes import Pass


@dataclass(frozen=True)
class WeightCorrection(Pass):
    """Correct quantized weights as the framework does under ``bias_correction=True``, quirks included.

    Each float weight of a quantized layer is replaced by the value on its grid that stands for the integer which the
    framework stores without ``onnx_format``; with it, the framework ignores the argument. For comparison: what is wrong
    with it is said in `qpass.quant.weight_correction`, and `BiasCorrection` does what the name says. To be run once.

    Parameters
    ----------
    layers : tuple of str
        Layers by weight name; empty is all.

    Raises
    ------
    QuantError
        If there is no layer of a name, or a weight is quantized along an axis that the framework does not know.
    """

    layers: tuple[str, ...] = ()

    def run(self, model: Model) -> Model:
        """The model with other weights, or `model` itself when no float weight is quantized."""
        wanted = {layer.name for layer in select(find_layers(model), self.layers)} if self.layers else None
        sites = [
            site
            for site in find_sites(model)
            if site.role is Role.WEIGHT and site.storage is Storage.FLOAT and not site.observer_only
            if wanted is None or site.value.name in wanted
        ]
        if not sites:
            return model
        made = []
        for site in sites:
            where = f"weight {site.value.name!r}"
            if site.value.name not in model.params:
                raise QuantError("the model has no parameters to correct", where=where)
            weight = np.array(model.params[site.value.name], np.float32)
            check_threshold(site, weight)
            if site.spec.axis not in (None, 0, 1):
                raise QuantError(f"quantized along axis {site.spec.axis}, the framework knows 0 and 1", where=where)
            levels = corrected_like_paddle(weight, site.threshold, site.spec)
            made.append(dequantize(levels, site.threshold, site.spec))
        apart, own = set_apart(model, sites, ".corrected")
        with edit(apart) as e:
            for site, weight in zip(own, made, strict=True):
                e.set_param(site.value.name, weight)
        return e.model
