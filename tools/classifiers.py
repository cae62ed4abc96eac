"""The corpus's classifiers with the images that they are calibrated and judged on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import corpus_data
import numpy as np

from qpass.ir.model import Model
from qpass.runtime.engine import Engine
from qpass.runtime.engines import get_engine


class Classifier(NamedTuple):
    """A model with its images; every image that is judged is no image of the calibration."""

    prefix: Path
    calibration: Sequence[np.ndarray]
    images: np.ndarray
    labels: np.ndarray
    batch: int

    def right(self, model: Model, engine: str | Engine = "inference") -> np.ndarray:
        """bool [images]: whether the highest output, the first of several equal ones, is at the label."""
        session = get_engine(engine).session(model)
        feed = session.feed_names[0]
        outputs = [session.run({feed: batch})[0] for batch in corpus_data.batches(self.images, self.batch)]
        found: np.ndarray = np.concatenate(outputs).argmax(axis=1) == self.labels
        return found


def resnet8(quick: bool = False) -> Classifier:
    """ResNet-8: 2,000 test images, every fifth in sorted order; calibrated on the first 32 training images a class.

    Shuffled: what some algorithms of the framework find depends on how images come together in a batch.
    """
    calibration = corpus_data.cifar10_of_each_class(4 if quick else 32)[0]
    calibration = calibration[np.random.default_rng(0).permutation(len(calibration))]
    images, labels = corpus_data.cifar10(200 if quick else 2000)
    prefix = corpus_data.model_prefix("resnet8_cifar10")
    return Classifier(prefix, list(corpus_data.batches(calibration, 32)), images, labels, 100)


def text_direction(quick: bool = False, name: str = "ppocr_cls") -> Classifier:
    """The direction classifier: 500 lines at 0 and 180 degrees; calibrated on 50 others, at 0 and 180 degrees too."""
    calibration = corpus_data.text_lines(200, first=5)[0][: 20 if quick else 100]
    images, labels = corpus_data.text_lines(20 if quick else 500)
    prefix = corpus_data.model_prefix(name)
    return Classifier(prefix, list(corpus_data.batches(calibration)), images, labels, corpus_data.BATCH)


CLASSIFIERS: dict[str, Callable[[bool], Classifier]] = {
    "resnet8_cifar10": resnet8,
    "ppocr_cls": text_direction,
    "ppocr_cls_qat": lambda quick: text_direction(quick, "ppocr_cls_qat"),
}
