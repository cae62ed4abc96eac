"""Local errors: what quantizing a layer alone does to the output of its own ops, and where that noise comes from.

All layers' quantized twins hang off one float program, so that one pass over the data measures all of them. It is the
program before any engine's passes, run by the executor: outputs are those of the ops themselves, without what an engine
fuses into them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from qpass.analysis.metric import noise_to_signal, sqnr_db
from qpass.analysis.skeleton import Skeleton, find_skeleton
from qpass.ir.graph import ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Attr, Op
from qpass.quant.encodings import find_sites
from qpass.quant.fakequant import abs_max, fake_quantize
from qpass.quant.layers import Layer, find_layers, select
from qpass.quant.noise import NoiseSplit, split_noise
from qpass.quant.site import QuantSite
from qpass.quant.toggles import Switched, Toggles
from qpass.rewrite.merge import merge
from qpass.runtime.engine import Engine
from qpass.runtime.executor import ExecutorEngine
from qpass.runtime.shapes import infer_shapes


@dataclass(frozen=True)
class Subject:
    """What an analysis is about.

    Parameters
    ----------
    quantized : Model
        All layers quantized, in any encoding.
    weights : Mapping[str, np.ndarray]
        By layer: the weight in float.
    layers : tuple of Layer
        By the names that they have in `quantized`; in program order.
    """

    quantized: Model
    weights: Mapping[str, np.ndarray]
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class LocalError:
    """Of one layer, over all its ops and all data.

    Parameters
    ----------
    signal, noise : float
        Sums of squares of the float outputs of its ops, and of their change when the layer alone is quantized.
    activation, weight : NoiseSplit
        Noise of its input activation and of its weight; empty where they are not quantized.
    """

    signal: float = 0.0
    noise: float = 0.0
    activation: NoiseSplit = field(default_factory=NoiseSplit)
    weight: NoiseSplit = field(default_factory=NoiseSplit)

    @property
    def sqnr_db(self) -> float:
        """Signal-to-noise ratio at the output, in dB, limited as in `qpass.analysis.metric`."""
        return sqnr_db(noise_to_signal(self.noise, self.signal))


@dataclass(frozen=True)
class Twins:
    """A float program, and beside each of its layers the quantized twin on the same float inputs.

    Parameters
    ----------
    model : Model
        Returns what `outputs` count.
    outputs : Mapping[str, tuple of tuple of int]
        By layer, for each of its ops: the column of the float output and that of the quantized one.
    inputs : Mapping[str, tuple of int]
        By layer, for each of its ops: the column of the float input.
    finals : tuple of int
        The columns of the float model's own outputs.
    """

    model: Model
    outputs: Mapping[str, tuple[tuple[int, int], ...]]
    inputs: Mapping[str, tuple[int, ...]]
    finals: tuple[int, ...]


def find_toggles_of(subject: Subject) -> Toggles | None:
    """The toggles of the program as it stands, before engines' passes; None where layers cannot be switched."""
    skeleton = skeleton_of(subject, ExecutorEngine())
    return None if skeleton is None else skeleton.toggles


def skeleton_of(subject: Subject, engine: Engine, *, fast: bool = False) -> Skeleton | None:
    """As `find_skeleton`."""
    return find_skeleton(subject.quantized, subject.weights, subject.layers, engine, fast=fast)


def make_twins(toggles: Toggles, layers: Sequence[str]) -> Twins:
    """One program of the float model and the twins of these layers."""
    whole = toggles.variant(Switched.both(()))
    found, graph = select(find_layers(whole), layers), whole.graph
    results = {
        layer.name: [graph.written(graph.by_uid[op.uid], op.output.slot, op.output.index) for op in layer.ops]
        for layer in found
    }
    reads = {
        layer.name: [graph.read(graph.by_uid[op.uid], op.activation.slot, op.activation.index) for op in layer.ops]
        for layer in found
    }
    refs = list(dict.fromkeys(ref for each in (results, reads) for of_layer in each.values() for ref in of_layer))
    twins = [fetching(toggles.variant(Switched.both((name,))), results[name]) for name in results]
    merged = merge([fetching(whole, refs), whole, *twins])
    column = dict(zip(refs, merged.columns[0], strict=True))
    return Twins(
        merged.model,
        {
            name: tuple(zip([column[ref] for ref in results[name]], columns, strict=True))
            for name, columns in zip(results, merged.columns[2:], strict=True)
        },
        {name: tuple(column[ref] for ref in of_layer) for name, of_layer in reads.items()},
        merged.columns[1],
    )


def fetching(model: Model, refs: Sequence[ValueRef]) -> Model:
    """The model with these values as its outputs, each fetched right behind the op that writes it."""
    graph = model.graph
    old = next(op for op in graph.ops if op.type == "fetch")
    uid = 1 + max(op.uid for op in graph.ops)
    behind: dict[int, list[Op]] = {}
    for column, ref in enumerate(refs):
        writer = graph.writer(ref)
        assert writer is not None, f"{ref} is computed by no op"
        attrs = {**old.attrs, "col": Attr.int(column)}
        fetch = Op("fetch", (("X", (ref.name,)),), old.outputs, attrs, old.extra, uid + column)
        behind.setdefault(writer.uid, []).append(fetch)
    ops = [each for op in graph.ops if op.type != "fetch" for each in (op, *behind.get(op.uid, ()))]
    return model.replaced(graph=dataclasses.replace(graph, ops=tuple(ops)))


def local_errors(
    subject: Subject,
    names: Sequence[str],
    feeds: Callable[[], Iterable[Mapping[str, np.ndarray]]],
    memory_bytes: int,
) -> Mapping[str, LocalError]:
    """The local errors of some layers, over all data; none where layers cannot be switched one by one.

    Parameters
    ----------
    subject : Subject
    names : sequence of str
        The layers.
    feeds : callable
        Gives the batches, each time it is called.
    memory_bytes : int
        For what the twins return for one batch; with less, the data are run several times, for some layers each.

    Raises
    ------
    EngineError, DataError
        As the engine does.
    """
    toggles = find_toggles_of(subject)
    if toggles is None or not names:
        return {}
    sites = _sites_of_operands(subject)
    errors = {name: LocalError(weight=_weight_noise(name, toggles, sites[name])) for name in names}
    first = next(iter(feeds()), None)
    for portion in () if first is None else _portions(toggles, names, first, memory_bytes):
        twins = make_twins(toggles, portion)
        session = ExecutorEngine().session(twins.model)
        for feed in feeds():
            outputs = session.run(feed)
            for name in portion:
                errors[name] = _with_batch(errors[name], outputs, twins, name, sites[name])
    return errors


_Operands = tuple[QuantSite | None, QuantSite | None]
"""The sites of the weight and of the input activation of one op."""


def _sites_of_operands(subject: Subject) -> Mapping[str, tuple[_Operands, ...]]:
    """By layer, for each of its ops: how its operands are quantized."""
    by_use = {use: site for site in find_sites(subject.quantized) if not site.observer_only for use in site.uses}
    return {
        layer.name: tuple((by_use.get(op.weight), by_use.get(op.activation)) for op in layer.ops)
        for layer in select(find_layers(subject.quantized), [layer.name for layer in subject.layers])
    }


def _weight_noise(name: str, toggles: Toggles, sites: Sequence[_Operands]) -> NoiseSplit:
    site = next((weight for weight, _ in sites if weight is not None), None)
    if site is None:
        return NoiseSplit()
    weight = toggles.float_weights[name]
    threshold = site.threshold if np.isfinite(site.threshold).all() else abs_max(weight, site.spec.axis)
    return split_noise(weight, toggles.model.params[name], threshold, site.spec)


def _with_batch(
    error: LocalError, outputs: Sequence[np.ndarray], twins: Twins, name: str, sites: Sequence[_Operands]
) -> LocalError:
    """The sums with one more batch."""
    signal, noise, activation = error.signal, error.noise, error.activation
    for column, twin in twins.outputs[name]:
        in_float = outputs[column].astype(np.float64)
        signal += float(np.square(in_float).sum())
        noise += float(np.square(outputs[twin] - in_float).sum())
    for column, (_, site) in zip(twins.inputs[name], sites, strict=True):
        if site is not None:
            x = outputs[column]
            threshold = site.threshold if np.isfinite(site.threshold).all() else abs_max(x, None)
            activation += split_noise(x, fake_quantize(x, threshold, site.spec), threshold, site.spec)
    return LocalError(signal, noise, activation, error.weight)


def _portions(
    toggles: Toggles, layers: Sequence[str], feed: Mapping[str, np.ndarray], memory_bytes: int
) -> Iterator[list[str]]:
    """Cut layers into runs of which each returns no more than the memory takes; one layer at least."""
    names: list[str] = []
    total = 0
    for name, size in value_bytes(toggles, layers, feed).items():
        if names and total + size > memory_bytes:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    yield names


def value_bytes(toggles: Toggles, layers: Sequence[str], feed: Mapping[str, np.ndarray]) -> Mapping[str, int]:
    """By layer: bytes of the inputs of its ops, of their outputs and of those of their twins, for one batch."""
    whole = toggles.variant(Switched.both(()))
    shapes = infer_shapes(whole, {name: array.shape for name, array in feed.items()})
    sizes = {}
    for layer in select(find_layers(whole), layers):
        ops = [(whole.graph.by_uid[op.uid], op) for op in layer.ops]
        results = [one.output(op.output.slot)[op.output.index] for one, op in ops]
        reads = [one.input(op.activation.slot)[op.activation.index] for one, op in ops]
        sizes[layer.name] = sum(_VALUE_BYTES * math.prod(shapes.get(name, ())) for name in (*results, *results, *reads))
    return sizes


_VALUE_BYTES = 4
"""Of a float32."""
