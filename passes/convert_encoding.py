"""Spell quantization in another of Paddle's four ways.

What a conversion keeps: the integers of weights, thresholds and bits; of activations the rounding too. Between B, C and
D the converted model computes the same bit for bit. The products of encoding A are sums of integers that are scaled
afterwards, so to or from A the results of a layer differ in their last float32 bits (and where a sum next to a tie then
falls to the next level, by that level in later layers).

What cannot be said is refused before anything is written:

====  ==================================================================================================================
to    refused
====  ==================================================================================================================
A     layers with only a weight or only an activation quantized; ops that do more than multiply; weight thresholds along
      another axis than the output channels
B     -
C     -
D     weights whose integers do not reach the highest level in every channel (thresholds other than the largest absolute
      value: the op computes them)
all   thresholds that are found only when the model runs; a pair that quantizes at one scale and dequantizes at another;
      zero points other than 0
====  ==================================================================================================================

What changes its form: weights of up to 8 bits are int8 in B (more bits stay float behind a pair), integers in float32
in A and C, floats in D (the latent floats where the model still has them, else those that give the same integers). A
and D have no pairs that only observe: their thresholds become the attributes ``out_threshold`` and
``<Slot><index>_threshold`` of the op that writes the value, as `PostTrainingQuantization` writes them; of feeds, which
no op makes, they are dropped. Activations of ops without weights are spelled as D under A, as the framework does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qpass.errors import PassError, QuantError
from qpass.ir.graph import Graph, Use, ValueRef
from qpass.ir.model import Model
from qpass.ir.params import same_array
from qpass.quant.encoding import data_out
from qpass.quant.encoding_a import is_activation_of_layer
from qpass.quant.encodings import ENCODINGS, find_sites
from qpass.quant.fakequant import abs_max, dequantize, fake_quantize
from qpass.quant.layers import find_layers, select
from qpass.quant.marks import mark_threshold
from qpass.quant.site import QuantSite, Role, Storage
from qpass.quant.spec import QuantSpec, Rounding
from qpass.quant.stored import hold, integers
from qpass.quant.strip import stands_after, strip_sites
from qpass.rewrite.edit import Edit, edit
from qpass.rewrite.passes import Pass
from qpass.rewrite.uses import undeclare_unused


@dataclass(frozen=True)
class ConvertEncoding(Pass):
    """Spell quantization in another encoding: the same integers at the same thresholds.

    Parameters
    ----------
    to : str
        ``A`` (fake_quantize and fake_dequantize ops), ``B`` (quantize_linear and dequantize_linear), ``C`` (the same
        with float zero points) or ``D`` (fake quantization in one op).
    layers : tuple of str
        Layers by weight name; empty is everything that is quantized.

    Raises
    ------
    PassError
        If `to` is none of these.
    QuantError
        If there is no layer of a name, or the encoding cannot say it.
    """

    to: str
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.to not in ENCODINGS:
            raise PassError(f"encoding {self.to!r}, expected one of {', '.join(ENCODINGS)}", where="ConvertEncoding")

    def run(self, model: Model) -> Model:
        """The model in this encoding, or `model` itself when nothing was spelled otherwise."""
        while front := self._front(model):
            model = self._convert(model, front)
        return model

    def _front(self, model: Model) -> list[_Job]:
        """What is to be converted now: what other quantization stands behind, or else everything."""
        graph, chosen = model.graph, self._chosen(model)
        jobs = []
        for site in find_sites(model):
            uses = _reads(graph, site) if chosen is None else chosen.of(site)
            if uses and not _is_spelled(graph, site, self.to):
                jobs.append(_Job(site, uses))
        made = {job: _outlet(graph, job.site) for job in jobs}
        sources = {job.site.value for job in jobs}.intersection(made.values())
        first = [job for job in jobs if made[job] in sources and job.site.value not in made.values()]
        return first or jobs

    def _chosen(self, model: Model) -> _Chosen | None:
        if not self.layers:
            return None
        graph = model.graph
        ops = [op for layer in select(find_layers(model), self.layers) for op in layer.ops]
        outputs = {graph.written(graph.by_uid[op.uid], op.output.slot) for op in ops}
        return _Chosen(frozenset(use for op in ops for use in (op.weight, op.activation)), frozenset(outputs))

    def _convert(self, model: Model, jobs: Sequence[_Job]) -> Model:
        for job in jobs:
            _check(model, job.site, self.to)
        held = {job.site.ops: self._held(model, job.site) for job in jobs if job.site.role is Role.WEIGHT}
        uses = None if not self.layers else [use for job in jobs for use in job.uses]
        stripped = strip_sites(model, [job.site for job in jobs], uses, ())
        sites: list[QuantSite] = []
        with edit(stripped) as e:
            for job in _merged(jobs):
                site = _moved(stripped.graph, job)
                if site is None:
                    continue
                if site.observer_only and self.to in "AD":
                    mark_threshold(e, stripped.graph, site.value, site.threshold)
                elif site.ops in held:
                    sites.append(_hold(e, stripped.graph, site, held[site.ops]))
                else:
                    sites.append(site)
        made = e.model
        with edit(made) as e:
            ENCODINGS[self.to].spell(e, made.graph, sites)
        return undeclare_unused(e.model, {job.site.value.name for job in jobs if job.site.role is Role.WEIGHT})

    def _held(self, model: Model, site: QuantSite) -> _Held:
        """What the parameter of a weight shall hold."""
        ints = integers(model, site)
        if self.to in "AC":
            return _Held(ints.astype(np.float32), Storage.INT_AS_FLOAT, site.threshold, site.spec)
        if self.to == "B" and site.spec.bits <= 8:
            return _Held(ints, Storage.INT, site.threshold, site.spec)
        computed = self.to == "D" and site.spec.axis is not None
        latent = model.params[site.value.name]
        if site.storage is Storage.FLOAT and (
            not computed or np.array_equal(abs_max(latent, site.spec.axis), site.threshold)
        ):
            return _Held(latent, Storage.FLOAT, site.threshold, site.spec)
        return _latent(ints, site, computed=computed)


@dataclass(frozen=True, eq=False)
class _Job:
    """A site, and those of its readers that shall read what the new ops make."""

    site: QuantSite
    uses: tuple[Use, ...]


@dataclass(frozen=True)
class _Chosen:
    """Operands of the chosen layers, and the values that they make."""

    operands: frozenset[Use]
    outputs: frozenset[ValueRef]

    def of(self, site: QuantSite) -> tuple[Use, ...]:
        """The uses of a site that were chosen."""
        if site.observer_only and site.value in self.outputs:
            return site.uses
        return tuple(use for use in site.uses if use in self.operands)


@dataclass(frozen=True, eq=False)
class _Held:
    """What a parameter holds, and how it is quantized then."""

    array: np.ndarray
    storage: Storage
    threshold: np.ndarray
    spec: QuantSpec


def _reads(graph: Graph, site: QuantSite) -> tuple[Use, ...]:
    """Every operand that reads what a site makes, quantization ops too."""
    if stands_after(graph, site):
        return site.uses
    out = _outlet(graph, site)
    return graph.uses(out) if out is not None else ()


def _outlet(graph: Graph, site: QuantSite) -> ValueRef | None:
    """The quantized value, where there is one."""
    return None if stands_after(graph, site) else data_out(graph, graph.by_uid[site.ops[-1]])


def _is_spelled(graph: Graph, site: QuantSite, encoding: str) -> bool:
    if encoding == "A" and site.encoding == "D" and site.role is Role.ACTIVATION and not site.observer_only:
        return not any(is_activation_of_layer(graph, use) for use in site.uses)
    return site.encoding == encoding


def _check(model: Model, site: QuantSite, encoding: str) -> None:
    """Check what every encoding but the own one would lose."""
    where = f"{site.role.value} {site.value.name!r}"
    if site.role is Role.ACTIVATION and not np.isfinite(site.threshold).all():
        raise QuantError(
            "its scale is no finite parameter: it is known only when the model runs",
            where=where,
            hint="strip its quantization, then calibrate",
        )
    if site.role is Role.ACTIVATION and site.spec.axis is not None and encoding in "AD":
        raise QuantError(
            f"encoding {encoding} has no scales by channel for activations", where=where, hint="use B or C"
        )
    ops = [model.graph.by_uid[uid] for uid in site.ops]
    zeros = [model.params.get(name) for op in ops for name in op.input("ZeroPoint")]
    if any(zero is not None and np.any(zero) for zero in zeros):
        raise QuantError("its zero point is not 0: only symmetric quantization can be converted", where=where)
    scales = [
        np.reshape(scale, -1) for op in ops for n in op.input("Scale") if (scale := model.params.get(n)) is not None
    ]
    if site.encoding in "BC" and any(not np.array_equal(scale, scales[0]) for scale in scales):
        raise QuantError(
            f"quantized at scale {scales[0].max():g}, dequantized at {scales[-1].max():g}",
            where=where,
            hint="that is no fake quantization; give both ops one scale",
        )


def _merged(jobs: Sequence[_Job]) -> list[_Job]:
    """Jobs, those of one weight on one grid as the first of them, with the uses of all."""
    made: dict[object, _Job] = {}
    for job in jobs:
        site = job.site
        key = (site.value, site.spec, site.storage, site.threshold.tobytes()) if site.role is Role.WEIGHT else job
        first = made.get(key)
        made[key] = job if first is None else dataclasses.replace(first, uses=(*first.uses, *job.uses))
    return list(made.values())


def _moved(graph: Graph, job: _Job) -> QuantSite | None:
    """The site of a job where it stands after stripping; None where nobody reads it."""
    uses = [use for use in job.uses if use.op in graph.by_uid and graph.by_uid[use.op].type != "fetch"]
    # Where the quantized value is known by its name, stripping leaves an `assign` in the place of the last op.
    left = graph.by_uid.get(job.site.ops[-1])
    if left is not None and left.type == "assign":
        uses.append(Use(left.uid, "X", 0))
    if not uses:
        return None
    first = uses[0]
    return dataclasses.replace(
        job.site, value=graph.read(graph.by_uid[first.op], first.slot, first.index), uses=tuple(uses)
    )


def _hold(e: Edit, graph: Graph, site: QuantSite, held: _Held) -> QuantSite:
    site = dataclasses.replace(site, threshold=held.threshold, spec=held.spec)
    if held.storage is Storage.FLOAT and same_array(held.array, e.model.params[site.value.name]):
        return dataclasses.replace(site, storage=held.storage)
    return hold(e, graph, site, held.array, held.storage)


def _latent(ints: np.ndarray, site: QuantSite, *, computed: bool) -> _Held:
    """Floats that are quantized to `ints`; `computed`: at the thresholds that the op computes from them."""
    spec, axis = site.spec, site.spec.axis
    if ints.min(initial=0) < spec.qmin:
        spec = QuantSpec(spec.bits, axis, Rounding.HALF_EVEN)
    floats = dequantize(ints, site.threshold, spec)
    # The highest level stands for the threshold itself: q * s / n may miss it by a bit.
    shape = [-1 if i == axis else 1 for i in range(ints.ndim)]
    threshold = np.reshape(site.threshold, shape if axis is not None else ())
    latent = np.where(np.abs(ints) == spec.qmax, np.copysign(threshold, ints), floats).astype(np.float32)
    found = abs_max(latent, axis) if computed else site.threshold
    if not np.array_equal(fake_quantize(latent, found, spec), floats):
        raise QuantError(
            "its integers do not reach the highest level in every channel: encoding D computes other thresholds",
            where=f"weight {site.value.name!r}",
            hint="use encoding B, or weight thresholds by channel_wise_abs_max",
        )
    return _Held(latent, Storage.FLOAT, found, spec)
