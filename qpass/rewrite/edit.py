"""The edit transaction: the one way to change a model.

``with edit(model) as e: ...`` collects changes; when the block ends they are checked and applied together to a new
model, `e.model`, or nothing happened. The check that matters: every operand that the edit did not mention still reads
the very value (the same write of the same op) that it read before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from types import TracebackType

import numpy as np

from qpass.errors import EditError
from qpass.ir.graph import Decl, Graph, Use
from qpass.ir.model import Model
from qpass.ir.op import Attr, Op
from qpass.ir.params import same_array
from qpass.ir.verify import neighbourhood, place, verify


def edit(model: Model, block: int = 0, *, interface: bool = False) -> Edit:
    """Start a transaction on one block of `model`.

    Parameters
    ----------
    model : Model
        Never changed.
    block : int
        Index of the block to edit.
    interface : bool
        Whether the edit may change feeds and fetches.
    """
    return Edit(model, block, interface=interface)


class Edit:
    """A transaction on one block; use as a context manager, then read `model`.

    Ops are named by uid or by any version of the op object that carries it. Insertions are placed explicitly, and
    several insertions after (before) the same op stay in the order of the calls.

    Attributes
    ----------
    model : Model
        After the block: the edited model, or the same object when nothing changed. Before: the original.
    """

    def __init__(self, model: Model, block: int, *, interface: bool) -> None:
        self.model = model
        self._before = model.blocks[block]
        self._interface = interface
        self._ops: dict[int, Op] = dict(self._before.by_uid)
        self._inserted_before: dict[int, list[int]] = {}
        self._inserted_after: dict[int, list[int]] = {}
        self._decls: dict[str, Decl] = dict(self._before.decls)
        self._params: dict[str, np.ndarray] = {}
        self._drops: dict[str, None] = {}
        self._touched: set[Use] = set()
        self._next = max(self._ops, default=-1) + 1
        self._names = {name for graph in model.blocks for name in graph.decls} | set(model.params)

    def __enter__(self) -> Edit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._commit()

    def op(self, op: Op | int) -> Op:
        """The op as it stands inside the transaction.

        Raises
        ------
        EditError
            If it is not in the block, or was removed.
        """
        uid = op if isinstance(op, int) else op.uid
        if uid not in self._ops:
            raise EditError(f"op {op} is not in block {self._before.index}, or was removed")
        return self._ops[uid]

    def insert(self, op: Op, *, after: Op | int | None = None, before: Op | int | None = None) -> Op:
        """Insert a new op; the op with its uid.

        Parameters
        ----------
        op : Op
            With uid -1. The names it writes must be declared when the transaction ends.
        after, before : Op or int, optional
            Exactly one of them.

        Raises
        ------
        EditError
            If the place is not given once, or the op is already in a graph.
        """
        if (after is None) == (before is None):
            raise EditError("give exactly one of after= and before=", where=f"insert {op.type}")
        if op.uid != -1:
            raise EditError(f"the op already has uid {op.uid}", where=f"insert {op.type}", hint="make a new Op")
        anchor = self.op(after if after is not None else before)  # type: ignore[arg-type]
        made = dataclasses.replace(op, uid=self._next)
        self._next += 1
        side = self._inserted_before if before is not None else self._inserted_after
        side.setdefault(anchor.uid, []).append(made.uid)
        self._put(made)
        return made

    def remove(self, op: Op | int) -> None:
        """Remove an op. Whoever reads its outputs must be rewired in the same transaction."""
        del self._ops[self.op(op).uid]

    def replace(self, op: Op | int, new: Op) -> Op:
        """Put `new` in the place of `op`, keeping its uid; all its operands count as mentioned."""
        made = dataclasses.replace(new, uid=self.op(op).uid)
        self._put(made)
        return made

    def rewire(self, op: Op | int, slot: str, index: int, name: str) -> Op:
        """Let `op` read `name` at input (`slot`, `index`).

        Raises
        ------
        EditError
            If there is no such operand.
        """
        try:
            made = self.op(op).with_input(slot, index, name)
        except IndexError as e:
            raise EditError(str(e), where=place(self._before, self.op(op), slot)) from e
        self._ops[made.uid] = made
        self._touched.add(Use(made.uid, slot, index))
        return made

    def redirect(self, op: Op | int, slot: str, index: int, name: str) -> Op:
        """Let `op` write `name` at output (`slot`, `index`); readers of the old name must be rewired.

        Raises
        ------
        EditError
            If there is no such operand.
        """
        try:
            made = self.op(op).with_output(slot, index, name)
        except IndexError as e:
            raise EditError(str(e), where=place(self._before, self.op(op), slot)) from e
        self._ops[made.uid] = made
        return made

    def set_attr(self, op: Op | int, name: str, attr: Attr) -> Op:
        """Set one attribute, in place or at the end."""
        made = self.op(op).with_attrs(**{name: attr})
        self._ops[made.uid] = made
        return made

    def drop_attrs(self, op: Op | int, names: Iterable[str]) -> Op:
        """Drop attributes; names that the op lacks are passed over."""
        made = self.op(op).without_attrs(names)
        self._ops[made.uid] = made
        return made

    def rename(self, old: str, new: str) -> None:
        """Rename a variable everywhere in the block, its declaration and parameter included.

        Raises
        ------
        EditError
            If `old` is not declared here, `new` is taken, or a nested block captures `old`.
        """
        if old not in self._decls:
            raise EditError(f"cannot rename {old!r}: not declared in block {self._before.index}")
        if new in self._names or new in self._decls:
            raise EditError(f"cannot rename {old!r} to {new!r}: the name is taken")
        for graph in self.model.blocks:
            if graph.index != self._before.index and any(
                old == name for op in graph.ops for _, _, name in (*op.reads(), *op.writes())
            ):
                raise EditError(f"cannot rename {old!r}: block {graph.index} uses it too")
        self._decls = {
            (new if n == old else n): (dataclasses.replace(d, name=new) if n == old else d)
            for n, d in self._decls.items()
        }
        for uid, op in self._ops.items():
            if any(old in names for _, names in (*op.inputs, *op.outputs)):
                self._ops[uid] = op.with_names(lambda n: new if n == old else n)
        if old in self.model.params or old in self._params:
            self.set_param(new, self._params.pop(old) if old in self._params else self.model.params[old])
            self.drop_param(old)
        self._names.add(new)

    def declare(self, decl: Decl) -> None:
        """Add a declaration.

        Raises
        ------
        EditError
            If the name is taken, here or in another block; `redeclare` changes a declaration.
        """
        taken = (g.index for g in self.model.blocks if g.index != self._before.index and decl.name in g.decls)
        block = self._before.index if decl.name in self._decls else next(taken, None)
        if block is not None:
            raise EditError(f"{decl.name!r} is already declared in block {block}", hint="take a name from e.fresh(...)")
        self._decls[decl.name] = decl
        self._names.add(decl.name)

    def redeclare(self, decl: Decl) -> None:
        """Replace the declaration of the same name, keeping its place in the file.

        Raises
        ------
        EditError
            If there is none.
        """
        if decl.name not in self._decls:
            raise EditError(f"{decl.name!r} is not declared in block {self._before.index}")
        self._decls[decl.name] = decl

    def undeclare(self, name: str) -> None:
        """Drop a declaration, and its parameter if there is one.

        Raises
        ------
        EditError
            If there is none.
        """
        if self._decls.pop(name, None) is None:
            raise EditError(f"{name!r} is not declared in block {self._before.index}")
        if name in self.model.params or name in self._params:
            self.drop_param(name)

    def decl(self, name: str) -> Decl:
        """The declaration as it stands inside the transaction.

        Raises
        ------
        EditError
            If there is none.
        """
        if name not in self._decls:
            raise EditError(f"{name!r} is not declared in block {self._before.index}")
        return self._decls[name]

    def set_param(self, name: str, array: np.ndarray) -> None:
        """Give a persistable variable a value; the declaration is up to the caller."""
        self._params[name] = array
        self._drops.pop(name, None)

    def drop_param(self, name: str) -> None:
        """Drop a parameter."""
        self._params.pop(name, None)
        self._drops[name] = None

    def fresh(self, name: str) -> str:
        """`name`, or `name.1`, `name.2`, ... : the first that no block and no parameter uses. It is reserved."""
        made, n = name, 0
        while made in self._names:
            n += 1
            made = f"{name}.{n}"
        self._names.add(made)
        return made

    def _put(self, op: Op) -> None:
        self._ops[op.uid] = op
        self._touched.update(Use(op.uid, slot, index) for slot, index, _ in op.reads())

    def _order(self) -> Iterator[int]:
        """Uids in program order: each op stands between what was inserted before it and what was inserted after it."""
        waiting = [(op.uid, False) for op in reversed(self._before.ops)]
        while waiting:
            uid, placed = waiting.pop()
            if placed:
                if uid in self._ops:
                    yield uid
                continue
            waiting.extend((new, False) for new in reversed(self._inserted_after.get(uid, ())))
            waiting.append((uid, True))
            waiting.extend((new, False) for new in reversed(self._inserted_before.get(uid, ())))

    def _graph(self) -> Graph:
        before = self._before
        ops = tuple(self._ops[uid] for uid in self._order())
        if ops == before.ops and list(self._decls.items()) == list(before.decls.items()):
            return before
        return dataclasses.replace(before, ops=ops, decls=self._decls)

    def _commit(self) -> None:
        graph = self._graph()
        params = self.model.params
        updates = {n: a for n, a in self._params.items() if n not in params or not same_array(params[n], a)}
        drops = [n for n in self._drops if n in params]
        if graph is self._before and not updates and not drops:
            return
        if graph is not self._before:
            self._check_reads(graph)
        made = self.model.replaced(graph=graph, params=params.replaced(updates, drops))
        verify(made)
        if not self._interface and (made.feeds, made.fetches) != (self.model.feeds, self.model.fetches):
            raise EditError(
                f"the edit changes the interface: feeds {_names(self.model.feeds)} -> {_names(made.feeds)}, "
                f"fetches {_names(self.model.fetches)} -> {_names(made.fetches)}",
                hint="pass interface=True if that is intended",
            )
        self.model = made

    def _check_reads(self, after: Graph) -> None:
        before = self._before
        for op in after.ops:
            if op.uid not in before.by_uid:
                continue
            for slot, index, name in op.reads():
                if Use(op.uid, slot, index) in self._touched:
                    continue
                old = before.definition(before.read(op, slot, index))
                new = after.definition(after.read(op, slot, index))
                if old != new:
                    change = f"{name!r} {_words(before, old)} before, {_words(after, new)} after"
                    raise EditError(
                        f"an operand that the edit did not mention would read another value: {change}\n"
                        f"{neighbourhood(after, op)}",
                        where=place(after, op, slot),
                        hint="rewire it in the same transaction, or give the new value another name",
                    )


def _words(graph: Graph, definition: Use | None) -> str:
    if definition is None:
        return "as it stood at the start"
    op = graph.by_uid[definition.op]
    return f"written by op {graph.position[op.uid]} ({op.type}, {definition.slot})"


def _names(ports: Iterable[object]) -> list[str]:
    return [str(p) for p in ports]
