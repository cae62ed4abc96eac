"""The cases of the benchmark: which work, which algorithm, which goal; and their models and data as files.

A *work* is a model with data in a folder: ``float/model.pdmodel``, in QAT mode ``quantized/model.pdmodel`` besides,
``data.npz`` with calibration images, evaluation images and labels, and ``about.json`` with what the bench itself needs
to know. Cases of the same work share its folder.

    python cases.py WORK FOLDER        writes it
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import corpus_data
import nets
from framework_ptq import OP_TYPES, framework_ptq
from limit import multiply_adds_again

import qpass
from qpass.quant.layers import find_layers
from qpass.runtime.engines import get_engine

FLOAT, QUANTIZED = Path("float", "model"), Path("quantized", "model")
DATA, ABOUT = "data.npz", "about.json"


@dataclass(frozen=True)
class Data:
    """What a work is calibrated and evaluated on; None: the evaluated images, and the float model's own answers."""

    images: np.ndarray
    labels: np.ndarray | None = None
    calibration: np.ndarray | None = None


@dataclass(frozen=True)
class Work:
    """A model with data.

    Parameters
    ----------
    write : callable
        Writes the models below a folder and gives the data.
    batch : int
        Images in a batch.
    mode : {"ptq", "qat"}
    metric : {"probability", "accuracy"}
        Mean probability of the label, or share of images whose highest output is at the label.
    """

    write: Callable[[Path], Data]
    batch: int
    mode: Literal["ptq", "qat"] = "ptq"
    metric: Literal["probability", "accuracy"] = "probability"


@dataclass(frozen=True)
class Case:
    """A line of the table.

    Parameters
    ----------
    work : str
        Key of `WORKS`.
    algo : str
        Algorithm for activations, in PTQ mode.
    faster : float or None
        Goal: at least so many times as fast as the peer.
    seconds, megabytes : float or None
        Goals: at most.
    fast : bool
        Whether qpass quantizes activations by oneDNN's own ops.
    """

    work: str
    algo: str = "avg"
    faster: float | None = None
    seconds: float | None = None
    megabytes: float | None = None
    fast: bool = False


def mobilenet_32(folder: Path) -> Data:
    """MobileNetV1 x0.25 at 32 x 32, 320 images."""
    nets.mobilenet_v1(folder / FLOAT, scale=0.25, side=32, classes=100)
    return Data(nets.smooth_images(320, 32, seed=2))


def mobilenet_224(folder: Path) -> Data:
    """MobileNetV1 at 224 x 224, 64 images."""
    nets.mobilenet_v1(folder / FLOAT, scale=1.0, side=224, classes=1000)
    return Data(nets.smooth_images(64, 224, seed=2))


def resnet8(folder: Path) -> Data:
    """ResNet-8: calibrated on 320 training images, evaluated on 1,000 test images of CIFAR-10."""
    copy_model("resnet8_cifar10", folder / FLOAT)
    images, labels = corpus_data.cifar10(1000)
    return Data(images, labels, corpus_data.cifar10(320, "cifar10_train_10k.zip")[0])


def ppocr_cls(folder: Path) -> Data:
    """The text-direction classifier on 100 lines, each upright and turned."""
    copy_model("ppocr_cls", folder / FLOAT)
    return Data(*corpus_data.text_lines(100))


def ppocr_cls_qat(folder: Path) -> Data:
    """The same, and its published quantized twin."""
    copy_model("ppocr_cls_qat", folder / QUANTIZED)
    return ppocr_cls(folder)


def chain_qat(folder: Path) -> Data:
    """A plain chain of five layers, quantized by the framework in the spelling that PaddleSlim takes (encoding B)."""
    nets.plain_chain(folder / FLOAT, side=32)
    batches = list(corpus_data.batches(nets.smooth_images(320, 32, seed=3), 32))
    framework_ptq(folder / FLOAT, folder / QUANTIZED, batches, "avg", onnx_format=True)
    return Data(nets.smooth_images(1000, 32, seed=2))


WORKS: Mapping[str, Work] = {
    "mobilenet_v1_x0.25_32": Work(mobilenet_32, 32),
    "mobilenet_v1_224": Work(mobilenet_224, 16),
    "resnet8_cifar10": Work(resnet8, 40, metric="accuracy"),
    "ppocr_cls": Work(ppocr_cls, 20),
    "ppocr_cls_qat": Work(ppocr_cls_qat, 20, mode="qat"),
    "chain_qat": Work(chain_qat, 50, mode="qat"),
}

CASES: Mapping[str, Case] = {
    "mobilenet_v1_x0.25_32 avg": Case("mobilenet_v1_x0.25_32", faster=50),
    "mobilenet_v1_x0.25_32 hist": Case("mobilenet_v1_x0.25_32", "hist", faster=100),
    "mobilenet_v1_x0.25_32 mse": Case("mobilenet_v1_x0.25_32", "mse", faster=100),
    "mobilenet_v1_x0.25_32 emd": Case("mobilenet_v1_x0.25_32", "emd", faster=100),
    "mobilenet_v1_x0.25_32 KL": Case("mobilenet_v1_x0.25_32", "KL", faster=100),
    "mobilenet_v1_224 avg": Case("mobilenet_v1_224", faster=25),
    "resnet8_cifar10 avg": Case("resnet8_cifar10", faster=20),
    "resnet8_cifar10 KL": Case("resnet8_cifar10", "KL", faster=150),
    "ppocr_cls avg": Case("ppocr_cls", faster=25, megabytes=700),
    "ppocr_cls_qat": Case("ppocr_cls_qat", seconds=10),
    "ppocr_cls_qat fast": Case("ppocr_cls_qat", seconds=10, fast=True),
    "chain_qat": Case("chain_qat", faster=25),
}


def prepare(work: Work, folder: Path) -> None:
    """Write models and data of a work to a folder."""
    folder.mkdir(parents=True)
    made = work.write(folder)
    calibration = made.images if made.calibration is None else made.calibration
    labels = answers(folder / FLOAT, made.images, work.batch) if made.labels is None else made.labels
    np.savez(folder / DATA, calibration=calibration, images=made.images, labels=labels)
    model = qpass.load(folder / (FLOAT if work.mode == "ptq" else QUANTIZED))
    layers = [layer.name for layer in find_layers(model, OP_TYPES)]
    about = {
        "feed": model.feeds[0].name,
        "batches": len(list(corpus_data.batches(calibration, work.batch))),
        "multiply_adds": multiply_adds_again(model, layers, made.images[:1]) * len(made.images),
    }
    (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")


def answers(prefix: Path, images: np.ndarray, batch: int) -> np.ndarray:
    """The class that a model gives each image, int64 [images]."""
    session = get_engine("inference").session(qpass.load(prefix))
    feed = session.feed_names[0]
    outputs = [session.run({feed: part})[0] for part in corpus_data.batches(images, batch)]
    found: np.ndarray = np.concatenate(outputs).argmax(axis=1)
    return found


def copy_model(name: str, prefix: Path) -> None:
    """Copy a model of the corpus."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".pdmodel", ".pdiparams"):
        shutil.copyfile(f"{corpus_data.model_prefix(name)}{suffix}", f"{prefix}{suffix}")


def analysis_arguments(case: Case, batches: int) -> dict[str, object]:
    """The arguments of the analysis by PaddleSlim's names, for both sides."""
    return {
        "algo": case.algo,
        "quantizable_op_type": list(OP_TYPES),
        "weight_quantize_type": "channel_wise_abs_max",
        "onnx_format": False,  # PaddleSlim with True: NameError
        "hist_percent": 0.99999,
        "batch_nums": batches,
    }


if __name__ == "__main__":
    prepare(WORKS[sys.argv[1]], Path(sys.argv[2]))
