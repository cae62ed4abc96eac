"""Statistics of weights and input activations, float against fake-quantized, for histograms and box plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from qpass.analysis.metric import noise_to_signal, sqnr_db, sum_of_products
from qpass.errors import QuantError, UsageError
from qpass.ir.graph import ValueRef
from qpass.ir.model import Model
from qpass.quant.encodings import find_sites
from qpass.quant.fakequant import dequantize, fake_quantize
from qpass.quant.layers import DEFAULT_OP_TYPES, Layer, find_layers, select
from qpass.quant.scales import ScaleTable, key
from qpass.quant.site import Role, Storage
from qpass.quant.spec import QuantSpec
from qpass.runtime.data import Batches, Data
from qpass.runtime.engine import Engine
from qpass.runtime.engines import get_engine

BINS = 128
"""About how many bins a histogram has."""

_FINE = 8192
"""Bins from which the quantiles of activations are read: within the range over this number of the two values between
which a quantile lies."""

QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
"""The quantiles of `TensorStatistics.quantiles`."""


@dataclass(frozen=True, eq=False)
class TensorStatistics:
    """What one tensor holds in float, and what quantization makes of it.

    Parameters
    ----------
    layer : str
        The layer the tensor belongs to: the name of its weight.
    role : {"weight", "activation"}
        The layer's weight, or its input.
    name : str
        The tensor's own name.
    threshold : float
        Absolute value that maps to the highest level, in the tensor's own units; the largest one per channel.
    minimum, maximum, mean, std : float
        Of the float values.
    quantiles : tuple of float
        Of the float values, at `QUANTILES`.
    bin_edges : np.ndarray
        float64, shape (bins + 1,), evenly spaced over the float values; where one threshold rules, each bin holds a
        whole number of levels, or the quantized counts would show a comb that is not there.
    float_counts, quant_counts : np.ndarray
        int64, shape (bins,): how many float and fake-quantized values fall into each bin; what lies beyond the ends
        counts in the outermost bins.
    error_rms : float
        Root mean square of (fake-quantized - float).
    sqnr_db : float
        ``10 log10(sum(float^2) / sum((fake-quantized - float)^2))``, limited as in `qpass.analysis.metric`.
    """

    layer: str
    role: Literal["weight", "activation"]
    name: str
    threshold: float
    minimum: float
    maximum: float
    mean: float
    std: float
    quantiles: tuple[float, ...]
    bin_edges: np.ndarray
    float_counts: np.ndarray
    quant_counts: np.ndarray
    error_rms: float
    sqnr_db: float


def collect_statistics(
    model: Model,
    data: Data,
    *,
    scales: ScaleTable | None = None,
    layers: Sequence[str] = (),
    engine: str | Engine = "inference",
    op_types: Sequence[str] = DEFAULT_OP_TYPES,
    weight_bits: int = 8,
    activation_bits: int = 8,
) -> tuple[TensorStatistics, ...]:
    """Statistics of the weights and input activations of layers, over all batches in constant memory.

    The data are gone over twice: once for the ranges, once for everything else.

    Parameters
    ----------
    model : Model
        A float model together with `scales`, or a quantized one.
    data : Data
        Batches for the model's inputs.
    scales : ScaleTable, optional
        How the layers of a float model would be quantized. None: as the model says.
    layers : sequence of str
        Layers by weight name; empty is every layer with a threshold.
    engine : str or Engine
    op_types : sequence of str
        Op types whose layers count.
    weight_bits, activation_bits : int
        With `scales`.

    Returns
    -------
    tuple of TensorStatistics
        In program order of the layers, the weight before the activations. Stored integers count as the floats they
        stand for: without error.

    Raises
    ------
    UsageError
        If the model is not quantized and there are no scales.
    QuantError
        If a layer does not exist, or a value is NaN or infinite.
    DataError
        If the data do not fit the model.
    """
    chosen = find_layers(model, op_types)
    chosen = select(chosen, layers) if layers else chosen
    if scales is None:
        points = _points_of_sites(model, chosen)
    else:
        points = _points_of_table(model, chosen, scales, QuantSpec(weight_bits), QuantSpec(activation_bits))
    collected: dict[_Source, _Collector] = {point.source: _Collector(point) for point in points}
    for point in points:
        if point.weight is not None:
            collected[point.source].look(point.weight)
            collected[point.source].count(point.weight)
    _collect_activations(model, Batches.of(model, data), [c for c in collected.values() if c.is_activation], engine)
    return tuple(collected[point.source].statistics(point) for point in points)


_Source = tuple[ValueRef, float, QuantSpec]


@dataclass(frozen=True, eq=False)
class _Point:
    """One tensor of one layer, and how it is quantized."""

    layer: str
    role: Literal["weight", "activation"]
    name: str
    value: ValueRef
    threshold: npt.NDArray[np.float32]
    spec: QuantSpec
    weight: np.ndarray | None = None

    @property
    def source(self) -> _Source:
        """What is the same for layers that read one quantized activation."""
        return self.value, float(np.max(self.threshold)), self.spec


def _points_of_table(
    model: Model, layers: Sequence[Layer], table: ScaleTable, weights: QuantSpec, activations: QuantSpec
) -> list[_Point]:
    graph = model.graph
    points: list[_Point] = []
    for layer in layers:
        if layer.name not in table.weights:
            continue
        spec = QuantSpec(weights.bits, table.weight_axes[layer.name])
        weight = model.params[layer.name]
        points.append(_Point(layer.name, "weight", layer.name, layer.weight, table.weights[layer.name], spec, weight))
        for ref in dict.fromkeys(graph.read(graph.by_uid[op.uid], op.activation.slot) for op in layer.ops):
            name = key(graph, ref)
            threshold = np.asarray(table.activations[name], np.float32)
            points.append(_Point(layer.name, "activation", name, ref, threshold, activations))
    return points


def _points_of_sites(model: Model, layers: Sequence[Layer]) -> list[_Point]:
    sites = [site for site in find_sites(model) if not site.observer_only and np.isfinite(site.threshold).all()]
    if not sites:
        raise UsageError("the model is not quantized", hint="give the scales that calibrate found for it")
    points: list[_Point] = []
    for layer in layers:
        weights, activations = ({op.weight for op in layer.ops}, {op.activation for op in layer.ops})
        for site in sites:
            if site.role is Role.WEIGHT and not weights.isdisjoint(site.uses):
                held = model.params[site.value.name]
                weight = held if site.storage is Storage.FLOAT else dequantize(held, site.threshold, site.spec)
                points.append(_Point(layer.name, "weight", layer.name, site.value, site.threshold, site.spec, weight))
        for site in sites:
            if site.role is Role.ACTIVATION and not activations.isdisjoint(site.uses):
                name = key(model.graph, site.value)
                points.append(_Point(layer.name, "activation", name, site.value, site.threshold, site.spec))
    return points


def _collect_activations(model: Model, data: Batches, collectors: Sequence[_Collector], engine: str | Engine) -> None:
    if not collectors:
        return
    refs = list(dict.fromkeys(collector.point.value for collector in collectors))
    session = get_engine(engine).session(model, refs)
    for step in (_Collector.look, _Collector.count):
        for batch in data:
            for ref, array in zip(refs, session.stream(batch), strict=True):
                for collector in collectors:
                    if collector.point.value == ref:
                        step(collector, array)


class _Collector:
    """Statistics of one tensor: first `look` at all of it, then `count` all of it."""

    def __init__(self, point: _Point) -> None:
        self.point = point
        self.is_activation = point.weight is None
        self._n = 0
        self._mean = self._squares = 0.0
        self._low, self._high = np.inf, -np.inf
        self._edges: npt.NDArray[np.float64] | None = None
        self._signal = self._noise = 0.0

    def look(self, array: np.ndarray) -> None:
        """Range, mean and spread; batches are merged as Chan, Golub and LeVeque (1979) do it."""
        x = array.astype(np.float64).ravel()
        if not np.isfinite(x).all():
            raise QuantError("there are NaN or infinite values", where=f"{self.point.role} {self.point.name!r}")
        if not x.size:
            return
        self._low, self._high = min(self._low, float(x.min())), max(self._high, float(x.max()))
        mean = float(x.mean())
        apart, n = mean - self._mean, self._n + x.size
        self._squares += float(((x - mean) ** 2).sum()) + apart**2 * self._n * x.size / n
        self._mean += apart * x.size / n
        self._n = n

    def count(self, array: np.ndarray) -> None:
        """Histograms and quantization error."""
        if self._edges is None:
            self._begin()
        assert self._edges is not None
        quantized = fake_quantize(array, self.point.threshold, self.point.spec)
        for values, counts in ((array, self._float), (quantized, self._quant)):
            counts += _histogram(values, self._edges[0], self._edges[-1], len(counts))
        if self.is_activation:
            self._fine += _histogram(array, self._low, self._high, _FINE)
        else:
            self._quantiles = tuple(float(q) for q in np.quantile(array.astype(np.float64), QUANTILES))
        x = array.astype(np.float64).ravel()
        error = quantized.astype(np.float64).ravel() - x
        self._signal += sum_of_products(x, x)
        self._noise += sum_of_products(error, error)

    def statistics(self, point: _Point) -> TensorStatistics:
        """What was found, for one of the layers that read the tensor."""
        if self._edges is None:
            raise QuantError("it has no values", where=f"{point.role} {point.name!r}")
        return TensorStatistics(
            layer=point.layer,
            role=point.role,
            name=point.name,
            threshold=float(np.max(point.threshold)),
            minimum=self._low,
            maximum=self._high,
            mean=self._mean,
            std=float(np.sqrt(self._squares / self._n)),
            quantiles=self._fine_quantiles() if self.is_activation else self._quantiles,
            bin_edges=self._edges,
            float_counts=self._float,
            quant_counts=self._quant,
            error_rms=float(np.sqrt(self._noise / self._n)),
            sqnr_db=sqnr_db(noise_to_signal(self._noise, self._signal)),
        )

    def _begin(self) -> None:
        point = self.point
        step = float(point.threshold) / point.spec.qmax if np.size(point.threshold) == 1 else 0.0
        self._edges = _edges(self._low, self._high, step)
        self._float = np.zeros(len(self._edges) - 1, np.int64)
        self._quant = np.zeros(len(self._edges) - 1, np.int64)
        self._fine = np.zeros(_FINE, np.int64)

    def _fine_quantiles(self) -> tuple[float, ...]:
        below = np.concatenate([[0], np.cumsum(self._fine)]) / self._n
        edges = np.linspace(self._low, self._high, _FINE + 1)
        inner = np.interp(QUANTILES[1:-1], below, edges)
        return self._low, *(float(q) for q in inner), self._high


def _edges(low: float, high: float, step: float) -> npt.NDArray[np.float64]:
    """About `BINS` bins over [low, high], each of a whole number of quantization steps (0: no single step)."""
    if not high > low:
        return np.array([low - 0.5, low + 0.5])
    if not 0 < step <= 4 * (high - low) / BINS:
        return np.linspace(low, high, BINS + 1)
    levels = max(1, round((high - low) / (step * BINS)))
    first, last = (np.floor((end / step + 0.5) / levels) for end in (low, high))
    return (np.arange(first, last + 2) * levels - 0.5) * step


def _histogram(values: np.ndarray, low: float, high: float, bins: int) -> npt.NDArray[np.int64]:
    if not high > low:
        return np.array([values.size] + [0] * (bins - 1), np.int64)
    counts, _ = np.histogram(np.clip(values, low, high), bins, (low, high))
    return counts.astype(np.int64)
