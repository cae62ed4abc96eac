"""Skip lists: which ops their entries mean, what came of it op by op, and the proof that it stayed in float.

An entry is the name of a tensor, or a regular expression that matches the whole name of some. It means every op that
could be quantized and has such a tensor for its weight, an input or an output. A value that such an op shares with
others is quantized for the others alone.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from qpass.errors import QuantError
from qpass.ir.graph import Graph, ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Op
from qpass.ir.verify import place
from qpass.quant.candidates import Candidate, find_candidates, names_of
from qpass.quant.encodings import find_sites
from qpass.quant.layers import Layer
from qpass.quant.marks import is_ours
from qpass.quant.ops import DATA_SLOTS, OLD_DEQUANTIZE


@dataclass(frozen=True)
class Mention:
    """Why an op is meant: the entry, the name it matched, and what is called so (``weight``, ``input``, ``output``)."""

    entry: str
    name: str
    role: str


@dataclass(frozen=True)
class SkippedOp:
    """One op that a skip list names.

    Parameters
    ----------
    op : str
        Its type.
    outputs : tuple of ValueRef
        What it makes; so it is found again in the quantized model.
    mention : Mention
        The first entry that means it.
    planned : bool
        Whether it would have been quantized otherwise.
    stays_float : tuple of str
        Weight and inputs that nobody reads quantized.
    shared : tuple of str
        Weight and inputs that other ops read quantized; this one reads the float value.
    """

    op: str
    outputs: tuple[ValueRef, ...]
    mention: Mention
    planned: bool
    stays_float: tuple[str, ...]
    shared: tuple[str, ...]

    def __str__(self) -> str:
        name = self.outputs[0].name if self.outputs else "nothing"
        why = f"{self.mention.role} {self.mention.name}"
        if self.mention.entry != self.mention.name:
            why += f" by {self.mention.entry!r}"
        parts = [f"{self.op} -> {name}: skipped for its {why}"]
        if not self.planned:
            parts.append("was not to be quantized anyway")
        if self.stays_float:
            parts.append(f"in float: {', '.join(self.stays_float)}")
        if self.shared:
            parts.append(f"quantized for other ops only: {', '.join(self.shared)}")
        return "; ".join(parts)

    def to_json(self) -> dict[str, object]:
        """The row as plain values."""
        return {
            "op": self.op,
            "outputs": [ref.name for ref in self.outputs],
            "entry": self.mention.entry,
            "name": self.mention.name,
            "role": self.mention.role,
            "planned": self.planned,
            "stays_float": list(self.stays_float),
            "shared": list(self.shared),
        }


def match(graph: Graph, candidates: Sequence[Candidate], entry: str, where: str) -> Mapping[int, Mention]:
    """The candidates that an entry means, by uid.

    Parameters
    ----------
    graph : Graph
    candidates : sequence of Candidate
    entry : str
        A name, or a regular expression where there is no such name.
    where : str
        What the entry is one of, for messages.

    Raises
    ------
    QuantError
        If it means none; the message suggests the nearest names.
    """
    named = [(each, name, role) for each in candidates for name, role in names_of(graph, each)]
    hits = [(each, name, role) for each, name, role in named if name == entry]
    if not hits:
        pattern = _compiled(entry)
        hits = [(each, name, role) for each, name, role in named if pattern is not None and pattern.fullmatch(name)]
    if not hits:
        raise _unknown(graph, entry, [name for _, name, _ in named], where)
    found: dict[int, Mention] = {}
    for each, name, role in hits:
        found.setdefault(each.op.uid, Mention(entry, name, role))
    return found


def match_all(model: Model, entries: Sequence[str]) -> tuple[Op, ...]:
    """The ops that a skip list means, in program order.

    Raises
    ------
    QuantError
        If an entry means none.
    """
    candidates = find_candidates(model)
    meant = {uid for entry in entries for uid in match(model.graph, candidates, entry, "skip_tensor_list")}
    return tuple(each.op for each in candidates if each.op.uid in meant)


def unskipped(model: Model, layers: Sequence[Layer], entries: Sequence[str]) -> tuple[Layer, ...]:
    """The layers of which a skip list leaves something to quantize.

    Raises
    ------
    QuantError
        If an entry means no op.
    """
    out = {op.uid for op in match_all(model, entries)}
    return tuple(layer for layer in layers if not all(op.uid in out for op in layer.ops))


def check_skipped(model: Model, skipped: Sequence[SkippedOp]) -> None:
    """Prove on a quantized model that nothing around skipped ops is quantized.

    No operand of such an op comes from a quantization op, no site (of weights behind an op neither) names it, no
    observer stands at its outputs, and no mark says that it is quantized.

    Parameters
    ----------
    model : Model
        The quantized model, also when it was saved and loaded again.
    skipped : sequence of SkippedOp

    Raises
    ------
    QuantError
        At the first op that is not in float.
    """
    graph = model.graph
    sites = find_sites(model)
    named = {use.op: site for site in sites for use in site.uses}
    observed = {site.value: site for site in sites if site.observer_only}
    for row in skipped:
        op = graph.writer(row.outputs[0]) if row.outputs else None
        if op is None or op.type != row.op:
            made = "nothing" if op is None else op.type
            raise QuantError(f"{made} makes the output of the skipped {row.op}", where=f"skipped op {row}")
        faults = list(_faults(graph, op))
        if op.uid in named:
            faults.append(f"it reads {named[op.uid].value} quantized")
        faults.extend(f"an observer stands at its output {ref}" for ref in row.outputs if ref in observed)
        if faults:
            raise QuantError(f"skipped, but {faults[0]}", where=place(graph, op))


def _faults(graph: Graph, op: Op) -> Iterator[str]:
    for slot, index, name in op.reads():
        maker = graph.writer(graph.read(op, slot, index))
        while maker is not None and maker.type in OLD_DEQUANTIZE:  # it belongs to the layer in front
            maker = graph.writer(graph.read(maker, "X"))
        if maker is not None and maker.type in DATA_SLOTS:
            yield f"it reads {name}, which {maker.type} makes"
    if is_ours(op):
        yield "it is marked as quantized"


def _compiled(entry: str) -> re.Pattern[str] | None:
    try:
        return re.compile(entry)
    except re.error:
        return None


def _unknown(graph: Graph, entry: str, names: Sequence[str], where: str) -> QuantError:
    near = difflib.get_close_matches(entry, list(dict.fromkeys(names)), 3, 0.5)
    known = f"; the nearest that {'is' if len(near) == 1 else 'are'} {', '.join(near)}" if near else ""
    if entry in graph.decls:
        return QuantError(
            f"no op that could be quantized has the tensor {entry!r} for a weight, an input or an output",
            where=where,
            hint=f"leave it out{known}",
        )
    how = "by name or as a regular expression" if _compiled(entry) is not None else "by name (no regular expression)"
    return QuantError(
        f"{entry!r} matches no weight, input or output of an op that could be quantized, {how}",
        where=where,
        hint=f"the nearest are {', '.join(near)}" if near else "qpass inspect --layers lists the layers by weight name",
    )
