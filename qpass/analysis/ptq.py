"""PTQ mode: which layers of a float model lose accuracy when they are quantized, each alone."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qpass.analysis.breakdown import ROLES, part_key
from qpass.analysis.budget import DEFAULT_MEMORY
from qpass.analysis.estimate import check_count
from qpass.analysis.evaluate import Evaluate, check_direction, evaluation
from qpass.analysis.local_error import Subject, skeleton_of
from qpass.analysis.measuring import Variant
from qpass.analysis.progress import Progress, Silent
from qpass.analysis.race import check_confidence
from qpass.analysis.result import AnalysisResult
from qpass.analysis.sweep import BASELINE, REFERENCE, Plan, Resources, layer_key
from qpass.errors import UsageError
from qpass.ir.model import Model
from qpass.passes import FoldQuant, InsertQuant
from qpass.quant.encodings import check_float
from qpass.quant.layers import DEFAULT_OP_TYPES, Layer, find_layers
from qpass.quant.scales import ScaleTable, key
from qpass.quant.skip import unskipped
from qpass.quant.toggles import Switched
from qpass.runtime.calibrate import calibrate
from qpass.runtime.data import Batches, Data
from qpass.runtime.engine import Engine
from qpass.runtime.evaluating import evaluating_engine
from qpass.runtime.jobs import Workers
from qpass.runtime.processes import opened


def analyze_ptq(
    model: Model,
    scales: ScaleTable | Data,
    *,
    evaluate: Evaluate | None = None,
    data: Data | None = None,
    engine: str | Engine = "inference",
    simulate: str | None = None,
    fast: bool = False,
    op_types: Sequence[str] = DEFAULT_OP_TYPES,
    skip_tensor_list: Sequence[str] = (),
    overrides: Sequence[str] = (),
    weight_bits: int = 8,
    activation_bits: int = 8,
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
    """Rank the layers of a float model by what quantizing each of them alone costs.

    For each layer its weight and its input activation are fake-quantized, for that layer only; the graph is otherwise
    the user's. The baseline is the float model, the reference the model with all layers quantized.

    Parameters
    ----------
    model : Model
        A float model.
    scales : ScaleTable or Data
        What `calibrate` found for it; or calibration data, then it is called here with its defaults.
    evaluate : callable, optional
        ``eval_function(executor, program, feed_names, fetch_list) -> float``, or ``evaluate(predict) -> float`` where
        ``predict(batch)`` gives the list of outputs. None: cosine similarity of all outputs with the float model's.
    data : Data, optional
        Batches to compare outputs on, for ``evaluate=None``; default the calibration data.
    engine : str or Engine
        What runs the models; ``int8`` runs the float ones as ``inference`` does.
    simulate : {None, "onednn"}
        Measure in place of each quantized model what `qpass.simulate` makes of it.
    fast : bool
        Quantize activations by oneDNN's own ops, on the engine ``inference`` alone: figures may differ in what the last
        bits of a value decide.
    op_types : sequence of str
        Op types whose layers are examined; `mul`, `matmul` and `matmul_v2` are one family.
    skip_tensor_list : sequence of str
        What stays in float throughout; see `qpass.quant.skip`.
    overrides : sequence of str
        Other bits for some ops, as ``NAME:w4a16``.
    weight_bits, activation_bits : int
    higher_is_better : bool
        Direction of the metric.
    checkpoint : str or Path, optional
        File that gets a line after every layer.
    resume : bool
        Go on from the checkpoint.
    settle : float, optional
        Stop a layer when its place is settled, all places together with this confidence (0 to 1); the others run on
        all samples. Layers are then ranked by the finer metric. An evaluation function has to give a score for each
        sample. A race that was interrupted takes over settled layers and starts anew for the others.
    breakdown : bool
        Take every layer apart: measure its weight alone and its input activation alone too, which takes up to three
        times as long, and its local error, in one more pass over the data. See `breakdown_details`.
    estimate : int, optional
        Estimate all layers first, and evaluate only that many of them, those with the largest estimate.
    progress : Progress, optional
    memory_bytes : int
        What this process and each worker may take beyond what running the model takes, in bytes; fewer mean more and
        smaller programs.
    workers : Workers or int, optional
        Who runs variants, or in how many processes; default this process. Results are the same bytes in any number of
        workers. `evaluate` runs in this process and need not be picklable; models that are no slices of one program
        (``simulate``, ``engine="int8"``, other engines) run here too.

    Returns
    -------
    AnalysisResult
        Most sensitive layer first. Details of a layer: ``activation_threshold`` and ``weight_absmax`` (the largest of
        several), and without `evaluate` ``cosine`` and ``sqnr_db``.

    Raises
    ------
    UsageError
        If the model is quantized already or has no layers, or arguments do not go together.
    QuantError
        If the scales belong to another model.
    EvalError
        If a model cannot be evaluated.
    CheckpointError
        If the checkpoint belongs to another job.
    """
    check_direction(evaluate, higher_is_better)
    check_confidence(settle)
    check_count(estimate)
    check_float(model)
    layers = unskipped(model, find_layers(model, op_types), skip_tensor_list)
    if not layers:
        raise UsageError(f"the model has no layer of the op types {', '.join(op_types)}")
    runner = evaluating_engine(engine, simulate)
    if not isinstance(scales, ScaleTable):
        source = Batches.of(model, scales)
        data = source if data is None else data
        scales = calibrate(model, source, engine=runner, op_types=tuple(op_types))
    table = scales

    insert = InsertQuant(
        scales=table,
        skip=tuple(skip_tensor_list),
        op_types=tuple(op_types),
        overrides=tuple(overrides),
        weight_bits=weight_bits,
        activation_bits=activation_bits,
    )
    variants = _Variants(model, insert, layers)
    plan = Plan(
        mode="ptq",
        evaluation=evaluation(
            evaluate, reference=model, data=None if data is None else Batches.of(model, data), engine=runner
        ),
        higher_is_better=higher_is_better,
        baseline=variants.of(BASELINE, "the float model", ()),
        reference=variants.of(REFERENCE, "all layers quantized", [layer.name for layer in layers]),
        layers=layers,
        variant=variants.alone,
        engine=runner,
        skeleton=lambda: skeleton_of(variants.subject(), runner, fast=fast),
        twin=None,
        details=lambda layer: _thresholds(model, layer, table),
        settle=settle,
        subject=variants.subject,
        parts=variants.parts if breakdown else None,
        estimate=estimate,
        settings=_settings(model, insert, table, runner, fast=fast),
    )
    with opened(workers) as crew:
        return plan.run(Resources(checkpoint, resume, progress or Silent(), memory_bytes, crew))


@dataclass(frozen=True)
class _Variants:
    """A float model with some of its layers quantized."""

    model: Model
    insert: InsertQuant
    layers: tuple[Layer, ...]

    def of(self, key: str, what: str, names: Sequence[str]) -> Variant:
        insert = dataclasses.replace(self.insert, layers=tuple(names))
        return Variant(key, what, lambda: self._made(insert) if names else self.model, Switched.both(names))

    def alone(self, layer: Layer) -> Variant:
        return self.of(layer_key(layer), f"layer {layer.name!r} quantized alone", [layer.name])

    def parts(self, layer: Layer) -> list[Variant]:
        return [self._part(layer.name, role) for role in ROLES]

    def subject(self) -> Subject:
        return Subject(self.insert(self.model), self.model.params, self.layers)

    def _part(self, layer: str, role: str) -> Variant:
        weight, one, none = role == "weight", frozenset([layer]), frozenset[str]()
        insert = dataclasses.replace(self.insert, layers=(layer,), weights=weight, activations=not weight)
        what = f"the {role} of layer {layer!r} quantized alone"
        on = Switched(one, none) if weight else Switched(none, one)
        return Variant(part_key(role, layer), what, lambda: self._made(insert), on)

    def _made(self, insert: InsertQuant) -> Model:
        return FoldQuant(to="float")(insert(self.model))


def _settings(model: Model, insert: InsertQuant, table: ScaleTable, engine: Engine, *, fast: bool) -> dict[str, str]:
    return {
        "program": model.program_digest(),
        "params": model.params_digest(),
        "scales": hashlib.sha256(table.to_json().encode()).hexdigest(),
        "calibration_data": table.data_digest,
        "algo": table.algo,
        "weight_algo": table.weight_algo,
        "engine": engine.name,
        **({"fake_quant": "fast"} if fast else {}),
        "op_types": ",".join(insert.op_types),
        **({"skip_tensor_list": ",".join(insert.skip)} if insert.skip else {}),
        **({"overrides": ",".join(insert.overrides)} if insert.overrides else {}),
        "weight_bits": str(insert.weight_bits),
        "activation_bits": str(insert.activation_bits),
    }


def _thresholds(model: Model, layer: Layer, table: ScaleTable) -> Mapping[str, float]:
    graph = model.graph
    refs = [graph.read(graph.by_uid[op.uid], op.activation.slot, op.activation.index) for op in layer.ops]
    return {
        "activation_threshold": max(table.activations[key(graph, ref)] for ref in refs),
        "weight_absmax": float(np.max(table.weights[layer.name])),
    }
