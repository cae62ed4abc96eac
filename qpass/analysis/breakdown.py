"""Where a layer's loss comes from: its weight or its activation, rounding or clipping, and what of it gets through.

For each layer two more variants are measured, one for its weight alone and one for its input activation; the local
error tells what the layer's own ops lose, before the rest of the model damps or amplifies it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qpass.analysis.checkpoint import Record
from qpass.analysis.local_error import LocalError
from qpass.analysis.metric import noise_to_signal, sqnr_db
from qpass.analysis.result import Mode, sign_of
from qpass.ir.model import Model
from qpass.passes import ConvertEncoding
from qpass.quant.encodings import find_sites
from qpass.quant.layers import find_layers, select
from qpass.quant.noise import NoiseSplit
from qpass.quant.site import Role
from qpass.quant.strip import strip_sites

ROLES = ("weight", "activation")
"""The parts of a layer that are measured alone."""


def part_key(role: str, layer: str) -> str:
    """Name of the record of a layer's part."""
    return f"{role}:{layer}"


def local_key(layer: str) -> str:
    """Name of the record of a layer's local error."""
    return f"local:{layer}"


def without_role(quantized: Model, layer: str, role: Role) -> Model:
    """The model with one layer's weights, or its input activations, no longer quantized.

    A weight becomes the float that the model holds.

    Raises
    ------
    QuantError
        If a value was overwritten before its consumer runs.
    """
    sites = find_sites(quantized)
    if any(site.encoding == "A" for site in sites):  # there the two go together
        quantized = ConvertEncoding(to="B")(quantized)
        sites = find_sites(quantized)
    (found,) = select(find_layers(quantized), [layer])
    uses = frozenset(op.weight if role is Role.WEIGHT else op.activation for op in found.ops)
    return strip_sites(quantized, [site for site in sites if not uses.isdisjoint(site.uses)], uses, ())


def local_record(error: LocalError) -> Record:
    """A local error as it is kept: shares of noise, and signal-to-noise ratios in dB."""
    figures = {"local_sqnr_db": error.sqnr_db}
    for role, noise in (("weight", error.weight), ("activation", error.activation)):
        figures.update(_shares(role, noise))
    return Record(error.sqnr_db, figures)


def breakdown_details(
    layer: str, records: Mapping[str, Record], baseline: Record, mode: Mode, higher_is_better: bool
) -> dict[str, float]:
    """The figures of one layer.

    Parameters
    ----------
    layer : str
    records : Mapping[str, Record]
        All that was measured.
    baseline : Record
        What parts are compared with; without losses where none were measured.
    mode : {"ptq", "qat"}
    higher_is_better : bool

    Returns
    -------
    dict of str to float
        ``weight_metric``, ``weight_sensitivity`` and the same of the activation: of the variant in which only this part
        of the layer is quantized (PTQ) or un-quantized (QAT). ``weight_fine_loss`` and that of the activation, where
        there is a finer metric. ``local_sqnr_db``: SQNR at the output of the layer's own ops on float inputs.
        ``weight_sqnr_db``, ``weight_clipping_share``, ``weight_rounding_share`` and the same of the activation: of the
        quantized operand itself; shares of the energy of its noise, which add up to 1. What has no noise has no shares.
    """
    figures: dict[str, float] = {}
    for role in ROLES:
        record = records[part_key(role, layer)]
        figures[f"{role}_metric"] = record.metric
        figures[f"{role}_sensitivity"] = sign_of(mode, higher_is_better) * (record.metric - baseline.metric) + 0.0
        if record.losses and baseline.losses:
            lost = float(np.mean(record.losses) - np.mean(baseline.losses))
            figures[f"{role}_fine_loss"] = sign_of(mode, higher_is_better=False) * lost + 0.0
    if local_key(layer) in records:
        figures.update(records[local_key(layer)].details)
    return figures


def _shares(role: str, noise: NoiseSplit) -> dict[str, float]:
    if noise.signal == 0 and noise.noise == 0:
        return {}
    figures = {f"{role}_sqnr_db": sqnr_db(noise_to_signal(noise.noise, noise.signal))}
    if noise.noise > 0:
        figures[f"{role}_clipping_share"] = noise.clipping / noise.noise
        figures[f"{role}_rounding_share"] = noise.rounding / noise.noise
    return figures
