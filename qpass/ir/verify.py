"""The verifier: checks the invariants of the IR. Always on, after every edit and every pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

from qpass.errors import VerifyError
from qpass.ir.dtype import NUMPY_NAMES, DType
from qpass.ir.graph import Decl, Graph
from qpass.ir.model import Model
from qpass.ir.op import AttrKind, Op
from qpass.ir.schema import INPLACE_PAIRS

_NEIGHBOURS = 2

# Op types whose body runs at most once and sees nothing but the enclosing scopes. The bodies of others may start with
# values of the last round (`while`) or with values that the op puts there (`recurrent`).
_RUN_ONCE = frozenset({"conditional_block", "conditional_block_infer"})


def verify(model: Model) -> Model:
    """Check every invariant; the model itself, so that calls chain.

    Checked: the block tree is sound and block attributes point into it; ops have unique uids and slots; names are
    declared in their block or an enclosing one; temporaries are written before they are read (in the root and in
    bodies that run once: a loop may carry a value round); in-place pairs name one variable; feed and fetch ops name
    one value each; parameters match their persistable declarations in dtype and shape.

    Raises
    ------
    VerifyError
        Naming block, op and slot, with the ops around it.
    """
    for i, graph in enumerate(model.blocks):
        if graph.index != i or not (0 <= graph.parent < i if i else graph.parent == -1):
            raise VerifyError(
                f"block {i} calls itself {graph.index} with parent {graph.parent}, expected a tree under block 0",
                where=f"block {i}",
            )
    for graph in model.blocks:
        _verify_declarations(model, graph)
    owners = {index: op for graph in model.blocks for op in graph.ops for index in _bodies(op)}
    inside = _written_inside(model)
    for graph in model.blocks:
        _verify_order(model, graph, owners.get(graph.index), inside)
    _verify_params(model)
    _ = (model.feeds, model.fetches)
    return model


def place(graph: Graph, op: Op, slot: str | None = None) -> str:
    """Words for a place in a graph: block, position, type and slot."""
    at = f"block {graph.index}, op {graph.position.get(op.uid, '?')} ({op.type})"
    return f"{at}, slot {slot}" if slot else at


def neighbourhood(graph: Graph, op: Op) -> str:
    """A few lines of program text around `op`, with an arrow at it."""
    i = graph.position[op.uid]
    rows = range(max(0, i - _NEIGHBOURS), min(len(graph.ops), i + _NEIGHBOURS + 1))
    return "\n".join(f"  {'->' if r == i else '  '} {r}: {_short(str(graph.ops[r]))}" for r in rows)


def enclosing(model: Model, graph: Graph) -> Iterator[Graph]:
    """The graph itself, then its parents up to the root."""
    while True:
        yield graph
        if graph.parent < 0:
            return
        graph = model.blocks[graph.parent]


def _short(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _verify_declarations(model: Model, graph: Graph) -> None:
    if len(graph.by_uid) != len(graph.ops):
        raise VerifyError("two ops have the same uid", where=f"block {graph.index}", hint="make new ops with uid -1")
    for key, declared in graph.decls.items():
        if key != declared.name:
            raise VerifyError(f"{declared.name!r} is declared under the name {key!r}", where=f"block {graph.index}")
    known = {name for scope in enclosing(model, graph) for name in scope.decls}
    for op in graph.ops:
        for verb, operands in (("reads", op.reads()), ("writes", op.writes())):
            for slot, _, name in operands:
                if name not in known:
                    raise _error(graph, op, slot, f"{verb} {name!r}, which is not declared")
        _verify_slots(graph, op)
        _verify_bodies(model, graph, op)


def _verify_order(model: Model, graph: Graph, owner: Op | None, inside: Mapping[int, Set[str]]) -> None:
    if owner is not None and owner.type not in _RUN_ONCE:
        return
    written: set[str] = set()
    for op in graph.ops:
        for slot, _, name in op.reads():
            decl = graph.decls.get(name)
            if decl is not None and _needs_writer(decl) and name not in written:
                raise _error(graph, op, slot, f"reads {name!r} before any op has written it")
        written.update(name for _, _, name in op.writes())
        for index in _bodies(op):
            written |= inside[index]


def _written_inside(model: Model) -> dict[int, set[str]]:
    """Names that each block and the blocks nested in it write."""
    inside = {graph.index: {name for op in graph.ops for _, _, name in op.writes()} for graph in model.blocks}
    for graph in reversed(model.blocks[1:]):
        inside[graph.parent] |= inside[graph.index]
    return inside


def _verify_slots(graph: Graph, op: Op) -> None:
    for slots in (op.inputs, op.outputs):
        names = [slot for slot, _ in slots]
        if len(set(names)) != len(names):
            raise _error(graph, op, None, f"a slot is given twice: {names}")
    for source, target in INPLACE_PAIRS.get(op.type, ()):
        read, write = op.input(source), op.output(target)
        if read and write and read != write:
            raise _error(graph, op, target, f"writes {write[0]!r}, expected {read[0]!r} in place ({source})")


def _needs_writer(decl: Decl) -> bool:
    return decl.kind == "tensor" and not decl.persistable


def _bodies(op: Op) -> tuple[int, ...]:
    """The numbers of the blocks that `op` runs."""
    values = (attr.value for attr in op.attrs.values() if attr.kind in (AttrKind.BLOCK, AttrKind.BLOCKS))
    nested = (value if isinstance(value, tuple) else (value,) for value in values)
    return tuple(index for group in nested for index in group if isinstance(index, int))


def _verify_bodies(model: Model, graph: Graph, op: Op) -> None:
    for index in _bodies(op):
        if not 0 < index < len(model.blocks):
            raise _error(graph, op, None, f"runs block {index}, which does not exist")
        if model.blocks[index].parent != graph.index:
            raise _error(graph, op, None, f"runs block {index}, which is not nested here")


def _verify_params(model: Model) -> None:
    declared = persistable_tensors(model)
    for name in declared:
        if name not in model.params and len(model.params):
            raise VerifyError(
                "declared persistable, but there is no such parameter",
                where=f"variable {name!r}",
                hint="the parameters do not belong to this program, or a pass forgot e.set_param",
            )
    for name in model.params:
        decl = declared.get(name)
        if decl is None:
            raise VerifyError(
                "there is a parameter of this name, but no persistable declaration",
                where=f"parameter {name!r}",
                hint="declare it, or drop the parameter",
            )
        array = model.params[name]
        if array.dtype.name not in NUMPY_NAMES:
            raise VerifyError(
                f"the parameter is {array.dtype.name}, which no tensor of Paddle can hold", where=f"parameter {name!r}"
            )
        dtype = DType.of(array)
        # The framework's own PTQ stores int8 weights under declarations that still say float32 (PaddlePaddle 2.6, 3.3).
        stored_int = dtype in (DType.INT8, DType.INT16, DType.INT32) and decl.dtype is DType.FLOAT32
        if decl.dtype is not dtype and not stored_int:
            raise VerifyError(
                f"the parameter is {dtype.value}, its declaration says {decl.dtype.value if decl.dtype else 'nothing'}",
                where=f"parameter {name!r}",
            )
        if not _shape_fits(decl.shape, array.shape):
            raise VerifyError(
                f"the parameter has shape {list(array.shape)}, its declaration says {list(decl.shape)}",
                where=f"parameter {name!r}",
                hint="the parameters do not belong to this program",
            )


def persistable_tensors(model: Model) -> dict[str, Decl]:
    """Declarations of the tensors that a parameter file must hold, in file order of the blocks."""
    return {
        decl.name: decl
        for graph in model.blocks
        for decl in graph.decls.values()
        if decl.persistable and decl.kind == "tensor"
    }


def _shape_fits(declared: tuple[int, ...], actual: tuple[int, ...]) -> bool:
    # Paddle's PTQ declares scales () or (C,) and stores them (1,), () or (1, C); the kernels only count elements.
    if len(declared) <= 1 and len(actual) <= 2:
        declared, actual = (tuple(d for d in shape if d != 1) for shape in (declared, actual))
    return len(declared) == len(actual) and all(d in (-1, a) for d, a in zip(declared, actual, strict=True))


def _error(graph: Graph, op: Op, slot: str | None, what: str) -> VerifyError:
    return VerifyError(f"{what}\n{neighbourhood(graph, op)}", where=place(graph, op, slot))
