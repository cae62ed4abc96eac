"""A whole analysis as one job: run it, write the ranking, the pictures, the skip list and the rewritten model.

The command line and the classes of `doors` both end here.
"""

from __future__ import annotations

import abc
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qpass import passes
from qpass.analysis.estimate import check_count
from qpass.analysis.evaluate import check_direction
from qpass.analysis.ptq import analyze_ptq
from qpass.analysis.qat import analyze_qat, check_pair, quantized_layers, restore_weights
from qpass.analysis.race import check_confidence
from qpass.analysis.result import AnalysisResult, Mode
from qpass.analysis.statistics import TensorStatistics, collect_statistics
from qpass.errors import UsageError
from qpass.formats.files import save
from qpass.hardware import Hardware
from qpass.ir.model import Model
from qpass.options import QuantOptions
from qpass.post_training import find_scales, quantize_prepared
from qpass.quant.encodings import check_float, find_sites
from qpass.quant.layers import find_layers
from qpass.quant.scales import ScaleTable
from qpass.quant.skip import unskipped
from qpass.report.write import write_analysis, write_histograms, write_statistics, write_text
from qpass.runtime.data import Batches
from qpass.runtime.evaluating import float_engine

if TYPE_CHECKING:
    from qpass.analysis.evaluate import Evaluate
    from qpass.analysis.progress import Progress
    from qpass.runtime.jobs import Workers

CHECKPOINT = "analysis_checkpoint.jsonl"


@dataclass(kw_only=True, eq=False)
class Job(abc.ABC):
    """One analysis: computed once, written as often as asked.

    Parameters
    ----------
    model : Model
        The model under analysis.
    source : Batches or None
        Its data; None where there are none.
    evaluate : callable or None
        As in `analyze_ptq`.
    save_dir : Path
        Folder for everything that is written.
    options : QuantOptions
    checkpoint_name : str
        File in `save_dir` that gets a line after every layer.
    resume : bool
        Go on from the checkpoint.
    settle : float, optional
    breakdown : bool
    estimate : int, optional
        As in `analyze_ptq`.
    num_histogram_plots : int
        How many of the best and the worst layers get a histogram page.
    progress : Progress or None
    hardware : Hardware
        Who runs variants, in how much memory.

    Raises
    ------
    UsageError
        If the options do not fit the model.
    """

    model: Model
    source: Batches | None
    evaluate: Evaluate | None
    save_dir: Path
    options: QuantOptions
    checkpoint_name: str = CHECKPOINT
    resume: bool = False
    settle: float | None = None
    breakdown: bool = False
    estimate: int | None = None
    num_histogram_plots: int = 10
    progress: Progress | None = None
    hardware: Hardware = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        if self.num_histogram_plots < 0:
            raise UsageError(f"num_histogram_plots is {self.num_histogram_plots}, expected a number >= 0")
        check_direction(self.evaluate, self.options.higher_is_better)
        check_confidence(self.settle)
        check_count(self.estimate)

    @functools.cached_property
    def result(self) -> AnalysisResult:
        """The ranking; computed by the first use."""
        with self.hardware.open() as workers:
            return self._analyse(workers)

    @functools.cached_property
    def statistics(self) -> Sequence[TensorStatistics]:
        """Statistics of all layers; collected by the first use.

        Raises
        ------
        UsageError
            If the job has no data.
        """
        if self.source is None:
            raise UsageError("statistics need data", hint="give a data_loader")
        return self._collect(self.source)

    @property
    @abc.abstractmethod
    def mode(self) -> Mode:
        """Which of the two modes."""

    @property
    @abc.abstractmethod
    def layers(self) -> Sequence[str]:
        """The layers under analysis, in program order."""

    @property
    @abc.abstractmethod
    def reference(self) -> Model:
        """The float model that outputs are compared with where there is no evaluation function."""

    @property
    @abc.abstractmethod
    def identity(self) -> Mapping[str, str]:
        """Digests of all that goes into `rewrite`, the options apart."""

    @abc.abstractmethod
    def rewrite(self, names: Sequence[str]) -> Model:
        """The quantized model with the named layers in float."""

    @abc.abstractmethod
    def _analyse(self, workers: Workers) -> AnalysisResult: ...

    @abc.abstractmethod
    def _collect(self, source: Batches) -> Sequence[TensorStatistics]: ...

    def write_ranking(self) -> list[Path]:
        """Write text, JSON, CSV and chart."""
        return write_analysis(self.result, self.save_dir)

    def write_histograms(self) -> list[Path]:
        """Write the histogram pages of the best and the worst layers; none for 0 plots, or without data."""
        if self.num_histogram_plots == 0 or self.source is None:
            return []
        return write_histograms(self.result, self.statistics, self.save_dir, self.num_histogram_plots)

    def write_statistics(self) -> list[Path]:
        """Write `statistic.csv` and the box plots.

        Raises
        ------
        UsageError
            If the job has no data.
        """
        return write_statistics(self.statistics, self.save_dir)

    def write_skip_list(self, names: Sequence[str]) -> Path:
        """Write `skip_tensor_list.txt`: one name a line, as `qpass quantize --skip @FILE` reads it."""
        return write_text(self.save_dir / "skip_tensor_list.txt", "".join(f"{name}\n" for name in names))

    def write_model(self, names: Sequence[str]) -> Path:
        """Write the model with the named layers in float under `model/inference`; the program file."""
        return save(self.rewrite(names), self.save_dir / "model" / "inference", overwrite=True)[0]


@dataclass(kw_only=True, eq=False)
class PTQJob(Job):
    """The job of a float model: calibrate once, quantize each layer alone.

    Parameters
    ----------
    source : Batches or None
        Calibration data; also what outputs are compared on without an evaluation function.
    table : ScaleTable or None
        Thresholds found before, in place of calibration.

    Raises
    ------
    UsageError
        If the model is quantized, or the options do not fit.
    QuantError
        If the thresholds belong to another model.
    """

    table: ScaleTable | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_float(self.model)
        if self.table is not None:
            self.table.check_model(self.model)

    @functools.cached_property
    def scales(self) -> ScaleTable:
        """What was given, or what calibration finds; computed by the first use.

        Raises
        ------
        UsageError
            If there are neither thresholds nor data.
        """
        if self.table is not None:
            return self.table
        if self.source is None:
            raise UsageError("there are neither scales nor data", hint="calibration needs batches of inputs")
        return find_scales(self.model, self.source, self.options)

    @property
    def mode(self) -> Mode:
        """PTQ."""
        return "ptq"

    @property
    def layers(self) -> Sequence[str]:
        """The layers to quantize, in program order."""
        recipe = self.options.recipe
        return [layer.name for layer in unskipped(self.model, find_layers(self.model, recipe.op_types), recipe.skip)]

    @property
    def reference(self) -> Model:
        """The model itself."""
        return self.model

    @property
    def identity(self) -> Mapping[str, str]:
        """Digests of the model and the scales."""
        return {
            "program": self.model.program_digest(),
            "params": self.model.params_digest(),
            "scales": hashlib.sha256(self.scales.to_json().encode()).hexdigest(),
        }

    def rewrite(self, names: Sequence[str]) -> Model:
        """The model with every layer but the named ones in int8."""
        return quantize_prepared(self.model, self.scales, self.options, self.source, names).model

    def _analyse(self, workers: Workers) -> AnalysisResult:
        return analyze_ptq(
            self.model,
            self.scales,
            evaluate=self.evaluate,
            data=self.source,
            engine=self.options.engine,
            simulate=self.options.simulate,
            fast=self.options.fast,
            op_types=self.options.recipe.op_types,
            skip_tensor_list=self.options.skip,
            overrides=self.options.overrides,
            weight_bits=self.options.weight_bits,
            activation_bits=self.options.activation_bits,
            higher_is_better=self.options.higher_is_better,
            checkpoint=self.save_dir / self.checkpoint_name,
            resume=self.resume,
            settle=self.settle,
            breakdown=self.breakdown,
            estimate=self.estimate,
            progress=self.progress,
            memory_bytes=self.hardware.memory_bytes,
            workers=workers,
        )

    def _collect(self, source: Batches) -> Sequence[TensorStatistics]:
        return collect_statistics(
            self.model,
            source,
            scales=self.scales,
            layers=self.layers,
            engine=float_engine(self.options.engine),
            op_types=self.options.recipe.op_types,
            weight_bits=self.options.weight_bits,
            activation_bits=self.options.activation_bits,
        )


@dataclass(kw_only=True, eq=False)
class QATJob(Job):
    """The job of a quantized model: un-quantize each layer alone.

    Parameters
    ----------
    float_model : Model or None
        The float twin.
    restore, mapping, qat_metric
        As in `analyze_qat`.

    Raises
    ------
    UsageError
        If the models are not a quantized one and a float one, or the options do not fit.
    """

    float_model: Model | None
    restore: str = "float"
    mapping: Mapping[str, str] | None = None
    qat_metric: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pair(find_sites(self.model), self.float_model)

    @property
    def mode(self) -> Mode:
        """QAT."""
        return "qat"

    @property
    def layers(self) -> Sequence[str]:
        """The quantized layers, in program order."""
        sites = find_sites(self.model)
        return [layer.name for layer in quantized_layers(self.model, sites, self.options.op_types)]

    @functools.cached_property
    def reference(self) -> Model:
        """The float twin, or what stripping leaves."""
        return self.float_model if self.float_model is not None else passes.StripQuant()(self.model)

    @property
    def identity(self) -> Mapping[str, str]:
        """Digests of both models, and how weights are restored."""
        return {
            "program": self.model.program_digest(),
            "params": self.model.params_digest(),
            "float_program": self.reference.program_digest(),
            "float_params": self.reference.params_digest(),
            "restore": self.restore,
            "mapping": json.dumps(dict(self.mapping or {}), sort_keys=True),
        }

    def rewrite(self, names: Sequence[str]) -> Model:
        """The quantized model with the named layers back in float, their weights restored."""
        if not names:
            return self.model
        stripped = passes.StripQuant(layers=tuple(names))(self.model)
        return restore_weights(
            stripped, names, self.float_model, restore=self.restore, mapping=self.mapping, quantized=self.model
        )

    def _analyse(self, workers: Workers) -> AnalysisResult:
        return analyze_qat(
            self.model,
            self.float_model,
            evaluate=self.evaluate,
            data=self.source,
            engine=self.options.engine,
            simulate=self.options.simulate,
            fast=self.options.fast,
            op_types=self.options.op_types,
            restore=self.restore,
            mapping=self.mapping,
            qat_metric=self.qat_metric,
            higher_is_better=self.options.higher_is_better,
            checkpoint=self.save_dir / self.checkpoint_name,
            resume=self.resume,
            settle=self.settle,
            breakdown=self.breakdown,
            estimate=self.estimate,
            progress=self.progress,
            memory_bytes=self.hardware.memory_bytes,
            workers=workers,
        )

    def _collect(self, source: Batches) -> Sequence[TensorStatistics]:
        return collect_statistics(
            self.model, source, engine=float_engine(self.options.engine), op_types=self.options.op_types
        )


def default_skip_list(result: AnalysisResult) -> list[str]:
    """The tenth of the layers (at least one) that cost most, as far as they cost anything.

    A starting point where the user names no rule, not a proven minimum.
    """
    count = max(1, round(len(result.order) / 10))
    return [row.layer for row in result.rows[:count] if row.sensitivity > 0]
