"""Made-up analysis results and tensor statistics, with every figure computed from the numbers themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from qpass.analysis.confidence import SampleScores, assemble
from qpass.analysis.fine_metric import LOST_PROBABILITY
from qpass.analysis.result import AnalysisResult, LayerResult, Mode, ranked
from qpass.analysis.statistics import TensorStatistics

FAMILIES = ("conv2d", "depthwise_conv2d", "conv2d_transpose", "matmul")
QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)


def ranking(
    sensitivities: Sequence[float],
    names: Sequence[str] | None = None,
    mode: Mode = "ptq",
    baseline: float = 0.75,
    reference: float | None = 0.7,
    higher_is_better: bool = True,
) -> AnalysisResult:
    """A result whose metrics follow from the sensitivities by the definition of `AnalysisResult`."""
    sign = (-1 if mode == "ptq" else 1) * (1 if higher_is_better else -1)
    names = [f"conv2d_{i}.w_0" for i in range(len(sensitivities))] if names is None else names
    rows = [
        LayerResult(name, FAMILIES[i % 4], baseline + sign * s, s, {"cosine": 1 - abs(s) / 7, "seconds": 0.25 * i})
        for i, (name, s) in enumerate(zip(names, sensitivities, strict=True))
    ]
    return AnalysisResult(mode, "accuracy", higher_is_better, baseline, reference, ranked(rows), {"engine": "none"})


def statistics(
    layer: str,
    role: Literal["weight", "activation"],
    values: np.ndarray,
    threshold: float | None = None,
    bins: int = 128,
) -> TensorStatistics:
    """Statistics of `values` quantized symmetrically to 8 bits at `threshold` (absmax by default)."""
    x = np.asarray(values, np.float64).ravel()
    t = float(np.abs(x).max()) if threshold is None else threshold
    y = np.clip(np.rint(x / t * 127), -128, 127) * t / 127 if t else x
    edges = np.histogram_bin_edges(np.concatenate([x, y]), bins)
    rms = float(np.sqrt(np.mean((x - y) ** 2)))
    return TensorStatistics(
        layer=layer,
        role=role,
        name=layer if role == "weight" else f"{layer}.input",
        threshold=t,
        minimum=float(x.min()),
        maximum=float(x.max()),
        mean=float(x.mean()),
        std=float(x.std()),
        quantiles=tuple(np.quantile(x, QUANTILES).tolist()),
        bin_edges=edges,
        float_counts=np.histogram(x, edges)[0],
        quant_counts=np.histogram(y, edges)[0],
        error_rms=rms,
        sqnr_db=float(20 * np.log10(np.sqrt(np.mean(x**2)) / rms)) if rms else float("inf"),
    )


def network(layers: int, seed: int = 0) -> list[TensorStatistics]:
    """A weight and an activation for each of `layers` layers, named as `ranking` names them."""
    rng = np.random.default_rng(seed)
    stats = []
    for i in range(layers):
        stats.append(statistics(f"conv2d_{i}.w_0", "weight", rng.normal(0, 0.1, 500)))
        stats.append(statistics(f"conv2d_{i}.w_0", "activation", np.maximum(rng.normal(0, 2, 500), 0), 4.0))
    return stats


SAMPLES = 200


def sampled(mode: Mode = "ptq", *, scores: bool = True, fine: bool = True) -> AnalysisResult:
    """Six layers with intervals: the first stands out in accuracy, two tie, the finer metric tells nearly all apart."""
    rng = np.random.default_rng(42)
    sign = -1.0 if mode == "ptq" else 1.0
    flipped = [60, 12, 4, 1, 1, 0]
    names = [f"conv2d_{i}.w_0" for i in range(6)]
    start = np.full(SAMPLES, 0.5 - sign * 0.5)
    flips = [np.arange(SAMPLES) < n for n in flipped]
    correct = {name: np.where(flip, start + sign, start) for name, flip in zip(names, flips, strict=True)}
    rows = [
        LayerResult(name, FAMILIES[i % 4], float(correct[name].mean()), flipped[i] / SAMPLES)
        for i, name in enumerate(names)
    ]
    result = AnalysisResult(mode, "accuracy", True, float(start.mean()), None, ranked(rows))
    hard = rng.random(SAMPLES)
    losses = {name: s * hard**3 for name, s in zip(names, (0.4, 0.1, 0.05, 0.01, 0.02, 0.0099), strict=True)}
    losses["conv2d_5.w_0"] = losses["conv2d_5.w_0"] + rng.normal(0, 1e-3, SAMPLES)
    whole = 0.0 if mode == "ptq" else np.full(SAMPLES, 1.0)
    losses = losses if mode == "ptq" else {name: 1.0 - loss for name, loss in losses.items()}
    return assemble(
        result,
        fine=SampleScores(LOST_PROBABILITY, "it moves with every sample", losses, whole) if fine else None,
        scores=SampleScores("accuracy", "the evaluation gives it", correct, start, True) if scores else None,
    )
