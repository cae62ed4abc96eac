"""Passes as text, the way the command line takes them.

::

    passes  = [ pass { "," pass } ]
    pass    = name [ "{" [ option { separator option } ] "}" ]
    option  = key "=" [ item { "," item } ]
    item    = word | JSON string
    separator: blanks, or ";"

``fold-batch-norm,strip-quant{layers=conv2d_1.w_0,"odd name"; restore=float}``. The annotation of the dataclass field
says what an item is: bool, int, float, str, an enumeration (by its name in lower case), a tuple of these, or any of
them with None (``none``) or with a type that has no form as text. A key may be written with ``-`` for ``_``. `to_spec`
writes what `parse_passes` reads back.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import json
import re
import types
import typing
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from qpass.errors import PassError, UsageError
from qpass.rewrite.passes import Pass, spec_name

_WORD = re.compile(r'[^\s,;{}="]+')
_STRING = json.JSONDecoder()
_PLAIN = (bool, int, float, str)


class _Item(NamedTuple):
    text: str
    quoted: bool
    at: int


_Options: TypeAlias = dict[str, tuple[int, list[_Item]]]


def parse_passes(text: str, registry: Iterable[type[Pass]]) -> tuple[Pass, ...]:
    """Make the passes that `text` names.

    Parameters
    ----------
    text : str
        In the form above; an empty text is no passes.
    registry : iterable of type
        The classes that may be named: frozen dataclasses.

    Raises
    ------
    UsageError
        With the position, if the text is malformed, or names an unknown pass or option, or a value has the wrong type.
    PassError
        If a pass refuses its options.
    """
    known = {spec_name(cls): cls for cls in registry}
    reader = _Reader(text)
    made: list[Pass] = []
    reader.blanks()
    while not reader.done():
        at, name = reader.at, reader.word("the name of a pass")
        if name not in known:
            raise reader.error(f"unknown pass {name!r}", at, _nearest(name, known, "passes"))
        made.append(_make(reader, known[name], reader.options()))
        reader.blanks()
        if not reader.done():
            reader.expect(",")
            reader.blanks()
            if reader.done():
                raise reader.error("the text ends after ',', expected the name of a pass")
    return tuple(made)


def to_spec(each: Pass) -> str:
    """The pass as text; options at their defaults are left out.

    Raises
    ------
    PassError
        If an option has no form as text (arrays, other passes' results).
    """
    cls = type(each)
    parts: list[str] = []
    for field in _fields(cls):
        value = getattr(each, field.name)
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if default is dataclasses.MISSING or value != default or type(value) is not type(default):
            parts.append(f"{field.name.replace('_', '-')}={_write(value, f'{spec_name(cls)}, option {field.name}')}")
    return f"{spec_name(cls)}{{{' '.join(parts)}}}" if parts else spec_name(cls)


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def done(self) -> bool:
        return self.at >= len(self.text)

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def blanks(self, also: str = "") -> None:
        while not self.done() and (self.peek().isspace() or self.peek() in also):
            self.at += 1

    def expect(self, char: str) -> None:
        if self.peek() != char:
            raise self.error(f"expected {char!r}, found {self.peek()!r}" if self.peek() else f"ends, expected {char!r}")
        self.at += 1

    def word(self, what: str) -> str:
        found = _WORD.match(self.text, self.at)
        if found is None:
            raise self.error(f"expected {what}, found {self.peek()!r}" if self.peek() else f"ends, expected {what}")
        self.at = found.end()
        return found.group()

    def item(self) -> _Item:
        at = self.at
        if self.peek() != '"':
            return _Item(self.word("a value"), False, at)
        try:
            text, self.at = _STRING.raw_decode(self.text, at)
        except json.JSONDecodeError as e:
            raise self.error(f"not a quoted string ({e.msg})", at) from e
        return _Item(text, True, at)

    def options(self) -> _Options:
        options: _Options = {}
        if self.peek() != "{":
            return options
        self.at += 1
        self.blanks(";")
        while self.peek() != "}":
            at = self.at
            key = self.word("an option or '}'").replace("-", "_")
            if key in options:
                raise self.error(f"option {key!r} is given twice", at)
            self.expect("=")
            options[key] = (at, self.items())
            if self.peek() not in ("}", ";") and not self.peek().isspace():
                raise self.error("expected a blank, ';' or '}' after a value")
            self.blanks(";")
        self.at += 1
        return options

    def items(self) -> list[_Item]:
        if self.peek() in ("}", ";") or self.peek().isspace():
            return []
        items = [self.item()]
        while self.peek() == ",":
            self.at += 1
            items.append(self.item())
        return items

    def error(self, what: str, at: int | None = None, hint: str | None = None) -> UsageError:
        place = self.at if at is None else at
        return UsageError(what, where=f"passes {self.text!r}, position {place + 1}", hint=hint)


def _make(reader: _Reader, cls: type[Pass], options: _Options) -> Pass:
    name, fields = spec_name(cls), {f.name: f for f in _fields(cls)}
    hints = typing.get_type_hints(cls)
    values: dict[str, object] = {}
    for key, (at, items) in options.items():
        if key not in fields:
            raise reader.error(f"{name} has no option {key!r}", at, _nearest(key, fields, "options"))
        try:
            values[key] = _read(items, hints[key])
        except ValueError as e:
            raise reader.error(f"option {key!r} of {name}: {e}", items[0].at if items else at) from e
    required = (f for f in fields.values() if f.default is f.default_factory is dataclasses.MISSING)
    missing = [f.name for f in required if f.name not in values]
    if missing:
        raise reader.error(f"{name} needs the option {missing[0]!r}", None, f"{name}{{{missing[0]}=...}}")
    return cls(**values)


def _fields(cls: type[Pass]) -> Sequence[dataclasses.Field[object]]:
    return [f for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]


def _nearest(name: str, known: Iterable[str], what: str) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"{what}: {', '.join(names) or 'none'}"


def _read(items: list[_Item], hint: object) -> object:
    options = _alternatives(hint)
    if type(None) in options:
        if len(items) == 1 and not items[0].quoted and items[0].text == "none":
            return None
        options = tuple(o for o in options if o is not type(None))
    if len(options) > 1:
        options = tuple(o for o in options if o in _PLAIN) or options
    if len(options) != 1:
        raise ValueError(f"a value of type {hint} has no form as text")
    kind = options[0]
    if typing.get_origin(kind) is tuple:
        args = typing.get_args(kind)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_scalar(item, args[0]) for item in items)
        if len(args) != len(items):
            raise ValueError(f"expected {len(args)} values, found {len(items)}")
        return tuple(_scalar(item, arg) for item, arg in zip(items, args, strict=True))
    if len(items) != 1:
        raise ValueError(f"expected one value, found {len(items)}")
    return _scalar(items[0], kind)


def _alternatives(hint: object) -> tuple[object, ...]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _scalar(item: _Item, kind: object) -> object:
    text = item.text
    if kind is str:
        return text
    if typing.get_origin(kind) is typing.Literal:
        choices = {str(c): c for c in typing.get_args(kind)}
        if text not in choices:
            raise ValueError(f"{text!r} is none of {', '.join(choices)}")
        return choices[text]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        members = {m.name.lower(): m for m in kind}
        if text.lower() not in members:
            raise ValueError(f"{text!r} is none of {', '.join(members)}")
        return members[text.lower()]
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError(f"{text!r} is neither true nor false")
        return text == "true"
    if kind is int or kind is float:
        try:
            return int(text) if kind is int else float(text)
        except ValueError:
            raise ValueError(f"{text!r} is not {'an integer' if kind is int else 'a number'}") from None
    raise ValueError(f"a value of type {kind} has no form as text")


def _write(value: object, where: str) -> str:
    if isinstance(value, tuple):
        return ",".join(_write_scalar(item, where) for item in value)
    return "none" if value is None else _write_scalar(value, where)


def _write_scalar(value: object, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return value if value != "none" and _WORD.fullmatch(value) else json.dumps(value)
    raise PassError(f"{type(value).__name__} has no form as text", where=where, hint="make the pass in Python")
