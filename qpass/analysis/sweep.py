"""The sweep that both modes share: one model per layer, each measured, each result on the disk before the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from qpass._version import __version__
from qpass.analysis.checkpoint import Checkpoint, Record
from qpass.analysis.evaluate import Evaluation
from qpass.analysis.progress import Progress, Silent
from qpass.analysis.result import AnalysisResult, LayerResult, Mode, ranked
from qpass.errors import UsageError
from qpass.ir.model import Model
from qpass.quant.layers import Layer

BASELINE, REFERENCE = "baseline", "reference"


@dataclass(frozen=True)
class Variant:
    """One model to measure.

    Parameters
    ----------
    key : str
        Name of its record: `BASELINE`, `REFERENCE`, or ``layer:`` and the layer's name.
    what : str
        Words for it, for messages.
    make : callable
        Makes the model; called only when it has to be measured.
    """

    key: str
    what: str
    make: Callable[[], Model]


@dataclass(frozen=True)
class Plan:
    """A whole analysis, before anything is measured.

    Parameters
    ----------
    mode : {"ptq", "qat"}
    evaluation : Evaluation
    higher_is_better : bool
    baseline : Variant or float
        What layers are compared with; a number where its metric is known.
    reference : Variant or None
        The other end.
    layers : sequence of Layer
        In program order.
    variant : callable
        Makes the model of one layer.
    details : callable
        Further figures of one layer.
    settings : Mapping[str, str]
        What identifies the job, besides evaluation and data.
    """

    mode: Mode
    evaluation: Evaluation
    higher_is_better: bool
    baseline: Variant | float
    reference: Variant | None
    layers: Sequence[Layer]
    variant: Callable[[Layer], Model]
    details: Callable[[Layer], Mapping[str, float]]
    settings: Mapping[str, str]

    def run(self, *, checkpoint: str | Path | None, resume: bool, progress: Progress | None) -> AnalysisResult:
        """Measure everything; the ranking.

        Parameters
        ----------
        checkpoint : str or Path, optional
            File that gets a line after every layer; see `Checkpoint`.
        resume : bool
            Take over what the checkpoint holds.
        progress : Progress, optional

        Raises
        ------
        CheckpointError
            If the checkpoint belongs to another job, or the disk does not take it.
        EvalError
            If a model cannot be measured; layers measured before are in the checkpoint.
        UsageError
            If `resume` is asked for without a checkpoint.
        """
        if resume and checkpoint is None:
            raise UsageError("resume needs a checkpoint", hint="name the checkpoint of the interrupted run")
        settings = self._settings()
        store: AbstractContextManager[_Store] = (
            nullcontext(_Memory()) if checkpoint is None else Checkpoint(checkpoint, settings, resume=resume)
        )
        with store as done:
            records = self._measure(done, progress or Silent())
        return self._result(records, settings)

    def _settings(self) -> dict[str, str]:
        return {
            "mode": self.mode,
            "qpass": __version__,
            "evaluation": self.evaluation.name,
            "data": self.evaluation.data_digest(),
            "higher_is_better": str(self.higher_is_better),
            **self.settings,
        }

    def _measure(self, store: _Store, progress: Progress) -> dict[str, Record]:
        ends = [end for end in (self.baseline, self.reference) if isinstance(end, Variant)]
        progress.start(len(self.layers), sum(_key(layer) in store.done for layer in self.layers))
        for end in ends:
            self._measure_one(store, end)
        for layer in self.layers:
            if _key(layer) not in store.done:
                self._measure_one(store, self._variant(layer))
                progress.advance(layer.name, store.done[_key(layer)].metric)
        return dict(store.done)

    def _measure_one(self, store: _Store, variant: Variant) -> None:
        if variant.key not in store.done:
            store.add(variant.key, self.evaluation.measure(variant.make(), variant.what))

    def _variant(self, layer: Layer) -> Variant:
        change = "quantized alone" if self.mode == "ptq" else "un-quantized alone"
        return Variant(_key(layer), f"layer {layer.name!r} {change}", lambda: self.variant(layer))

    def _result(self, records: Mapping[str, Record], settings: Mapping[str, str]) -> AnalysisResult:
        baseline = records[BASELINE].metric if isinstance(self.baseline, Variant) else self.baseline
        sign = (-1 if self.mode == "ptq" else 1) * (1 if self.higher_is_better else -1)
        rows = []
        for layer in self.layers:
            record = records[_key(layer)]
            rows.append(
                LayerResult(
                    layer=layer.name,
                    family=layer.family,
                    metric=record.metric,
                    sensitivity=sign * (record.metric - baseline) + 0.0,  # + 0.0: no negative zero
                    details={**record.details, **self.details(layer)},
                )
            )
        return AnalysisResult(
            mode=self.mode,
            metric_name=self.evaluation.name,
            higher_is_better=self.higher_is_better,
            baseline=baseline,
            reference=None if self.reference is None else records[REFERENCE].metric,
            rows=ranked(rows),
            settings=settings,
        )


class _Store(Protocol):
    """Where records go."""

    done: dict[str, Record]

    def add(self, key: str, record: Record) -> None:
        """Keep one."""


@dataclass
class _Memory:
    """A store that keeps nothing beyond the run."""

    done: dict[str, Record] = field(default_factory=dict)

    def add(self, key: str, record: Record) -> None:
        self.done[key] = record


def _key(layer: Layer) -> str:
    return f"layer:{layer.name}"
