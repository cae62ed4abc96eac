"""One side, once, in a process of its own: ``python sides.py qpass|paddleslim JOB.json RESULT.json``.

Both sides get the same files, the same arguments and the same evaluation function. Imports and reading the data are
timed apart; the time of a side is everything from the model's files to the metric of every layer.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Result = dict[str, Any]


class Evaluate:
    """The metric of a model, in the form that both sides take.

    Parameters
    ----------
    images : np.ndarray
        [n, ...]
    labels : np.ndarray
        int64 [n]
    batch : int
    metric : {"probability", "accuracy"}
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, batch: int, metric: str) -> None:
        self.images, self.labels, self.batch, self.metric = images, labels, batch, metric

    def __call__(self, executor: Any, program: Any, feed_names: Sequence[str], fetch_list: Sequence[Any]) -> float:
        scores = np.concatenate(
            [
                executor.run(program, feed={feed_names[0]: part}, fetch_list=fetch_list)[0]
                for part in batches(self.images, self.batch)
            ]
        )
        if self.metric == "accuracy":
            return float((scores.argmax(axis=1) == self.labels).mean())
        return float(scores[np.arange(len(self.labels)), self.labels].mean(dtype=np.float64))


def batches(images: np.ndarray, size: int) -> list[np.ndarray]:
    """Consecutive batches of at most `size` images."""
    return [images[start : start + size] for start in range(0, len(images), size)]


def qpass_side(
    job: Mapping[str, Any], calibration: Sequence[np.ndarray], evaluate: Evaluate
) -> Callable[[str], Result]:
    """Import what is needed; a function that analyses.

    Scales are the framework's own (``compat="paddle"``): for avg and abs_max they are anyway, for hist, mse, emd and KL
    qpass would otherwise choose others.
    """
    import qpass
    from qpass.runtime.paddle_env import import_paddle

    import_paddle()
    qpass.AnalysisPTQ, qpass.AnalysisQAT  # noqa: B018 - public names are imported by their first use
    folder = Path(job["folder"])

    def analyse(save_dir: str) -> Result:
        if job["mode"] == "ptq":
            config = {**job["arguments"], "compat": "paddle"}
            analysis: Any = qpass.AnalysisPTQ(
                folder / "float",
                "model.pdmodel",
                "model.pdiparams",
                eval_function=evaluate,
                data_loader=list(calibration),
                save_dir=save_dir,
                ptq_config=config,
            )
        else:
            analysis = qpass.AnalysisQAT(
                folder / "quantized",
                folder / "float",
                "model.pdmodel",
                "model.pdiparams",
                quantizable_op_type=job["arguments"]["quantizable_op_type"],
                eval_function=evaluate,
                save_dir=save_dir,
                fast=job["fast"],
            )
        found = analysis.result
        return {"baseline": found.baseline, "metrics": {row.layer: row.metric for row in found.rows}}

    return analyse


def paddleslim_side(
    job: Mapping[str, Any], calibration: Sequence[np.ndarray], evaluate: Evaluate
) -> Callable[[str], Result]:
    """Import what is needed; a function that analyses."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import paddleslim_shims
    from paddleslim.quant.analysis import Analysis

    paddleslim_shims.quiet()
    folder, feed = Path(job["folder"]), job["feed"]

    def loader() -> Iterator[dict[str, np.ndarray]]:
        return ({feed: part} for part in calibration)

    def analyse(save_dir: str) -> Result:
        with paddleslim_shims.legacy_programs():
            analysis = Analysis(
                str(folder / "float"),
                quant_model_dir=str(folder / "quantized") if job["mode"] == "qat" else None,
                model_filename="model.pdmodel",
                params_filename="model.pdiparams",
                data_loader=loader,
                eval_function=evaluate,
                save_dir=save_dir,
                quant_config=dict(job["arguments"]),
            )
            analysis.metric_error_analyse()
        # In both modes its sensitivity is the baseline's metric less the variant's.
        baseline = analysis.fp_metric if job["mode"] == "ptq" else analysis.quant_metric
        return {"baseline": baseline, "metrics": {k: baseline - v for k, v in analysis.layer_metrics.items()}}

    return analyse


SIDES = {"qpass": qpass_side, "paddleslim": paddleslim_side}


def memory() -> tuple[float, float]:
    """Megabytes of this process: now, and at its peak.

    From the kernel's page on this process where there is one: `ru_maxrss` also counts the process that started it.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        return peak, peak
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":" in line)
    now, peak = (int(lines[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM"))
    return now, peak


def run(side: str, job: Mapping[str, Any]) -> Result:
    """Run a side once."""
    start = time.perf_counter()
    with np.load(Path(job["folder"]) / "data.npz") as data:
        evaluate = Evaluate(data["images"], data["labels"], job["batch"], job["metric"])
        calibration = batches(data["calibration"], job["batch"])
    analyse = SIDES[side](job, calibration, evaluate)
    ready = time.perf_counter()
    before, _ = memory()
    with tempfile.TemporaryDirectory() as save_dir:
        found = analyse(save_dir)
    seconds = time.perf_counter() - ready
    _, peak = memory()
    return {**found, "seconds": seconds, "megabytes": peak, "import_seconds": ready - start, "import_megabytes": before}


def main() -> None:
    side, job, result = sys.argv[1:]
    found = run(side, json.loads(Path(job).read_text(encoding="utf-8")))
    Path(result).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
