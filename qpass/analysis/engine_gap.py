"""How far an engine is from what was simulated, and from the float model, value by value.

Three ways to the same value: the engine runs the quantized file, a float model simulates what it does (`simulate`), and
the float model was there first. Where the engine leaves the simulation, the simulation is wrong, or the engine does
what nobody can simulate; where the simulation leaves the float model, quantization costs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from qpass.analysis.evaluate import check_interface
from qpass.analysis.metric import Comparison
from qpass.errors import EvalError, UsageError
from qpass.ir.dtype import DType
from qpass.ir.graph import ValueRef
from qpass.ir.model import Model
from qpass.passes import StripQuant
from qpass.quant.encodings import find_sites
from qpass.quant.layers import find_layers
from qpass.runtime.data import Batches, Data
from qpass.runtime.engine import Engine, Session
from qpass.runtime.engines import get_engine
from qpass.runtime.onednn_plan import EngineOp, OneDNNPlan, onednn_plan
from qpass.runtime.simulate import apply_plan, has_vnni, saturating_share

_INT8 = "int8"
_PAIRS = (("engine", "simulated"), ("engine", "float"), ("simulated", "float"))
_Found: TypeAlias = Mapping[tuple[str, str, str], float]


@dataclass(frozen=True)
class ValueGap:
    """One value of the model, as the engine, the simulation and the float model compute it.

    Parameters
    ----------
    value : str
        Its name in the model.
    op : str
        Type of the op that makes it in the engine, fused ones under their new names; ``output`` for an output.
    layer : str or None
        Weight of that op.
    int8 : bool
        Whether that op computes in int8.
    threshold : float or None
        Absolute value that maps to the highest level where the engine holds the value in 8 bits; None: it is float.
    unsigned : bool or None
        Whether these are levels 0 to 255.
    saturating : float
        Share of pairs of weights whose products with the largest inputs do not fit the 16 bits into which processors
        without VNNI add them; no simulation tells what that does.
    engine_simulated, engine_float, simulated_float : float or None
        SQNR in dB of the first against the second; None where one of them does not have the value.
    """

    value: str
    op: str
    layer: str | None
    int8: bool
    threshold: float | None
    unsigned: bool | None
    saturating: float
    engine_simulated: float | None
    engine_float: float | None
    simulated_float: float | None


@dataclass(frozen=True)
class EngineGap:
    """The gap of a whole model.

    Parameters
    ----------
    engine : str
    vnni : bool
        Whether this processor multiplies 8-bit integers without loss.
    ops, int8_ops : int
        Ops that the int8 engine makes of the model, and those that compute in int8. For another engine: the layers, 0.
    values : tuple of ValueGap
        In program order.
    outputs : tuple of ValueGap
        The model's outputs.
    notes : tuple of str
        Why figures are missing.
    """

    engine: str
    vnni: bool
    ops: int
    int8_ops: int
    values: tuple[ValueGap, ...]
    outputs: tuple[ValueGap, ...]
    notes: tuple[str, ...]


def engine_gap(
    model: Model, data: Data, *, engine: str = _INT8, float_model: Model | None = None, every: bool = False
) -> EngineGap:
    """Compare what an engine computes with the simulation and with the float model, value by value.

    Parameters
    ----------
    model : Model
        A quantized model.
    data : Data
        Batches of inputs.
    engine : str
        ``int8``: the simulation is `simulate`. Another: it is the file itself, run by the executor.
    float_model : Model, optional
        Default: what `StripQuant` leaves of `model`. Inner values are compared by name, and only where the layers have
        the same names.
    every : bool
        Float ops of the int8 engine as well, not int8 ops alone.

    Raises
    ------
    UsageError
        If `model` is not quantized, or the models differ in inputs or outputs.
    EngineError
        If an engine refuses a model, or the int8 engine runs nothing of it in int8.
    DataError
        If the data do not fit.
    EvalError
        If values are not finite, or there is no data.
    """
    if not find_sites(model):
        raise UsageError("the model is not quantized: there is nothing to simulate", where=model.source.program)
    plain = StripQuant()(model) if float_model is None else float_model
    check_interface(model, plain)
    job = _int8_side(model, every=every) if engine == _INT8 else _float_side(model, engine)
    ours, theirs = ({layer.name for layer in find_layers(each)} for each in (model, plain))
    alike = ours <= theirs
    float_names = tuple(job.ops) if alike else ()
    sources = {
        "engine": job.engine,
        "simulated": (job.simulated,),
        "float": (_Source.of(get_engine(), plain, float_names),),
    }
    found = _measure(Batches.of(model, data), sources)
    foreign = ("the layers of the float model have other names: inner values are not compared with it",)
    return EngineGap(
        engine=engine,
        vnni=has_vnni(),
        ops=len(job.plan.ops),
        int8_ops=sum(op.int8 for op in job.plan.ops),
        values=tuple(_row(job.plan, name, op, found) for name, op in job.ops.items()),
        outputs=tuple(_gap(port.name, "output", _output(i), found) for i, port in enumerate(model.fetches)),
        notes=(*job.notes, *(() if alike else foreign)),
    )


@dataclass(frozen=True)
class _Source:
    """A session, and the keys under which what it fetches counts: outputs by position, then values by name."""

    session: Session
    keys: tuple[str, ...]

    @classmethod
    def of(cls, engine: Engine, model: Model, names: Iterable[str]) -> _Source:
        held = [name for name in names if _is_computed(model, name)]
        keys = (*(_output(i) for i in range(len(model.fetches))), *held)
        return cls(engine.session(model, _refs(model, held)), keys)


@dataclass(frozen=True)
class _Side:
    """What the engine makes of the model, the sessions that show it, and the simulation."""

    plan: OneDNNPlan
    ops: Mapping[str, EngineOp]
    engine: tuple[_Source, ...]
    simulated: _Source
    notes: tuple[str, ...] = ()


def _int8_side(model: Model, *, every: bool) -> _Side:
    plan = onednn_plan(model)
    simulated = apply_plan(model, plan, vnni=has_vnni())
    made = ((next((n for n in op.outputs if _is_computed(model, n)), None), op) for op in plan.ops if op.int8 or every)
    ops = {name: op for name, op in made if name is not None}
    groups, lost = _undisturbed(model, plan, tuple(ops))
    engine = tuple(_Source.of(get_engine(_INT8), model, group) for group in groups or [()])
    notes = (f"to fetch {', '.join(lost)} would change what the engine quantizes: not fetched",) if lost else ()
    return _Side(plan, ops, engine, _Source.of(get_engine(), simulated, ops), notes)


def _float_side(model: Model, engine: str) -> _Side:
    graph = model.graph
    ops: dict[str, EngineOp] = {}
    for layer in find_layers(model):
        for use in layer.ops:
            op = graph.by_uid[use.uid]
            name = op.output(use.output.slot)[0]
            ops[name] = EngineOp(op.type, (name,), frozenset(), layer.name, None, None)
    plan = OneDNNPlan({}, {}, tuple(ops.values()))
    sides = (_Source.of(get_engine(name), model, ops) for name in (engine, "executor"))
    return _Side(plan, ops, (next(sides),), next(sides))


def _undisturbed(model: Model, plan: OneDNNPlan, names: tuple[str, ...]) -> tuple[list[tuple[str, ...]], list[str]]:
    """Groups of values that can be fetched together while the engine quantizes as it does without, and the rest."""
    if plan.same_as(onednn_plan(model, _refs(model, names))):
        return [names], []
    if len(names) <= 1:
        return [], list(names)
    half = len(names) // 2
    groups, lost = _undisturbed(model, plan, names[:half])
    more, also = _undisturbed(model, plan, names[half:])
    return groups + more, lost + also


def _is_computed(model: Model, name: str) -> bool:
    """Whether an op of the root block computes float32 numbers under this name."""
    decl = model.graph.decls.get(name)
    if decl is None or decl.dtype is not DType.FLOAT32 or decl.persistable:
        return False
    writer = model.graph.writer(model.graph.last(name))
    return writer is not None and writer.type != "feed"


def _refs(model: Model, names: Iterable[str]) -> list[ValueRef]:
    return [model.graph.last(name) for name in (*(port.name for port in model.fetches), *names)]


def _output(position: int) -> str:
    return f"output {position}"


def _measure(data: Batches, sources: Mapping[str, Sequence[_Source]]) -> _Found:
    """SQNR in dB by key and pair."""
    sums: dict[tuple[str, str, str], Comparison] = {}
    for batch in data:
        arrays: dict[str, dict[str, np.ndarray]] = {}
        for side, group in sources.items():
            arrays[side] = {}
            for source in group:
                feed = dict(zip(source.session.feed_names, batch.values(), strict=True))
                arrays[side].update(zip(source.keys, source.session.run(feed), strict=True))
        for ours, theirs in _PAIRS:
            for key in arrays[ours].keys() & arrays[theirs].keys():
                sum_ = sums.setdefault((key, ours, theirs), Comparison([key]))
                sum_.add([arrays[theirs][key]], [arrays[ours][key]])
    if not sums:
        raise EvalError("there are no values to compare", hint="the data yielded no batch")
    return {key: each.result().sqnr_db for key, each in sums.items()}


def _row(plan: OneDNNPlan, name: str, op: EngineOp, found: _Found) -> ValueGap:
    held = plan.stored.get(name)
    return dataclasses.replace(
        _gap(name, op.type, name, found),
        layer=op.weight,
        int8=op.int8,
        threshold=held.threshold if held else None,
        unsigned=held.unsigned if held else None,
        saturating=0.0 if has_vnni() else saturating_share(op, plan),
    )


def _gap(value: str, op: str, key: str, found: _Found) -> ValueGap:
    figures = (found.get((key, *pair)) for pair in _PAIRS)
    return ValueGap(value, op, None, False, None, None, 0.0, *figures)
