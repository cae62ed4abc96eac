"""Take out, or replace, scales that no engine can use: 0, NaN, infinite, negative.

A weight channel whose scale is 0 and whose values are all 0 gets the scale 1: it stays exactly 0. A float weight whose
scale is unusable gets the largest absolute values of its channels. An activation's scale cannot be known without data:
its site is taken out, and the op reads the value itself. Where a pair of encoding A goes, the layer's weight goes with
it, for its scales are divided out together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from qpass.ir.model import Model
from qpass.quant.encodings import find_sites
from qpass.quant.fakequant import abs_max
from qpass.quant.ops import scale_names
from qpass.quant.site import QuantSite, Role, Storage
from qpass.quant.strip import strip_sites
from qpass.rewrite.edit import edit
from qpass.rewrite.passes import Pass


@dataclass(frozen=True)
class MendScales(Pass):
    """Replace unusable scales of weights, and take out sites of activations that have one.

    Raises
    ------
    QuantError
        If the stored integers of a weight have a scale that is not known: nothing can say what they mean.
    """

    def run(self, model: Model) -> Model:
        """The model without such scales, or `model` itself when all are usable."""
        bad = [site for site in find_sites(model) if _is_stored(model, site) and not _usable(site.threshold).all()]
        model = _with_new_scales(model, [site for site in bad if site.role is Role.WEIGHT])
        sites = find_sites(model)
        lost = [site for site in sites if _is_stored(model, site) and not _usable(site.threshold).all()]
        owners = {use.op for site in lost if site.encoding == "A" for use in site.uses}
        gone = [s for s in sites if s in lost or (s.encoding == "A" and owners & {use.op for use in s.uses})]
        uses = frozenset(use for s in gone for use in s.uses if s.encoding != "A" or use.op in owners)
        marked = sorted({use.op for use in uses})
        return strip_sites(model, gone, uses if owners else None, marked if owners else ())


def _usable(threshold: np.ndarray) -> np.ndarray:
    usable: np.ndarray = np.isfinite(threshold) & (threshold > 0)
    return usable


def _is_stored(model: Model, site: QuantSite) -> bool:
    return any(name in model.params for name in scale_names(model.graph.by_uid[site.ops[-1]]))


def _with_new_scales(model: Model, sites: Iterable[QuantSite]) -> Model:
    with edit(model) as e:
        for site in sites:
            weight = np.asarray(model.params[site.value.name], np.float32)
            peaks = abs_max(weight, site.spec.axis).reshape(site.threshold.shape)
            known = site.threshold if site.storage is not Storage.FLOAT else peaks
            fresh = np.where(_usable(site.threshold), site.threshold, np.where(peaks == 0, 1, known))
            for name in dict.fromkeys(n for uid in site.ops for n in scale_names(model.graph.by_uid[uid])[:1]):
                if name in model.params:
                    e.set_param(name, fresh.astype(np.float32).reshape(model.params[name].shape))
    return e.model
