"""The words that texts, tables and pictures share, so that both modes are named the same way everywhere."""

from __future__ import annotations

from qpass.analysis.result import AnalysisResult, Mode
from qpass.report.digits import Digits

WHAT_WAS_DONE: dict[Mode, str] = {
    "ptq": "PTQ mode: each layer quantized alone",
    "qat": "QAT mode: each layer un-quantized alone",
}
BASELINE: dict[Mode, str] = {"ptq": "float model", "qat": "quantized model"}
REFERENCE: dict[Mode, str] = {"ptq": "all layers quantized", "qat": "float twin"}


def digits_of(result: AnalysisResult) -> Digits:
    """One format for every metric and sensitivity of a result, so that their differences can be checked by eye."""
    ends = [result.baseline] + ([] if result.reference is None else [result.reference])
    metrics, losses = (
        Digits.of([*ends, *(r.metric for r in result.rows)]),
        Digits.of(r.sensitivity for r in result.rows),
    )
    return Digits(max(metrics.decimals, losses.decimals), max(metrics.floor, losses.floor))


def direction(result: AnalysisResult) -> str:
    """Which way the metric is good."""
    return "higher is better" if result.higher_is_better else "lower is better"


def metric_word(result: AnalysisResult) -> str:
    """The metric in a word: a function goes without the modules it comes from."""
    parts = result.metric_name.replace(":", ".").split(".")
    return parts[-1] if all(part.isidentifier() for part in parts) else result.metric_name


def ends_of_the_scale(result: AnalysisResult, digits: Digits) -> str:
    """The baseline and, where it was measured, the reference: ``float model 0.9780, all layers quantized 0.9740``."""
    text = f"{BASELINE[result.mode]} {digits.text(result.baseline)}"
    if result.reference is not None:
        text += f", {REFERENCE[result.mode]} {digits.text(result.reference)}"
    return text


def formula(result: AnalysisResult) -> str:
    """What the sensitivity is: which metric less which."""
    if result.mode == "ptq":
        ends = ["float model", "this layer quantized"]
    else:
        ends = ["this layer un-quantized", "quantized model"]
    first, second = ends if result.higher_is_better else reversed(ends)
    return f"{first} \N{MINUS SIGN} {second}"


def reference_sensitivity(result: AnalysisResult) -> float | None:
    """What all layers together cost, on the scale of the sensitivities; None where no reference was measured."""
    if result.reference is None:
        return None
    gain = result.reference - result.baseline if result.mode == "qat" else result.baseline - result.reference
    return gain if result.higher_is_better else -gain


def percent(share: float) -> str:
    """A share of 1 in percent: ``95 %``, ``99.5 %``."""
    return f"{100 * share:.3g} %"


def one_line(text: str) -> str:
    """`text` with control characters escaped, so that a name never breaks a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
