"""Compiler passes for Paddle inference models.

A Paddle inference model is a value; a pass maps a model to a model. Names are resolved on first use, so that
``import qpass`` is quick and never imports paddle.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from qpass._version import __version__

if TYPE_CHECKING:
    from qpass.analysis.ptq import analyze_ptq
    from qpass.analysis.qat import analyze_qat
    from qpass.analysis.result import AnalysisResult
    from qpass.analysis.target import TargetResult
    from qpass.api import quantize
    from qpass.doors import AnalysisPTQ, AnalysisQAT, AnalysisQuant
    from qpass.errors import QPassError
    from qpass.formats.files import load, load_bytes, save, to_bytes
    from qpass.ir.model import Model
    from qpass.ir.op import Attr, Op
    from qpass.ir.text import dump, parse
    from qpass.post_training import Quantized
    from qpass.quant.layers import find_layers
    from qpass.quant.moments import MomentTable
    from qpass.quant.observer_options import ObserverOptions
    from qpass.quant.recipe import Override, Recipe
    from qpass.quant.scales import ScaleTable
    from qpass.quant_post import quant_post_dynamic, quant_post_static
    from qpass.rewrite.edit import edit
    from qpass.rewrite.passes import Pass
    from qpass.rewrite.pipeline import Pipeline, run
    from qpass.runtime.calibrate import calibrate, calibrate_many
    from qpass.runtime.cluster import cluster
    from qpass.runtime.engines import get_engine
    from qpass.runtime.moments import collect_moments
    from qpass.runtime.pool import ExecutorWorkers
    from qpass.runtime.processes import processes
    from qpass.runtime.simulate import simulate

_HOMES = {
    "AnalysisPTQ": "qpass.doors",
    "AnalysisQAT": "qpass.doors",
    "AnalysisQuant": "qpass.doors",
    "AnalysisResult": "qpass.analysis.result",
    "Attr": "qpass.ir.op",
    "ExecutorWorkers": "qpass.runtime.pool",
    "Model": "qpass.ir.model",
    "ObserverOptions": "qpass.quant.observer_options",
    "MomentTable": "qpass.quant.moments",
    "Op": "qpass.ir.op",
    "Override": "qpass.quant.recipe",
    "Pass": "qpass.rewrite.passes",
    "Pipeline": "qpass.rewrite.pipeline",
    "QPassError": "qpass.errors",
    "Quantized": "qpass.post_training",
    "Recipe": "qpass.quant.recipe",
    "ScaleTable": "qpass.quant.scales",
    "TargetResult": "qpass.analysis.target",
    "analyze_ptq": "qpass.analysis.ptq",
    "analyze_qat": "qpass.analysis.qat",
    "calibrate": "qpass.runtime.calibrate",
    "calibrate_many": "qpass.runtime.calibrate",
    "cluster": "qpass.runtime.cluster",
    "collect_moments": "qpass.runtime.moments",
    "dump": "qpass.ir.text",
    "edit": "qpass.rewrite.edit",
    "find_layers": "qpass.quant.layers",
    "get_engine": "qpass.runtime.engines",
    "load": "qpass.formats.files",
    "load_bytes": "qpass.formats.files",
    "parse": "qpass.ir.text",
    "processes": "qpass.runtime.processes",
    "quant_post_dynamic": "qpass.quant_post",
    "quant_post_static": "qpass.quant_post",
    "quantize": "qpass.api",
    "run": "qpass.rewrite.pipeline",
    "save": "qpass.formats.files",
    "simulate": "qpass.runtime.simulate",
    "to_bytes": "qpass.formats.files",
}

__all__ = [
    "AnalysisPTQ",
    "AnalysisQAT",
    "AnalysisQuant",
    "AnalysisResult",
    "Attr",
    "ExecutorWorkers",
    "Model",
    "MomentTable",
    "ObserverOptions",
    "Op",
    "Override",
    "Pass",
    "Pipeline",
    "QPassError",
    "Quantized",
    "Recipe",
    "ScaleTable",
    "TargetResult",
    "__version__",
    "analyze_ptq",
    "analyze_qat",
    "calibrate",
    "calibrate_many",
    "cluster",
    "collect_moments",
    "dump",
    "edit",
    "find_layers",
    "get_engine",
    "load",
    "load_bytes",
    "parse",
    "processes",
    "quant_post_dynamic",
    "quant_post_static",
    "quantize",
    "run",
    "save",
    "simulate",
    "to_bytes",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'qpass' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
