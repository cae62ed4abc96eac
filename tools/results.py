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

import qpass
from qpass.passes import StripQuant
from qpass.report.ranking_chart import ranking_png

DOCS = Path(__file__).resolve().parents[1] / "docs"
LINES = 200
BATCH = 20
IMAGES = 1000

Facts = dict[str, Any]


class Data:
    """Labelled images and the two metrics on them."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, batch: int) -> None:
        self.images, self.labels, self.batch = images, labels, batch

    def probability(self, predict: corpus_data.Predict) -> float:
        """Mean probability of the true class."""
        return corpus_data.true_class_probability(predict, self.images, self.labels, self.batch)

    def accuracy(self, predict: corpus_data.Predict) -> float:
        """Share of images that are classified right."""
        return corpus_data.accuracy(predict, self.images, self.labels, self.batch)


def qat_ppocr(restore: str) -> Facts:
    """QAT mode on the official quantized text-direction classifier and its float twin."""
    quantized = qpass.load(corpus_data.model_prefix("ppocr_cls_qat"))
    twin = qpass.load(corpus_data.model_prefix("ppocr_cls"))
    analyse = partial(qpass.analyze_qat, quantized, twin, restore=restore)
    return analysed(analyse, Data(*corpus_data.text_lines(LINES), BATCH))


def ptq_ppocr() -> Facts:
    """PTQ mode on the float classifier, calibrated on 50 lines that are not evaluated, each at 0 and 180 degrees."""
    model = qpass.load(corpus_data.model_prefix("ppocr_cls"))
    calibration = list(corpus_data.batches(corpus_data.text_lines(LINES, first=5)[0][:100], BATCH))
    return analysed(partial(qpass.analyze_ptq, model, calibration), Data(*corpus_data.text_lines(LINES), BATCH))


def ptq_resnet8() -> Facts:
    """PTQ mode on ResNet-8 for CIFAR-10, calibrated on 200 training images."""
    model = qpass.load(corpus_data.model_prefix("resnet8_cifar10"))
    calibration = list(corpus_data.batches(corpus_data.cifar10(200, "cifar10_train_10k.zip")[0], 100))
    return analysed(partial(qpass.analyze_ptq, model, calibration), Data(*corpus_data.cifar10(IMAGES), 100))


def strip_ppocr() -> Facts:
    """Everything stripped from the quantized classifier; every accuracy by Paddle Inference on files, without qpass."""
    lines = corpus_data.text_lines(500)
    prefixes = {"float": corpus_data.model_prefix("ppocr_cls"), "quantized": corpus_data.model_prefix("ppocr_cls_qat")}
    with tempfile.TemporaryDirectory() as folder:
        stripped = StripQuant()(qpass.load(prefixes["quantized"]))
        prefixes["stripped"] = Path(folder) / "inference"
        qpass.save(stripped, prefixes["stripped"])
        return {name: corpus_data.accuracy(corpus_data.paddle_predict(p), *lines) for name, p in prefixes.items()}


def analysed(analyse: Callable[..., qpass.AnalysisResult], data: Data) -> Facts:
    """Rank by the probability of the true class (timed); then by accuracy and without labels, for the other columns."""
    start = time.perf_counter()
    result = analyse(evaluate=data.probability)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    accuracy = analyse(evaluate=data.accuracy)
    outputs = analyse(evaluate=None, data=list(corpus_data.batches(data.images, data.batch)))
    return {
        "seconds": round(seconds, 1),
        "peak_mib": round(peak),
        "images": len(data.labels),
        "analysis": json.loads(result.to_json()),
        "accuracy": json.loads(accuracy.to_json()),
        "outputs": json.loads(outputs.to_json()),
    }


class Job(NamedTuple):
    """One section of the page."""

    run: Callable[[], Facts]
    title: str
    about: str


SROIE = f"{LINES} SROIE lines at 0 and 180 degrees, batch {BATCH}"
JOBS = {
    "qat-ppocr": Job(
        lambda: qat_ppocr("float"),
        "QAT mode: PP-OCR text-direction classifier, weights restored from the float twin",
        f"{SROIE}. Baseline: the quantized model; reference: the float one.",
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
    ),
    "ptq-resnet8": Job(
        ptq_resnet8,
        "PTQ mode: ResNet-8 on CIFAR-10",
        f"{IMAGES:,} test images, every tenth in sorted order, batch 100; calibrated on 200 training images. Baseline: "
        "the float model; reference: all layers int8.",
    ),
    "strip-ppocr": Job(
        strip_ppocr,
        "The quantized classifier with everything stripped",
        "500 SROIE lines at 0 and 180 degrees, by Paddle Inference on the files. Its weights stay its own "
        '(`restore="self"`).',
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
            body = ranking_section(name, facts) if "analysis" in facts else strip_section(facts)
            parts.append(f"## {job.title}\n\n{job.about}\n\n{body}")
    return "\n".join(parts)


def ranking_section(name: str, facts: Facts) -> str:
    result, accuracy, outputs = (read_result(facts, kind) for kind in ("analysis", "accuracy", "outputs"))
    right = {row.layer: row.metric for row in accuracy.rows}
    sqnr = {row.layer: row.details["sqnr_db"] for row in outputs.rows}
    run = (
        f"{len(result.rows)} layers, {facts['images']} images: {facts['seconds']} s, peak memory "
        f"{facts['peak_mib']} MiB (Paddle {facts['paddle']}, Python {facts['python']}, {facts['cores']} cores).\n"
    )
    ends = [
        ("baseline", f"{result.baseline:.4f}", f"{accuracy.baseline:.2%}"),
        ("reference", f"{result.reference:.4f}", f"{accuracy.reference:.2%}"),
    ]
    rows = [
        (
            rank,
            f"`{row.layer}`",
            row.family,
            f"{row.metric:.4f}",
            f"{row.sensitivity:+.4f}",
            f"{right[row.layer]:.2%}",
            f"{sqnr[row.layer]:.1f}",
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
    rows = [
        ("the float model, `ppocr_cls`", f"{facts['float']:.1%}"),
        ("the quantized model, `ppocr_cls_qat`", f"{facts['quantized']:.1%}"),
        ("`ppocr_cls_qat` with everything stripped", f"{facts['stripped']:.1%}"),
    ]
    return table(("model", "accuracy"), rows)


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
