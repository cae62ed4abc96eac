"""Runs the analyses that `docs/results.md` reports, each in a process of its own, and writes that page.

    python tools/results.py                   every job, then the page
    python tools/results.py qat-ppocr ...     these jobs, then the page
    python tools/results.py --page            the page alone

Needs the model corpus (see `corpus_data.py`). A job leaves ``docs/results/<job>.json`` and, where it ranks layers,
``docs/results/<job>.png``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import corpus_data
import numpy as np
import refinements

import qpass
from qpass.analysis.metric import Comparison
from qpass.passes import StripQuant
from qpass.report.ranking_chart import ranking_png

DOCS = Path(__file__).resolve().parents[1] / "docs"
LINES = 200
BATCH = 20
IMAGES = 1000

Facts = dict[str, Any]


class Sweep:
    """Evaluates variants on labelled images by the mean probability of the true class, and keeps their outputs.

    Follows the sweep as its progress, so that every layer's outputs are known by name.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, batch: int) -> None:
        self.images, self.labels, self.batch = images, labels, batch
        self.ends: list[np.ndarray] = []
        self.layers: dict[str, np.ndarray] = {}

    def probability(self, predict: corpus_data.Predict) -> float:
        """Mean probability of the true class."""
        scores = np.concatenate([predict(batch)[0] for batch in corpus_data.batches(self.images, self.batch)])
        self.ends.append(scores)
        return float(scores[np.arange(len(self.labels)), self.labels].mean())

    def start(self, total: int, done: int = 0) -> None:
        """The sweep begins."""

    def advance(self, layer: str, metric: float) -> None:
        """What was evaluated last belongs to `layer`."""
        self.layers[layer] = self.ends.pop()

    def accuracy(self, scores: np.ndarray) -> float:
        """Share of images that are classified right."""
        return float((scores.argmax(axis=1) == self.labels).mean())


def qat_ppocr(restore: str) -> Facts:
    """QAT mode on the official quantized text-direction classifier and its float twin."""
    quantized = qpass.load(corpus_data.model_prefix("ppocr_cls_qat"))
    twin = qpass.load(corpus_data.model_prefix("ppocr_cls"))
    analyse = partial(qpass.analyze_qat, quantized, twin, restore=restore)
    return analysed(analyse, Sweep(*corpus_data.text_lines(LINES), BATCH))


def ptq_ppocr() -> Facts:
    """PTQ mode on the float classifier, calibrated on 50 lines that are not evaluated, each at 0 and 180 degrees."""
    model = qpass.load(corpus_data.model_prefix("ppocr_cls"))
    calibration = list(corpus_data.batches(corpus_data.text_lines(LINES, first=5)[0][:100], BATCH))
    return analysed(partial(qpass.analyze_ptq, model, calibration), Sweep(*corpus_data.text_lines(LINES), BATCH))


def ptq_resnet8() -> Facts:
    """PTQ mode on ResNet-8 for CIFAR-10, calibrated on 200 training images."""
    model = qpass.load(corpus_data.model_prefix("resnet8_cifar10"))
    calibration = list(corpus_data.batches(corpus_data.cifar10(200, "cifar10_train_10k.zip")[0], 100))
    return analysed(partial(qpass.analyze_ptq, model, calibration), Sweep(*corpus_data.cifar10(IMAGES), 100))


def ptq_resnet8_outputs() -> Facts:
    """PTQ mode on ResNet-8 without labels: how far each layer moves the outputs. The picture of the README."""
    model = qpass.load(corpus_data.model_prefix("resnet8_cifar10"))
    batches = list(corpus_data.batches(corpus_data.cifar10(IMAGES)[0], 100))
    result = qpass.analyze_ptq(model, batches)
    (DOCS / "ranking.png").write_bytes(ranking_png(result))
    return {"outputs": json.loads(result.to_json())}


def strip_ppocr() -> Facts:
    """Everything stripped from the quantized classifier; every accuracy by Paddle Inference on files, without qpass."""
    chosen, every = corpus_data.text_lines(500), corpus_data.text_lines(2076)
    prefixes = {"float": corpus_data.model_prefix("ppocr_cls"), "quantized": corpus_data.model_prefix("ppocr_cls_qat")}
    with tempfile.TemporaryDirectory() as folder:
        stripped = StripQuant()(qpass.load(prefixes["quantized"]))
        prefixes["stripped"] = Path(folder) / "inference"
        qpass.save(stripped, prefixes["stripped"])
        return {
            name: {
                "500": corpus_data.accuracy(corpus_data.paddle_predict(prefix), *chosen),
                "all": corpus_data.accuracy(corpus_data.paddle_predict(prefix), *every),
            }
            for name, prefix in prefixes.items()
        }


def analysed(analyse: Callable[..., qpass.AnalysisResult], sweep: Sweep) -> Facts:
    """Rank by the probability of the true class; accuracy and distance of the outputs come from the same run."""
    start = time.perf_counter()
    result = analyse(evaluate=sweep.probability, progress=sweep)
    seconds = time.perf_counter() - start
    baseline, reference = sweep.ends
    target = baseline if result.mode == "ptq" else reference  # the float model
    return {
        "seconds": round(seconds, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "images": len(sweep.labels),
        "analysis": json.loads(result.to_json()),
        "baseline_accuracy": sweep.accuracy(baseline),
        "reference_accuracy": sweep.accuracy(reference),
        "accuracy": {layer: sweep.accuracy(scores) for layer, scores in sweep.layers.items()},
        "sqnr_db": {layer: sqnr_db(target, scores) for layer, scores in sweep.layers.items()},
    }


def sqnr_db(target: np.ndarray, scores: np.ndarray) -> float:
    """Signal-to-noise ratio of outputs, in dB: 10 log10 of signal power over noise power."""
    comparison = Comparison(["outputs"])
    comparison.add([target], [scores])
    return comparison.result().sqnr_db


class Job(NamedTuple):
    """One section of the page."""

    run: Callable[[], Facts]
    title: str
    about: str
    peer: str = ""


SROIE = f"{LINES} SROIE lines at 0 and 180 degrees, batch {BATCH}"
REFINED = (
    "Weights of 8 and 4 bits, one threshold a channel or one a tensor; activations of 8 bits; simulated. Accuracy, and "
    "likeness of the outputs with the float model's; seconds of calibration and refinement, the slowest of the row."
)
JOBS = {
    "qat-ppocr": Job(
        lambda: qat_ppocr("float"),
        "QAT mode: PP-OCR text-direction classifier, weights restored from the float twin",
        f"{SROIE}. Baseline: the quantized model; reference: the float one.",
        'PaddleSlim 2.6.0 crashes on this model ("Output Y cannot be found in operator '
        'fake_quantize_dequantize_moving_average_abs_max").',
    ),
    "qat-ppocr-self": Job(
        lambda: qat_ppocr("self"),
        "QAT mode: the same, weights restored from the quantized model itself",
        f"{SROIE}. What quantization alone costs, without the drift of weights in training.",
    ),
    "ptq-ppocr": Job(
        ptq_ppocr,
        "PTQ mode: PP-OCR text-direction classifier",
        f"{SROIE}; calibrated on 50 other lines at 0 and 180 degrees. Baseline: the float model; "
        "reference: all layers int8.",
        "PaddleSlim 2.6.0 on Paddle 3.3.1, 200 images: 124 s, memory 532 to 1,818 MB; by accuracy 41 of 54 layers tie.",
    ),
    "ptq-resnet8": Job(
        ptq_resnet8,
        "PTQ mode: ResNet-8 on CIFAR-10",
        f"{IMAGES:,} test images, every tenth in sorted order, batch 100; calibrated on 200 training images. Baseline: "
        "the float model; reference: all layers int8.",
        "PaddleSlim 2.6.0 on Paddle 3.3.1, 320 + 1,000 images: 23 s, memory 422 to 814 MB.",
    ),
    "ptq-resnet8-outputs": Job(
        ptq_resnet8_outputs,
        "PTQ mode without labels: ResNet-8 on CIFAR-10",
        f"No evaluation function: cosine similarity of the outputs with the float model's, on {IMAGES:,} test images.",
    ),
    "strip-ppocr": Job(
        strip_ppocr,
        "The quantized classifier with everything stripped",
        "SROIE lines at 0 and 180 degrees, by Paddle Inference on the files. The stripped model keeps its own weights "
        '(`restore="self"`). The 500 are every fourth line in the order of the label file: of the selections tried the '
        "one that gives the 97.8 % and 97.4 % reported for these models; all 2,076 lines stand beside it.",
    ),
    "refinements-resnet8": Job(
        refinements.resnet8,
        "Bias correction, equalization and adaptive rounding beside plain PTQ: ResNet-8 on CIFAR-10",
        f"2,000 test images; calibrated by `avg` on the first 32 training images of each class. {REFINED}",
    ),
    "refinements-ppocr": Job(
        refinements.ppocr_cls,
        "The same: PP-OCR text-direction classifier",
        f"500 SROIE lines at 0 and 180 degrees; calibrated by `avg` on 50 others. {REFINED}",
    ),
}


def run_here(job: str) -> None:
    """Do one job in this process and write its files."""
    facts = JOBS[job].run()
    facts["paddle"] = importlib.metadata.version("paddlepaddle")
    facts["python"] = platform.python_version()
    facts["cores"] = os.cpu_count()
    (DOCS / "results").mkdir(parents=True, exist_ok=True)
    (DOCS / "results" / f"{job}.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if "analysis" in facts:
        (DOCS / "results" / f"{job}.png").write_bytes(ranking_png(read_result(facts, "analysis")))


def page() -> str:
    """The text of `docs/results.md`, from the files of the jobs that were run."""
    parts = [
        "# Results\n",
        "Written by `tools/results.py` from the files in `results/`; run it again to reproduce them. The metric is the "
        "mean probability of the true class (finer than accuracy, which stands beside it); most sensitive first. The "
        "last column compares the outputs with the float model's: the lower, the further they are. Time "
        "is the wall clock of one analysis in a fresh process without imports, memory the peak of that process with "
        "Paddle.\n",
    ]
    for name, job in JOBS.items():
        file = DOCS / "results" / f"{name}.json"
        if file.exists():
            facts = json.loads(file.read_text(encoding="utf-8"))
            parts.append(f"## {job.title}\n\n{job.about}\n\n{section(name, job, facts)}")
    return "\n".join(parts)


def section(name: str, job: Job, facts: Facts) -> str:
    if "analysis" in facts:
        return ranking_section(name, facts, job.peer)
    if "refinements" in facts:
        header, *rows = refinements.lines(facts)
        return f"The float model: {facts['float']:.2%}.\n\n{table(header, rows)}"
    return outputs_section(facts) if "outputs" in facts else strip_section(facts)


def outputs_section(facts: Facts) -> str:
    result = read_result(facts, "outputs")
    rows = [
        (n, f"`{row.layer}`", f"{row.metric:.6f}", f"{row.sensitivity:.6f}", f"{row.details['sqnr_db']:.1f}")
        for n, row in enumerate(result.rows, 1)
    ]
    return "![Ranking](ranking.png)\n\n" + table(("rank", "layer", "cosine", "sensitivity", "SQNR dB"), rows)


def ranking_section(name: str, facts: Facts, peer: str) -> str:
    result = read_result(facts, "analysis")
    run = (
        f"{len(result.rows)} layers, {facts['images']} images: {facts['seconds']} s, peak memory "
        f"{facts['peak_mib']} MiB (Paddle {facts['paddle']}, Python {facts['python']}, {facts['cores']} cores).\n"
    )
    if peer:
        run += f"\nThe peer, measured in a run of its own: {peer}\n"
    ends = [
        ("baseline", f"{result.baseline:.4f}", f"{facts['baseline_accuracy']:.2%}"),
        ("reference", f"{result.reference:.4f}", f"{facts['reference_accuracy']:.2%}"),
    ]
    rows = [
        (
            rank,
            f"`{row.layer}`",
            row.family,
            f"{row.metric:.4f}",
            f"{row.sensitivity:+.4f}",
            f"{facts['accuracy'][row.layer]:.2%}",
            f"{facts['sqnr_db'][row.layer]:.1f}",
        )
        for rank, row in enumerate(result.rows, 1)
    ]
    return "\n".join(
        (
            run,
            table(("", "metric", "accuracy"), ends),
            f"![Ranking](results/{name}.png)\n",
            table(("rank", "layer", "family", "metric", "sensitivity", "accuracy", "outputs, SQNR dB"), rows),
        )
    )


def read_result(facts: Facts, kind: str) -> qpass.AnalysisResult:
    return qpass.AnalysisResult.from_json(json.dumps(facts[kind]))


def strip_section(facts: Facts) -> str:
    names = {
        "float": "the float model, `ppocr_cls`",
        "quantized": "the quantized model, `ppocr_cls_qat`",
        "stripped": "`ppocr_cls_qat` with everything stripped",
    }
    rows = [(words, f"{facts[name]['500']:.2%}", f"{facts[name]['all']:.2%}") for name, words in names.items()]
    return table(("model", "500 lines", "all 2,076 lines"), rows)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the analyses of docs/results.md and write the page.")
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"of {', '.join(JOBS)}; default all")
    parser.add_argument("--page", action="store_true", help="write the page from what earlier runs left")
    parser.add_argument("--here", action="store_true", help="do one job in this process and stop")
    args = parser.parse_args()
    unknown = sorted(set(args.jobs) - set(JOBS))
    if unknown:
        parser.error(f"unknown job {', '.join(unknown)}")
    if args.here:
        for job in args.jobs:
            run_here(job)
        return
    for job in [] if args.page else args.jobs or list(JOBS):
        start = time.perf_counter()
        subprocess.run([sys.executable, __file__, "--here", job], check=True)
        print(f"{job}: {time.perf_counter() - start:.0f} s", flush=True)
    (DOCS / "results.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
