"""Moments of the inputs of layers: one pass over the data, in memory that does not grow with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from qpass.errors import QuantError
from qpass.ir.graph import ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Op
from qpass.quant.layers import DEFAULT_OP_TYPES, Layer, find_layers, root, select
from qpass.quant.moments import LayerMoments, MomentTable
from qpass.quant.products import to_patches, to_rows
from qpass.runtime.data import Batches, Data
from qpass.runtime.engine import Engine
from qpass.runtime.engines import get_engine


def collect_moments(
    model: Model,
    data: Data,
    *,
    engine: str | Engine = "inference",
    layers: Sequence[str] | None = None,
    op_types: Sequence[str] | None = DEFAULT_OP_TYPES,
    second: bool = True,
    batches: int | None = None,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> MomentTable:
    """Moments of what every layer multiplies by: what `AdaRound` and `BiasCorrection` ask for.

    Each distinct activation is fetched once a batch and dropped before the next is copied. A batch's sums are taken in
    the dtype of the activation and added up in float64.

    Parameters
    ----------
    model : Model
        The float model, as it stands before quantization (batch norms folded, ranges equalized).
    data : Data
        Batches for the model's inputs.
    engine : str or Engine
        What runs the model.
    layers : sequence of str, optional
        Only these layers (names of weights).
    op_types : sequence of str
        Op types whose layers count; None is all.
    second : bool
        Whether to gather second moments too; `BiasCorrection` needs none.
    batches : int, optional
        Use that many batches only.
    batch_size : int
        Where whole arrays are cut.
    progress : callable, optional
        Called after each batch with the number of batches done.

    Raises
    ------
    UsageError
        If an op type is unknown.
    DataError
        If the data do not fit the model.
    QuantError
        If a layer is unknown, cannot be written as a product, or its input holds NaN or infinite numbers.
    EngineError
        If the engine refuses the model or fails.
    """
    found = find_layers(model, op_types)
    chosen = found if layers is None else select(found, layers)
    sums = {layer.name: _Sums(model, layer, second) for layer in chosen}
    readers = _readers(model, chosen)
    source = Batches.of(model, data, batch_size=batch_size, limit=batches)
    session, samples = None, 0
    for done, batch in enumerate(source, 1):
        if session is None:  # only now: data that do not fit are told before the engine is made
            session = get_engine(engine).session(model, tuple(readers))
        for ops, array in zip(readers.values(), session.stream(batch), strict=True):
            for name, op in ops:
                sums[name].add(array, op)
        samples += max((a.shape[0] for a in batch.values() if a.ndim), default=1)
        if progress is not None:
            progress(done)
    return MomentTable(
        {name: one.result() for name, one in sums.items()}, samples, model.params_digest(), source.digest()
    )


def _readers(model: Model, layers: Sequence[Layer]) -> Mapping[ValueRef, list[tuple[str, Op]]]:
    """The ops of layers by the activation that they read, before any quantization."""
    graph = model.graph
    made: dict[ValueRef, list[tuple[str, Op]]] = {}
    for layer in layers:
        for each in layer.ops:
            op = graph.by_uid[each.uid]
            made.setdefault(root(graph, graph.read(op, each.activation.slot)), []).append((layer.name, op))
    return made


class _Sums:
    """Sums over patches of one layer."""

    def __init__(self, model: Model, layer: Layer, second: bool) -> None:
        self._name = layer.name
        self._weight = model.params[layer.name]
        op = model.graph.by_uid[layer.ops[0].uid]
        self._rows = to_rows(np.asarray(self._weight, np.float64), op)
        groups, _, length = self._rows.shape
        self._count = 0
        self._first = np.zeros((groups, length))
        self._second = np.zeros((groups, length, length)) if second else None

    def add(self, array: np.ndarray, op: Op) -> None:
        patches = to_patches(array, op, self._weight.shape)
        self._count += patches.shape[2]
        self._first += patches.sum(axis=2, dtype=np.float64)
        if self._second is not None:
            with np.errstate(over="ignore", invalid="ignore"):  # `result` tells of it
                self._second += patches @ patches.swapaxes(1, 2)

    def result(self) -> LayerMoments:
        if not self._count:
            raise QuantError("no batch held any number of its input", where=f"layer {self._name!r}")
        mean = self._first / self._count
        output: npt.NDArray[np.float64] = (self._rows @ mean[:, :, None]).reshape(-1)
        try:
            return LayerMoments(mean, output, None if self._second is None else self._second / self._count)
        except QuantError as e:
            raise QuantError(e.what, where=f"input of layer {self._name!r}", hint=e.hint) from e
