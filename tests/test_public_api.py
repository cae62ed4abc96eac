"""What is public besides signatures (`front/test_signatures.py`): documentation, the passes' names, the command."""

from __future__ import annotations

import importlib.metadata
import inspect

import pytest

import qpass
from qpass import passes

PASSES = {
    "AdaRound": "ada-round",
    "AddQuantDefaults": "add-quant-defaults",
    "BiasCorrection": "bias-correction",
    "ConvertEncoding": "convert-encoding",
    "CrossLayerEqualization": "cross-layer-equalization",
    "DropDebugInfo": "drop-debug-info",
    "DropIdentity": "drop-identity",
    "DropObservers": "drop-observers",
    "EnableObservers": "enable-observers",
    "FoldBatchNorm": "fold-batch-norm",
    "FoldBias": "fold-bias",
    "FoldQuant": "fold-quant",
    "InsertQuant": "insert-quant",
    "LegalizeOnednn": "legalize-onednn",
    "MarkSkipQuant": "mark-skip-quant",
    "MendPairs": "mend-pairs",
    "MendScales": "mend-scales",
    "QuantizeWeights": "quantize-weights",
    "RemoveUnused": "remove-unused",
    "StripQuant": "strip-quant",
    "TieConcatScales": "tie-concat-scales",
    "WeightCorrection": "weight-correction",
}


@pytest.mark.parametrize("name", qpass.__all__)
def test_every_public_name_resolves_and_is_documented(name):
    value = getattr(qpass, name)
    assert name in dir(qpass)
    assert isinstance(value, str) or inspect.getdoc(value)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = qpass.no_such_name


def test_the_passes_are_these():
    from qpass.rewrite.passes import spec_name

    assert {cls.__name__: spec_name(cls) for cls in passes.REGISTRY} == PASSES
    assert sorted(passes.__all__) == sorted([*PASSES, "REGISTRY", "parse_passes"])


def test_the_version_is_the_distribution_s():
    assert qpass.__version__ == importlib.metadata.version("qpass")


def test_the_command_is_installed(capsys):
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="qpass")
    with pytest.raises(SystemExit, match="0"):
        command.load()(["--version"])
    assert capsys.readouterr().out.split() == ["qpass", qpass.__version__]
