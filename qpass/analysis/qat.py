"""QAT mode: which layers of a quantized model lose accuracy, found by un-quantizing each alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qpass.analysis.align import align
from qpass.analysis.breakdown import ROLES, part_key, without_role
from qpass.analysis.budget import DEFAULT_MEMORY
from qpass.analysis.estimate import check_count
from qpass.analysis.evaluate import Evaluate, check_direction, check_interface, evaluation
from qpass.analysis.local_error import Subject, skeleton_of
from qpass.analysis.measuring import Variant
from qpass.analysis.progress import Progress, Silent
from qpass.analysis.race import check_confidence
from qpass.analysis.result import AnalysisResult
from qpass.analysis.sweep import BASELINE, REFERENCE, Plan, Resources, layer_key
from qpass.errors import AlignError, QuantError, UsageError
from qpass.ir.model import Model
from qpass.passes import FoldQuant, StripQuant
from qpass.quant.encodings import find_sites
from qpass.quant.layers import DEFAULT_OP_TYPES, Layer, find_layers, select
from qpass.quant.site import QuantSite, Role, Storage
from qpass.quant.toggles import Switched
from qpass.rewrite.edit import edit
from qpass.runtime.data import Batches, Data
from qpass.runtime.engine import Engine
from qpass.runtime.evaluating import evaluating_engine
from qpass.runtime.jobs import Workers
from qpass.runtime.processes import opened

_RESTORE = ("float", "self")


def analyze_qat(
    quantized: Model,
    float_model: Model | None,
    *,
    evaluate: Evaluate | None = None,
    data: Data | None = None,
    engine: str | Engine = "inference",
    simulate: str | None = None,
    fast: bool = False,
    op_types: Sequence[str] = DEFAULT_OP_TYPES,
    restore: str = "float",
    mapping: Mapping[str, str] | None = None,
    qat_metric: float | None = None,
    higher_is_better: bool = True,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    settle: float | None = None,
    breakdown: bool = False,
    estimate: int | None = None,
    progress: Progress | None = None,
    memory_bytes: int = DEFAULT_MEMORY,
    workers: Workers | int | None = None,
) -> AnalysisResult:
    """Rank the layers of a quantized model by what un-quantizing each of them alone gains.

    For each layer the quantization of its weight and its input activation is removed and its weight restored. The
    baseline is the quantized model, the reference the float model.

    Parameters
    ----------
    quantized : Model
        A quantized model of any encoding.
    float_model : Model or None
        Its float twin; layers may have other names, see `align`. None only with ``restore="self"``: then outputs are
        compared with those of the quantized model with everything stripped.
    evaluate, data, engine, simulate, fast, op_types, higher_is_better
        As in `analyze_ptq`; without `evaluate` there must be `data`.
    restore : {"float", "self"}
        What the layer's weight becomes: the float model's, or the quantized model's own latent float weight, so that
        loss by quantization and drift of weights in training can be told apart.
    mapping : Mapping[str, str], optional
        Quantized layer -> float layer, where alignment needs help.
    qat_metric : float, optional
        Metric of the quantized model where it is known; None computes it.
    checkpoint, resume, settle, breakdown, estimate, progress, memory_bytes, workers
        As in `analyze_ptq`.

    Returns
    -------
    AnalysisResult
        The layer that gains most first. Details as in `analyze_ptq`.

    Raises
    ------
    UsageError
        If the models are swapped or not quantized, or arguments do not go together.
    AlignError
        If the models cannot be aligned.
    QuantError
        If ``restore="self"`` and the file holds only integers.
    EvalError
        If a model cannot be evaluated.
    CheckpointError
        If the checkpoint belongs to another job.
    """
    check_direction(evaluate, higher_is_better)
    check_confidence(settle)
    check_count(estimate)
    sites = find_sites(quantized)
    check_pair(sites, float_model)
    layers = quantized_layers(quantized, sites, op_types)
    weights = _Weights(quantized, float_model, restore, mapping)
    weights.check(layer.name for layer in layers)
    runner = evaluating_engine(engine, simulate)
    twin = float_model if float_model is not None else StripQuant()(quantized)
    if evaluate is None:
        check_interface(quantized, twin)
    if qat_metric is not None and not np.isfinite(qat_metric):
        raise UsageError(f"qat_metric is {qat_metric}, expected a finite number")
    variants = _Variants(quantized, layers, weights)
    plan = Plan(
        mode="qat",
        evaluation=evaluation(
            evaluate, reference=twin, data=None if data is None else Batches.of(quantized, data), engine=runner
        ),
        higher_is_better=higher_is_better,
        baseline=variants.baseline(),
        known_baseline=qat_metric,
        reference=Variant(REFERENCE, "the float model", lambda: twin),
        layers=layers,
        variant=variants.without,
        engine=runner,
        skeleton=lambda: skeleton_of(variants.subject(), runner, fast=fast),
        twin=lambda: runner.session(twin),
        details=lambda layer: _thresholds(layer, sites),
        settle=settle,
        subject=variants.subject,
        parts=variants.parts if breakdown else None,
        estimate=estimate,
        settings={
            **_digests(quantized, twin),
            "engine": runner.name,
            **({"fake_quant": "fast"} if fast else {}),
            "op_types": ",".join(op_types),
            "restore": restore,
            "mapping": json.dumps(dict(mapping or {}), sort_keys=True),
            "qat_metric": str(qat_metric),
        },
    )
    with opened(workers) as crew:
        return plan.run(Resources(checkpoint, resume, progress or Silent(), memory_bytes, crew))


def restore_weights(
    stripped: Model,
    names: Sequence[str],
    float_model: Model | None,
    *,
    restore: str = "float",
    mapping: Mapping[str, str] | None = None,
    quantized: Model,
) -> Model:
    """Give stripped layers the weights that the analysis gave them.

    Parameters
    ----------
    stripped : Model
        `quantized` after `StripQuant` of the layers.
    names : sequence of str
        The layers.
    float_model : Model or None
    restore : {"float", "self"}
    mapping : Mapping[str, str], optional
    quantized : Model
        The model before it was stripped; what is aligned.

    Raises
    ------
    UsageError, AlignError, QuantError
        As `analyze_qat`.
    """
    weights = _Weights(quantized, float_model, restore, mapping)
    weights.check(names)
    return weights.restored(stripped, names)


class _Weights:
    """The float weights of a quantized model's layers."""

    def __init__(
        self, quantized: Model, float_model: Model | None, restore: str, mapping: Mapping[str, str] | None
    ) -> None:
        if restore not in _RESTORE:
            raise UsageError(f"restore is {restore!r}, expected one of {', '.join(_RESTORE)}")
        if restore == "float" and float_model is None:
            raise UsageError("restore='float' needs the float model", hint="give it, or restore='self'")
        self._quantized = quantized
        self._twin = float_model if restore == "float" else None
        self._names = align(quantized, self._twin, mapping) if self._twin is not None else {}

    def check(self, names: Iterable[str]) -> None:
        """Refuse layers whose float weight is not there.

        Raises
        ------
        QuantError
            If the quantized model is to give a weight of which it holds only integers.
        AlignError
            If the twin's weight is not float32.
        """
        wanted = select(find_layers(self._quantized), names)
        if self._twin is not None:
            for layer in wanted:
                weight = self._twin.params.get(self._names[layer.name])
                if weight is None or weight.dtype != np.float32:
                    held = "no parameters" if weight is None else weight.dtype.name
                    raise AlignError(
                        f"its twin {self._names[layer.name]!r} has {held}, expected float32",
                        where=f"layer {layer.name!r}",
                        hint="give the float model together with its parameters",
                    )
            return
        uses = {op.weight: layer.name for layer in wanted for op in layer.ops}
        for site in find_sites(self._quantized):
            if site.role is Role.WEIGHT and site.storage is not Storage.FLOAT and not uses.keys().isdisjoint(site.uses):
                raise QuantError(
                    f"encoding {site.encoding} holds integers only, there is no latent float weight",
                    where=f"layer {site.value.name!r}",
                    hint="give the float model and restore='float'",
                )

    def restored(self, stripped: Model, names: Sequence[str]) -> Model:
        if self._twin is None:
            return stripped
        with edit(stripped) as e:
            for name in names:
                e.set_param(name, self._twin.params[self._names[name]])
        return e.model


@dataclass(frozen=True)
class _Variants:
    """A quantized model with some of its layers un-quantized, their weights restored."""

    quantized: Model
    layers: tuple[Layer, ...]
    weights: _Weights

    def baseline(self) -> Variant:
        return Variant(BASELINE, "the quantized model", lambda: _FOLD(self.quantized), Switched.both(self._names()))

    def without(self, layer: Layer) -> Variant:
        name = layer.name
        return Variant(
            layer_key(layer),
            f"layer {name!r} un-quantized alone",
            lambda: _FOLD(self.weights.restored(StripQuant(layers=(name,))(self.quantized), [name])),
            Switched.both(self._names() - {name}),
        )

    def parts(self, layer: Layer) -> list[Variant]:
        return [self._part(layer.name, Role(role)) for role in ROLES]

    def subject(self) -> Subject:
        names = [layer.name for layer in self.layers]
        restored = self.weights.restored(StripQuant(layers=tuple(names))(self.quantized), names)
        return Subject(self.quantized, restored.params, self.layers)

    def _part(self, layer: str, role: Role) -> Variant:
        names, rest = self._names(), self._names() - {layer}
        weight = role is Role.WEIGHT

        def make() -> Model:
            stripped = without_role(self.quantized, layer, role)
            return _FOLD(self.weights.restored(stripped, [layer]) if weight else stripped)

        on = Switched(rest, names) if weight else Switched(names, rest)
        return Variant(part_key(role.value, layer), f"the {role.value} of layer {layer!r} un-quantized alone", make, on)

    def _names(self) -> frozenset[str]:
        return frozenset(layer.name for layer in self.layers)


_FOLD = FoldQuant(to="float")


def _digests(quantized: Model, twin: Model) -> dict[str, str]:
    return {
        "program": quantized.program_digest(),
        "params": quantized.params_digest(),
        "float_program": twin.program_digest(),
        "float_params": twin.params_digest(),
    }


def check_pair(sites: Sequence[QuantSite], float_model: Model | None) -> None:
    """Refuse models that are not a quantized one, given by its sites, and its float twin.

    Raises
    ------
    UsageError
        If the first has no quantization in it, or the second has some.
    """
    if not sites:
        raise UsageError(
            "the quantized model has no quantization in it",
            hint="are the two models swapped? analyze_ptq needs no pair",
        )
    if float_model is not None and find_sites(float_model):
        raise UsageError("the float model is quantized", hint="are the two models swapped?")


def quantized_layers(model: Model, sites: Sequence[QuantSite], op_types: Sequence[str]) -> tuple[Layer, ...]:
    """The layers of which the weight or the activation is quantized, in program order.

    Raises
    ------
    UsageError
        If there is none.
    """
    quantized = {use for site in sites if not site.observer_only for use in site.uses}
    layers = tuple(
        layer
        for layer in find_layers(model, op_types)
        if any(use in quantized for op in layer.ops for use in (op.weight, op.activation))
    )
    if not layers:
        raise UsageError(f"the model has no quantized layer of the op types {', '.join(op_types)}")
    return layers


def _thresholds(layer: Layer, sites: Sequence[QuantSite]) -> Mapping[str, float]:
    found: dict[str, float] = {}
    for name, uses in (
        ("activation_threshold", {op.activation for op in layer.ops}),
        ("weight_absmax", {op.weight for op in layer.ops}),
    ):
        largest = [
            float(np.max(site.threshold))
            for site in sites
            if not site.observer_only and not uses.isdisjoint(site.uses) and np.isfinite(site.threshold).all()
        ]
        if largest:
            found[name] = max(largest)
    return found
