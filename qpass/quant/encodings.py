"""All encodings, and the quantization sites of a model whatever their spelling."""

from __future__ import annotations

from collections.abc import Mapping

from qpass.ir.model import Model
from qpass.quant.encoding import Encoding, Speller
from qpass.quant.encoding_a import EncodingA
from qpass.quant.encoding_b import EncodingB
from qpass.quant.encoding_c import EncodingC
from qpass.quant.encoding_d import EncodingD
from qpass.quant.ops import DATA_SLOTS
from qpass.quant.site import QuantSite

ENCODINGS: tuple[Encoding, ...] = (EncodingA(), EncodingB(), EncodingC(), EncodingD())
"""Every spelling that is recognised."""

SPELLERS: Mapping[str, Speller] = {
    "A": EncodingA(),
    "B": EncodingB(),
    "C": EncodingC(),
    "D": EncodingD(),
}
"""Every spelling as it is written, by name."""


def find_sites(model: Model) -> tuple[QuantSite, ...]:
    """The quantization sites of the root block, in program order of their first ops."""
    if not any(op.type in DATA_SLOTS for op in model.graph.ops):
        return ()
    found = [site for encoding in ENCODINGS for site in encoding.recognise(model)]
    return tuple(sorted(found, key=lambda site: model.graph.position[site.ops[0]]))
