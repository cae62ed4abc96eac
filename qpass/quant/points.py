"""`find_points`: where a recipe puts quantization in a model, before any scale is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qpass.ir.graph import Graph, Use, ValueRef
from qpass.ir.model import Model
from qpass.ir.schema import EMBEDDINGS, FAMILIES
from qpass.quant.candidates import Candidate, find_candidates, is_float
from qpass.quant.encodings import find_sites
from qpass.quant.layers import families, find_weights, root, select
from qpass.quant.recipe import Recipe
from qpass.quant.site import QuantSite, Role
from qpass.quant.skip import Mention, SkippedOp, match
from qpass.quant.spec import QuantSpec


@dataclass(frozen=True)
class Points:
    """Where a model gets quantized.

    Parameters
    ----------
    sites : tuple of QuantSite
        Activations in program order of their first consumers, then weights by layer. No thresholds (NaN), no ops, no
        encoding; weights have the axis of their channels.
    observers : tuple of QuantSite
        Pairs that only observe: outputs of quantized ops, for those of their consumers that read them in float. Empty
        without `Recipe.outputs`.
    outputs : tuple of ValueRef
        Outputs of quantized ops, in program order. Empty without `Recipe.outputs`.
    ties : tuple of tuple of ValueRef
        Groups of values that share one threshold: quantized inputs of a concatenation, and its output where that is
        quantized or observed too.
    observed : tuple of ValueRef
        Every activation that needs a threshold, in program order of its first use here.
    skipped : tuple of SkippedOp
        What the skip list keeps in float, in program order.
    """

    sites: tuple[QuantSite, ...]
    observers: tuple[QuantSite, ...]
    outputs: tuple[ValueRef, ...]
    ties: tuple[tuple[ValueRef, ...], ...]
    observed: tuple[ValueRef, ...]
    skipped: tuple[SkippedOp, ...]


def find_points(model: Model, recipe: Recipe, layers: Sequence[str] = ()) -> Points:
    """Where `recipe` puts quantization in `model`.

    Only operands of chosen ops read quantized values; other consumers of a value stay on the float one. Ops that are
    quantized already are left as they are, and so are the blocks of loops and conditions.

    Parameters
    ----------
    model : Model
    recipe : Recipe
    layers : sequence of str
        Only these layers, by weight name, and no op without a weight; empty is everything.

    Raises
    ------
    QuantError
        If there is no layer of a name, or an entry of the skip list or an override matches nothing.
    """
    graph, candidates = model.graph, find_candidates(model)
    planned = _planned(model, recipe, candidates, layers)
    mentions: dict[int, Mention] = {}
    for entry in dict.fromkeys(recipe.skip):
        mentions = {**match(graph, candidates, entry, "skip_tensor_list"), **mentions}
    chosen = [each for each in planned if each.op.uid not in mentions]
    weight_bits, activation_bits = _bits(graph, recipe, candidates)
    sites = (*_activation_sites(graph, chosen, activation_bits), *_weight_sites(chosen, weight_bits))
    outputs = _outputs(graph, chosen) if recipe.outputs else ()
    needed = dict.fromkeys((*(site.value for site in sites if site.role is Role.ACTIVATION), *outputs))
    return Points(
        sites=sites,
        observers=_observers(graph, chosen, mentions, outputs, activation_bits),
        outputs=outputs,
        ties=_ties(graph, chosen, frozenset(needed)),
        observed=tuple(needed),
        skipped=_skipped(graph, candidates, mentions, {each.op.uid for each in planned}, sites),
    )


def _planned(
    model: Model, recipe: Recipe, candidates: Sequence[Candidate], layers: Sequence[str]
) -> tuple[Candidate, ...]:
    """The candidates that the recipe is about, skipped ones among them."""
    quantized = {use for site in find_sites(model) for use in site.uses}
    wanted = families([name for name in recipe.op_types if name in FAMILIES])
    looked_up = frozenset(name for name in recipe.op_types if name in EMBEDDINGS)
    named = {layer.name for layer in select(find_weights(model, recipe.op_types), layers)} if layers else None

    def planned(each: Candidate) -> bool:
        if not quantized.isdisjoint((*each.activations, *([each.weight] if each.weight else []))):
            return False
        if each.layer is None:
            return named is None and each.op.type in recipe.activation_op_types
        kind = FAMILIES.get(each.op.type)
        return (kind in wanted or each.op.type in looked_up) and (named is None or each.layer.name in named)

    return tuple(each for each in candidates if planned(each))


def _bits(graph: Graph, recipe: Recipe, candidates: Sequence[Candidate]) -> tuple[Mapping[int, int], Mapping[int, int]]:
    """Bits of the weight and of the activations of each candidate, by uid."""
    weight = {each.op.uid: recipe.weight_bits for each in candidates}
    activation = {each.op.uid: recipe.activation_bits for each in candidates}
    for override in recipe.overrides:
        for uid in match(graph, candidates, override.match, f"override {override}"):
            weight[uid] = override.weight_bits or weight[uid]
            activation[uid] = override.activation_bits or activation[uid]
    return weight, activation


def _activation_sites(graph: Graph, chosen: Sequence[Candidate], bits: Mapping[int, int]) -> list[QuantSite]:
    uses: dict[tuple[ValueRef, int], list[Use]] = {}
    for each in chosen:
        for use in each.activations:
            ref = graph.read(each.op, use.slot, use.index)
            uses.setdefault((ref, bits[each.op.uid]), []).append(use)
    return [_site(Role.ACTIVATION, ref, readers, QuantSpec(n)) for (ref, n), readers in uses.items()]


def _weight_sites(chosen: Sequence[Candidate], bits: Mapping[int, int]) -> list[QuantSite]:
    uses: dict[tuple[ValueRef, int | None, int], list[Use]] = {}
    for each in chosen:
        if each.layer is not None and each.weight is not None:
            uses.setdefault((each.layer.weight, each.layer.axis, bits[each.op.uid]), []).append(each.weight)
    return [_site(Role.WEIGHT, ref, readers, QuantSpec(n, axis)) for (ref, axis, n), readers in uses.items()]


def _site(role: Role, ref: ValueRef, uses: Iterable[Use], spec: QuantSpec, *, observer_only: bool = False) -> QuantSite:
    nothing = np.array(np.nan, np.float32)
    return QuantSite(role, ref, tuple(uses), nothing, spec, encoding="", ops=(), observer_only=observer_only)


def _outputs(graph: Graph, chosen: Sequence[Candidate]) -> tuple[ValueRef, ...]:
    return tuple(ref for each in chosen for ref in each.outputs if is_float(graph, ref))


def _observers(
    graph: Graph,
    chosen: Sequence[Candidate],
    mentions: Mapping[int, Mention],
    outputs: Sequence[ValueRef],
    bits: Mapping[int, int],
) -> tuple[QuantSite, ...]:
    # A fetch knows its value by name, and a value that only quantized operands read has its scale there.
    taken = {use for each in chosen for use in each.activations}
    made = []
    for ref in outputs:
        writer = graph.writer(ref)
        uses = [
            use
            for use in graph.uses(ref)
            if use not in taken and use.op not in mentions and graph.by_uid[use.op].type != "fetch"
        ]
        if writer is not None and uses:
            spec = QuantSpec(bits[writer.uid])
            made.append(_site(Role.ACTIVATION, ref, uses, spec, observer_only=True))
    return tuple(made)


def _ties(graph: Graph, chosen: Sequence[Candidate], needed: frozenset[ValueRef]) -> tuple[tuple[ValueRef, ...], ...]:
    groups: list[dict[ValueRef, None]] = []
    for each in chosen:
        if each.op.type != "concat":
            continue
        inputs = (graph.read(each.op, use.slot, use.index) for use in each.activations)
        group = dict.fromkeys((*inputs, *(ref for ref in each.outputs if ref in needed)))
        joined = [other for other in groups if not other.keys().isdisjoint(group)]
        groups = [other for other in groups if other not in joined]
        groups.append({ref: None for other in (*joined, group) for ref in other})
    return tuple(tuple(group) for group in groups if len(group) > 1)


def _skipped(
    graph: Graph,
    candidates: Sequence[Candidate],
    mentions: Mapping[int, Mention],
    planned: set[int],
    sites: Sequence[QuantSite],
) -> tuple[SkippedOp, ...]:
    quantized = {site.value for site in sites}
    hit = {mention.entry for uid, mention in mentions.items() if uid in planned}
    rows = []
    for each in candidates:
        mention = mentions.get(each.op.uid)
        # An entry that meant planned ops is not told about the others: most of them nobody quantizes.
        if mention is None or (each.op.uid not in planned and mention.entry in hit):
            continue
        uses = (*([each.weight] if each.weight else []), *each.activations)
        refs = dict.fromkeys(root(graph, graph.read(each.op, use.slot, use.index)) for use in uses)
        rows.append(
            SkippedOp(
                op=each.op.type,
                outputs=each.outputs,
                mention=mention,
                planned=each.op.uid in planned,
                stays_float=tuple(str(ref.name) for ref in refs if ref not in quantized),
                shared=tuple(str(ref.name) for ref in refs if ref in quantized),
            )
        )
    return tuple(rows)
