"""The program that Paddle Inference's graph passes make of a model: what the engine really runs, as a model again.

The engine saves it (``Config.enable_save_optim_model``). Run without graph passes it gives the same bits as the model
with them, so that everything sliced from it needs no passes of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qpass.errors import EngineError
from qpass.formats import pdiparams, pdmodel
from qpass.ir.graph import ValueRef
from qpass.ir.model import Model
from qpass.ir.params import Params
from qpass.ir.verify import persistable_tensors
from qpass.runtime.inference import SAVED, PaddleInferenceEngine


def engine_program(
    model: Model, fetch: Sequence[ValueRef] | None = None, *, int8: bool = False, delete_passes: Sequence[str] = ()
) -> Model:
    """What the engine's passes make of a model.

    Parameters
    ----------
    model : Model
        With parameters.
    fetch : sequence of ValueRef, optional
        Values to return in place of the model's outputs: that may change what is fused.
    int8 : bool
        As for the int8 engine.
    delete_passes : sequence of str
        Passes to leave out.

    Raises
    ------
    EngineError
        If Paddle refuses the model, or does not save what it made of it.
    """
    where = "the program that oneDNN int8 runs" if int8 else "the program that Paddle Inference runs"
    with tempfile.TemporaryDirectory(prefix="qpass-") as folder:
        PaddleInferenceEngine(int8=int8, delete_passes=delete_passes, save_program=folder).session(model, fetch)
        program, params = (Path(folder) / name for name in SAVED)
        if not (program.is_file() and params.is_file()):
            raise EngineError("Paddle Inference did not save the program that its passes made", where=where)
        blocks, extra = pdmodel.decode_engine_program(program.read_bytes(), where)
        made = Model(blocks, extra=extra, source=model.source)
        held = pdiparams.decode(np.fromfile(params, np.uint8), tuple(persistable_tensors(made)), where)
        return made.replaced(params=Params(held))
