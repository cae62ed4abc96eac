"""`Rule` and `Finding`: what lint looks for, and what it found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from qpass.ir.graph import Use
from qpass.ir.model import Model
from qpass.ir.op import Op
from qpass.quant.encodings import find_sites
from qpass.quant.layers import Layer, find_layers
from qpass.quant.presets import Target
from qpass.quant.site import QuantSite
from qpass.quant.stored import integers_alone


@dataclass(frozen=True)
class Fix:
    """A pass that mends a finding.

    Parameters
    ----------
    name : str
        Of the pass, as text specs name it.
    options : str
        As in a text spec, without braces.
    layers : tuple of str
        Values of its option `layers`, if it has one; fixes that differ in nothing else are applied together.
    """

    name: str
    options: str = ""
    layers: tuple[str, ...] = ()

    @property
    def spec(self) -> str:
        """The text spec."""
        named = f"layers={','.join(json.dumps(name) for name in self.layers)}" if self.layers else ""
        inside = " ".join(filter(None, (self.options, named)))
        return f"{self.name}{{{inside}}}" if inside else self.name


@dataclass(frozen=True)
class Hit:
    """One place where a rule applies.

    Parameters
    ----------
    op : Op or None
        The op at fault; None is the whole model.
    tensor : str
        The value at fault; empty where it is the op itself.
    what : str
        What is wrong there.
    fix : Fix or None
        What mends it; None where no pass can.
    """

    op: Op | None
    tensor: str
    what: str
    fix: Fix | None = None


class Subject:
    """A model under lint, with what several rules ask of it."""

    def __init__(self, model: Model, target: Target) -> None:
        self.model = model
        self.graph = model.graph
        self.target = target

    @cached_property
    def sites(self) -> tuple[QuantSite, ...]:
        """Quantization sites of the root block."""
        return find_sites(self.model)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Layers of the root block."""
        return find_layers(self.model)

    @cached_property
    def by_use(self) -> Mapping[Use, QuantSite]:
        """Operand of a real op -> the site that quantizes it; observers are left out."""
        return {use: site for site in self.sites if not site.observer_only for use in site.uses}

    @cached_property
    def integers_alone(self) -> Mapping[int, str]:
        """Ops that read an integer weight without a quantization op, by uid, and that weight."""
        return integers_alone(self.model)

    def first_op(self, site: QuantSite) -> Op:
        """The first op that spells a site."""
        return self.graph.by_uid[site.ops[0]]


@dataclass(frozen=True)
class Rule:
    """One trap.

    Parameters
    ----------
    name : str
        Stable: users name rules by it.
    targets : tuple of str
        The engines that fall into it.
    what : str
        What it is, in one line.
    consequence : str
        What the engine does with it.
    source : str
        Where that was read or seen.
    mends : str
        The pass that mends it, in words for the documentation; empty where none can.
    check : callable
        Finds the places.
    """

    name: str
    targets: tuple[str, ...]
    what: str
    consequence: str
    source: str
    mends: str
    check: Callable[[Subject], Iterator[Hit]]


@dataclass(frozen=True)
class Finding:
    """One trap at one place.

    Parameters
    ----------
    rule : str
        Name of the rule.
    block, position : int
        Of the op; position -1 is the whole model.
    op, tensor : str
        Type of the op and name of the value; empty where there is none.
    what, consequence, source : str
        What is wrong here, what the engine does with it, and where that was read or seen.
    fix : str or None
        Text spec of the pass that mends it.
    mend : Fix or None
        The same, taken apart.
    """

    rule: str
    block: int
    position: int
    op: str
    tensor: str
    what: str
    consequence: str
    source: str
    fix: str | None
    mend: Fix | None

    @property
    def where(self) -> str:
        """Words for the place."""
        if self.position < 0:
            return "model"
        value = f", {self.tensor}" if self.tensor else ""
        return f"block {self.block}, op {self.position} ({self.op}){value}"
