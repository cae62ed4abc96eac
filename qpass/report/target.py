"""A search for a target metric in words, and every model it tried as a table."""

from __future__ import annotations

import json
from typing import NamedTuple

from qpass.analysis.target import Outcome, TargetResult, Trial
from qpass.report.digits import Digits
from qpass.report.text import csv_text
from qpass.report.wording import one_line

_FLOAT, _EVERYTHING = "the float model", "the model with every layer in float"


class Words(NamedTuple):
    """What an outcome is called, and what to do about it."""

    what: str
    hint: str


OUTCOMES: dict[Outcome, Words] = {
    "reached": Words("the target is reached with {kept} of {all} layers in float", ""),
    "only float reaches": Words(
        "only {everything} reaches the target: each layer alone, quantized, misses it",
        "give a target that allows some loss, or try more bits, another algorithm or more calibration data",
    ),
    "layers in float miss": Words(
        "even {everything} misses the target",
        "what is quantized beside the layers costs too much: quantize fewer kinds of ops, or give a target that "
        "{metric} reaches",
    ),
    "float misses": Words(
        "even the float model misses the target",
        "give a target that {metric} reaches; does the evaluation run on the data and the scale you mean?",
    ),
}
"""Every outcome of a search."""


def summary(result: TargetResult) -> str:
    """One sentence: the outcome, the metric, the target."""
    what = OUTCOMES[result.outcome].what.format(
        everything=_FLOAT if result.float_metric == result.metric else _EVERYTHING,
        kept=len(result.skip_tensor_list),
        all=len(result.layers),
    )
    digits = _digits(result)
    metric, more = result.metric, ""
    if result.float_metric is not None and result.outcome == "float misses":
        metric = result.float_metric
    elif result.float_metric not in (None, metric):
        more = f"; the float model has {digits.text(result.float_metric)}"
    return f"{what} (metric {digits.text(metric)}, target {_bound(result)} {digits.text(result.target)}{more})"


def advice(result: TargetResult) -> str:
    """What to do about the outcome; empty where the target was reached."""
    return OUTCOMES[result.outcome].hint.format(metric=repr(result.metric))


def target_txt(result: TargetResult) -> str:
    """The outcome, the skip list with its proof, and every model tried in order, for people."""
    digits = _digits(result)
    lines = [
        summary(result),
        f"metric: {one_line(result.metric_name)}, "
        f"{'higher' if result.higher_is_better else 'lower'} is better; {len(result.trials)} models tried",
    ]
    if result.certificate:
        lines += ["", "layers in float, and the metric when that layer alone is quantized again: every one misses"]
        lines += [f"  {one_line(name)}: {digits.text(metric)}" for name, metric in result.certificate.items()]
    lines += ["", "models tried"]
    for number, trial in enumerate(result.trials, 1):
        names = f": {', '.join(map(one_line, trial.skip))}" if 0 < len(trial.skip) < len(result.layers) else ""
        lines.append(f"  {number}. {trial_line(trial, digits)}{names}")
    if result.skip_tensor_list:
        lines += [
            "",
            f"The list was chosen among {len(result.trials)} models by this metric: where the margin is small, confirm "
            "it on data that the search has not seen.",
        ]
    return "\n".join(lines) + "\n"


def trial_line(trial: Trial, digits: Digits) -> str:
    """One model in a line: what it was tried for, its metric, and how many of its layers are in float."""
    verdict = "reaches" if trial.reaches else "misses"
    return f"{trial.step}: {len(trial.skip)} in float, metric {digits.text(trial.metric)} {verdict} the target"


def target_csv(result: TargetResult) -> str:
    """One row a model, in the order tried, to full precision; the names in float are a JSON list."""
    rows = (
        [number, trial.step, len(trial.skip), repr(trial.metric), str(trial.reaches).lower(), _names(trial.skip)]
        for number, trial in enumerate(result.trials, 1)
    )
    return csv_text(("trial", "step", "layers_in_float", "metric", "reaches", "skip_tensor_list"), rows)


def _names(skip: tuple[str, ...]) -> str:
    return json.dumps(skip, ensure_ascii=False)


def _digits(result: TargetResult) -> Digits:
    floats = [] if result.float_metric is None else [result.float_metric]
    return Digits.of([result.target, *floats, *(trial.metric for trial in result.trials)])


def _bound(result: TargetResult) -> str:
    return ">=" if result.higher_is_better else "<="
