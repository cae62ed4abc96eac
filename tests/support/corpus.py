"""Where the corpus of real models is, and a skip with a reason where it is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("QPASS_CORPUS", Path(__file__).resolve().parents[3] / "shared" / "corpus"))
GOLDENS = ROOT.parent / "goldens"

PROGRAMS = (
    "graphs/ch_PP-OCRv3_rec_infer.pdmodel",
    "graphs/ch_PP-OCRv3_rec_slim_infer.pdmodel",
    "graphs/mobilenetv2.pdmodel",
    "graphs/seg_deeplab.pdmodel",
    "models/mobilenetv3_small_x0_35/inference.pdmodel",
    "models/ppocr_cls/inference.pdmodel",
    "models/ppocr_cls_qat/inference.pdmodel",
    "models/ppocr_det_v3/inference.pdmodel",
    "models/ppocr_det_v3_qat/inference.pdmodel",
    "models/resnet8_cifar10/inference.pdmodel",
)
MODELS = tuple(p for p in PROGRAMS if p.startswith("models/"))


def corpus(path: str) -> Path:
    """A file or folder of the corpus; skips the test where it is absent."""
    found = ROOT / path
    if not found.exists():
        pytest.skip(f"needs {path} of the model corpus; set QPASS_CORPUS")
    return found


def golden(path: str) -> Path:
    """A file of measured numbers beside the corpus; skips the test where it is absent."""
    found = GOLDENS / path
    if not found.exists():
        pytest.skip(f"needs {path} of the goldens beside the model corpus; set QPASS_CORPUS")
    return found
