"""A whole analysis as one job: run it, write the ranking, the pictures, the skip list and the rewritten model.

The command line and the classes of `doors` both end here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qpass import passes
from qpass.analysis.evaluate import check_direction
from qpass.analysis.ptq import analyze_ptq
from qpass.analysis.qat import analyze_qat, restore_weights
from qpass.analysis.result import AnalysisResult
from qpass.analysis.statistics import TensorStatistics, collect_statistics
from qpass.api import check_float, quantize
from qpass.errors import UsageError
from qpass.formats.files import save
from qpass.ir.model import Model
from qpass.quant.layers import DEFAULT_OP_TYPES, families
from qpass.quant.observers import ACTIVATION_ALGOS, WEIGHT_ALGOS
from qpass.quant.scales import ScaleTable
from qpass.report.write import write_analysis, write_histograms, write_statistics, write_text
from qpass.runtime.calibrate import calibrate
from qpass.runtime.data import Batches
from qpass.runtime.engines import ENGINES

if TYPE_CHECKING:
    from qpass.analysis.evaluate import Evaluate
    from qpass.analysis.progress import Progress
    from qpass.runtime.data import Data

QAT_CHECKPOINT = "analysis_checkpoint.jsonl"


_KINDS = {str: "a name", int: "a whole number", bool: "True or False", tuple: "a sequence of names"}


@dataclass(frozen=True)
class QuantOptions:
    """How layers are quantized and evaluated.

    Parameters
    ----------
    algo, weight_algo : str
        Observers of activations and weights.
    op_types : tuple of str
        Op types whose layers count.
    weight_bits, activation_bits : int
    batches : int or None
        Calibrate on that many batches only.
    engine : str
        ``inference``, ``executor`` or ``gpu``.
    higher_is_better : bool
        Direction of the metric.

    Raises
    ------
    UsageError
        If a value is not one of those that are known.
    """

    algo: str = "avg"
    weight_algo: str = "channel_wise_abs_max"
    op_types: tuple[str, ...] = DEFAULT_OP_TYPES
    weight_bits: int = 8
    activation_bits: int = 8
    batches: int | None = None
    engine: str = "inference"
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        choices: tuple[tuple[str, str, Collection[str]], ...] = (
            ("algo", self.algo, ACTIVATION_ALGOS),
            ("weight_algo", self.weight_algo, WEIGHT_ALGOS),
            ("engine", self.engine, ENGINES),
        )
        for name, value, known in choices:
            if value not in known:
                raise UsageError(f"unknown {name} {value!r}, expected one of {sorted(known)}")
        for name, bits in (("weight_bits", self.weight_bits), ("activation_bits", self.activation_bits)):
            if not 2 <= bits <= 16:
                raise UsageError(f"{name} is {bits}, expected 2 to 16")
        if self.batches is not None and self.batches < 1:
            raise UsageError(f"the number of batches is {self.batches}, expected a number >= 1")
        families(self.op_types)

    @classmethod
    def checked(cls, given: Mapping[str, object]) -> QuantOptions:
        """Options from untyped values by field name; None stands for the default.

        Raises
        ------
        UsageError
            If a value has the wrong type, or is not one of those that are known.
        """
        defaults = cls()
        set_ = {name: value for name, value in given.items() if value is not None}
        for name, value in set_.items():
            default = getattr(defaults, name)
            kind = int if name == "batches" else type(default)
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise UsageError(f"{name} is {value!r}, expected {_KINDS[kind]}")
        return dataclasses.replace(defaults, **set_)  # type: ignore[arg-type]


@dataclass
class Job:
    """One analysis: computed once, written as often as asked.

    Parameters
    ----------
    model : Model
        The model under analysis.
    compute : callable
        Runs the analysis.
    statistics : callable or None
        Collects the statistics of the named layers (all when empty); None where there are no data for it.
    rewrite : callable
        The model with the given layers left in float.
    save_dir : Path
    num_histogram_plots : int
    """

    model: Model
    compute: Callable[[], AnalysisResult]
    statistics: Callable[[Sequence[str]], Sequence[TensorStatistics]] | None
    rewrite: Callable[[Sequence[str]], Model]
    save_dir: Path
    num_histogram_plots: int = 10
    _result: AnalysisResult | None = None
    _statistics: Sequence[TensorStatistics] | None = None

    def analyse(self) -> AnalysisResult:
        """The ranking; computed by the first call."""
        if self._result is None:
            self._result = self.compute()
        return self._result

    def write_ranking(self) -> list[Path]:
        """Write text, JSON, CSV and chart."""
        return write_analysis(self.analyse(), self.save_dir)

    def write_histograms(self) -> list[Path]:
        """Write the histogram pages of the best and the worst layers; none for 0 plots, or without data."""
        if self.num_histogram_plots == 0 or self.statistics is None:
            return []
        return write_histograms(self.analyse(), self._all_statistics(), self.save_dir, self.num_histogram_plots)

    def write_statistics(self) -> list[Path]:
        """Write `statistic.csv` and the box plots.

        Raises
        ------
        UsageError
            If the job has no data.
        """
        return write_statistics(self._all_statistics(), self.save_dir)

    def write_skip_list(self, names: Sequence[str]) -> Path:
        """Write `skip_tensor_list.txt`: one name a line, as `qpass quantize --skip @FILE` reads it."""
        return write_text(self.save_dir / "skip_tensor_list.txt", "".join(f"{name}\n" for name in names))

    def write_model(self, names: Sequence[str]) -> Path:
        """Write the model with the named layers in float under `model/inference`; the program file."""
        return save(self.rewrite(names), self.save_dir / "model" / "inference", overwrite=True)[0]

    def _all_statistics(self) -> Sequence[TensorStatistics]:
        if self._statistics is None:
            if self.statistics is None:
                raise UsageError("statistics need data", hint="give a data_loader")
            self._statistics = self.statistics(())
        return self._statistics


def default_skip_list(result: AnalysisResult) -> list[str]:
    """The tenth of the layers (at least one) that cost most, as far as they cost anything.

    A starting point where the user names no rule, not a proven minimum.
    """
    count = max(1, round(len(result.rows) / 10))
    return [row.layer for row in result.rows[:count] if row.sensitivity > 0]


def ptq_job(
    model: Model,
    data: Data,
    *,
    evaluate: Evaluate | None,
    save_dir: Path,
    options: QuantOptions,
    checkpoint_name: str = "analysis_checkpoint.jsonl",
    resume: bool = False,
    num_histogram_plots: int = 10,
    progress: Progress | None = None,
) -> Job:
    """The job of a float model: calibrate once, quantize each layer alone."""
    _check_plots(num_histogram_plots)
    check_float(model)
    check_direction(evaluate, options.higher_is_better)
    source = Batches.of(model, data)
    table: list[ScaleTable] = []

    def scales() -> ScaleTable:
        if not table:
            table.append(
                calibrate(
                    model,
                    source,
                    algo=options.algo,
                    weight_algo=options.weight_algo,
                    engine=options.engine,
                    op_types=options.op_types,
                    batches=options.batches,
                )
            )
        return table[0]

    def compute() -> AnalysisResult:
        return analyze_ptq(
            model,
            scales(),
            evaluate=evaluate,
            data=source,
            engine=options.engine,
            op_types=options.op_types,
            weight_bits=options.weight_bits,
            activation_bits=options.activation_bits,
            higher_is_better=options.higher_is_better,
            checkpoint=save_dir / checkpoint_name,
            resume=resume,
            progress=progress,
        )

    def rewrite(names: Sequence[str]) -> Model:
        return quantize(
            model,
            scales(),
            skip_tensor_list=names,
            op_types=options.op_types,
            weight_bits=options.weight_bits,
            activation_bits=options.activation_bits,
        )

    def statistics(names: Sequence[str]) -> Sequence[TensorStatistics]:
        return collect_statistics(
            model,
            source,
            scales=scales(),
            layers=names,
            engine=options.engine,
            op_types=options.op_types,
            weight_bits=options.weight_bits,
            activation_bits=options.activation_bits,
        )

    return Job(model, compute, statistics, rewrite, save_dir, num_histogram_plots)


def qat_job(
    quantized: Model,
    float_model: Model | None,
    data: Data | None,
    *,
    evaluate: Evaluate | None,
    save_dir: Path,
    options: QuantOptions,
    restore: str = "float",
    mapping: Mapping[str, str] | None = None,
    qat_metric: float | None = None,
    checkpoint_name: str = QAT_CHECKPOINT,
    resume: bool = False,
    num_histogram_plots: int = 10,
    progress: Progress | None = None,
) -> Job:
    """The job of a quantized model: un-quantize each layer alone."""
    _check_plots(num_histogram_plots)
    source = None if data is None else Batches.of(quantized, data)

    def compute() -> AnalysisResult:
        return analyze_qat(
            quantized,
            float_model,
            evaluate=evaluate,
            data=source,
            engine=options.engine,
            op_types=options.op_types,
            restore=restore,
            mapping=mapping,
            qat_metric=qat_metric,
            higher_is_better=options.higher_is_better,
            checkpoint=save_dir / checkpoint_name,
            resume=resume,
            progress=progress,
        )

    def rewrite(names: Sequence[str]) -> Model:
        if not names:
            return quantized
        stripped = passes.StripQuant(layers=tuple(names))(quantized)
        return restore_weights(stripped, names, float_model, restore=restore, mapping=mapping, quantized=quantized)

    def statistics(batches: Batches, names: Sequence[str]) -> Sequence[TensorStatistics]:
        return collect_statistics(quantized, batches, layers=names, engine=options.engine, op_types=options.op_types)

    collect = None if source is None else functools.partial(statistics, source)
    return Job(quantized, compute, collect, rewrite, save_dir, num_histogram_plots)


def _check_plots(count: int) -> None:
    if count < 0:
        raise UsageError(f"num_histogram_plots is {count}, expected a number >= 0")
