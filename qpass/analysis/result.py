"""Results of a sensitivity analysis: one row a layer, ranked, and the skip lists drawn from them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

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
        Most sensitive first; ties in program order.
    settings : Mapping[str, str]
        Digests and options that produced it.
    """

    mode: Mode
    metric_name: str
    higher_is_better: bool
    baseline: float
    reference: float | None
    rows: tuple[LayerResult, ...]
    settings: Mapping[str, str] = field(default_factory=dict)

    def skip_tensor_list(self, top: int | None = None, threshold: float | None = None) -> list[str]:
        """Names of the layers to leave in float.

        Parameters
        ----------
        top : int, optional
            That many of the most sensitive layers.
        threshold : float, optional
            Every layer whose sensitivity is above it.

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
            return [row.layer for row in self.rows[:top]]
        return [row.layer for row in self.rows if threshold is not None and row.sensitivity > threshold]

    def to_json(self) -> str:
        """Everything, as JSON text in a stable order."""
        return json.dumps({"qpass_analysis": 1, **dataclasses.asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "analysis.json") -> AnalysisResult:
        """Read what `to_json` wrote.

        Raises
        ------
        UsageError
            If the text is not an analysis result.
        """
        try:
            body = json.loads(text)
            if body.pop("qpass_analysis") != 1:
                raise UsageError("an analysis result of another version", where=where)
            rows = tuple(LayerResult(**row) for row in body.pop("rows"))
            for row in rows:
                if not isinstance(row.layer, str) or not isinstance(row.sensitivity, (int, float)):
                    raise TypeError(f"layer {row.layer!r}, sensitivity {row.sensitivity!r}")
            return cls(rows=rows, **body)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as e:
            raise UsageError(
                f"not an analysis result ({type(e).__name__}: {e})",
                where=where,
                hint="give the analysis.json that qpass analyze wrote",
            ) from e


def ranked(rows: list[LayerResult]) -> tuple[LayerResult, ...]:
    """Rows with the most sensitive first; equal ones stay in their order."""
    return tuple(sorted(rows, key=lambda row: -row.sensitivity))
