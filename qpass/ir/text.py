"""The text form of a model: one canonical, line-oriented dump, and its parser. ``parse(dump(m, full=True))`` is `m`.

::

    qpass text 1
    block 0 parent -1
      var x: tensor float32[-1, 3, 8, 8]
      var w: tensor float32[4, 3, 3, 3] persistable parameter
      conv2d(Input: [x@0], Filter: [w@0], Bias: []) -> (Output: [y@1]) {groups: int 1, pads: ints [1, 1]}  # +5 hidden
    param w float32[4, 3, 3, 3] sha256 5f70bf18a086007016e948b04aed3b82

Names that are not plain words are quoted as in JSON, bytes are hexadecimal after ``0x``, and ``#`` starts a comment.
The version behind an operand follows from the ops above it; `parse` accepts it left out, and refuses a wrong one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

from qpass.errors import FormatError
from qpass.ir.dtype import DType
from qpass.ir.graph import Decl, Graph
from qpass.ir.model import Model, Source
from qpass.ir.op import Attr, AttrKind, AttrValue, Op, Scalar, Slots, is_absent
from qpass.ir.schema import DEBUG_ATTRS

T = TypeVar("T")

_HEADER = "qpass text 1"
_DIGEST_DIGITS = 32
_WORD = re.compile(r"[A-Za-z0-9_./-]+(?:@[A-Za-z_][A-Za-z0-9_./-]*)*")
_STRING = json.JSONDecoder()

_INTEGERS = {AttrKind.INT, AttrKind.INTS, AttrKind.LONG, AttrKind.LONGS, AttrKind.BLOCK, AttrKind.BLOCKS}
_FLOATS = {AttrKind.FLOAT, AttrKind.FLOATS, AttrKind.FLOAT64, AttrKind.FLOAT64S}
_BOOLEANS = {AttrKind.BOOLEAN, AttrKind.BOOLEANS}
_KINDS = {kind.name.lower(): kind for kind in AttrKind}
_DTYPES = {dtype.value: dtype for dtype in DType}


def dump(model: Model, *, full: bool = False) -> str:
    """The model as text, the same for equal models.

    Parameters
    ----------
    model : Model
    full : bool
        Whether to show the attributes of `qpass.ir.schema.DEBUG_ATTRS`, which are otherwise only counted, and the
        `extra` bytes of the source format, which are otherwise left out.
    """
    lines = [_HEADER]
    if full and model.extra:
        lines.append(f"extra {_hex(model.extra)}")
    for graph in model.blocks:
        lines.extend(_graph_lines(graph, full))
    for name, array in model.params.items():
        dtype = DType.of(array).value
        digest = model.params.digest(name)[:_DIGEST_DIGITS]
        lines.append(f"param {_name(name)} {dtype}{list(array.shape)} sha256 {digest}")
    return "\n".join(lines) + "\n"


def dump_op(graph: Graph, op: Op, *, full: bool = False) -> str:
    """One op of `graph` as its line of the text form, without the indentation."""
    shown = {k: a for k, a in op.attrs.items() if full or k not in DEBUG_ATTRS}
    attrs = ", ".join(f"{_name(k)}: {dump_attr(a)}" for k, a in shown.items())
    reads = {(s, i): graph.read(op, s, i).version for s, i, _ in op.reads()}
    writes = {(s, i): graph.written(op, s, i).version for s, i, _ in op.writes()}
    text = f"{_name(op.type)}({_dump_slots(op.inputs, reads)}) -> ({_dump_slots(op.outputs, writes)}) {{{attrs}}}"
    if full and op.extra:
        text += f" extra {_hex(op.extra)}"
    hidden = len(op.attrs) - len(shown)
    return f"{text}  # +{hidden} hidden" if hidden else text


def dump_attr(attr: Attr) -> str:
    """Kind and value of an attribute, as in ``ints [1, 1]``. Floats are written so that they read back exactly."""
    kind, value = attr.kind, attr.value
    word = kind.name.lower()
    if value is None:
        return f"{word} none"
    if isinstance(value, bytes):
        return f"{word} {_hex(value)}"
    if isinstance(value, tuple):
        return f"{word} [{', '.join(_dump_scalar(kind, v) for v in value)}]"
    return f"{word} {_dump_scalar(kind, value)}"


def dump_decl(decl: Decl, *, full: bool = False) -> str:
    """One declaration as its line of the text form, without the indentation."""
    text = f"var {_name(decl.name)}: {_name(decl.kind)}"
    if decl.dtype is not None or decl.shape:
        text += f" {decl.dtype.value if decl.dtype else '?'}{list(decl.shape)}"
    if decl.persistable:
        text += " persistable"
    if decl.is_parameter is not None:
        text += " parameter" if decl.is_parameter else " not-parameter"
    return f"{text} extra {_hex(decl.extra)}" if full and decl.extra else text


def parse(text: str) -> Model:
    """Read the text form; a model without parameter values.

    Raises
    ------
    FormatError
        With the line, the column and what was expected there.
    """
    lines = _lines(text)
    first = next(lines, None)
    if first is None:
        raise FormatError(f"the text is empty, expected {_HEADER!r}", where="line 1")
    first.expect(_HEADER)
    first.end()
    extra = b""
    blocks: list[_Block] = []
    for line in lines:
        if line.accept("block "):
            blocks.append(_Block(line))
        elif line.accept("param "):
            _check_param(line)
        elif line.at("var ") and blocks:
            blocks[-1].add_decl(line)
        elif line.accept("extra "):
            if blocks:
                blocks[-1].extra = line.bytes()
            else:
                extra = line.bytes()
        elif blocks:
            blocks[-1].add_op(line)
        else:
            raise line.error("'block'")
        line.end()
    if not blocks:
        raise FormatError("the text ends, expected 'block'", where=f"line {text.count(chr(10)) + 1}")
    return Model(tuple(block.graph() for block in blocks), extra=extra, source=Source("text"))


def _graph_lines(graph: Graph, full: bool) -> Iterator[str]:
    yield f"block {graph.index} parent {graph.parent}"
    if full and graph.extra:
        yield f"  extra {_hex(graph.extra)}"
    for decl in graph.decls.values():
        yield f"  {dump_decl(decl, full=full)}"
    for op in graph.ops:
        yield f"  {dump_op(graph, op, full=full)}"


def _dump_slots(slots: Slots, versions: dict[tuple[str, int], int]) -> str:
    return ", ".join(
        f"{_name(slot)}: [{', '.join(_operand(name, versions.get((slot, i))) for i, name in enumerate(names))}]"
        for slot, names in slots
    )


def _operand(name: str, version: int | None) -> str:
    return _name(name) if version is None else f"{_name(name)}@{version}"


def _name(name: str) -> str:
    return name if _WORD.fullmatch(name) else json.dumps(name)


def _hex(data: bytes) -> str:
    return f"0x{data.hex()}"


def _dump_scalar(kind: AttrKind, value: Scalar) -> str:
    if kind in _INTEGERS:
        return str(int(value))
    if kind in _FLOATS:
        return repr(float(value))
    if kind in _BOOLEANS:
        return "true" if value else "false"
    return json.dumps(value)


def _lines(text: str) -> Iterator[_Line]:
    for number, line in enumerate(text.split("\n"), 1):
        cursor = _Line(line, number)
        if not cursor.done():
            yield cursor


class _Block:
    """A graph under construction."""

    def __init__(self, line: _Line) -> None:
        self.index = line.integer()
        line.expect("parent")
        self.parent = line.integer()
        self.extra = b""
        self.decls: dict[str, Decl] = {}
        self.ops: list[Op] = []
        self.versions: dict[str, int] = {}

    def graph(self) -> Graph:
        return Graph(tuple(self.ops), self.decls, self.index, self.parent, self.extra)

    def add_decl(self, line: _Line) -> None:
        line.expect("var")
        name = line.name()
        if name in self.decls:
            raise line.error(f"a new name; {name!r} is declared above")
        line.expect(":")
        kind = line.name()
        typed = line.typed() if line.at("?[") or line.match(r"\w+\[") else (None, ())
        persistable = line.accept("persistable")
        is_parameter = True if line.accept("parameter") else False if line.accept("not-parameter") else None
        extra = line.bytes() if line.accept("extra ") else b""
        self.decls[name] = Decl(name, kind, *typed, persistable, is_parameter, extra)

    def add_op(self, line: _Line) -> None:
        kind = line.name()
        inputs = line.pairs("(", ")", lambda: line.list(lambda: line.operand(self.versions.get)))
        line.expect("->")
        written = dict(self.versions)
        outputs = line.pairs("(", ")", lambda: line.list(lambda: line.operand(lambda n, _: _write(written, n))))
        attrs = line.pairs("{", "}", line.attr)
        extra = line.bytes() if line.accept("extra ") else b""
        self.versions = written
        self.ops.append(Op(kind, tuple(inputs.items()), tuple(outputs.items()), attrs, extra, len(self.ops)))


def _write(versions: dict[str, int], name: str) -> int:
    versions[name] = versions.get(name, 0) + 1
    return versions[name]


class _Line:
    """One line, read from left to right."""

    def __init__(self, text: str, number: int) -> None:
        self.text = text
        self.number = number
        self.column = 0

    def error(self, expected: str) -> FormatError:
        found = self.text[self.column : self.column + 20] or "the end of the line"
        return FormatError(
            f"expected {expected}, found {found!r}", where=f"line {self.number}, column {self.column + 1}"
        )

    def match(self, pattern: str | re.Pattern[str]) -> re.Match[str] | None:
        while self.text[self.column : self.column + 1].isspace():
            self.column += 1
        return re.compile(pattern).match(self.text, self.column)

    def take(self, pattern: str | re.Pattern[str], expected: str) -> str:
        found = self.match(pattern)
        if found is None:
            raise self.error(expected)
        self.column = found.end()
        return found.group()

    def at(self, word: str) -> bool:
        return self.match(re.escape(word)) is not None

    def accept(self, word: str) -> bool:
        if not self.at(word):
            return False
        self.column += len(word)
        return True

    def expect(self, word: str) -> None:
        self.take(re.escape(word), repr(word))

    def done(self) -> bool:
        return self.match(r"#|$") is not None

    def end(self) -> None:
        if not self.done():
            raise self.error("the end of the line")

    def name(self) -> str:
        return self.string() if self.at('"') else self.take(_WORD, "a name")

    def string(self) -> str:
        if not self.at('"'):
            raise self.error("a JSON string")
        try:
            value, self.column = _STRING.raw_decode(self.text, self.column)
        except json.JSONDecodeError:
            raise self.error("a JSON string") from None
        return str(value)

    def integer(self) -> int:
        return int(self.take(r"-?\d{1,19}", "an integer"))

    def float(self) -> float:
        return float(self.take(r"-?(inf|nan|\d+(\.\d+)?(e[+-]?\d+)?)", "a number"))

    def boolean(self) -> bool:
        return self.take("true|false", "'true' or 'false'") == "true"

    def bytes(self) -> bytes:
        return bytes.fromhex(self.take(r"0x([0-9a-f]{2})*", "0x and pairs of hexadecimal digits")[2:])

    def list(self, item: Callable[[], T]) -> tuple[T, ...]:
        self.expect("[")
        items: list[T] = []
        while not self.accept("]"):
            if items:
                self.expect(",")
            items.append(item())
        return tuple(items)

    def pairs(self, left: str, right: str, item: Callable[[], T]) -> dict[str, T]:
        self.expect(left)
        found: dict[str, T] = {}
        while not self.accept(right):
            if found:
                self.expect(",")
            name = self.name()
            if name in found:
                raise self.error(f"a new name; {name!r} is given twice")
            self.expect(":")
            found[name] = item()
        return found

    def operand(self, version_of: Callable[[str, int], int]) -> str:
        name = self.name()
        if is_absent(name):
            return name
        version = version_of(name, 0)
        if self.accept("@"):
            column = self.column
            if self.integer() != version:
                self.column = column
                raise self.error(f"version {version} of {name!r}")
        return name

    def typed(self) -> tuple[DType | None, tuple[int, ...]]:
        word = self.take(r"\?|\w+", "an element type")
        if word != "?" and word not in _DTYPES:
            self.column -= len(word)
            raise self.error(f"an element type ({', '.join(_DTYPES)})")
        return _DTYPES.get(word), self.list(self.integer)

    def attr(self) -> Attr:
        word = self.take(r"\w+", "an attribute kind")
        if word not in _KINDS:
            self.column -= len(word)
            raise self.error(f"an attribute kind ({', '.join(_KINDS)})")
        kind = _KINDS[word]
        if self.accept("none"):
            return Attr(kind, None)
        value: AttrValue
        if kind in (AttrKind.SCALAR, AttrKind.SCALARS):
            value = self.bytes()
        else:
            value = self.list(lambda: self.scalar(kind)) if kind.is_list else self.scalar(kind)
        return Attr(kind, value)

    def scalar(self, kind: AttrKind) -> Scalar:
        if kind in _INTEGERS:
            return self.integer()
        if kind in _FLOATS:
            return self.float()
        return self.boolean() if kind in _BOOLEANS else self.string()


def _check_param(line: _Line) -> None:
    line.name()
    line.typed()
    line.expect("sha256")
    line.take(r"[0-9a-f]+", "a digest")
