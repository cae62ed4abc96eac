"""Engines by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

from qpass.errors import EngineError
from qpass.runtime.engine import Engine
from qpass.runtime.executor import ExecutorEngine
from qpass.runtime.inference import PaddleInferenceEngine

ENGINES: Mapping[str, Callable[[], Engine]] = {
    "inference": PaddleInferenceEngine,
    "executor": ExecutorEngine,
    "int8": lambda: PaddleInferenceEngine(int8=True),
    "gpu": lambda: PaddleInferenceEngine(device="gpu"),
}


def get_engine(name: str | Engine = "inference") -> Engine:
    """The engine of that name; an engine is given back as it is.

    Parameters
    ----------
    name : str or Engine
        ``inference`` (Paddle Inference on CPU with oneDNN), ``int8`` (the same with its int8 kernels, for quantized
        models), ``executor`` (the reference), ``gpu``.

    Raises
    ------
    EngineError
        If there is no such engine, or it cannot be made here.
    """
    if not isinstance(name, str):
        return name
    if name not in ENGINES:
        near = difflib.get_close_matches(name, ENGINES, 1)
        raise EngineError(
            f"unknown engine {name!r}, expected one of {sorted(ENGINES)}",
            hint=f"did you mean {near[0]!r}?" if near else None,
        )
    return ENGINES[name]()
