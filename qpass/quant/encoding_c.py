"""Encoding C, what `paddle.quantization`'s ``convert()`` exports: the two linear ops with float zero points.

Like encoding B, but integers of weights are held in float32, and the two ops of a pair have a scale each.
"""

from __future__ import annotations

import dataclasses

from qpass.ir.model import Model
from qpass.quant.encoding_b import linear_sites
from qpass.quant.site import QuantSite, Storage


class EncodingC:
    """Recognises encoding C."""

    name = "C"

    def recognise(self, model: Model) -> tuple[QuantSite, ...]:
        """The sites of the root block that are spelled this way, in program order."""
        return tuple(_held_in_float(model, site) for site in linear_sites(model, self.name, float_zero=True))


def _held_in_float(model: Model, site: QuantSite) -> QuantSite:
    if site.storage is Storage.INT and site.value.name not in model.params:
        return dataclasses.replace(site, storage=Storage.INT_AS_FLOAT)
    return site
