"""Engines for measuring quantized models beside float ones: each model runs the way it would be deployed."""

from __future__ import annotations

from collections.abc import Sequence

from qpass.errors import UsageError
from qpass.ir.graph import ValueRef
from qpass.ir.model import Model
from qpass.passes.strip_quant import StripQuant
from qpass.quant.encodings import find_sites
from qpass.runtime.engine import Engine, Session
from qpass.runtime.engines import get_engine
from qpass.runtime.onednn_plan import onednn_plan
from qpass.runtime.simulate import apply_plan, check_simulation, has_vnni

_INT8 = "int8"
_FLOAT = "inference"


def evaluating_engine(engine: str | Engine, simulate: str | None = None) -> Engine:
    """The engine that measures models, quantized and float ones.

    Parameters
    ----------
    engine : str or Engine
        ``int8`` runs quantized models in int8, and float models as ``inference`` does.
    simulate : {None, "onednn"}
        Run in place of a quantized model what `qpass.simulate` makes of it, on `engine`.

    Raises
    ------
    UsageError
        If there is no such simulation, or `engine` is ``int8``, which runs no simulation.
    EngineError
        If there is no such engine.
    """
    made = get_engine(engine)
    if simulate is None:
        return Int8Evaluation(made) if made.name == _INT8 else made
    check_simulation(simulate)
    if made.name == _INT8:
        raise UsageError(
            f"simulate={simulate!r} does not go with the engine int8, which runs the quantized model itself",
            hint="leave one of them out",
        )
    return SimulatedEvaluation(made, simulate)


def float_engine(engine: str) -> str:
    """The engine for float models, calibration above all, of those who evaluate on `engine`."""
    return _FLOAT if engine == _INT8 else engine


class Int8Evaluation:
    """Runs quantized models on an int8 engine and float models on the default engine.

    Parameters
    ----------
    int8 : Engine
    """

    def __init__(self, int8: Engine) -> None:
        self._int8 = int8
        self.name = int8.name

    def session(self, model: Model, fetch: Sequence[ValueRef] | None = None) -> Session:
        """Make `model` ready to run.

        Raises
        ------
        EngineError
            If the engine refuses the model.
        """
        engine = self._int8 if find_sites(model) else get_engine(_FLOAT)
        return engine.session(model, fetch)


class SimulatedEvaluation:
    """Runs in place of a quantized model the float model that computes what an int8 engine would.

    A quantized model of which that engine runs nothing in int8 runs without its quantization, as it would there.

    Parameters
    ----------
    engine : Engine
    target : str
        What is simulated.
    """

    def __init__(self, engine: Engine, target: str) -> None:
        self._engine = engine
        self.name = f"{engine.name}, simulating {target}"

    def session(self, model: Model, fetch: Sequence[ValueRef] | None = None) -> Session:
        """Make what simulates `model` ready to run; values to fetch are looked up by name.

        Raises
        ------
        EngineError
            If an engine refuses the model.
        """
        if not find_sites(model):
            return self._engine.session(model, fetch)
        plan = onednn_plan(model)
        int8 = any(op.int8 for op in plan.ops)
        made = apply_plan(model, plan, vnni=has_vnni()) if int8 else StripQuant()(model)
        refs = None if fetch is None else [made.graph.last(ref.name) for ref in fetch]
        return self._engine.session(made, refs)
