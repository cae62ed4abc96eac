"""`.pdmodel` bytes <-> blocks of the IR. Structure only: parameters are in `pdiparams`.

The file is one `ProgramDesc` message of Paddle's `framework.proto`. Whatever of it the IR has no field for is carried
verbatim in `extra`, so that decoding and encoding gives back the same bytes. Decoding proves it: it encodes what it
made, compares, and refuses a file that it would not give back whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from google.protobuf.message import DecodeError, EncodeError

from qpass.errors import FormatError
from qpass.formats.foreign import JSON_HINT, JSON_WHAT
from qpass.formats.framework_pb import framework_pb2
from qpass.ir.dtype import DType
from qpass.ir.graph import Decl, Graph
from qpass.ir.op import Attr, AttrKind, Op, Slots

# The messages are classes that protobuf makes when the wheel's file is loaded: no static type exists for them.
Message: TypeAlias = Any

# framework.proto, VarType.Type
_DTYPES = {
    0: DType.BOOL,
    1: DType.INT16,
    2: DType.INT32,
    3: DType.INT64,
    4: DType.FLOAT16,
    5: DType.FLOAT32,
    6: DType.FLOAT64,
    20: DType.UINT8,
    21: DType.INT8,
    22: DType.BFLOAT16,
    23: DType.COMPLEX64,
    24: DType.COMPLEX128,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_TENSOR = 7  # VarType.Type LOD_TENSOR in 2.6, DENSE_TENSOR in 3.x
_HINT = "the file is truncated or damaged, or is not a .pdmodel (are program and parameters swapped?)"
_NO_TYPE = b"\x1a\x00"  # an OpDesc with nothing but an empty `type`, which is required
# What protobuf raises for a value that a field cannot hold, and for carried bytes that are no message.
_REFUSED = (TypeError, ValueError, AttributeError, DecodeError)

# framework.proto, OpDesc.Attr: the field that holds the value of each kind
_FIELD = {
    AttrKind.INT: "i",
    AttrKind.FLOAT: "f",
    AttrKind.STRING: "s",
    AttrKind.INTS: "ints",
    AttrKind.FLOATS: "floats",
    AttrKind.STRINGS: "strings",
    AttrKind.BOOLEAN: "b",
    AttrKind.BOOLEANS: "bools",
    AttrKind.BLOCK: "block_idx",
    AttrKind.LONG: "l",
    AttrKind.BLOCKS: "blocks_idx",
    AttrKind.LONGS: "longs",
    AttrKind.FLOAT64S: "float64s",
    AttrKind.VAR: "var_name",
    AttrKind.VARS: "vars_name",
    AttrKind.FLOAT64: "float64",
    AttrKind.SCALAR: "scalar",
}
_KINDS = {kind.value: (kind, _FIELD.get(kind, ""), kind.is_list) for kind in AttrKind}
_TEXT_FIELDS = frozenset({"s", "strings", "var_name", "vars_name"})


def dtype_of_code(code: int, where: str) -> DType:
    """Element type for a `VarType.Type` number.

    Raises
    ------
    FormatError
        If the number is not a tensor element type that qpass knows.
    """
    try:
        return _DTYPES[code]
    except KeyError:
        raise FormatError(
            f"unknown element type number {code}, expected one of {sorted(_DTYPES)}",
            where=where,
            hint="the file is damaged, or written by a newer Paddle than qpass knows",
        ) from None


def code_of_dtype(dtype: DType) -> int:
    """The `VarType.Type` number of an element type."""
    return _CODES[dtype]


def decode(data: bytes, where: str) -> tuple[tuple[Graph, ...], bytes]:
    """Decode a `ProgramDesc` into blocks and the program's `extra` bytes.

    Parameters
    ----------
    data : bytes
        Content of a `.pdmodel` (or `__model__`) file.
    where : str
        Name of the source, for messages.

    Raises
    ------
    FormatError
        If the bytes are not a program: empty, truncated, another format, or with blocks that do not form a tree.
    """
    program = _parse(data, where)
    if not program.blocks:
        raise FormatError("a program without blocks", where=where, hint=_HINT)
    canonical = program.SerializeToString()
    blocks = tuple(_graph(block, i, where) for i, block in enumerate(program.blocks))
    program.ClearField("blocks")
    extra: bytes = program.SerializeToString()
    if encode(blocks, extra) != canonical:
        raise FormatError(
            "the record holds fields that qpass does not know; they would be lost on saving",
            where=f"{where}, {_first_loss(_parse(data, where), blocks)}",
            hint="the file is damaged, or written by a newer Paddle than the one installed; try a newer paddlepaddle",
        )
    return blocks, extra


def decode_engine_program(data: bytes, where: str) -> tuple[tuple[Graph, ...], bytes]:
    """What an engine's passes made of a program, as blocks and the program's `extra` bytes.

    Paddle's oneDNN passes write attributes twice (2.6.2 and 3.3.1); the last one counts, as for Paddle itself. So it is
    not the exact inverse of `encode`, as `decode` is.

    Raises
    ------
    FormatError
        If the bytes are not a program.
    """
    program = _parse(data, where)
    if not program.blocks:
        raise FormatError("a program without blocks", where=where, hint=_HINT)
    for block in program.blocks:
        for op in block.ops:
            last = {attr.name: attr for attr in op.attrs}
            kept = [type(attr).FromString(attr.SerializeToString()) for attr in last.values()]
            op.ClearField("attrs")
            op.attrs.extend(kept)
    blocks = tuple(_graph(block, i, where) for i, block in enumerate(program.blocks))
    program.ClearField("blocks")
    return blocks, program.SerializeToString()


def encode(blocks: tuple[Graph, ...], extra: bytes) -> bytes:
    """Encode blocks as a `ProgramDesc`: the inverse of `decode`.

    Raises
    ------
    FormatError
        Naming the op and attribute, or the variable, that the format cannot store.
    """
    program = framework_pb2().ProgramDesc()
    where = "program"
    try:
        program.ParseFromString(extra)
        for graph in blocks:
            where = f"block {graph.index}"
            block = program.blocks.add()
            block.ParseFromString(graph.extra)
            block.idx = graph.index
            block.parent_idx = graph.parent
            for decl in graph.decls.values():
                where = f"block {graph.index}, variable {decl.name!r}"
                _encode_decl(block.vars.add(), decl)
            for i, op in enumerate(graph.ops):
                where = f"block {graph.index}, op {i} ({op.type})"
                _encode_op(block.ops.add(), op, where)
        encoded: bytes = program.SerializeToString()
    except (*_REFUSED, EncodeError) as e:
        raise FormatError(f"cannot be stored in a .pdmodel ({e})", where=where) from e
    return encoded


def _parse(data: bytes, where: str) -> Message:
    if not data:
        raise FormatError("the file is empty, expected a Paddle program", where=where, hint="export the model again")
    if data.lstrip()[:1] == b"{":
        raise FormatError(JSON_WHAT, where=where, hint=JSON_HINT)
    program = framework_pb2().ProgramDesc()
    try:
        program.ParseFromString(data)
    except (DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise FormatError(f"not a Paddle program ({e})", where=where, hint=_HINT) from e
    missing = program.FindInitializationErrors()
    if missing:
        raise FormatError(
            f"{missing[0]} is missing, or has a value that this Paddle does not know", where=where, hint=_HINT
        )
    return program


def _first_loss(program: Message, blocks: tuple[Graph, ...]) -> str:
    """Words for the first record of `program` that its decoded form does not give back."""
    messages = framework_pb2()
    for block, graph in zip(program.blocks, blocks, strict=True):
        for var, decl in zip(block.vars, graph.decls.values(), strict=True):
            again = messages.VarDesc()
            _encode_decl(again, decl)
            if again.SerializeToString() != var.SerializeToString():
                return f"block {graph.index}, variable {decl.name!r}"
        for i, (message, op) in enumerate(zip(block.ops, graph.ops, strict=True)):
            again = messages.OpDesc()
            _encode_op(again, op, f"op {i}")
            if again.SerializeToString() != message.SerializeToString():
                return f"block {graph.index}, op {i} ({op.type})"
    return "program"


def _graph(block: Message, index: int, where: str) -> Graph:
    place = f"{where}, block {index}"
    if block.idx != index or not (block.parent_idx < index if index else block.parent_idx == -1):
        raise FormatError(
            f"block {index} calls itself {block.idx} with parent {block.parent_idx}, expected a tree under block 0",
            where=place,
            hint="the file is damaged",
        )
    decls: dict[str, Decl] = {}
    for var in block.vars:
        decl = _decl(var, place)
        if decl.name in decls:
            raise FormatError(f"variable {decl.name!r} is declared twice", where=place, hint="the file is damaged")
        decls[decl.name] = decl
    ops = tuple(_op(op, uid, place) for uid, op in enumerate(block.ops))
    idx, parent = block.idx, block.parent_idx
    for name in ("vars", "ops"):
        block.ClearField(name)
    block.idx, block.parent_idx = 0, 0
    return Graph(ops, decls, idx, parent, block.SerializeToString())


def _tensor(var_type: Message) -> Message:
    # 2.6 calls field 3 `lod_tensor`, 3.x `dense_tensor`
    return var_type.lod_tensor if hasattr(var_type, "lod_tensor") else var_type.dense_tensor


def _tensor_field(var_type: Message) -> str:
    return "lod_tensor" if hasattr(var_type, "lod_tensor") else "dense_tensor"


def _decl(var: Message, place: str) -> Decl:
    name = _text(var.name, place)
    kind: str = "tensor"
    dtype: DType | None = None
    shape: tuple[int, ...] = ()
    where = f"{place}, variable {name!r}"
    if var.type.type != _TENSOR:
        names = var.type.DESCRIPTOR.enum_types_by_name["Type"].values_by_number
        if var.type.type not in names:
            raise FormatError(f"unknown variable type number {var.type.type}", where=where, hint="the file is damaged")
        kind = names[var.type.type].name
    elif var.type.HasField(_tensor_field(var.type)):
        tensor = _tensor(var.type).tensor
        dtype = dtype_of_code(tensor.data_type, where)
        shape = tuple(tensor.dims)
        if any(d < -1 for d in shape):
            raise FormatError(
                f"shape {list(shape)} has a negative dimension", where=where, hint="only -1 (unknown) is allowed"
            )
        tensor.data_type = 0
        tensor.ClearField("dims")
    persistable = var.persistable
    is_parameter = var.is_parameter if var.HasField("is_parameter") else None
    var.name = ""
    if persistable:
        var.persistable = False
    if is_parameter is not None:
        var.is_parameter = False
    return Decl(name, kind, dtype, shape, persistable, is_parameter, var.SerializeToString())


def _encode_decl(var: Message, decl: Decl) -> None:
    if decl.extra:
        var.ParseFromString(decl.extra)
    elif decl.kind == "tensor":
        var.type.type = _TENSOR
    else:
        raise FormatError(
            f"a variable of kind {decl.kind!r} needs the record it was read with",
            where=f"variable {decl.name!r}",
            hint="new variables can only be tensors",
        )
    var.name = decl.name
    if decl.dtype is not None:
        tensor = _tensor(var.type).tensor
        tensor.data_type = _CODES[decl.dtype]
        tensor.dims.extend(decl.shape)
    if decl.persistable or not decl.extra:
        var.persistable = decl.persistable
    if decl.is_parameter is not None:
        var.is_parameter = decl.is_parameter


def _op(op: Message, uid: int, place: str) -> Op:
    kind = _text(op.type, f"{place}, op {uid}")
    where = f"{place}, op {uid} ({kind})"
    attrs: dict[str, Attr] = {}
    for attr in op.attrs:
        name = _text(attr.name, where)
        if name in attrs:
            raise FormatError(f"attribute {name!r} is given twice", where=where, hint="the file is damaged")
        attrs[name] = _attr(attr, name, where)
    inputs, outputs = _slots(op.inputs, where), _slots(op.outputs, where)
    for field in ("inputs", "outputs", "attrs"):
        op.ClearField(field)
    op.type = ""
    rest = op.SerializeToString()
    return Op(kind, inputs, outputs, attrs, b"" if rest == _NO_TYPE else rest, uid)


def _slots(slots: Message, where: str) -> Slots:
    names = [_text(slot.parameter, where) for slot in slots]
    if len(set(names)) != len(names):
        raise FormatError(f"a slot is given twice: {names}", where=where, hint="the file is damaged")
    return tuple((name, _texts(slot.arguments, where)) for name, slot in zip(names, slots, strict=True))


def _text(value: str | bytes, where: str) -> str:
    # protobuf's C implementation hands out a string field as bytes when it is not UTF-8.
    if isinstance(value, bytes):
        raise FormatError(f"{value[:40]!r} is not UTF-8 text", where=where, hint="the file is damaged")
    return value


def _texts(values: Iterable[str | bytes], where: str) -> tuple[str, ...]:
    found = tuple(values)
    for value in found:
        if isinstance(value, bytes):
            _text(value, where)
    return found  # type: ignore[return-value]


def _attr(attr: Message, name: str, where: str) -> Attr:
    kind, field, is_list = _KINDS[attr.type]
    if kind is AttrKind.SCALARS:
        return Attr(kind, attr.SerializeToString())
    if not is_list and not attr.HasField(field):
        return Attr(kind, None)
    value = getattr(attr, field)
    if kind is AttrKind.SCALAR:
        return Attr(kind, value.SerializeToString())
    if field in _TEXT_FIELDS:
        return Attr(kind, _texts(value, where) if is_list else _text(value, where))
    return Attr(kind, tuple(value) if is_list else value)


def _encode_op(message: Message, op: Op, where: str) -> None:
    if op.extra:
        message.ParseFromString(op.extra)
    message.type = op.type
    for target, slots in ((message.inputs, op.inputs), (message.outputs, op.outputs)):
        for slot, names in slots:
            target.add(parameter=slot, arguments=names)
    for name, attr in op.attrs.items():
        try:
            _encode_attr(message.attrs.add(), name, attr)
        except _REFUSED as e:
            raise FormatError(
                f"attribute {name!r} is {attr.value!r}, which a {attr.kind.name} cannot hold ({e})",
                where=where,
                hint="build attributes with Attr.int, Attr.float, Attr.str, ... or Attr(kind, value) of matching types",
            ) from e


def _encode_attr(message: Message, name: str, attr: Attr) -> None:
    if attr.kind is AttrKind.SCALARS:
        message.ParseFromString(attr.value)
    message.name = name
    message.type = attr.kind.value
    if attr.value is None or attr.kind is AttrKind.SCALARS:
        return
    if attr.kind is AttrKind.SCALAR:
        message.scalar.ParseFromString(attr.value)
    elif attr.kind.is_list:
        getattr(message, _FIELD[attr.kind]).extend(attr.value)
    else:
        setattr(message, _FIELD[attr.kind], attr.value)
