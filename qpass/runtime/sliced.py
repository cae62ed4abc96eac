"""Engines for programs that are sliced from one another: the framework's graph passes run once, slices need none."""

from __future__ import annotations

import dataclasses

from qpass.errors import FormatError
from qpass.ir.model import Model
from qpass.ir.schema import DEBUG_ATTRS
from qpass.rewrite.distinct import distinct_names
from qpass.runtime.engine import Engine
from qpass.runtime.engine_program import engine_program
from qpass.runtime.executor import ExecutorEngine
from qpass.runtime.inference import PaddleInferenceEngine

# A convolution with a fused sum writes onto its operand (Paddle, phi/kernels/fusion/onednn/fused_conv_kernel.cc,
# residual data shared with the output): wrong where another slice reads that operand.
_OVERWRITES = ("conv_elementwise_add_mkldnn_fuse_pass", "conv_elementwise_add_onednn_fuse_pass")
_RESIDUAL = "ResidualData"


def can_slice(engine: Engine) -> bool:
    """Whether slices of one program stand for models on this engine: not where passes depend on what is quantized."""
    if isinstance(engine, PaddleInferenceEngine):
        return engine.on_onednn
    return isinstance(engine, ExecutorEngine)


def slicing(engine: Engine, model: Model) -> tuple[Model, Engine] | None:
    """What the engine's passes make of a model, and the engine that runs slices of it.

    The executor has no passes. None where the program cannot be sliced.

    Parameters
    ----------
    engine : Engine
        One that `can_slice`.
    model : Model

    Raises
    ------
    EngineError
        If the engine refuses the model.
    """
    if not isinstance(engine, PaddleInferenceEngine):
        return model, engine
    try:
        made, runner = engine_program(model, delete_passes=_OVERWRITES), engine.of_made_programs()
    except FormatError:  # a temporary folder without room: Paddle saves what fits and says nothing
        return None
    if len(made.blocks) > 1 or any(op.input(_RESIDUAL) for op in made.graph.ops):
        return None
    ops = tuple(op.without_attrs(DEBUG_ATTRS) for op in made.graph.ops)
    return distinct_names(made.replaced(graph=dataclasses.replace(made.graph, ops=ops))), runner
