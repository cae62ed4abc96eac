"""Calibration: the thresholds of every layer from one pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qpass.errors import QuantError, UsageError
from qpass.ir.graph import ValueRef
from qpass.ir.model import Model
from qpass.quant.layers import DEFAULT_OP_TYPES, Layer, find_layers, root, select
from qpass.quant.observers import ACTIVATION_ALGOS, WEIGHT_ALGOS, Observer, weight_threshold
from qpass.quant.scales import ScaleTable, key
from qpass.runtime.data import Batches, Data
from qpass.runtime.engine import Engine
from qpass.runtime.engines import get_engine


def calibrate(
    model: Model,
    data: Data,
    *,
    algo: str = "avg",
    weight_algo: str = "channel_wise_abs_max",
    engine: str | Engine = "inference",
    layers: Sequence[str] | None = None,
    op_types: Sequence[str] | None = DEFAULT_OP_TYPES,
    batches: int | None = None,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> ScaleTable:
    """Thresholds of the input activation and the weight of every layer.

    One pass over the data serves all layers: each distinct activation is fetched once a batch, reduced on the host and
    dropped before the next is copied.

    Parameters
    ----------
    model : Model
        A float model.
    data : Data
        Batches for the model's inputs.
    algo : {"abs_max", "avg", "min_max"}
        Observer of activations; see `qpass.quant.observers`.
    weight_algo : {"abs_max", "channel_wise_abs_max"}
        One threshold a weight, or one a channel.
    engine : str or Engine
        What runs the model; thresholds of ``inference`` and ``executor`` agree to 1e-5 relative.
    layers : sequence of str, optional
        Only these layers (names of weights).
    op_types : sequence of str
        Op types whose layers count; None is all.
    batches : int, optional
        Use that many batches only.
    batch_size : int
        Where whole arrays are cut.
    progress : callable, optional
        Called after each batch with the number of batches done.

    Raises
    ------
    UsageError
        If an algorithm or an op type is unknown.
    DataError
        If the data do not fit the model.
    QuantError
        If a layer is unknown, a weight or an activation holds NaN or infinite numbers, or there is no layer at all.
    EngineError
        If the engine refuses the model or fails.
    """
    if algo not in ACTIVATION_ALGOS:
        raise UsageError(f"unknown algo {algo!r}, expected one of {sorted(ACTIVATION_ALGOS)}")
    if weight_algo not in WEIGHT_ALGOS:
        raise UsageError(f"unknown weight_algo {weight_algo!r}, expected one of {sorted(WEIGHT_ALGOS)}")
    chosen = _chosen(find_layers(model, op_types), layers)
    axes = {layer.name: layer.axis if weight_algo == "channel_wise_abs_max" else None for layer in chosen}
    weights = {name: weight_threshold(model.params[name], axis, name) for name, axis in axes.items()}
    refs = _activations(model, chosen)
    source = Batches.of(model, data, batch_size=batch_size, limit=batches)
    observers = {ref: ACTIVATION_ALGOS[algo](key(model.graph, ref)) for ref in refs}
    samples = observe(model, source, observers, get_engine(engine), progress)
    return ScaleTable(
        activations={key(model.graph, ref): o.threshold() for ref, o in observers.items()},
        weights=weights,
        weight_axes=axes,
        algo=algo,
        weight_algo=weight_algo,
        program_digest=model.program_digest(),
        params_digest=model.params_digest(),
        data_digest=source.digest(),
        samples=samples,
        ranges={key(model.graph, ref): o.range() for ref, o in observers.items()},
    )


def observe(
    model: Model,
    source: Batches,
    observers: dict[ValueRef, Observer],
    engine: Engine,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Show every batch's values to their observers; the number of samples seen.

    Raises
    ------
    DataError, EngineError, QuantError
        As the data, the engine and the observers do.
    """
    session = None
    samples = 0
    for done, batch in enumerate(source, 1):
        if session is None:  # only now: data that do not fit are told before the engine is made
            session = engine.session(model, tuple(observers))
        for observer, array in zip(observers.values(), session.stream(batch), strict=True):
            observer.update(array)
        samples += max((a.shape[0] for a in batch.values() if a.ndim), default=1)
        if progress is not None:
            progress(done)
    return samples


def _chosen(found: Sequence[Layer], names: Sequence[str] | None) -> Sequence[Layer]:
    if not found:
        raise QuantError("the model has no layer to quantize", hint="are op_types those of the model?")
    return found if names is None else select(found, names)


def _activations(model: Model, layers: Sequence[Layer]) -> list[ValueRef]:
    """The distinct input activations of the layers, before any quantization, in program order of their first use."""
    graph = model.graph
    uses = sorted((op.activation for layer in layers for op in layer.ops), key=lambda use: graph.position[use.op])
    return list(dict.fromkeys(root(graph, graph.read(graph.by_uid[use.op], use.slot, use.index)) for use in uses))
