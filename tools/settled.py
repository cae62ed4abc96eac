"""Sweeps that stop layers early (`settle`) against full ones, on the corpus: the ranking and what was saved.

Each classifier is analysed in 8 and in 4 bits, by a function that says of each image whether it is right. Times are the
processor's, so that other work on the machine does not count.

    python tools/settled.py [--quick]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import corpus_data
import numpy as np
from markdown_table import table

import qpass
from qpass.analysis.result import AnalysisResult

CONFIDENCE = 0.95
BITS = (8, 4)


def kendall(a: Sequence[str], b: Sequence[str]) -> float:
    """Kendall's tau of two orders of the same names: pairs in the same order less the others, as a share of all."""
    place = {name: i for i, name in enumerate(b)}
    signs = [1 if place[upper] < place[lower] else -1 for upper, lower in combinations(a, 2)]
    return sum(signs) / len(signs)


def compared(full: AnalysisResult, settled: AnalysisResult) -> Mapping[str, Any]:
    """How the ranking of a race agrees with that of a full sweep, by the finer metric."""
    assert full.fine is not None
    assert settled.fine is not None
    assert settled.race is not None
    order = list(full.fine.rows)
    wrong = [name for name, place in settled.race.places.items() if order[place] != name]
    return {
        "layers": len(order),
        "settled": len(settled.race.places),
        "settled elsewhere": len(wrong),
        "Kendall's tau": f"{kendall(order, list(settled.fine.rows)):.4f}",
        "samples saved": f"{100 * settled.race.saved:.1f} %",
    }


def measured(name: str, quick: bool) -> list[Mapping[str, Any]]:
    """The rows of one classifier."""
    model = qpass.load(corpus_data.model_prefix(name))
    if name == "resnet8_cifar10":
        images, labels = corpus_data.cifar10(250 if quick else 1000)
        calibration = corpus_data.cifar10_of_each_class(32)[0]
    else:
        images, labels = corpus_data.text_lines(100 if quick else 500)
        calibration = corpus_data.text_lines(50, first=5)[0]

    def right(predict: corpus_data.Predict) -> np.ndarray:
        """Of each image whether the highest output is at the label."""
        scores = np.concatenate([predict(batch)[0] for batch in corpus_data.batches(images)])
        found: np.ndarray = scores.argmax(axis=1) == labels
        return found

    scales = qpass.calibrate(model, list(corpus_data.batches(calibration)))
    rows = []
    for bits in BITS:
        results, seconds = [], []
        for settle in (None, CONFIDENCE):
            start = time.process_time()
            results.append(
                qpass.analyze_ptq(model, scales, evaluate=right, weight_bits=bits, activation_bits=bits, settle=settle)
            )
            seconds.append(time.process_time() - start)
        facts = compared(*results)
        times = {"processor, full": f"{seconds[0]:.1f} s", "with settle": f"{seconds[1]:.1f} s"}
        rows.append({"model": name, "bits": bits, "images": len(images), **facts, **times})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="fewer images")
    quick = parser.parse_args().quick
    rows = [row for name in ("resnet8_cifar10", "ppocr_cls") for row in measured(name, quick)]
    print(table(list(rows[0]), [list(row.values()) for row in rows]))


if __name__ == "__main__":
    main()
