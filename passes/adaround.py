"""Choose the rounding of each weight by what it does to the layer's output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qpass.errors import QuantError
from qpass.ir.model import Model
from qpass.quant.adaround import best_rounding, on_level
from qpass.quant.apart import set_apart
from qpass.quant.encoding import check_threshold
from qpass.quant.encodings import find_sites
from qpass.quant.fakequant import dequantize, quantize
from qpass.quant.layers import Layer, find_layers, select
from qpass.quant.moments import LayerMoments, MomentTable
from qpass.quant.products import from_rows, to_rows
from qpass.quant.site import QuantSite, Role, Storage
from qpass.rewrite.edit import edit
from qpass.rewrite.passes import Pass

_ALIKE = 1e-3  # mean outputs of one weight, computed twice in float32 and summed in float64, agree far better


@dataclass(frozen=True)
class AdaRound(Pass):
    """Round each quantized weight up or down so that its layer's output suffers least, not the weight.

    Each float weight of a quantized layer is replaced by the value on its grid that stands for the chosen level, so
    that plain rounding, `FoldQuant` and every encoding now give this level. Stored integers are left as they are. A
    weight that others read unquantized stays for them; its layer goes by the name ``<weight>.rounded``. How levels are
    chosen, and the source: `qpass.quant.adaround`.

    Parameters
    ----------
    moments : MomentTable or str
        What `collect_moments` found for the float model, second moments included; or the path of such a table.
    layers : tuple of str
        Layers by weight name; empty is all.

    Raises
    ------
    QuantError
        If there is no layer of a name, or the table has no second moments of a layer, or those of another weight.
    """

    moments: MomentTable | str
    layers: tuple[str, ...] = ()

    def run(self, model: Model) -> Model:
        """The model with weights on their grids, or `model` itself when there was nothing to round."""
        found = find_layers(model)
        known = {layer.name: layer for layer in (select(found, self.layers) if self.layers else found)}
        sites = [
            site
            for site in find_sites(model)
            if site.role is Role.WEIGHT and site.storage is Storage.FLOAT and not site.observer_only
            if site.value.name in known
        ]
        if not sites:
            return model
        table = MomentTable.load(self.moments) if isinstance(self.moments, str) else self.moments
        chosen = [_rounded(model, site, known[site.value.name], table) for site in sites]
        apart, own = set_apart(model, sites, ".rounded")
        with edit(apart) as e:
            for site, weight in zip(own, chosen, strict=True):
                e.set_param(site.value.name, weight)
        return e.model


def _rounded(model: Model, site: QuantSite, layer: Layer, table: MomentTable) -> np.ndarray:
    if site.value.name not in model.params:
        raise QuantError("the model has no parameters to round", where=f"weight {site.value.name!r}")
    weight = np.asarray(model.params[site.value.name], np.float32)
    check_threshold(site, weight)
    op = model.graph.by_uid[layer.ops[0].uid]
    rows = to_rows(weight.astype(np.float64), op)
    axis = site.spec.axis
    along = np.asarray(site.threshold, np.float64).reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    step = to_rows(along / site.spec.qmax * np.ones(weight.shape), op)
    nearest = to_rows(quantize(weight, site.threshold, site.spec).astype(np.float64), op)
    kept = on_level(nearest, rows, step)
    if kept.all():
        return weight
    second = _second(table.of(layer, rows), layer, rows)
    chosen = best_rounding(rows, step, nearest, (site.spec.qmin, site.spec.qmax), second)
    levels = from_rows(chosen, op, weight.shape)
    stored = dequantize(levels, site.threshold, site.spec)
    # A threshold that is found from the weight itself must be found again: what stands at it stays to the last bit, and
    # nothing that is moved to the highest level may pass it by a rounding of float32.
    at_end = np.abs(levels) == site.spec.qmax
    stored = np.where(at_end, (np.sign(levels) * along).astype(np.float32), stored)
    return np.where(from_rows(kept, op, weight.shape), weight, stored)


def _second(moments: LayerMoments, layer: Layer, rows: np.ndarray) -> np.ndarray:
    where = f"layer {layer.name!r}"
    if moments.second is None:
        raise QuantError("the table has no second moments of it", where=where, hint="collect them with second=True")
    mean = moments.mean[:, :, None]
    off = np.abs((rows @ mean).reshape(-1) - moments.output)
    if (off > _ALIKE * ((np.abs(rows) @ np.abs(mean)).reshape(-1) + np.abs(moments.output))).any():
        raise QuantError(
            "the moments are those of another weight",
            where=where,
            hint="collect them after all passes that change float weights",
        )
    return moments.second
