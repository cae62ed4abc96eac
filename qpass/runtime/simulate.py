"""Simulation that tells what the oneDNN int8 engine will compute, as an ordinary float model.

Simulating quantization where the file says it stands is not what the engine does: it also quantizes what an int8 op
*makes*, holds values behind relu in 255 levels, lends scales to neighbours, and has rules of its own for weights. So
the sites are taken from the engine's own plan (`onednn_plan`). What is simulated bit for bit and what is not is written
in docs/onednn-int8.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from qpass.errors import EngineError, UsageError
from qpass.ir.graph import Graph, Use
from qpass.ir.model import Model
from qpass.passes.strip_quant import StripQuant
from qpass.quant.encodings import ENCODINGS, find_sites
from qpass.quant.site import QuantSite, Role
from qpass.quant.spec import QuantSpec
from qpass.rewrite.edit import edit
from qpass.runtime.onednn_plan import EngineOp, Int8Value, OneDNNPlan, onednn_plan
from qpass.runtime.paddle_env import cpu_flags

SIMULATIONS = ("onednn",)
_CONV_RANK = 4
_VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")
_SIGNED, _UNSIGNED = QuantSpec(8), QuantSpec(9)
"""Nine symmetric bits are 0 to 255 where nothing is negative, as behind a relu."""


def simulate(model: Model, target: str = "onednn", *, vnni: bool | None = None) -> Model:
    """A float model that computes what `model` will compute in the int8 engine of `target`.

    Values keep their names: one that the engine holds in int8 has the numbers that its readers see.

    Parameters
    ----------
    model : Model
        A quantized model, with parameters.
    target : {"onednn"}
    vnni : bool, optional
        Whether the CPU multiplies 8-bit integers without loss. Without, oneDNN halves the weights of convolutions
        whose input is signed (`has_vnni`). None is this machine.

    Raises
    ------
    UsageError
        If there is no simulation of that name.
    EngineError
        If the engine refuses the model, or runs nothing of it in int8.
    """
    check_simulation(target)
    return apply_plan(model, onednn_plan(model), vnni=has_vnni() if vnni is None else vnni)


def check_simulation(target: str) -> None:
    """Refuse a target that cannot be simulated.

    Raises
    ------
    UsageError
        Which ones there are.
    """
    if target not in SIMULATIONS:
        raise UsageError(f"there is no simulation of {target!r}, expected one of {', '.join(SIMULATIONS)}")


def has_vnni() -> bool:
    """Whether this CPU has 8-bit dot products: x86 VNNI or AMX.

    Without them oneDNN multiplies pairs of 8-bit numbers into saturating 16 bits, and to keep signed inputs from
    saturating it multiplies their weights by 0.5 (oneDNN, "Nuances of int8 computations").
    """
    return not set(_VNNI).isdisjoint(cpu_flags())


def apply_plan(model: Model, plan: OneDNNPlan, *, vnni: bool) -> Model:
    """The float model that a plan describes.

    Raises
    ------
    EngineError
        If the plan runs nothing in int8.
    """
    if not any(op.int8 for op in plan.ops):
        raise EngineError(
            "the engine runs no op of this model in int8",
            where="oneDNN int8",
            hint="quantize it first; qpass lint --target onednn tells what stands in the way",
        )
    plain = StripQuant()(model)
    weights = {op.weight: _weight(plain, op, plan, vnni) for op in plan.ops}
    graph = plain.graph
    sites = [
        *_sites(graph, plan, plan.stored, every=True),
        *_sites(graph, plan, plan.quantized, every=False),
    ]
    with edit(plain, interface=True) as e:  # fetches of stored values too; the next step gives them back their names
        ENCODINGS["B"].spell(e, graph, sites)
        for name, array in weights.items():
            if name is not None and array is not None:
                e.set_param(name, array)
    return _stored_under_their_names(e.model, plan.stored)


def _stored_under_their_names(model: Model, stored: Mapping[str, Int8Value]) -> Model:
    """Let the name of a stored value be what every reader sees; what it was rounded from becomes ``<name>.float``."""
    graph = model.graph
    ends = {s.value.name: graph.by_uid[s.ops[-1]].output("Y")[0] for s in find_sites(model) if s.value.name in stored}
    with edit(model) as names:
        before = {name: names.fresh(f"{name}.float") for name in ends}
    with edit(model, interface=True) as e:
        for name, other in before.items():
            e.rename(name, other)
    with edit(e.model, interface=True) as e:
        for name, end in ends.items():
            e.rename(end, name)
    return e.model


def _sites(graph: Graph, plan: OneDNNPlan, values: Mapping[str, Int8Value], *, every: bool) -> Iterator[QuantSite]:
    for name, value in values.items():
        if name not in graph.decls:
            continue
        ref = graph.last(name)
        kept = tuple(use for use in graph.uses(ref) if every or _reads_int8(graph, plan, use, name))
        if kept:
            spec = _UNSIGNED if value.unsigned else _SIGNED
            yield QuantSite(Role.ACTIVATION, ref, kept, np.asarray(value.threshold, np.float32), spec, "B", ops=())


def _reads_int8(graph: Graph, plan: OneDNNPlan, use: Use, name: str) -> bool:
    """Whether the engine's op that took in the op of `use` reads the value as int8."""
    op = graph.by_uid[use.op]
    while True:
        made = [plan.maker(n) for _, _, n in op.writes()]
        found = next((m for m in made if m is not None), None)
        if found is not None:
            return name in found.reads
        readers = {u.op for slot, index, _ in op.writes() for u in graph.uses(graph.written(op, slot, index))}
        if len(readers) != 1:
            return False
        op = graph.by_uid[readers.pop()]


def _weight(plain: Model, op: EngineOp, plan: OneDNNPlan, vnni: bool) -> npt.NDArray[np.float32] | None:
    """The weight that the integers of an int8 op stand for, in the model, whose batch norms are not folded.

    The engine multiplies the float weight that it holds by its scales (levels per unit) and rounds to the nearest even
    integer. Multiplied by 0.5 every odd integer lies between two: only the engine's own floats tell which it takes.
    """
    if op.weight is None or op.weight_value is None or op.weight_scales is None or op.weight not in plain.params:
        return None
    held, weight = op.weight_value, plain.params[op.weight].astype(np.float32)
    axis = held.ndim - 1 if op.type == "fc" else 0
    if held.shape != weight.shape or op.weight_scales.size not in (1, held.shape[axis]):
        return None
    scales = _along(op.weight_scales, held.ndim, axis)
    if not (vnni or op.type == "fc" or _input_is_unsigned(op, plan)):
        scales = scales * np.float32(0.5)
    usable = np.isfinite(scales) & (scales > 0)  # a channel of zeros has no usable scale
    scales = np.where(usable, scales, np.float32(1))
    rounded = np.where(usable, np.clip(np.rint(held * scales), -128, 127) / scales, np.float32(0))
    others = tuple(i for i in range(held.ndim) if i != axis)
    square = (weight * weight).sum(axis=others, dtype=np.float64)
    folded = (held * weight).sum(axis=others, dtype=np.float64) / np.where(square > 0, square, 1)
    factor = np.where((square > 0) & (np.abs(folded) > 0) & ~np.isclose(folded, 1, rtol=1e-6), folded, 1)
    made: npt.NDArray[np.float32] = (rounded / _along(factor, held.ndim, axis)).astype(np.float32)
    return made


def _along(values: npt.NDArray[np.floating], rank: int, axis: int) -> npt.NDArray[np.floating]:
    return values.reshape([-1 if i == axis else 1 for i in range(rank)])


def _input_is_unsigned(op: EngineOp, plan: OneDNNPlan) -> bool:
    return any((plan.stored.get(name) or plan.quantized[name]).unsigned for name in op.reads)


def saturating_share(op: EngineOp, plan: OneDNNPlan) -> float:
    """Share of the pairs of weights of an op that may leave 16 bits on a CPU without VNNI, which no simulation tells.

    There products with 8-bit inputs (of 255 levels, signed ones having been shifted) are added pair by pair, input
    channels 2i and 2i+1, in saturating 16 bits: ``vpmaddubsw`` (seen bit for bit with 2.6.2 and 3.3.1). Depthwise
    convolutions add nothing before 32 bits, and convolutions of signed inputs have halved weights.
    """
    held, scales = op.weight_value, op.weight_scales
    if held is None or scales is None:
        return 0.0
    if op.type == "fc":
        rows = (held * scales).T
    elif held.ndim == _CONV_RANK and held.shape[1] > 1 and _input_is_unsigned(op, plan):
        rows = np.moveaxis(held * _along(scales, held.ndim, 0), 1, -1)
    else:
        return 0.0
    levels = np.rint(rows[..., : rows.shape[-1] // 2 * 2])
    sums = levels[..., ::2] + levels[..., 1::2]
    return float(np.mean(np.abs(sums) * 255 > np.iinfo(np.int16).max)) if sums.size else 0.0
