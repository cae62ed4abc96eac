"""Evaluation data from the model corpus: SROIE text lines, SROIE receipts, CIFAR-10 images; needs Pillow.

The corpus is looked for in ``QPASS_CORPUS``, then in ``../shared/corpus`` beside the checkout. Every selection is by a
fixed order, so two runs see the same data. When run, this measures the corpus's models with Paddle Inference alone.

    python tools/corpus_data.py
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(os.environ.get("QPASS_CORPUS", Path(__file__).resolve().parents[2] / "shared" / "corpus"))
BATCH = 20

Predict = Callable[[np.ndarray], Sequence[np.ndarray]]


def model_prefix(name: str) -> Path:
    """Prefix of a corpus model, e.g. ``ppocr_cls``."""
    return ROOT / "models" / name / "inference"


def text_lines(count: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Text-line images for the direction classifier, each upright and turned.

    Every k-th of the 2,076 lines in the order of the archive's ``lines_labels.txt``, k = 2,076 // `count`, from line
    number `first` on.

    Returns
    -------
    images : np.ndarray
        float32 [2 * count, 3, 48, 192], BGR, ``(v / 255 - 0.5) / 0.5``: scaled to height 48 with the ratio kept, width
        at most 192, zeros to the right (PaddleOCR, tools/infer/predict_cls.py, `resize_norm_img`). Each line stands
        twice in a row, at 0 and at 180 degrees.
    labels : np.ndarray
        int64 [2 * count]: 0 upright, 1 turned.
    """
    with zipfile.ZipFile(ROOT / "data" / "sroie.zip") as archive:
        labelled = archive.read("lines_labels.txt").decode("utf-8").splitlines()
        names = [line.split("\t")[0] for line in labelled]
        pictures = [_bgr(archive.read(name)) for name in names[first :: len(names) // count][:count]]
    images = [_line(turned) for picture in pictures for turned in (picture, picture[::-1, ::-1])]
    return np.stack(images), np.tile(np.array([0, 1], np.int64), len(pictures))


def receipts(count: int, side: int = 640) -> list[np.ndarray]:
    """The first `count` of 40 receipts in sorted order, for the text detector: float32 [1, 3, H, W].

    The longer side is scaled to `side`, both are rounded to multiples of 32; BGR with ImageNet mean and deviation
    (PaddleOCR, configs/det/ch_PP-OCRv3, `NormalizeImage`).
    """
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    made = []
    with zipfile.ZipFile(ROOT / "data" / "sroie.zip") as archive:
        for name in sorted(n for n in archive.namelist() if n.startswith("img/") and not n.endswith("/"))[:count]:
            picture = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            ratio = side / max(picture.size)
            width, height = (max(32, round(n * ratio / 32) * 32) for n in picture.size)
            pixels = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), np.float32)[:, :, ::-1]
            made.append(((pixels / 255 - mean) / deviation).transpose(2, 0, 1)[None])
    return made


def cifar10(count: int, archive: str = "cifar10_test.zip") -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10 images: every k-th of 10,000 in sorted order, k = 10,000 / `count`, so every class comes alike.

    Returns
    -------
    images : np.ndarray
        float32 [count, 3, 32, 32], RGB, raw 0 to 255.
    labels : np.ndarray
        int64 [count]: position of the class's folder in alphabetical order.
    """
    with zipfile.ZipFile(ROOT / "data" / archive) as files:
        names = _pictures(files)
        return _cifar10(files, names[:: len(names) // count][:count])


def cifar10_of_each_class(count: int, archive: str = "cifar10_train_10k.zip") -> tuple[np.ndarray, np.ndarray]:
    """The first `count` images of each class in sorted order, class by class; shapes as `cifar10`."""
    with zipfile.ZipFile(ROOT / "data" / archive) as files:
        chosen: dict[str, list[str]] = {}
        for name in _pictures(files):
            chosen.setdefault(_class(name), []).append(name)
        return _cifar10(files, [name for names in chosen.values() for name in names[:count]])


def batches(images: np.ndarray, size: int = BATCH) -> Iterator[np.ndarray]:
    """Consecutive batches of at most `size` images."""
    return (images[start : start + size] for start in range(0, len(images), size))


def accuracy(predict: Predict, images: np.ndarray, labels: np.ndarray, size: int = BATCH) -> float:
    """Share of images whose highest output, the first of several equal ones, is at the label."""
    scores = np.concatenate([predict(batch)[0] for batch in batches(images, size)])
    return float((scores.argmax(axis=1) == labels).mean())


def true_class_probability(predict: Predict, images: np.ndarray, labels: np.ndarray, size: int = BATCH) -> float:
    """Mean output at the label: finer than `accuracy`."""
    scores = np.concatenate([predict(batch)[0] for batch in batches(images, size)])
    return float(scores[np.arange(len(labels)), labels].mean())


def paddle_predict(prefix: Path) -> Predict:
    """A model on Paddle Inference (CPU, Paddle's own defaults), without anything of ours in between."""
    from paddle import inference

    config = inference.Config(f"{prefix}.pdmodel", f"{prefix}.pdiparams")
    config.disable_glog_info()
    predictor = inference.create_predictor(config)

    def predict(images: np.ndarray) -> list[np.ndarray]:
        predictor.get_input_handle(predictor.get_input_names()[0]).copy_from_cpu(np.ascontiguousarray(images))
        predictor.run()
        return [predictor.get_output_handle(name).copy_to_cpu() for name in predictor.get_output_names()]

    return predict


def _pictures(files: zipfile.ZipFile) -> list[str]:
    return sorted(n for n in files.namelist() if n.endswith(".jpg"))


def _class(name: str) -> str:
    return name.split("/")[-2]


def _cifar10(files: zipfile.ZipFile, chosen: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    classes = sorted({_class(name) for name in _pictures(files)})
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(files.read(n))).convert("RGB")) for n in chosen])
    labels = np.array([classes.index(_class(name)) for name in chosen], np.int64)
    return pixels.transpose(0, 3, 1, 2).astype(np.float32), labels


def _bgr(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[:, :, ::-1]


def _line(pixels: np.ndarray, height: int = 48, width: int = 192) -> np.ndarray:
    rows, columns = pixels.shape[:2]
    scaled = min(width, math.ceil(height * columns / rows))
    # Sampled at pixel centres without smoothing, as OpenCV's INTER_LINEAR does; Pillow's own resize smooths.
    affine = (columns / scaled, 0, 0, 0, rows / height, 0)
    picture = Image.fromarray(np.ascontiguousarray(pixels)).transform(
        (scaled, height), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
    )
    line = np.zeros((3, height, width), np.float32)
    line[:, :, :scaled] = (np.asarray(picture, np.float32).transpose(2, 0, 1) / 255 - 0.5) / 0.5
    return line


def measure(rows: Iterable[tuple[str, tuple[np.ndarray, np.ndarray]]]) -> None:
    for name, (images, labels) in rows:
        print(
            f"{name}: {accuracy(paddle_predict(model_prefix(name)), images, labels):.4f} of {len(labels)}", flush=True
        )


if __name__ == "__main__":
    lines = text_lines(500)
    measure([("ppocr_cls", lines), ("ppocr_cls_qat", lines)])
    measure([("resnet8_cifar10", cifar10(2000)), ("resnet8_cifar10", cifar10(10000))])
