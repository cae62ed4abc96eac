"""How well an estimate of sensitivities ranks layers, against the ranking that was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Agreement:
    """Of two rankings of the same layers.

    Parameters
    ----------
    against : str
        What the estimate is compared with.
    layers : int
        Number of layers that both rank.
    spearman, kendall : float or None
        Rank correlations, -1 to 1; None where either side ties all layers, or there are fewer than two.
    """

    against: str
    layers: int
    spearman: float | None
    kendall: float | None


@dataclass(frozen=True)
class Estimate:
    """Sensitivities of all layers, estimated without an evaluation.

    Parameters
    ----------
    name : str
        What is estimated.
    why : str
        A sentence: how.
    samples : int
        Number of samples that it was taken from.
    scores : Mapping[str, float]
        By layer, larger is more sensitive; largest first. Their size means nothing.
    agreement : tuple of Agreement
        With what was measured, over the layers that were.
    """

    name: str
    why: str
    samples: int
    scores: Mapping[str, float]
    agreement: tuple[Agreement, ...] = ()


def agreement(against: str, estimated: Mapping[str, float], measured: Mapping[str, float]) -> Agreement:
    """Compare the figures of the layers that are in `measured`."""
    x, y = [estimated[layer] for layer in measured], list(measured.values())
    return Agreement(against, len(x), spearman(x, y), kendall(x, y))


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rho: the correlation of ranks, equal values having the mean of theirs (Spearman 1904).

    None where one side is constant.
    """
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean() if a.size else a, b - b.mean() if b.size else b
    spread = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return _within_one(float((a * b).sum()) / spread) if spread > 0 else None


def kendall(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Kendall's tau-b: ``(concordant - discordant) / sqrt(pairs untied in x * pairs untied in y)`` (Kendall 1945).

    None where one side is constant.
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    upper = np.triu_indices(a.size, 1)
    of_a, of_b = (np.sign(v[:, None] - v[None, :])[upper] for v in (a, b))
    spread = math.sqrt(np.count_nonzero(of_a) * np.count_nonzero(of_b))
    return _within_one(float((of_a * of_b).sum()) / spread) if spread > 0 else None


def read_estimate(body: dict[str, Any] | None, evaluated: Set[str]) -> Estimate | None:
    """An estimate as JSON has it, of these layers and others.

    Raises
    ------
    KeyError, TypeError, ValueError
        If it is none.
    """
    if body is None:
        return None
    scores = {str(layer): float(score) for layer, score in body["scores"].items()}
    if not evaluated <= scores.keys():
        raise ValueError("an estimate of other layers")
    return Estimate(
        str(body["name"]), str(body["why"]), int(body["samples"]), scores, tuple(map(_read, body["agreement"]))
    )


def _read(body: Mapping[str, Any]) -> Agreement:
    figures = (None if body[name] is None else float(body[name]) for name in ("spearman", "kendall"))
    return Agreement(str(body["against"]), int(body["layers"]), *figures)


def _ranks(values: Sequence[float]) -> np.ndarray:
    found, counts = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)[1:]
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[found])


def _within_one(value: float) -> float:
    return min(1.0, max(-1.0, value))
