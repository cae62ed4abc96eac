"""`Model`: graphs, parameters and interface together, as one immutable value."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from functools import cached_property

from qpass.errors import VerifyError
from qpass.ir.dtype import DType
from qpass.ir.graph import Graph
from qpass.ir.op import Op
from qpass.ir.params import Params


@dataclass(frozen=True)
class Port:
    """One input or output of a model.

    Parameters
    ----------
    name : str
    dtype : DType or None
        None when the program does not say.
    shape : tuple of int
        -1 is unknown until run time.
    """

    name: str
    dtype: DType | None
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype.value if self.dtype else '?'}{list(self.shape)}"


@dataclass(frozen=True)
class Source:
    """Where a model came from.

    Parameters
    ----------
    format : str
        ``pdmodel``, or ``memory`` for models built in code.
    program, params : str or None
        Paths of the files that were read; None for models that came from memory.
    params_layout : str
        ``combined`` (one `.pdiparams`) or ``separate`` (Paddle 1.x: one file a parameter).
    """

    format: str = "memory"
    program: str | None = None
    params: str | None = None
    params_layout: str = "combined"


@dataclass(frozen=True)
class Model:
    """A model: blocks, parameters, interface, and where it came from.

    Parameters
    ----------
    blocks : tuple of Graph
        Block 0 is the root; control-flow ops name the others by index in their BLOCK attributes.
    params : Params
    extra : bytes
        What else the source format recorded of the whole program (versions), carried verbatim.
    source : Source
        Not part of equality.
    """

    blocks: tuple[Graph, ...]
    params: Params = field(default_factory=Params)
    extra: bytes = b""
    source: Source = field(default=Source(), compare=False)

    @property
    def graph(self) -> Graph:
        """The root block."""
        return self.blocks[0]

    @cached_property
    def feeds(self) -> tuple[Port, ...]:
        """Inputs in feed order: the outputs of `feed` ops, ordered by their `col`."""
        return self._ports("feed")

    @cached_property
    def fetches(self) -> tuple[Port, ...]:
        """Outputs in fetch order: the inputs of `fetch` ops, ordered by their `col`."""
        return self._ports("fetch")

    def replaced(self, *, graph: Graph | None = None, params: Params | None = None) -> Model:
        """A copy with another block in the place of the one with the same index, or other parameters."""
        blocks = self.blocks
        if graph is not None:
            blocks = tuple(graph if b.index == graph.index else b for b in blocks)
        return dataclasses.replace(self, blocks=blocks, params=self.params if params is None else params)

    def program_digest(self) -> str:
        """SHA-256 over the structure (ops, declarations, versions), without parameter values; hex."""
        h = hashlib.sha256(self.extra)
        for graph in self.blocks:
            h.update(repr((graph.index, graph.parent, graph.extra)).encode())
            for op in graph.ops:
                h.update(repr((op.type, op.inputs, op.outputs, sorted(op.attrs.items()), op.extra)).encode())
            for decl in graph.decls.values():
                h.update(repr(decl).encode())
        return h.hexdigest()

    def params_digest(self) -> str:
        """SHA-256 over names and digests of all parameters; hex."""
        h = hashlib.sha256()
        for name in self.params:
            h.update(f"{name}\0{self.params.digest(name)}\0".encode())
        return h.hexdigest()

    def _ports(self, kind: str) -> tuple[Port, ...]:
        ops = sorted((op for op in self.graph.ops if op.type == kind), key=_column)
        return tuple(self._port(op, kind) for op in ops)

    def _port(self, op: Op, kind: str) -> Port:
        names = op.output("Out") if kind == "feed" else op.input("X")
        if len(names) != 1:
            raise VerifyError(f"a {kind} op must name one value, found {list(names)}", where=f"block 0, {op}")
        decl = self.graph.decls.get(names[0])
        return Port(names[0], decl.dtype if decl else None, decl.shape if decl else ())


def _column(op: Op) -> int:
    column = op.attr("col", 0)
    if not isinstance(column, int):
        raise VerifyError(f"attribute 'col' is {column!r}, expected an integer", where=f"block 0, {op}")
    return column
