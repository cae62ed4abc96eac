"""Encoding C, what `paddle.quantization`'s ``convert()`` exports: the two linear ops with float zero points.

Like encoding B, but integers of weights are held in float32, and the two ops of a pair have a scale each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from qpass.ir.graph import Graph
from qpass.ir.model import Model
from qpass.ir.op import Op
from qpass.quant.encoding import declare_param, insert_chain
from qpass.quant.encoding_b import DEQUANTIZED, QUANTIZED, linear_attrs, linear_sites
from qpass.quant.site import QuantSite, Role, Storage
from qpass.quant.stored import held_as_floats
from qpass.rewrite.edit import Edit


class EncodingC:
    """Recognises and spells encoding C."""

    name = "C"

    def recognise(self, model: Model) -> tuple[QuantSite, ...]:
        """The sites of the root block that are spelled this way, in program order."""
        return tuple(_held_in_float(model, site) for site in linear_sites(model, self.name, float_zero=True))

    def spell(self, e: Edit, graph: Graph, sites: Sequence[QuantSite]) -> None:
        """Write a pair around each activation; weights are stored as integers in float32.

        Raises
        ------
        QuantError
            If a value is not float32, or the integers of a weight are not known.
        """
        for site in sites:
            site = held_as_floats(e, graph, site) if site.role is Role.WEIGHT else site
            steps = [(DEQUANTIZED, _maker(e, site, "dequantize_linear"))]
            if site.role is Role.ACTIVATION:
                steps.insert(0, (QUANTIZED, _maker(e, site, "quantize_linear")))
            insert_chain(e, graph, site, steps)


def _maker(e: Edit, site: QuantSite, kind: str) -> Callable[[str, str], Op]:
    """Makes one of the two ops, with a scale and a zero point of its own."""
    threshold, word = np.asarray(site.threshold, np.float32), kind.removesuffix("_linear")
    # Scales without an axis have rank 0 in what the framework exports.
    shape = () if site.spec.axis is None else (threshold.size,)
    scale = declare_param(e, f"{site.value.name}@{word}_scale", threshold.reshape(shape))
    zero = declare_param(e, f"{site.value.name}@{word}_zero_point", np.zeros(threshold.size, np.float32))
    attrs = linear_attrs(site.spec, observer_only=site.observer_only)
    return lambda source, target: Op.make(kind, {"X": source, "Scale": scale, "ZeroPoint": zero}, {"Y": target}, attrs)


def _held_in_float(model: Model, site: QuantSite) -> QuantSite:
    if site.storage is Storage.INT and site.value.name not in model.params:
        return dataclasses.replace(site, storage=Storage.INT_AS_FLOAT)
    return site
