"""Rankings of layers, and a model with everything stripped: the jobs and their sections; see `results.py`."""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import corpus_data
import numpy as np
from markdown_table import table

import qpass
from qpass.analysis.metric import Comparison
from qpass.passes import StripQuant

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
    """PTQ mode on ResNet-8 without labels: how far each layer moves the outputs."""
    model = qpass.load(corpus_data.model_prefix("resnet8_cifar10"))
    batches = list(corpus_data.batches(corpus_data.cifar10(IMAGES)[0], 100))
    result = qpass.analyze_ptq(model, batches)
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


def outputs_section(name: str, facts: Facts, peer: str) -> str:
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


def strip_section(name: str, facts: Facts, peer: str) -> str:
    names = {
        "float": "the float model, `ppocr_cls`",
        "quantized": "the quantized model, `ppocr_cls_qat`",
        "stripped": "`ppocr_cls_qat` with everything stripped",
    }
    rows = [(words, f"{facts[name]['500']:.2%}", f"{facts[name]['all']:.2%}") for name, words in names.items()]
    return table(("model", "500 lines", "all 2,076 lines"), rows)
