"""The bundled model, its quantization-aware twin, and held-out data: what `qpass demo` runs on.

An evaluation function for the command line can be named from here: ``--eval qpass.demo:accuracy``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

Predict = Callable[[np.ndarray], Sequence[np.ndarray]]
"""Images [N,1,8,8] -> the model's outputs, of which the first is probabilities [N,10]."""

BATCH = 50
_FOLDER = Path(__file__).parent


class Executor(Protocol):
    """What `eval_function` needs of `paddle.static.Executor`."""

    def run(self, program: object, feed: dict[str, np.ndarray], fetch_list: Sequence[object]) -> Sequence[np.ndarray]:
        """Run one batch; the values of `fetch_list`."""


def float_prefix() -> Path:
    """Prefix of the float model: append ``.pdmodel`` or ``.pdiparams``."""
    return _FOLDER / "digits"


def qat_prefix() -> Path:
    """Prefix of the quantization-aware trained twin (encoding D)."""
    return _FOLDER / "digits_qat"


def calibration_data() -> list[np.ndarray]:
    """128 images from the training part, as batches float32 [N,1,8,8] in [0, 1]."""
    return _batches(_array("calibration_images"))


def test_data() -> tuple[np.ndarray, np.ndarray]:
    """500 held-out images, float32 [500,1,8,8] in [0, 1], and their digits, int64 [500]."""
    return _array("test_images"), _array("test_labels")


def accuracy(predict: Predict) -> float:
    """Share of the held-out digits that `predict` gets right, 0 to 1."""
    _, labels = test_data()
    return float((_probabilities(predict).argmax(axis=1) == labels).mean())


def true_class_probability(predict: Predict) -> float:
    """Mean probability that `predict` gives to the true digit, 0 to 1: finer than `accuracy`."""
    _, labels = test_data()
    return float(_probabilities(predict)[np.arange(len(labels)), labels].mean())


def eval_function(
    executor: Executor, program: object, feed_names: Sequence[str], fetch_list: Sequence[object]
) -> float:
    """`accuracy`, in the form that Paddle's own quantization tools call."""
    return accuracy(lambda images: executor.run(program, feed={feed_names[0]: images}, fetch_list=fetch_list))


def _probabilities(predict: Predict) -> np.ndarray:
    images, _ = test_data()
    return np.concatenate([predict(batch)[0] for batch in _batches(images)])


def _batches(images: np.ndarray) -> list[np.ndarray]:
    return [images[start : start + BATCH] for start in range(0, len(images), BATCH)]


def _array(name: str) -> np.ndarray:
    with np.load(_FOLDER / "digits.npz", allow_pickle=False) as archive:
        return np.asarray(archive[name])
