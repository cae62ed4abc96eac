"""Concrete passes, one a file."""

from __future__ import annotations

from qpass.passes.adaround import AdaRound
from qpass.passes.add_quant_defaults import AddQuantDefaults
from qpass.passes.bias_correction import BiasCorrection
from qpass.passes.convert_encoding import ConvertEncoding
from qpass.passes.cross_layer_equalization import CrossLayerEqualization
from qpass.passes.drop_debug_info import DropDebugInfo
from qpass.passes.drop_identity import DropIdentity
from qpass.passes.drop_observers import DropObservers
from qpass.passes.enable_observers import EnableObservers
from qpass.passes.fold_batch_norm import FoldBatchNorm
from qpass.passes.fold_bias import FoldBias
from qpass.passes.fold_quant import FoldQuant
from qpass.passes.insert_quant import InsertQuant
from qpass.passes.legalize_onednn import LegalizeOnednn
from qpass.passes.mark_skip_quant import MarkSkipQuant
from qpass.passes.mend_pairs import MendPairs
from qpass.passes.mend_scales import MendScales
from qpass.passes.quantize_weights import QuantizeWeights
from qpass.passes.remove_unused import RemoveUnused
from qpass.passes.strip_quant import StripQuant
from qpass.passes.tie_concat_scales import TieConcatScales
from qpass.passes.weight_correction import WeightCorrection
from qpass.rewrite import spec
from qpass.rewrite.passes import Pass

REGISTRY: tuple[type[Pass], ...] = (
    AdaRound,
    AddQuantDefaults,
    BiasCorrection,
    ConvertEncoding,
    CrossLayerEqualization,
    DropDebugInfo,
    DropIdentity,
    DropObservers,
    EnableObservers,
    FoldBatchNorm,
    FoldBias,
    FoldQuant,
    InsertQuant,
    LegalizeOnednn,
    MarkSkipQuant,
    MendPairs,
    MendScales,
    QuantizeWeights,
    RemoveUnused,
    StripQuant,
    TieConcatScales,
    WeightCorrection,
)
"""Every pass that a text spec can name."""


def parse_passes(text: str) -> tuple[Pass, ...]:
    """Make the passes that `text` names: ``fold-batch-norm,drop-identity``; the form is in `qpass.rewrite.spec`.

    Raises
    ------
    UsageError
        With the position of what is wrong.
    PassError
        If a pass refuses its options.
    """
    return spec.parse_passes(text, REGISTRY)


__all__ = [
    "REGISTRY",
    "AdaRound",
    "AddQuantDefaults",
    "BiasCorrection",
    "ConvertEncoding",
    "CrossLayerEqualization",
    "DropDebugInfo",
    "DropIdentity",
    "DropObservers",
    "EnableObservers",
    "FoldBatchNorm",
    "FoldBias",
    "FoldQuant",
    "InsertQuant",
    "LegalizeOnednn",
    "MarkSkipQuant",
    "MendPairs",
    "MendScales",
    "QuantizeWeights",
    "RemoveUnused",
    "StripQuant",
    "TieConcatScales",
    "WeightCorrection",
    "parse_passes",
]
