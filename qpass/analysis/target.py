"""The search for a skip list that reaches a target metric, and from which no layer can be dropped.

Let f(S) be the metric of the model with the layers S in float. The search measures f(nothing), f(everything), then
bisects over the prefixes of the ranking, and then quantizes skipped layers again one by one, least sensitive first,
until a whole round changes nothing. Two invariants make the answer right whatever f does, a metric that rises and falls
included:

- bisection keeps a shorter prefix that was measured to miss and a longer one that was measured to reach the target, so
  it ends at a list that reaches it;
- a layer is dropped only where the list without it was measured to reach the target, so the last round, in which none
  is dropped, has measured every list with one layer less, and each of them misses. That round is the certificate.

No single layer can be dropped; a list of other layers may be shorter still (finding the shortest takes up to 2^n
models). With n layers of which the bisection leaves k, a metric that never gets worse when a layer goes back to float
takes at most 2 + log2(n) + 2 k models.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from qpass.analysis.result import Mode
from qpass.errors import UsageError

Step = Literal["nothing skipped", "everything skipped", "bisection", "re-quantize"]
Outcome = Literal["reached", "only float reaches", "layers in float miss", "float misses"]


@dataclass(frozen=True)
class Trial:
    """One model that was measured.

    Parameters
    ----------
    step : str
        What it was tried for: ``nothing skipped``, ``everything skipped``, ``bisection`` or ``re-quantize``.
    skip : tuple of str
        Its layers in float, in the order of the ranking; in program order before there was a ranking.
    metric : float
        What the evaluation gave.
    reaches : bool
        Whether that reaches the target.
    """

    step: Step
    skip: tuple[str, ...]
    metric: float
    reaches: bool


@dataclass(frozen=True)
class TargetResult:
    """A search for a target metric: its answer, its proof, and every model that was tried.

    Parameters
    ----------
    mode : {"ptq", "qat"}
    metric_name : str
    higher_is_better : bool
    target : float
        Reached by a metric that equals it or is better.
    outcome : str
        ``reached``; ``only float reaches``: no layer can be quantized; ``layers in float miss``: the float model
        reaches it, but not with what stays quantized beside the layers; ``float misses``: not even the float model.
    float_metric : float or None
        Of the float model; None where the target was reached.
    layers : tuple of str
        All layers, most sensitive first; in program order where no ranking was needed.
    skip_tensor_list : tuple of str
        The layers in float, most sensitive first; empty unless `outcome` is ``reached``.
    metric : float
        Of the model with these layers in float; of the model with every layer in float unless the target was reached.
    certificate : Mapping[str, float]
        Skipped layer -> metric of the model in which that layer is quantized too; each of them misses the target.
    trials : tuple of Trial
        Every model that was tried, in order.
    """

    mode: Mode
    metric_name: str
    higher_is_better: bool
    target: float
    outcome: Outcome
    float_metric: float | None
    layers: tuple[str, ...]
    skip_tensor_list: tuple[str, ...]
    metric: float
    certificate: Mapping[str, float]
    trials: tuple[Trial, ...]

    def to_json(self) -> str:
        """Everything, as JSON text in a stable order."""
        return json.dumps({"qpass_target": 1, **dataclasses.asdict(self)}, indent=1, ensure_ascii=False) + "\n"


def check_target(target: object) -> float:
    """The target as a number.

    Raises
    ------
    UsageError
        If it is none, or not finite.
    """
    value = math.nan
    if not isinstance(target, bool) and isinstance(target, numbers.Real):
        with contextlib.suppress(OverflowError):
            value = float(target)
    if not math.isfinite(value):
        raise UsageError(
            f"target_metric is {target!r}, expected a finite number",
            hint="the metric the quantized model must reach, on the scale of the evaluation function",
        )
    return value


@dataclass
class Search:
    """The search, and the models it has tried.

    Parameters
    ----------
    layers : sequence of str
        All layers, in program order.
    rank : callable
        Gives all layers, most sensitive first; called only when some layer has to be skipped.
    evaluate : callable
        Metric of the model with these layers in float; called once for each list.
    target : float
    mode, metric_name, higher_is_better
        As in `TargetResult`.
    measure_float : callable or None
        Metric of the float model; called only where no skip list reaches the target. None where it is the model with
        every layer in float.
    on_trial : callable
        Told of every model after it was measured.
    """

    layers: Sequence[str]
    rank: Callable[[], Sequence[str]]
    evaluate: Callable[[tuple[str, ...]], float]
    target: float
    mode: Mode
    metric_name: str
    higher_is_better: bool = True
    measure_float: Callable[[], float] | None = None
    on_trial: Callable[[Trial], None] = lambda trial: None

    def __post_init__(self) -> None:
        self._tried: dict[frozenset[str], Trial] = {}

    def run(self) -> TargetResult:
        """Search; see the top of this file.

        Raises
        ------
        UsageError
            If the ranking does not hold the layers, each once.
        """
        self.target = check_target(self.target)
        layers = tuple(self.layers)
        if self._reaches("nothing skipped", ()):
            return self._result("reached", layers, ())
        if not self._reaches("everything skipped", layers):
            return self._result("float misses", layers, ())
        ranking = tuple(self.rank())
        if sorted(ranking) != sorted(layers):
            raise UsageError("the ranking is of other layers than the model's", where=", ".join(ranking) or "nothing")
        skip = self._dropped(self._bisect(ranking))
        return self._result("only float reaches" if skip == ranking else "reached", ranking, skip)

    def _bisect(self, ranking: tuple[str, ...]) -> tuple[str, ...]:
        """A prefix that reaches the target while the one a layer shorter misses it."""
        misses, reaches = 0, len(ranking)
        while reaches - misses > 1:
            middle = (misses + reaches) // 2
            if self._reaches("bisection", ranking[:middle]):
                reaches = middle
            else:
                misses = middle
        return ranking[:reaches]

    def _dropped(self, skip: tuple[str, ...]) -> tuple[str, ...]:
        """What is left of a list when every layer that can be quantized is."""
        before: tuple[str, ...] = ()
        while skip != before:
            before = skip
            for name in reversed(before):
                fewer = _without(skip, name)
                if self._reaches("re-quantize", fewer):
                    skip = fewer
        return skip

    def _reaches(self, step: Step, skip: tuple[str, ...]) -> bool:
        names = frozenset(skip)
        if names not in self._tried:
            metric = self.evaluate(skip)
            self._tried[names] = Trial(step, skip, metric, self._good(metric))
            self.on_trial(self._tried[names])
        return self._tried[names].reaches

    def _good(self, metric: float) -> bool:
        return metric >= self.target if self.higher_is_better else metric <= self.target

    def _metric(self, skip: tuple[str, ...]) -> float:
        return self._tried[frozenset(skip)].metric

    def _result(self, outcome: Outcome, layers: tuple[str, ...], skip: tuple[str, ...]) -> TargetResult:
        reached = outcome == "reached"
        metric = self._metric(skip if reached else layers)
        float_metric = None if reached else metric if self.measure_float is None else self.measure_float()
        if outcome == "float misses" and float_metric is not None and self._good(float_metric):
            outcome = "layers in float miss"
        return TargetResult(
            mode=self.mode,
            metric_name=self.metric_name,
            higher_is_better=self.higher_is_better,
            target=self.target,
            outcome=outcome,
            float_metric=float_metric,
            layers=layers,
            skip_tensor_list=skip if reached else (),
            metric=metric,
            certificate={name: self._metric(_without(skip, name)) for name in skip},
            trials=tuple(self._tried.values()),
        )


def _without(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(other for other in names if other != name)
