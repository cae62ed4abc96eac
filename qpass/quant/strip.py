"""Taking quantization sites out of a model: consumers read the value itself again.

Rewiring comes first, and whatever nobody reads afterwards is removed. Three kinds of readers cannot simply be rewired:
`fetch` ops and other blocks know the quantized value by its name, and later ops read the scale that a removed op wrote
in place. The first two get an `assign` under the old name; the third reads the same variable, unchanged. Ops behind
which this library put the dequantize ops of encoding A write under their old name again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence, Set

from qpass.errors import QuantError
from qpass.ir.dtype import DType
from qpass.ir.graph import Graph, Use, ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Op
from qpass.ir.schema import FORWARD
from qpass.ir.verify import place
from qpass.quant.encoding import check_threshold, data_in, data_out, replace_maker
from qpass.quant.fakequant import dequantize
from qpass.quant.marks import unmark
from qpass.quant.ops import DATA_SLOTS, OLD_DEQUANTIZE
from qpass.quant.site import QuantSite, Role, Storage
from qpass.rewrite.edit import Edit, edit
from qpass.rewrite.uses import op_names, used_names


def strip_sites(model: Model, sites: Sequence[QuantSite], uses: Iterable[Use] | None, marked: Iterable[int]) -> Model:
    """Take `sites` out for some of their consumers.

    Parameters
    ----------
    model : Model
    sites : sequence of QuantSite
        Of this model, as `find_sites` gives them.
    uses : iterable of Use, optional
        The operands that shall read the value itself; None is all of them. Observers (`observer_only`) and sites whose
        ops stand after their consumer (weights of encoding A) are taken out whole.
    marked : iterable of int
        uids of ops to lose their quantization attributes.

    Raises
    ------
    QuantError
        If a value was overwritten before its consumer runs, so that only the quantized copy is left; if somebody who
        keeps them reads the stored integers of a weight; if a weight has no usable threshold.
    """
    if not sites:
        return model
    strip = _Strip(model, sites, None if uses is None else frozenset(uses))
    with edit(model) as e:
        gone = strip.apply(e)
        for uid in marked:
            if uid not in gone:
                unmark(e, uid)
        for name in strip.orphans(e, gone):
            e.undeclare(name)
    return e.model


class _Strip:
    """What a strip will change, computed before anything is."""

    def __init__(self, model: Model, sites: Sequence[QuantSite], uses: frozenset[Use] | None) -> None:
        self._model = model
        self._graph = model.graph
        self._sites = sites
        self._elsewhere = used_names(model, without=model.graph)
        self._bypassed: dict[ValueRef, ValueRef] = {}
        self._taken: dict[Use, ValueRef] = {}
        self._renamed: dict[int, Use] = {}
        for site in sites:
            if uses is None or site.observer_only or stands_after(self._graph, site):
                for op in self._outlets(site):
                    self._bypass(op, site)
            else:
                self._taken.update({use: site.value for use in site.uses if use in uses})
        for use in [use for use in self._taken if self._graph.by_uid[use.op].type == "fetch"]:
            del self._taken[use]

    def apply(self, e: Edit) -> frozenset[int]:
        """Rewire, remove, restore weights; the uids of removed ops."""
        gone, kept = self._dead()
        weights = [site for site in self._sites if site.storage is not Storage.FLOAT]
        for site in weights:
            self._check_detached(site, gone | kept.keys())
        targets = {u: self._standing(u.op, self._resolved(ref)) for u, ref in self._taken.items() if u.op not in gone}
        sources = {uid: self._standing(uid, self._resolved(ref)) for uid, ref in kept.items()}
        for use, name in targets.items():
            e.rewire(use.op, use.slot, use.index, name)
        for uid, made in self._renamed.items():
            self._give_back_name(e, uid, made)
        for uid in (*kept, *sorted(gone)):
            self._release_scales(e, self._graph.by_uid[uid], gone)
        for uid, name in sources.items():
            op = self._graph.by_uid[uid]
            out = op.output(DATA_SLOTS[op.type][1])
            replace_maker(e, self._graph, op, Op.make("assign", {"X": name}, {"Out": out}, FORWARD))
        for uid in sorted(gone):
            e.remove(uid)
        for site in weights:
            self._restore(e, site)
        return gone

    def orphans(self, e: Edit, gone: frozenset[int]) -> list[str]:
        """Names of removed ops that no op mentions any more, in file order."""
        names = {name for uid in gone for name in op_names(self._graph.by_uid[uid])}
        names -= self._elsewhere
        for op in self._graph.ops:
            if op.uid not in gone and names:
                names -= op_names(e.op(op))
        return [name for name in self._graph.decls if name in names]

    def _outlets(self, site: QuantSite) -> list[Op]:
        """The ops whose results the consumers of a site read."""
        ops = [self._graph.by_uid[uid] for uid in site.ops]
        return ops if stands_after(self._graph, site) else ops[-1:]

    def _bypass(self, op: Op, site: QuantSite) -> None:
        out, source = data_out(self._graph, op), data_in(self._graph, op)
        if out is None or source is None:
            return
        made = self._graph.definition(source)
        if made is not None and self._is_derived(source, out):
            self._renamed[op.uid] = made
            return
        self._bypassed[out] = source if stands_after(self._graph, site) else site.value
        self._taken.update(dict.fromkeys(self._graph.uses(out), self._bypassed[out]))

    def _is_derived(self, source: ValueRef, out: ValueRef) -> bool:
        """Whether `source` got its name from `out`, which is then what the op in front wrote before."""
        return (
            source.name.startswith(f"{out.name}.")
            and len(self._graph.uses(source)) == 1
            and self._graph.last(source.name) == source
            and source.name not in self._elsewhere
        )

    def _resolved(self, ref: ValueRef) -> ValueRef:
        while ref in self._bypassed:
            ref = self._bypassed[ref]
        return ref

    def _standing(self, uid: int, ref: ValueRef) -> str:
        """The name of `ref`, when it still stands there as the op of `uid` runs."""
        nxt = self._graph.writer(ValueRef(ref.name, ref.version + 1))
        if nxt is not None and self._graph.position[nxt.uid] < self._graph.position[uid]:
            raise QuantError(
                f"cannot read {ref} unquantized: {nxt.type} has overwritten it before",
                where=place(self._graph, self._graph.by_uid[uid]),
            )
        return ref.name

    def _dead(self) -> tuple[frozenset[int], dict[int, ValueRef]]:
        """Ops that nobody reads any more, and ops whose results are still known by name, with what they stand for."""
        gone: set[int] = set(self._renamed)
        kept: dict[int, ValueRef] = {}
        ops = {uid for site in self._sites for uid in site.ops}
        for uid in sorted(ops, key=self._graph.position.__getitem__, reverse=True):
            op = self._graph.by_uid[uid]
            out = data_out(self._graph, op)
            if out is None or uid in gone:
                continue
            settled = gone | kept.keys()
            readers = [use for use in self._graph.uses(out) if use not in self._taken and use.op not in settled]
            if out in self._bypassed and (readers or out.name in self._elsewhere):
                kept[uid] = self._bypassed[out]
            elif not readers and out.name not in self._elsewhere:
                gone.add(uid)
        return frozenset(gone), kept

    def _release_scales(self, e: Edit, op: Op, gone: frozenset[int]) -> None:
        main = data_out(self._graph, op)
        for slot, index, name in op.writes():
            ref = self._graph.written(op, slot, index)
            for use in self._graph.uses(ref) if ref != main else ():
                if use.op not in gone:
                    e.rewire(use.op, use.slot, use.index, name)

    def _give_back_name(self, e: Edit, uid: int, made: Use) -> None:
        out = data_out(self._graph, self._graph.by_uid[uid])
        if out is None:
            return
        e.redirect(made.op, made.slot, made.index, out.name)
        for use in self._graph.uses(out):
            e.rewire(use.op, use.slot, use.index, e.op(use.op).input(use.slot)[use.index])

    def _check_detached(self, site: QuantSite, settled: Set[int]) -> None:
        """Nobody may go on reading the stored integers as such."""
        whole = stands_after(self._graph, site) and settled >= set(site.ops)
        readers = [use for use in (*self._graph.uses(site.value), *site.uses) if not (whole and use in site.uses)]
        left = [use for use in readers if use not in self._taken and use.op not in settled]
        if not left and site.value.name not in self._elsewhere:
            return
        reader = place(self._graph, self._graph.by_uid[left[0].op]) if left else "another block"
        raise QuantError(
            f"{reader} reads the stored integers of this weight too, and keeps them",
            where=f"weight {site.value.name!r}",
            hint="strip all layers, or fold this weight to float first",
        )

    def _restore(self, e: Edit, site: QuantSite) -> None:
        ints = self._model.params.get(site.value.name)
        if ints is None:
            return
        check_threshold(site, ints)
        e.set_param(site.value.name, dequantize(ints, site.threshold, site.spec))
        e.redeclare(dataclasses.replace(e.decl(site.value.name), dtype=DType.FLOAT32))


def stands_after(graph: Graph, site: QuantSite) -> bool:
    """Whether the ops of `site` stand after its consumers: weights of encoding A."""
    return site.role is Role.WEIGHT and graph.by_uid[site.ops[0]].type in OLD_DEQUANTIZE
