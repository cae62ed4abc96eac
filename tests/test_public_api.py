"""The public names and the arguments a user may have written: changing one here is changing it for every user."""

from __future__ import annotations

import importlib.metadata
import inspect

import pytest

import qpass
from qpass import passes

NAMES = [
    "AnalysisPTQ",
    "AnalysisQAT",
    "AnalysisQuant",
    "AnalysisResult",
    "Attr",
    "Model",
    "Op",
    "Pass",
    "Pipeline",
    "QPassError",
    "ScaleTable",
    "__version__",
    "analyze_ptq",
    "analyze_qat",
    "calibrate",
    "dump",
    "edit",
    "find_layers",
    "get_engine",
    "load",
    "load_bytes",
    "parse",
    "quantize",
    "run",
    "save",
    "to_bytes",
]

PASSES = {
    "DropDebugInfo": "drop-debug-info",
    "DropIdentity": "drop-identity",
    "FoldBatchNorm": "fold-batch-norm",
    "FoldQuant": "fold-quant",
    "InsertQuant": "insert-quant",
    "RemoveUnused": "remove-unused",
    "StripQuant": "strip-quant",
}

# The first arguments, in order, with their defaults: as PaddleSlim's classes have them and its users write them.
DOORS = {
    "AnalysisPTQ": {
        "model_dir": ...,
        "model_filename": None,
        "params_filename": None,
        "eval_function": None,
        "data_loader": None,
        "save_dir": "analysis_results",
    },
    "AnalysisQAT": {
        "quant_model_dir": ...,
        "float_model_dir": ...,
        "model_filename": None,
        "params_filename": None,
        "quantizable_op_type": ("conv2d", "depthwise_conv2d", "mul"),
        "qat_metric": None,
        "eval_function": None,
        "data_loader": None,
        "save_dir": "analysis_results",
        "resume": False,
    },
}


def test_the_public_names_are_these():
    assert sorted(qpass.__all__) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize("door", DOORS)
def test_the_doors_take_the_arguments_that_users_write(door):
    parameters = inspect.signature(getattr(qpass, door)).parameters
    found = {n: ... if p.default is p.empty else p.default for n, p in parameters.items()}
    expected = DOORS[door]
    assert list(found)[: len(expected)] == list(expected)
    for name, default in expected.items():
        given = tuple(found[name]) if isinstance(default, tuple) else found[name]
        assert given == default, name


def test_the_doors_have_their_methods():
    assert qpass.AnalysisQuant is qpass.AnalysisPTQ
    for door in (qpass.AnalysisPTQ, qpass.AnalysisQAT):
        assert all(callable(getattr(door, m)) for m in ("metric_error_analyse", "statistical_analyse", "analysis"))


def test_the_version_is_the_distribution_s():
    assert qpass.__version__ == importlib.metadata.version("qpass")


def test_the_command_is_installed(capsys):
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="qpass")
    with pytest.raises(SystemExit, match="0"):
        command.load()(["--version"])
    assert capsys.readouterr().out.split() == ["qpass", qpass.__version__]
