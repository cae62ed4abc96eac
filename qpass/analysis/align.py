"""Twins: which layer of a float model a layer of its quantized twin was.

Names agree where the quantizer kept them; official QAT models often renamed every weight (`conv2d_0.w_0` became
`conv1_weights`, `matmul_v2` is `matmul`). Then the structure decides, see `qpass.analysis.structure`. What neither
names nor structure can tell is refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from qpass.analysis.structure import Labels, Node, above, refine, same_labels
from qpass.errors import AlignError
from qpass.ir.graph import Graph, Use
from qpass.ir.model import Model
from qpass.ir.op import Op
from qpass.ir.schema import FAMILIES
from qpass.quant.layers import Layer, find_layers
from qpass.quant.ops import DATA_SLOTS

_MAPPING_HINT = (
    "give mapping={quantized layer: float layer} for the layers around it; where one model has its batch norms folded, "
    "fold them in the other too (qpass run -p fold-batch-norm)"
)


def align(quantized: Model, float_model: Model, mapping: Mapping[str, str] | None = None) -> Mapping[str, str]:
    """The float twin of every layer of a quantized model.

    Where all names and shapes agree, names decide, provided that the structure does not contradict them. Otherwise
    layers are matched by what they are (family, weight shape, strides, paddings, dilations, groups, transposition) and
    by all that stands above and below them. Layers that no structure tells apart (parallel branches that look alike)
    are taken by name, else by the order of operands and of the program as long as the weights do not say otherwise.

    Parameters
    ----------
    quantized, float_model : Model
        Parameters are not needed.
    mapping : Mapping[str, str], optional
        Quantized layer -> float layer, for some or all layers; taken as given.

    Returns
    -------
    Mapping[str, str]
        Quantized layer name -> float layer name, in program order of the quantized model.

    Raises
    ------
    AlignError
        If `mapping` names unknown layers or layers of different shapes, or the models cannot be aligned; the message
        names the first place where they part.
    """
    return _Alignment(quantized, float_model, mapping or {}).find()


class _Alignment:
    def __init__(self, quantized: Model, float_model: Model, given: Mapping[str, str]) -> None:
        self._models = (quantized, float_model)
        self._quant, self._float = _nodes(quantized), _nodes(float_model)
        self._place = {node.name: i for i, node in enumerate(self._float)}
        self._given = given
        self._check_given()

    def find(self) -> dict[str, str]:
        if all(node.name in self._given for node in self._quant):
            return {node.name: self._given[node.name] for node in self._quant}
        quant, float_ = self._labels(ordered=False)
        alike = same_labels(quant, float_)
        if self._names_agree():
            if alike:
                self._check_names_stand(quant, float_)
            return {node.name: self._given.get(node.name, node.name) for node in self._quant}
        if not alike:
            raise self._parting()
        return self._match(quant, float_)

    def _check_given(self) -> None:
        nodes = {node.name: node for node in self._quant}
        taken: dict[str, str] = {}
        for name, twin in self._given.items():
            if name not in nodes:
                raise AlignError(f"the quantized model has no layer {name!r}", where="mapping", hint=_list(self._quant))
            if twin not in self._place:
                raise AlignError(f"the float model has no layer {twin!r}", where="mapping", hint=_list(self._float))
            if twin in taken:
                raise AlignError(f"both {taken[twin]!r} and {name!r} are mapped to {twin!r}", where="mapping")
            taken[twin] = name
            shape, other = nodes[name].shape, self._float[self._place[twin]].shape
            if shape != other:
                raise AlignError(f"{name!r} has shape {list(shape)}, {twin!r} has shape {list(other)}", where="mapping")

    def _names_agree(self) -> bool:
        """Whether names alone pair all layers that are not given."""
        if len(self._quant) != len(self._float):
            return False
        twins = [self._place.get(self._given.get(node.name, node.name)) for node in self._quant]
        return len(set(twins)) == len(twins) and all(
            i is not None and self._float[i].shape == node.shape and self._float[i].kind == node.kind
            for node, i in zip(self._quant, twins, strict=True)
            if node.name not in self._given
        )

    def _start(self, labels: Labels) -> tuple[list[int], list[int]]:
        pins: dict[str, Hashable] = {twin: ("given", name) for name, twin in self._given.items()}
        quant = [labels.number(("given", n.name) if n.name in self._given else (n.kind, n.shape)) for n in self._quant]
        return quant, [labels.number(pins.get(n.name, (n.kind, n.shape))) for n in self._float]

    def _labels(self, *, ordered: bool) -> tuple[list[int], list[int]]:
        labels = Labels()
        starts = self._start(labels)
        quant, float_ = (
            refine(model.graph, nodes, start, labels, ordered=ordered)
            for model, nodes, start in zip(self._models, (self._quant, self._float), starts, strict=True)
        )
        return quant, float_

    def _check_names_stand(self, quant: Sequence[int], float_: Sequence[int]) -> None:
        for node, label in zip(self._quant, quant, strict=True):
            twin = self._given.get(node.name, node.name)
            if float_[self._place[twin]] != label:
                stands = self._float[list(float_).index(label)].name
                raise AlignError(
                    f"by its name its float twin is {twin!r}, by its place in the graph {stands!r}",
                    where=f"layer {node.name!r}",
                    hint=_MAPPING_HINT,
                )

    def _match(self, quant: Sequence[int], float_: Sequence[int]) -> dict[str, str]:
        """Pair layers of equal labels; those that look alike by name, else by operand order, else by program order."""
        ranks = self._labels(ordered=True)
        if not same_labels(*ranks):
            ranks = [0] * len(quant), [0] * len(float_)
        groups: dict[int, tuple[list[tuple[int, Node]], list[tuple[int, Node]]]] = {}
        for side, (nodes, labels) in enumerate(((self._quant, quant), (self._float, float_))):
            for node, label, rank in zip(nodes, labels, ranks[side], strict=True):
                groups.setdefault(label, ([], []))[side].append((rank, node))
        pairs: dict[str, str] = {}
        for sides in groups.values():
            ours, theirs = ([node for _, node in sorted(side, key=lambda pair: pair[0])] for side in sides)
            if {n.name for n in ours} == {n.name for n in theirs}:
                pairs.update({n.name: n.name for n in ours})
            else:
                self._check_weights(ours, theirs)
                pairs.update({a.name: b.name for a, b in zip(ours, theirs, strict=True)})
        return {node.name: pairs[node.name] for node in self._quant}

    def _check_weights(self, ours: Sequence[Node], theirs: Sequence[Node]) -> None:
        """Refuse an order of layers that look alike where their weights contradict it."""
        quantized, float_model = self._models
        if len(ours) == 1 or not (len(quantized.params) and len(float_model.params)):
            return
        for i, node in enumerate(ours):
            near = [abs(_correlation(quantized.params[node.name], float_model.params[t.name])) for t in theirs]
            best = int(np.argmax(near))
            if near[best] > near[i]:
                raise AlignError(
                    f"{len(ours)} layers look alike; by their order the float twin is {theirs[i].name!r}, "
                    f"but the weights are closer to {theirs[best].name!r}",
                    where=f"layer {node.name!r}",
                    hint=_MAPPING_HINT,
                )

    def _parting(self) -> AlignError:
        """The first layer, in program order of the quantized model, that has no twin with the same ancestors."""
        labels = Labels()
        starts = self._start(labels)
        quant, float_ = (
            above(model.graph, nodes, start, labels, ordered=False)
            for model, nodes, start in zip(self._models, (self._quant, self._float), starts, strict=True)
        )
        counts = f"{len(self._quant)} layers in the quantized model, {len(self._float)} in the float model"
        left = list(float_)
        for node, label in zip(self._quant, quant, strict=True):
            if label not in left:
                open_ = [f for f, other in zip(self._float, float_, strict=True) if other not in quant]
                theirs = f"the float model goes on with {_words(open_[0])}" if open_ else "the float model has no more"
                return AlignError(
                    f"the models part here: no float layer is like {_words(node)} with the same layers before it; "
                    f"{theirs} ({counts})",
                    where=f"layer {node.name!r}",
                    hint=_MAPPING_HINT,
                )
            left.remove(label)
        extra = next((f for f, other in zip(self._float, float_, strict=True) if other in left), None)
        if extra is not None:
            return AlignError(
                f"the models part here: the quantized model has no layer like {_words(extra)} ({counts})",
                where=f"float layer {extra.name!r}",
                hint="give the float model that the quantized one was made from",
            )
        return AlignError(
            f"the layers are alike, but lead to different layers or outputs ({counts})",
            where=f"layer {self._quant[-1].name!r}" if self._quant else "models without layers",
            hint=_MAPPING_HINT,
        )


def _nodes(model: Model) -> list[Node]:
    return [_node(model, layer) for layer in find_layers(model)]


def _node(model: Model, layer: Layer) -> Node:
    graph, first = model.graph, layer.ops[0]
    kind = _kind(graph.by_uid[first.uid])
    if _is_normalised(graph, first.output):
        kind = (*kind, "then batch_norm")
    return Node(layer.name, kind, graph.decls[layer.name].shape, tuple(op.uid for op in layer.ops))


def _is_normalised(graph: Graph, output: Use) -> bool:
    """Whether a batch norm follows; where one twin has it folded into the weight, their weights are not comparable."""
    made = graph.written(graph.by_uid[output.op], output.slot, output.index)
    while True:
        readers = graph.readers(made)
        if len(readers) != 1 or readers[0].type not in DATA_SLOTS:
            return any(op.type == "batch_norm" for op in readers)
        made = graph.written(readers[0], DATA_SLOTS[readers[0].type][1])


def _kind(op: Op) -> tuple[str, ...]:
    """What kind of layer an op makes, in words that are alike for ops that compute alike."""
    family = FAMILIES[op.type]
    if family == "matmul":
        left = op.attr("trans_x", op.attr("transpose_X", False))
        right = op.attr("trans_y", op.attr("transpose_Y", False))
        return (family, *["left transposed"] * bool(left), *["right transposed"] * bool(right))
    return (
        "conv2d" if family == "depthwise_conv2d" else family,
        f"strides {op.attr('strides')!r}",
        f"paddings {_paddings(op)}",
        f"dilations {op.attr('dilations')!r}",
        f"groups {op.int_attr('groups', 1)}",
    )


def _paddings(op: Op) -> Hashable:
    """Top, bottom, left and right, or the algorithm that finds them."""
    algorithm = op.attr("padding_algorithm", "EXPLICIT")
    paddings = op.attr("paddings")
    if algorithm != "EXPLICIT" or not isinstance(paddings, tuple):
        return algorithm
    return paddings if len(paddings) == 4 else tuple(p for p in paddings for _ in range(2))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    x, y = (w.astype(np.float64).ravel() - w.mean(dtype=np.float64) for w in (a, b))
    length = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / length if length else 0.0


def _words(node: Node) -> str:
    return f"{node.name!r} (weight {list(node.shape)}, {', '.join(node.kind)})"


def _list(nodes: Sequence[Node]) -> str:
    names = [node.name for node in nodes]
    more = f", ... ({len(names)} in all)" if len(names) > 8 else ""
    return f"its layers: {', '.join(names[:8])}{more}"
