"""What a session returns: the model's outputs, or any values of its root block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qpass.errors import EngineError
from qpass.formats.framework_pb import framework_pb2
from qpass.ir.graph import Decl, Graph, ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Attr, Op
from qpass.rewrite.edit import Edit, edit


@dataclass(frozen=True)
class Targets:
    """A model whose fetches give the values asked for, and how to put the answer together.

    Parameters
    ----------
    model : Model
        To be run; fetches each distinct computed value once.
    names : tuple of str
        One per value asked for.
    sources : tuple of str or int
        Where each value comes from: the column of a fetch, or the name of a feed or of a parameter.
    """

    model: Model
    names: tuple[str, ...]
    sources: tuple[str | int, ...]

    def stream(self, fetched: Callable[[int], np.ndarray], feed: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
        """The values in the order asked for, one at a time; `fetched` copies the fetch of a column."""
        for source in self.sources:
            if isinstance(source, int):
                yield fetched(source)
            else:
                yield np.array(feed[source] if source in feed else self.model.params[source])


def targets(model: Model, fetch: Sequence[ValueRef] | None) -> Targets:
    """Targets for the model's own outputs (None) or for values of the root block.

    Feeds and parameters are answered from the host: a framework that folds batch norms rewrites parameters in place.

    Raises
    ------
    EngineError
        If a value does not exist, or the model has no output.
    """
    graph = model.graph
    refs = [_output_ref(graph, op) for op in _fetch_ops(graph)] if fetch is None else list(fetch)
    if not refs:
        raise EngineError("there is nothing to fetch: the model has no outputs", hint="name the values to fetch")
    columns: dict[ValueRef, int] = {}
    sources: list[str | int] = []
    for ref in refs:
        host = _host_source(model, ref)
        sources.append(host if host is not None else columns.setdefault(ref, len(columns)))
    names = tuple(ref.name if graph.last(ref.name) == ref else str(ref) for ref in refs)
    own = fetch is None and list(columns.values()) == sources
    return Targets(model if own else _refetched(model, list(columns)), names, tuple(sources))


def _fetch_ops(graph: Graph) -> list[Op]:
    return sorted((op for op in graph.ops if op.type == "fetch"), key=lambda op: op.int_attr("col", 0))


def _output_ref(graph: Graph, op: Op) -> ValueRef:
    return graph.read(op, "X")


def _host_source(model: Model, ref: ValueRef) -> str | None:
    """Name of the feed or parameter that `ref` is; None for a computed value."""
    writer = model.graph.writer(ref)
    if writer is not None:
        return ref.name if writer.type == "feed" else None
    if ref.version == 0 and ref.name in model.params:
        return ref.name
    raise EngineError(
        f"no op of the root block computes {ref}, and it is no parameter",
        where=f"value {ref}",
        hint="fetch values that the graph reads or writes",
    )


def _refetched(model: Model, refs: Sequence[ValueRef]) -> Model:
    graph = model.graph
    with edit(model, interface=True) as e:
        for op in _fetch_ops(graph):
            e.remove(op)
        holder = _fetch_holder(e, graph)
        last = next(op for op in reversed(graph.ops) if op.type != "fetch") if refs else None
        for column, ref in enumerate(refs):
            name = ref.name if graph.last(ref.name) == ref else _captured(e, graph, ref)
            e.insert(Op.make("fetch", {"X": name}, {"Out": holder}, {"col": Attr.int(column)}), after=last)
    return e.model


def _captured(e: Edit, graph: Graph, ref: ValueRef) -> str:
    """Copy a value whose name is overwritten later to a name of its own, right behind the op that writes it."""
    writer = graph.writer(ref)
    assert writer is not None
    decl = graph.decls.get(ref.name)
    name = e.fresh(f"{ref.name}.v{ref.version}")
    e.declare(Decl(name, dtype=decl.dtype if decl else None, shape=decl.shape if decl else ()))
    e.insert(Op.make("assign", {"X": ref.name}, {"Out": name}), after=writer)
    return name


def _fetch_holder(e: Edit, graph: Graph) -> str:
    for decl in graph.decls.values():
        if decl.kind == "FETCH_LIST":
            return decl.name
    name = e.fresh("fetch")
    pb = framework_pb2()
    record = pb.VarDesc(name="", type=pb.VarType(type=pb.VarType.FETCH_LIST))
    e.declare(Decl(name, "FETCH_LIST", None, (), persistable=True, extra=record.SerializeToString()))
    return name
