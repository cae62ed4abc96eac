"""Loading and saving models."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qpass.formats import pdiparams, pdmodel
from qpass.ir.model import Model, Params, Source
from qpass.ir.verify import persistable_tensors, verify


def load(path: str | Path) -> Model:
    program = Path(path)
    blocks, extra = pdmodel.decode(program.read_bytes(), str(program))
    model = Model(blocks, Params(), extra, Source("pdmodel", str(program), None))
    weights = program.with_suffix(".pdiparams")
    if weights.is_file():
        buffer = np.memmap(weights, np.uint8, "r")
        model = model.replaced(params=Params(pdiparams.decode(buffer, list(persistable_tensors(model)), str(weights))))
    return verify(model)
