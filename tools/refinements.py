"""Compares bias correction, equalization and adaptive rounding with plain PTQ on the corpus; see `results.py`.

    python tools/refinements.py            prints the tables of both models

Every model is quantized from the same thresholds (`avg`), with per-channel and per-tensor weights of 8 and 4 bits and
activations of 8, and run simulated: weights as the floats that they stand for, activations through quantize ops.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import corpus_data
import numpy as np

import qpass
from qpass.analysis.metric import Comparison
from qpass.ir.model import Model
from qpass.passes import FoldQuant, InsertQuant
from qpass.refine import prepare_float, refine
from qpass.runtime.engines import get_engine

GOLDENS = Path(corpus_data.ROOT).parent / "goldens"
BATCH = 100

Facts = dict[str, Any]


class Kind(NamedTuple):
    """One row: what is done besides plain quantization."""

    name: str
    equalize: bool = False
    round_type: str = "round"
    bias_correction: str = "none"


KINDS = (
    Kind("plain"),
    Kind("bias correction", bias_correction="bias"),
    Kind("equalization", equalize=True),
    Kind("adaround", round_type="adaround"),
    Kind("adaround, bias correction", round_type="adaround", bias_correction="bias"),
    Kind("equalization, bias correction", equalize=True, bias_correction="bias"),
    Kind("equalization, adaround", equalize=True, round_type="adaround"),
    Kind("all three", equalize=True, round_type="adaround", bias_correction="bias"),
    Kind("the framework's bias_correction", bias_correction="paddle"),
)
WEIGHT_ALGOS = ("channel_wise_abs_max", "abs_max")
WEIGHT_BITS = (8, 4)


def resnet8() -> Facts:
    """ResNet-8: 2,000 test images, calibrated on the first 32 training images of each class."""
    with np.load(GOLDENS / "resnet8_calibration.npz") as data:
        calibration = data["x"].astype(np.float32)
    return compared("resnet8_cifar10", calibration, *corpus_data.cifar10(2000))


def ppocr_cls() -> Facts:
    """The text-direction classifier: 500 lines at 0 and 180 degrees, calibrated on 50 others."""
    calibration = corpus_data.text_lines(200, first=5)[0][:100]
    return compared("ppocr_cls", calibration, *corpus_data.text_lines(500))


def compared(name: str, calibration: np.ndarray, images: np.ndarray, labels: np.ndarray) -> Facts:
    """Accuracy, likeness with the float outputs and seconds of every combination."""
    model = qpass.load(corpus_data.model_prefix(name))
    true = outputs(model, images)
    rows = []
    for equalize in (False, True):
        prepared = prepare_float(model, equalize=equalize)
        for weight_algo in WEIGHT_ALGOS:
            start = time.perf_counter()
            scales = qpass.calibrate(prepared, calibration, algo="avg", weight_algo=weight_algo)
            calibrated = time.perf_counter() - start
            for bits, kind in product(WEIGHT_BITS, (kind for kind in KINDS if kind.equalize is equalize)):
                inserted = InsertQuant(scales, weight_bits=bits)(prepared)
                start = time.perf_counter()
                made = refined(inserted, prepared, calibration, kind)
                seconds = calibrated + time.perf_counter() - start
                scores = outputs(FoldQuant("float")(made), images)
                rows.append([weight_algo, bits, kind.name, *figures(true, scores, labels), round(seconds, 2)])
    return {"images": len(labels), "float": figures(true, true, labels)[0], "refinements": rows}


def refined(inserted: Model, prepared: Model, calibration: np.ndarray, kind: Kind) -> Model:
    return refine(inserted, prepared, calibration, round_type=kind.round_type, bias_correction=kind.bias_correction)


def outputs(model: Model, images: np.ndarray) -> np.ndarray:
    session = get_engine("inference").session(model)
    feed = session.feed_names[0]
    return np.concatenate([session.run({feed: batch})[0] for batch in corpus_data.batches(images, BATCH)])


def figures(true: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """Accuracy, share of images classified as the float model does, and signal-to-noise ratio of outputs in dB."""
    comparison = Comparison(["outputs"])
    comparison.add([true], [scores])
    found = scores.argmax(axis=1)
    return float((found == labels).mean()), float((found == true.argmax(axis=1)).mean()), comparison.result().sqnr_db


def lines(facts: Facts) -> Iterator[Sequence[str]]:
    """The table of one model, its header first: accuracy and likeness side by side for each way to quantize."""
    cells = {(algo, bits, kind): rest for algo, bits, kind, *rest in facts["refinements"]}
    ways = list(product(WEIGHT_ALGOS, WEIGHT_BITS))
    words = {"channel_wise_abs_max": "per channel", "abs_max": "per tensor"}
    yield ("", *(f"{words[algo]}, {bits} bit" for algo, bits in ways), "seconds")
    for kind in KINDS:
        row = [cells[algo, bits, kind.name] for algo, bits in ways]
        yield (
            kind.name,
            *(f"{accuracy:.2%} ({sqnr:.1f} dB)" for accuracy, _, sqnr, _ in row),
            f"{max(seconds for *_, seconds in row):.1f}",
        )


def main() -> None:
    for name, measure in (("resnet8_cifar10", resnet8), ("ppocr_cls", ppocr_cls)):
        facts = measure()
        print(f"{name}, float {facts['float']:.2%}, {facts['images']} images")
        for line in lines(facts):
            print(" | ".join(line), flush=True)


if __name__ == "__main__":
    main()
