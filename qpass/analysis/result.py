"""Results of a sensitivity analysis: the layers ranked, how sure the ranking is, and the skip lists drawn from it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from qpass.analysis.rank_agreement import Estimate, read_estimate
from qpass.errors import UsageError

Mode = Literal["ptq", "qat"]


@dataclass(frozen=True)
class LayerResult:
    """What changing one layer did.

    Parameters
    ----------
    layer : str
        Name of the layer: its weight tensor, as the analysed model calls it.
    family : str
        ``conv2d``, ``depthwise_conv2d``, ``conv2d_transpose`` or ``matmul``.
    metric : float
        The evaluation metric of the model with only this layer quantized (PTQ) or un-quantized (QAT).
    sensitivity : float
        How much the layer's quantization costs; larger is more sensitive, in both modes.
    details : Mapping[str, float]
        Further figures: cosine and SQNR against the reference outputs, thresholds, seconds.
    """

    layer: str
    family: str
    metric: float
    sensitivity: float
    details: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RankedLoss:
    """What a layer costs by a metric of single samples.

    Parameters
    ----------
    loss : float
        Mean over the samples of the layer's sensitivity; larger is more sensitive, in both modes.
    low, high : float
        Ends of its confidence interval.
    rank : int
        From 1, most sensitive.
    samples : int
        Number of samples the layer was run on.
    """

    loss: float
    low: float
    high: float
    rank: int
    samples: int


@dataclass(frozen=True)
class Neighbours:
    """Two layers, one ranked right above the other, compared over the samples that both were run on.

    Parameters
    ----------
    upper, lower : str
        Names of the layers.
    difference : float
        Mean loss of `upper` less that of `lower`.
    low, high : float
        Ends of the confidence interval of the difference, of the same samples drawn for both (paired).
    noise : bool
        Whether the samples do not tell the two apart.
    samples_needed : int or None
        Number of samples, those at hand included, that are expected to tell them apart; None where no number would,
        as the difference is exactly zero.
    """

    upper: str
    lower: str
    difference: float
    low: float
    high: float
    noise: bool
    samples_needed: int | None


@dataclass(frozen=True)
class Ranking:
    """A ranking of all layers by a metric of single samples, and how sure it is.

    Parameters
    ----------
    name : str
        What is measured of each sample.
    why : str
        A sentence: why this metric.
    samples : int
        Number of samples of a layer that was run on all.
    confidence : float
        Of each interval on its own, 0 to 1.
    resamples : int
        Number of bootstrap resamples that the intervals are drawn from.
    rows : Mapping[str, RankedLoss]
        By layer, in the order of the ranks.
    neighbours : tuple of Neighbours
        In the order of the ranks.
    """

    name: str
    why: str
    samples: int
    confidence: float
    resamples: int
    rows: Mapping[str, RankedLoss]
    neighbours: tuple[Neighbours, ...]


@dataclass(frozen=True)
class RaceResult:
    """What a race settled early, and what that saved.

    Parameters
    ----------
    metric : str
        What it raced on.
    confidence : float
        With which all settled places together are those of a full evaluation, 0 to 1.
    total : int
        Number of samples of a full evaluation.
    places : Mapping[str, int]
        Settled layers and their places, from 0, most sensitive; in program order.
    samples : Mapping[str, int]
        Number of samples each layer was run on; in program order.
    saved : float
        Share of the evaluations (layers times samples) that was not run, 0 to 1.
    """

    metric: str
    confidence: float
    total: int
    places: Mapping[str, int]
    samples: Mapping[str, int]
    saved: float


@dataclass(frozen=True)
class AnalysisResult:
    """A ranking of layers, most sensitive first.

    In PTQ mode ``sensitivity = baseline - metric`` (the float model's metric less the one with this layer quantized),
    in QAT mode ``sensitivity = metric - baseline`` (the metric without this layer's quantization less the quantized
    model's); both negated when a lower metric is better. So a layer that loses most comes first in both modes.

    Parameters
    ----------
    mode : {"ptq", "qat"}
    metric_name : str
        What was measured.
    higher_is_better : bool
    baseline : float
        Metric of the float model (PTQ), of the quantized model (QAT).
    reference : float or None
        The other end where it was measured: all layers quantized (PTQ), the float twin (QAT).
    rows : tuple of LayerResult
        Most sensitive first; ties by the loss of `fine` where there is one, then in program order. Layers that a race
        settled have the places that it gave them.
    settings : Mapping[str, str]
        Digests and options that produced it.
    fine : Ranking, optional
        The ranking by a finer metric, which needs no labels.
    scores : Ranking, optional
        This ranking with intervals, where the evaluation gives a score for each sample.
    race : RaceResult, optional
        What was settled early.
    noise_floor : float, optional
        In QAT mode: how far the metric moves when nothing is changed but the rounding of the last bits, which
        quantized layers amplify. Sensitivities below it mean nothing.
    remarks : tuple of str
        Sentences for the reader.
    estimate : Estimate, optional
        Of all layers, where only those with the largest estimate were evaluated: `rows` has these alone.
    """

    mode: Mode
    metric_name: str
    higher_is_better: bool
    baseline: float
    reference: float | None
    rows: tuple[LayerResult, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    fine: Ranking | None = None
    scores: Ranking | None = None
    race: RaceResult | None = None
    noise_floor: float | None = None
    remarks: tuple[str, ...] = ()
    estimate: Estimate | None = None

    @property
    def order(self) -> tuple[str, ...]:
        """All layers: those that were evaluated, most sensitive first, then the others by the estimate."""
        rows = tuple(row.layer for row in self.rows)
        rest = () if self.estimate is None else tuple(self.estimate.scores)
        return tuple(dict.fromkeys((*rows, *rest)))

    def skip_tensor_list(self, top: int | None = None, threshold: float | None = None) -> list[str]:
        """Names of the layers to leave in float.

        Parameters
        ----------
        top : int, optional
            That many of the most sensitive layers; of those that were not evaluated, by the estimate.
        threshold : float, optional
            Every layer whose sensitivity is above it; of layers that were not evaluated none is known.

        Raises
        ------
        UsageError
            If not exactly one of them is given, `top` is negative, or `threshold` is NaN.
        """
        if (top is None) == (threshold is None):
            raise UsageError("give exactly one of top= and threshold=")
        if threshold is not None and math.isnan(threshold):
            raise UsageError("threshold is NaN, expected a number")
        if top is not None:
            if top < 0:
                raise UsageError(f"top is {top}, expected a number >= 0")
            return list(self.order[:top])
        return [row.layer for row in self.rows if threshold is not None and row.sensitivity > threshold]

    def to_json(self) -> str:
        """Everything, as JSON text in a stable order."""
        return json.dumps({"qpass_analysis": _VERSION, **dataclasses.asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "analysis.json") -> AnalysisResult:
        """Read what `to_json` wrote, this version's or an earlier one's.

        Raises
        ------
        UsageError
            If the text is not an analysis result.
        """
        try:
            body = json.loads(text)
            if body.pop("qpass_analysis") not in _READABLE:
                raise UsageError("an analysis result of another version", where=where)
            rows = tuple(_record(LayerResult, row) for row in body.pop("rows"))
            layers = {row.layer for row in rows}
            parts = {name: _ranking(body.pop(name, None), layers) for name in ("fine", "scores")}
            race = _race(body.pop("race", None), layers)
            remarks = tuple(body.pop("remarks", ()))
            if not all(isinstance(remark, str) for remark in remarks):
                raise TypeError(f"remarks {remarks!r}")
            estimate = read_estimate(body.pop("estimate", None), layers)
            fields = {**body, **parts, "rows": rows, "race": race, "remarks": remarks, "estimate": estimate}
            return _record(cls, fields)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as e:
            raise UsageError(
                f"not an analysis result ({type(e).__name__}: {e})",
                where=where,
                hint="give the analysis.json that qpass analyze wrote",
            ) from e


_VERSION = 2
_READABLE = (1, 2)
"""Version 1 had no rankings by samples, no race, no noise floor, no remarks and no estimate."""


_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "bool": (bool,),
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (int, float),
    "float | None": (int, float, type(None)),
}
"""What JSON may have for a field, by its annotation; other fields are read on their own."""

_T = TypeVar("_T", LayerResult, RankedLoss, Neighbours, Ranking, RaceResult, AnalysisResult)


def _record(kind: type[_T], body: dict[str, Any]) -> _T:
    """A record as JSON has it, its plain fields checked."""
    made = kind(**body)
    for field_ in dataclasses.fields(made):
        value, kinds = getattr(made, field_.name), _KINDS.get(str(field_.type))
        if kinds is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            raise TypeError(f"{field_.name} is {value!r}")
    return made


def _ranking(body: dict[str, Any] | None, layers: Set[str]) -> Ranking | None:
    """A ranking as JSON has it, of exactly these layers."""
    if body is None:
        return None
    rows = {layer: _record(RankedLoss, row) for layer, row in body.pop("rows").items()}
    pairs = tuple(_record(Neighbours, pair) for pair in body.pop("neighbours"))
    if rows.keys() != layers or not all({pair.upper, pair.lower} <= layers for pair in pairs):
        raise ValueError("a ranking of other layers")
    return _record(Ranking, {**body, "rows": rows, "neighbours": pairs})


def _race(body: dict[str, Any] | None, layers: Set[str]) -> RaceResult | None:
    """A race as JSON has it, of exactly these layers."""
    if body is None:
        return None
    race = _record(RaceResult, body)
    if race.samples.keys() != layers or not race.places.keys() <= layers:
        raise ValueError("a race of other layers")
    return race


def ranked(rows: list[LayerResult]) -> tuple[LayerResult, ...]:
    """Rows with the most sensitive first; equal ones stay in their order."""
    return tuple(sorted(rows, key=lambda row: -row.sensitivity))


def sign_of(mode: Mode, higher_is_better: bool) -> Literal[-1, 1]:
    """What a metric's change from the baseline to a layer's variant is multiplied by to give the sensitivity."""
    return -1 if (mode == "ptq") == higher_is_better else 1
