"""Calibration: the scales of every layer, by any number of algorithms, from one pass over the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from qpass.errors import QuantError, UsageError
from qpass.ir.graph import ValueRef
from qpass.ir.model import Model
from qpass.quant.layers import DEFAULT_OP_TYPES, EMBEDDING, Layer, find_weights, root, select
from qpass.quant.observer_options import DEFAULT_OPTIONS, ObserverOptions
from qpass.quant.observers import algorithm, new_record, scale_of, statistics
from qpass.quant.points import find_points
from qpass.quant.recipe import Recipe
from qpass.quant.record import Record
from qpass.quant.scales import ScaleTable, key
from qpass.quant.site import Role
from qpass.quant.skip import match_all
from qpass.quant.weight_observers import per_channel, weight_scale
from qpass.runtime.data import Batches, Data
from qpass.runtime.engine import Engine
from qpass.runtime.engines import get_engine


def calibrate(
    model: Model,
    data: Data,
    *,
    algo: str = "avg",
    weight_algo: str = "channel_wise_abs_max",
    compat: str | None = None,
    options: ObserverOptions = DEFAULT_OPTIONS,
    weight_bits: int = 8,
    engine: str | Engine = "inference",
    layers: Sequence[str] | None = None,
    op_types: Sequence[str] | None = DEFAULT_OP_TYPES,
    values: Sequence[ValueRef] | None = None,
    recipe: Recipe | None = None,
    batches: int | None = None,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> ScaleTable:
    """Scales of the input activation and the weight of every layer.

    `calibrate_many` with one algorithm; see there.
    """
    return calibrate_many(
        model,
        data,
        algos=(algo,),
        weight_algo=weight_algo,
        compat=compat,
        options=options,
        weight_bits=weight_bits,
        engine=engine,
        layers=layers,
        op_types=op_types,
        values=values,
        recipe=recipe,
        batches=batches,
        batch_size=batch_size,
        progress=progress,
    )[algo]


def calibrate_many(
    model: Model,
    data: Data,
    *,
    algos: Sequence[str],
    weight_algo: str = "channel_wise_abs_max",
    compat: str | None = None,
    options: ObserverOptions = DEFAULT_OPTIONS,
    weight_bits: int = 8,
    engine: str | Engine = "inference",
    layers: Sequence[str] | None = None,
    op_types: Sequence[str] | None = DEFAULT_OP_TYPES,
    values: Sequence[ValueRef] | None = None,
    recipe: Recipe | None = None,
    batches: int | None = None,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> dict[str, ScaleTable]:
    """Scales of the input activation and the weight of every layer, by several algorithms at once.

    One pass over the data serves all layers and all algorithms: each distinct activation is fetched once a batch,
    reduced on the host and dropped before the next is copied. Paddle's own hist and KL (``compat="paddle"``) go over
    the data a second time.

    Parameters
    ----------
    model : Model
        A float model.
    data : Data
        Batches for the model's inputs.
    algos : sequence of str
        Algorithms of activations; see `qpass.quant.observers`.
    weight_algo : {"abs_max", "channel_wise_abs_max", "mse", "channel_wise_mse"}
        One scale a weight, or one a channel.
    compat : {None, "paddle"}
        Whose version of the algorithms.
    options : ObserverOptions
    weight_bits : int
        For how many bits ``mse`` and ``channel_wise_mse`` are best.
    engine : str or Engine
        What runs the model; scales of ``inference`` and ``executor`` agree to 1e-5 relative.
    layers : sequence of str, optional
        Only these layers (names of weights).
    op_types : sequence of str
        Op types whose layers count; None is all.
    values : sequence of ValueRef, optional
        Activations to observe in place of the layers' inputs.
    recipe : Recipe, optional
        What will be quantized, in place of `op_types`, `values` and `weight_bits`. What it skips is observed too: other
        skip lists need no new calibration.
    batches : int, optional
        Use that many batches only.
    batch_size : int
        Where whole arrays are cut.
    progress : callable, optional
        Called after each batch with the number of batches done, over both passes where there are two.

    Returns
    -------
    dict
        A table an algorithm, by its name.

    Raises
    ------
    UsageError
        If an algorithm, an option or an op type is unknown, or `values` come with a recipe.
    DataError
        If the data do not fit the model, or cannot be gone over twice where that is needed.
    QuantError
        If a layer is unknown, a weight or an activation holds NaN or infinite numbers, or there is no layer at all.
    EngineError
        If the engine refuses the model or fails.
    """
    if not algos:
        raise UsageError("no algo is given")
    rules = {algo: algorithm(algo, options, compat).rule for algo in algos}
    channels = per_channel(weight_algo)
    ObserverOptions(quant_bits=weight_bits)
    bits: Mapping[str, int] = {}
    if recipe is not None:
        if values is not None:
            raise UsageError("a recipe says which values to observe, and values are given too", hint="give one of them")
        op_types, values, bits = recipe.op_types, *_of_recipe(model, recipe)
    chosen = _chosen(find_weights(model, op_types), layers)
    axes = {layer.name: layer.axis if channels else None for layer in chosen}
    weights = {
        name: weight_scale(model.params[name], axis, name, algo=weight_algo, bits=bits.get(name, weight_bits))
        for name, axis in axes.items()
    }
    refs = _activations(model, chosen) if values is None else values
    source = Batches.of(model, data, batch_size=batch_size, limit=batches)
    records = {ref: new_record(key(model.graph, ref), algos, options, compat) for ref in refs}
    samples = observe(model, source, records, get_engine(engine), progress)
    known = {record.name: statistics(record) for record in records.values()}
    digests = model.program_digest(), model.params_digest(), source.digest()
    return {
        algo: ScaleTable(
            activations={record.name: scale_of(record, rule) for record in records.values()},
            weights=weights,
            weight_axes=axes,
            algo=algo,
            weight_algo=weight_algo,
            program_digest=digests[0],
            params_digest=digests[1],
            data_digest=digests[2],
            samples=samples,
            statistics=known,
            compat=compat,
            options=options,
        )
        for algo, rule in rules.items()
    }


def observe(
    model: Model,
    source: Batches,
    records: Mapping[ValueRef, Record],
    engine: Engine,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Show every batch's values to their records, as often as they need it; the number of samples seen.

    Raises
    ------
    DataError, EngineError, QuantError
        As the data, the engine and the records do.
    """
    session = None
    samples = done = 0
    for turn in range(max((record.passes for record in records.values()), default=1)):
        if turn:
            for record in records.values():
                record.next_pass()
        for batch in source:
            if session is None:  # only now: data that do not fit are told before the engine is made
                session = engine.session(model, tuple(records))
            for record, array in zip(records.values(), session.stream(batch), strict=True):
                record.observe(array)
            if not turn:
                samples += max((a.shape[0] for a in batch.values() if a.ndim), default=1)
            done += 1
            if progress is not None:
                progress(done)
    return samples


def _of_recipe(model: Model, recipe: Recipe) -> tuple[Sequence[ValueRef], Mapping[str, int]]:
    """The activations that a recipe needs, and the bits of each weight, the most where there are several."""
    match_all(model, recipe.skip)
    points = find_points(model, dataclasses.replace(recipe, skip=()))
    weights = sorted((site.spec.bits, site.value.name) for site in points.sites if site.role is Role.WEIGHT)
    return points.observed, {name: bits for bits, name in weights}


def _chosen(found: Sequence[Layer], names: Sequence[str] | None) -> Sequence[Layer]:
    if not found:
        raise QuantError("the model has no layer to quantize", hint="are op_types those of the model?")
    return found if names is None else select(found, names)


def _activations(model: Model, layers: Sequence[Layer]) -> list[ValueRef]:
    """The distinct input activations of the layers, before any quantization, in program order of their first use."""
    graph = model.graph
    multiplied = (layer for layer in layers if layer.family != EMBEDDING)
    uses = sorted((op.activation for layer in multiplied for op in layer.ops), key=lambda use: graph.position[use.op])
    return list(dict.fromkeys(root(graph, graph.read(graph.by_uid[use.op], use.slot, use.index)) for use in uses))
