"""Target accuracy as one job: search, write every model tried, save the model that reaches the target."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from qpass._version import __version__
from qpass.analysis.checkpoint import Checkpoint
from qpass.analysis.evaluate import evaluation
from qpass.analysis.target import Search, TargetResult, Trial, check_target
from qpass.errors import TargetError
from qpass.formats.files import save
from qpass.ir.model import Model
from qpass.job import Job
from qpass.report.target import advice, summary
from qpass.report.write import write_target
from qpass.runtime.evaluating import evaluating_engine

TARGET_CHECKPOINT = "target_checkpoint.jsonl"


class Reached(NamedTuple):
    """A model that reaches its target."""

    result: TargetResult
    model: Model
    files: list[Path]


def reach_target(
    job: Job,
    target_metric: float,
    prefix: str | Path,
    *,
    overwrite: bool = True,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> Reached:
    """Find the layers to leave in float, write ``target.txt``, ``.json`` and ``.csv``, and save the model.

    Parameters
    ----------
    job : Job
        Its `save_dir` gets the reports and the checkpoints.
    target_metric : float
        Absolute, on the scale of the evaluation.
    prefix : str or Path
        Of the model to save.
    overwrite : bool
        Replace a model that exists.
    on_trial : callable
        Told of every model after it was measured.

    Raises
    ------
    UsageError
        If the target is no finite number.
    TargetError
        If not even the float model reaches it, or no layer can be quantized; the reports are written.
    EvalError
        If a model cannot be measured.
    CheckpointError
        If the checkpoint belongs to another job.
    """
    result = find_target(job, target_metric, on_trial)
    files = write_target(result, job.save_dir)
    if result.outcome != "reached":
        raise TargetError(summary(result), where=str(files[0]), hint=advice(result))
    skip = list(result.skip_tensor_list)
    files.append(job.write_skip_list(skip))
    model = job.rewrite(skip)
    files += save(model, prefix, overwrite=overwrite)
    return Reached(result, model, files)


def find_target(job: Job, target_metric: float, on_trial: Callable[[Trial], None] = lambda trial: None) -> TargetResult:
    """The search alone; `reach_target` says what for.

    Every metric is of the very model that would be saved, and on the disk before the next model is made. The checkpoint
    does not depend on the target: another one takes over what was measured.
    """
    target = check_target(target_metric)
    layers = job.layers
    measuring = evaluation(
        job.evaluate,
        reference=job.reference,
        data=job.source,
        engine=evaluating_engine(job.options.engine, job.options.simulate),
    )
    header = {
        "mode": f"{job.mode} target",
        "qpass": __version__,
        "evaluation": measuring.name,
        "data": measuring.data_digest(),
        "options": repr(job.options),
        **job.identity,
    }

    def rank() -> Sequence[str]:
        job.write_ranking()
        return list(job.result.order)

    with Checkpoint(job.save_dir / TARGET_CHECKPOINT, header, resume=job.resume) as store:

        def measured(key: str, what: str, make: Callable[[], Model]) -> float:
            if key not in store.done:
                store.add(key, measuring.measure(make(), what))
            return store.done[key].metric

        def evaluate(skip: tuple[str, ...]) -> float:
            key = f"skip:{json.dumps(sorted(skip), ensure_ascii=False)}"
            what = f"the model with {len(skip)} of {len(layers)} layers in float"
            return measured(key, what, lambda: job.rewrite(skip))

        def measure_float() -> float:
            if _same(job.rewrite(layers), job.reference):
                return evaluate(tuple(layers))
            return measured("float", "the float model", lambda: job.reference)

        return Search(
            layers=layers,
            rank=rank,
            evaluate=evaluate,
            target=target,
            mode=job.mode,
            metric_name=measuring.name,
            higher_is_better=job.options.higher_is_better,
            measure_float=measure_float,
            on_trial=on_trial,
        ).run()


def _same(one: Model, other: Model) -> bool:
    return (one.program_digest(), one.params_digest()) == (other.program_digest(), other.params_digest())
