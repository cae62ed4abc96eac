"""All encodings, and the quantization sites of a model whatever their spelling."""

from __future__ import annotations

from collections.abc import Mapping

from qpass.errors import UsageError
from qpass.ir.model import Model
from qpass.quant.encoding import Encoding
from qpass.quant.encoding_a import EncodingA
from qpass.quant.encoding_b import EncodingB
from qpass.quant.encoding_c import EncodingC
from qpass.quant.encoding_d import EncodingD
from qpass.quant.layers import Layer, find_weights
from qpass.quant.ops import DATA_SLOTS
from qpass.quant.site import QuantSite, Role
from qpass.quant.stored import integers_alone

ENCODINGS: Mapping[str, Encoding] = {each.name: each for each in (EncodingA(), EncodingB(), EncodingC(), EncodingD())}
"""Every spelling, by name."""


def find_sites(model: Model) -> tuple[QuantSite, ...]:
    """The quantization sites of the root block, in program order of their first ops."""
    if not any(op.type in DATA_SLOTS for op in model.graph.ops):
        return ()
    found = [site for encoding in ENCODINGS.values() for site in encoding.recognise(model)]
    return tuple(sorted(found, key=lambda site: model.graph.position[site.ops[0]]))


def quantized_weights(model: Model) -> tuple[Layer, ...]:
    """The layers and embeddings of the root block whose weights are quantized, in program order."""
    uses = {use for site in find_sites(model) if site.role is Role.WEIGHT for use in site.uses}
    return tuple(layer for layer in find_weights(model) if any(op.weight in uses for op in layer.ops))


def check_float(model: Model) -> None:
    """Refuse a model that holds quantization sites, or weights stored as integers alone.

    Raises
    ------
    UsageError
        What can be done with it instead.
    """
    if sites := find_sites(model):
        raise UsageError(
            f"the model is quantized already: {len(sites)} sites, the first of encoding {sites[0].encoding}",
            where=model.source.program,
            hint="its ranking comes from analyze_qat; the pass strip-quant makes it a float model, "
            "fold-quant{to=int8} stores its weights as int8",
        )
    if alone := tuple(integers_alone(model).values()):
        raise UsageError(
            f"weights are stored as integers alone, the first is {alone[0]}: only Paddle Lite makes floats of them",
            where=model.source.program,
            hint="begin with the float model that quantize-weights or quant_post_dynamic was given",
        )
