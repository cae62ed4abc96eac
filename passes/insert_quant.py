"""Quantize layers of a float model: their weights and their input activations."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from qpass.errors import PassError, QuantError
from qpass.ir.model import Model
from qpass.quant.encodings import ENCODINGS
from qpass.quant.layers import DEFAULT_OP_TYPES
from qpass.quant.marks import mark, mark_threshold
from qpass.quant.points import find_points
from qpass.quant.recipe import Override, Recipe
from qpass.quant.scales import ScaleTable
from qpass.quant.site import QuantSite, Role
from qpass.quant.spec import QuantSpec
from qpass.quant.thresholds import Thresholds, threshold_of
from qpass.rewrite.edit import edit
from qpass.rewrite.passes import Pass


@dataclass(frozen=True)
class InsertQuant(Pass):
    """Quantize layers: a pair for each activation value, and one for each weight.

    Only operands of these layers read quantized values; other consumers of an activation stay on the float value.
    What is quantized already is left as it is. Values that a concatenation ties together get the largest of their
    thresholds.

    Parameters
    ----------
    scales : ScaleTable or str
        Thresholds, or the path of a file of them.
    layers : tuple of str
        Layers by weight name; empty is all.
    skip : tuple of str
        What stays in float: names of weights, activations or outputs, or regular expressions (`qpass.quant.skip`).
    op_types : tuple of str
        Op types whose families are quantized.
    activation_op_types : tuple of str
        Op types without weights whose input activations are quantized too.
    weight_bits, activation_bits : int
    overrides : tuple of str
        Other bits for some ops: ``NAME:w4``, ``NAME:a16``, ``NAME:w4a16``; a name as in `skip`.
    encoding : str
        One of ``A``, ``B``, ``C`` and ``D``.
    outputs : bool
        Whether outputs of quantized ops keep their thresholds too: as pairs that only observe (B and C), or as
        attributes of the ops (A and D). The table must have them.
    weights, activations : bool
        Whether to quantize them.

    Raises
    ------
    QuantError
        If there is no layer of a name, nothing of a name to skip, or the table lacks a tensor.
    PassError
        If there is no such encoding.
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
    activation_op_types: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    outputs: bool = False

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise PassError(f"encoding {self.encoding!r}, expected one of {', '.join(ENCODINGS)}", where="InsertQuant")
        self.recipe  # noqa: B018 - it checks itself

    @classmethod
    def of(cls, scales: ScaleTable | str, recipe: Recipe, *, encoding: str = "B") -> InsertQuant:
        """The pass for a recipe."""
        return cls(
            scales=scales,
            skip=recipe.skip,
            op_types=recipe.op_types,
            weight_bits=recipe.weight_bits,
            activation_bits=recipe.activation_bits,
            encoding=encoding,
            activation_op_types=recipe.activation_op_types,
            overrides=tuple(str(override) for override in recipe.overrides),
            outputs=recipe.outputs,
        )

    @property
    def recipe(self) -> Recipe:
        """What is quantized, and with how many bits."""
        return Recipe(
            op_types=self.op_types,
            activation_op_types=self.activation_op_types,
            weight_bits=self.weight_bits,
            activation_bits=self.activation_bits,
            skip=self.skip,
            overrides=tuple(Override.parse(text) for text in self.overrides),
            outputs=self.outputs,
        )

    def run(self, model: Model) -> Model:
        """The quantized model, or `model` itself when nothing was chosen."""
        points = find_points(model, self.recipe, self.layers)
        wanted = [s for s in points.sites if (self.weights if s.role is Role.WEIGHT else self.activations)]
        if not wanted:
            return model
        table = ScaleTable.load(self.scales) if isinstance(self.scales, str) else self.scales
        thresholds = Thresholds(model.graph, table, points.ties)
        sites = [self._scaled(model, table, site, thresholds) for site in wanted]
        observers = [self._scaled(model, table, site, thresholds) for site in points.observers]
        inserted = sites if self.encoding in "AD" else [*sites, *observers]
        with edit(model) as e:
            ENCODINGS[self.encoding].spell(e, model.graph, inserted)
            for uid in dict.fromkeys(use.op for site in sites for use in site.uses):
                mark(e, uid)
            if self.encoding in "AD":
                for ref in points.outputs:
                    mark_threshold(e, model.graph, ref, thresholds[ref])
        return e.model

    def _scaled(self, model: Model, table: ScaleTable, site: QuantSite, thresholds: Thresholds) -> QuantSite:
        if site.role is Role.ACTIVATION:
            return dataclasses.replace(site, threshold=thresholds[site.value], encoding=self.encoding)
        name = site.value.name
        threshold = threshold_of(table.weights, name, "weight")
        axis = table.weight_axes[name]
        shape = model.graph.decls[name].shape
        if threshold.size != (1 if axis is None else shape[axis] if 0 <= axis < len(shape) else 0):
            raise QuantError(
                f"{threshold.size} thresholds on axis {axis}, but the weight has shape {list(shape)}",
                where=f"weight {name!r}",
                hint="the scale table belongs to another model; calibrate this one",
            )
        spec = QuantSpec(site.spec.bits, axis)
        return dataclasses.replace(site, threshold=threshold, spec=spec, encoding=self.encoding)
