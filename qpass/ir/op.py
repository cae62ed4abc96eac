"""Operators of the IR: `Attr`, `Op`. Both are frozen; every change makes a new one."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from qpass.errors import VerifyError

Slots: TypeAlias = tuple[tuple[str, tuple[str, ...]], ...]
"""Ordered slots of an op: (slot name, value names). An empty slot is kept; an empty name marks an absent operand."""

Scalar: TypeAlias = bool | int | float | str
AttrValue: TypeAlias = Scalar | bytes | tuple[Scalar, ...] | None


class AttrKind(enum.Enum):
    """Wire kind of an attribute. The number is the field `type` in Paddle's `framework.proto`, enum `AttrType`."""

    INT = 0
    FLOAT = 1
    STRING = 2
    INTS = 3
    FLOATS = 4
    STRINGS = 5
    BOOLEAN = 6
    BOOLEANS = 7
    BLOCK = 8
    LONG = 9
    BLOCKS = 10
    LONGS = 11
    FLOAT64S = 12
    VAR = 13
    VARS = 14
    FLOAT64 = 15
    SCALAR = 16
    SCALARS = 17

    # Enum's own goes through Python code, and attributes are hashed by the hundred thousand.
    __hash__ = object.__hash__

    @property
    def is_list(self) -> bool:
        """Whether the value is a tuple."""
        return self in _LISTS


_LISTS = frozenset(
    {
        AttrKind.INTS,
        AttrKind.FLOATS,
        AttrKind.STRINGS,
        AttrKind.BOOLEANS,
        AttrKind.BLOCKS,
        AttrKind.LONGS,
        AttrKind.FLOAT64S,
        AttrKind.VARS,
    }
)


@dataclass(frozen=True, slots=True)
class Attr:
    """An attribute value together with its exact wire kind.

    Parameters
    ----------
    kind : AttrKind
        How the file stores it. INT 1 and LONG 1 are different attributes.
    value : AttrValue
        A scalar, or a tuple for list kinds. SCALAR and SCALARS keep the encoded message as bytes. None: the file
        declares the attribute and stores no value.
    """

    kind: AttrKind
    value: AttrValue

    @classmethod
    def ints(cls, values: Iterable[int]) -> Attr:
        """A list of 32-bit integers."""
        return cls(AttrKind.INTS, tuple(values))

    @classmethod
    def strs(cls, values: Iterable[str]) -> Attr:
        """A list of strings."""
        return cls(AttrKind.STRINGS, tuple(values))

    @classmethod
    def int(cls, value: int) -> Attr:
        """A 32-bit integer attribute."""
        return cls(AttrKind.INT, value)

    @classmethod
    def bool(cls, value: bool) -> Attr:
        """A boolean attribute."""
        return cls(AttrKind.BOOLEAN, value)

    @classmethod
    def float(cls, value: float) -> Attr:
        """A 32-bit float attribute; `value` must be representable in float32 or it is rounded when written."""
        return cls(AttrKind.FLOAT, value)

    @classmethod
    def str(cls, value: str) -> Attr:
        """A string attribute."""
        return cls(AttrKind.STRING, value)


@dataclass(frozen=True)
class Op:
    """One operator: its type, ordered slots and attributes.

    Parameters
    ----------
    type : str
        Operator type, e.g. ``conv2d``. Unknown types are legal.
    inputs, outputs : Slots
        Ordered slots with the names of their values; empty slots are kept.
    attrs : Mapping[str, Attr]
        Attributes in file order (frozen on construction).
    extra : bytes
        What else the source format recorded of the op, carried verbatim.
    uid : int
        Identity of the op inside its graph and across edits; not part of equality. -1: not in a graph yet.
    """

    type: str
    inputs: Slots = ()
    outputs: Slots = ()
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    extra: bytes = b""
    uid: int = field(default=-1, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.attrs, MappingProxyType):
            object.__setattr__(self, "attrs", MappingProxyType(dict(self.attrs)))

    def __reduce__(self) -> tuple[object, ...]:
        """For pickle, which does not take frozen mappings."""
        return Op, (self.type, self.inputs, self.outputs, dict(self.attrs), self.extra, self.uid)

    @classmethod
    def make(
        cls,
        type: str,  # noqa: A002 - the field's own name
        inputs: Mapping[str, str | Iterable[str]],
        outputs: Mapping[str, str | Iterable[str]],
        attrs: Mapping[str, Attr] | None = None,
    ) -> Op:
        """Build an op from plain mappings; a single name may stand for a one-element slot."""
        return cls(type, _slots(inputs), _slots(outputs), attrs or {})

    def input(self, slot: str) -> tuple[str, ...]:
        """Names in input `slot`; empty when the slot is absent or empty."""
        return _find(self.inputs, slot)

    def output(self, slot: str) -> tuple[str, ...]:
        """Names in output `slot`; empty when the slot is absent or empty."""
        return _find(self.outputs, slot)

    def reads(self) -> Iterator[tuple[str, int, str]]:
        """Every (slot, index, name) that the op reads, in order; absent operands are left out."""
        return _operands(self.inputs)

    def writes(self) -> Iterator[tuple[str, int, str]]:
        """Every (slot, index, name) that the op writes, in order; absent operands are left out."""
        return _operands(self.outputs)

    def attr(self, name: str, default: AttrValue = None) -> AttrValue:
        """Value of attribute `name`, or `default`."""
        found = self.attrs.get(name)
        return default if found is None else found.value

    def int_attr(self, name: str, default: int) -> int:
        """Value of an integer or boolean attribute as int, or `default` when absent.

        Raises
        ------
        VerifyError
            If the attribute is of another kind.
        """
        value = self.attr(name, default)
        if not isinstance(value, int):
            raise VerifyError(f"attribute {name!r} is {value!r}, expected an integer", where=str(self))
        return int(value)

    def with_input(self, slot: str, index: int, name: str) -> Op:
        """A copy that reads `name` at (`slot`, `index`)."""
        return dataclasses.replace(self, inputs=_replaced(self.inputs, slot, index, name))

    def with_output(self, slot: str, index: int, name: str) -> Op:
        """A copy that writes `name` at (`slot`, `index`)."""
        return dataclasses.replace(self, outputs=_replaced(self.outputs, slot, index, name))

    def with_names(self, rename: Callable[[str], str]) -> Op:
        """A copy with every operand name mapped by `rename`."""
        return dataclasses.replace(
            self,
            inputs=tuple((s, tuple(rename(n) for n in names)) for s, names in self.inputs),
            outputs=tuple((s, tuple(rename(n) for n in names)) for s, names in self.outputs),
        )

    def with_attrs(self, **attrs: Attr) -> Op:
        """A copy with attributes replaced in place, or added at the end."""
        return dataclasses.replace(self, attrs={**self.attrs, **attrs})

    def without_attrs(self, names: Iterable[str]) -> Op:
        """A copy without the named attributes; the same object when it has none of them."""
        drop = set(names)
        if drop.isdisjoint(self.attrs):
            return self
        return dataclasses.replace(self, attrs={k: a for k, a in self.attrs.items() if k not in drop})

    def __str__(self) -> str:
        ins = ", ".join(f"{s}={list(n)}" for s, n in self.inputs if n)
        outs = ", ".join(f"{s}={list(n)}" for s, n in self.outputs if n)
        return f"{self.type}({ins}) -> ({outs})"


def is_absent(name: str) -> bool:
    """Whether an operand name marks an absent operand (the empty name, or Paddle's `@EMPTY@`)."""
    return name in ("", "@EMPTY@")


def _slots(mapping: Mapping[str, str | Iterable[str]]) -> Slots:
    return tuple((slot, (names,) if isinstance(names, str) else tuple(names)) for slot, names in mapping.items())


def _find(slots: Slots, slot: str) -> tuple[str, ...]:
    return next((names for name, names in slots if name == slot), ())


def _operands(slots: Slots) -> Iterator[tuple[str, int, str]]:
    for slot, names in slots:
        for index, name in enumerate(names):
            if not is_absent(name):
                yield slot, index, name


def _replaced(slots: Slots, slot: str, index: int, name: str) -> Slots:
    names = _find(slots, slot)
    if not 0 <= index < len(names):
        raise IndexError(f"no operand {slot}[{index}]")
    changed = (*names[:index], name, *names[index + 1 :])
    return tuple((s, changed if s == slot else n) for s, n in slots)
