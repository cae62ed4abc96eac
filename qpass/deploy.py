"""What a target asks for around quantization: passes before calibration, spelling and marks after it."""

from __future__ import annotations

from collections.abc import Sequence

from qpass.ir.model import Model
from qpass.passes import ConvertEncoding, FoldQuant, parse_passes
from qpass.quant.encodings import find_sites
from qpass.quant.layers import find_layers
from qpass.quant.presets import find_target
from qpass.quant.site import Role
from qpass.rewrite.pipeline import run


def prepared_for(model: Model, target: str) -> Model:
    """The float model as `target` wants it quantized: run this before calibration, since it changes values.

    Raises
    ------
    UsageError
        If there is no such target.
    """
    return run(model, parse_passes(",".join(find_target(target).before)))


def spelled_for(model: Model, target: str) -> Model:
    """The quantized model in the encoding of `target`, with its marks, weights stored as that engine wants them.

    Give it a model whose weights are still float where there is the choice: a weight that the engine wants on another
    grid (see `LegalizeOnednn`) is then rounded once.

    Raises
    ------
    UsageError
        If there is no such target.
    QuantError
        If the encoding cannot say what is quantized.
    """
    preset = find_target(target)
    if any(site.encoding != preset.encoding for site in find_sites(model)):
        model = ConvertEncoding(to=preset.encoding)(model)
    model = run(model, parse_passes(",".join(preset.after)))
    return _stored(model, [layer.name for layer in find_layers(model) if layer.family in preset.int8_weights])


def with_stored_weights(model: Model) -> Model:
    """The quantized model with its weights stored as int8, but for those of more than 8 bits.

    Those do not fit: they stay float behind a pair that quantizes them when the model runs.
    """
    weights = [site for site in find_sites(model) if site.role is Role.WEIGHT]
    wide = {site.value.name for site in weights if site.spec.bits > 8}
    return _stored(model, [site.value.name for site in weights if site.value.name not in wide])


def _stored(model: Model, weights: Sequence[str]) -> Model:
    # To FoldQuant no names are all of them.
    return FoldQuant(to="int8", layers=tuple(dict.fromkeys(weights)))(model) if weights else model
