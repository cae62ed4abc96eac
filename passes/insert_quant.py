"""Quantize layers of a float model: their weights and their input activations."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qpass.errors import PassError, QuantError
from qpass.ir.graph import Use, ValueRef
from qpass.ir.model import Model
from qpass.quant.encodings import SPELLERS, find_sites
from qpass.quant.layers import DEFAULT_OP_TYPES, Layer, find_layers, select
from qpass.quant.marks import mark
from qpass.quant.scales import ScaleTable, key
from qpass.quant.site import QuantSite, Role
from qpass.quant.spec import QuantSpec
from qpass.rewrite.edit import edit
from qpass.rewrite.passes import Pass


@dataclass(frozen=True)
class InsertQuant(Pass):
    """Quantize layers: a pair for each activation value, and one for each weight.

    Only operands of these layers read quantized values; other consumers of an activation stay on the float value.
    Layers that are quantized already are left as they are.

    Parameters
    ----------
    scales : ScaleTable or str
        Thresholds, or the path of a JSON file of them.
    layers : tuple of str
        Layers by weight name; empty is all.
    skip : tuple of str
        Layers that stay in float.
    op_types : tuple of str
        Op types whose families are quantized.
    weight_bits, activation_bits : int
    encoding : str
        ``B`` (quantize_linear and dequantize_linear) or ``D`` (fake quantization in one op).
    weights, activations : bool
        Whether to quantize them.

    Raises
    ------
    QuantError
        If there is no layer of a name, or the table lacks a tensor.
    PassError
        If `encoding` is neither.
    """

    scales: ScaleTable | str
    layers: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    op_types: tuple[str, ...] = DEFAULT_OP_TYPES
    weight_bits: int = 8
    activation_bits: int = 8
    encoding: str = "B"
    weights: bool = True
    activations: bool = True

    def __post_init__(self) -> None:
        if self.encoding not in SPELLERS:
            raise PassError(f"encoding {self.encoding!r}, expected one of {', '.join(SPELLERS)}", where="InsertQuant")
        QuantSpec(self.weight_bits)
        QuantSpec(self.activation_bits)

    def run(self, model: Model) -> Model:
        """The quantized model, or `model` itself when no layer was chosen."""
        chosen = self._chosen(model)
        if not chosen:
            return model
        table = ScaleTable.load(self.scales) if isinstance(self.scales, str) else self.scales
        sites = [*self._activations(model, chosen, table), *self._weights(model, chosen, table)]
        with edit(model) as e:
            SPELLERS[self.encoding].spell(e, model.graph, sites)
            for uid in dict.fromkeys(use.op for site in sites for use in site.uses):
                mark(e, uid)
        return e.model

    def _chosen(self, model: Model) -> tuple[Layer, ...]:
        found = find_layers(model, self.op_types)
        out = {layer.name for layer in select(find_layers(model), self.skip)}
        quantized = {use for site in find_sites(model) for use in site.uses}
        return tuple(
            layer
            for layer in (select(found, self.layers) if self.layers else found)
            if layer.name not in out and not any({op.weight, op.activation} & quantized for op in layer.ops)
        )

    def _activations(self, model: Model, chosen: Sequence[Layer], table: ScaleTable) -> list[QuantSite]:
        if not self.activations:
            return []
        graph = model.graph
        uses: dict[ValueRef, list[Use]] = {}
        for use in sorted(
            (op.activation for layer in chosen for op in layer.ops), key=lambda use: graph.position[use.op]
        ):
            uses.setdefault(graph.read(graph.by_uid[use.op], use.slot, use.index), []).append(use)
        spec = QuantSpec(self.activation_bits)
        return [
            self._site(
                Role.ACTIVATION, ref, readers, _threshold(table.activations, key(graph, ref), "activation"), spec
            )
            for ref, readers in uses.items()
        ]

    def _weights(self, model: Model, chosen: Sequence[Layer], table: ScaleTable) -> list[QuantSite]:
        if not self.weights:
            return []
        sites = []
        for layer in chosen:
            threshold = _threshold(table.weights, layer.name, "weight")
            axis = table.weight_axes[layer.name]
            shape = model.graph.decls[layer.name].shape
            if threshold.size != (1 if axis is None else shape[axis] if 0 <= axis < len(shape) else 0):
                raise QuantError(
                    f"{threshold.size} thresholds on axis {axis}, but the weight has shape {list(shape)}",
                    where=f"weight {layer.name!r}",
                    hint="the scale table belongs to another model; calibrate this one",
                )
            spec = QuantSpec(self.weight_bits, axis)
            sites.append(self._site(Role.WEIGHT, layer.weight, [op.weight for op in layer.ops], threshold, spec))
        return sites

    def _site(
        self, role: Role, ref: ValueRef, uses: Iterable[Use], threshold: np.ndarray, spec: QuantSpec
    ) -> QuantSite:
        return QuantSite(role, ref, tuple(uses), threshold, spec, self.encoding, ops=())


def _threshold(thresholds: Mapping[str, float] | Mapping[str, np.ndarray], name: str, what: str) -> np.ndarray:
    if name not in thresholds:
        near = difflib.get_close_matches(name, list(thresholds), 1)
        raise QuantError(
            f"the scale table has no threshold for it{f'; the nearest is {near[0]!r}' if near else ''}",
            where=f"{what} {name!r}",
            hint="calibrate this model with the same op types",
        )
    return np.asarray(thresholds[name], np.float32)
