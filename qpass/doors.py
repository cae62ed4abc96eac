"""The classes Paddle users know, as thin doors to `analyze_ptq` and `analyze_qat`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qpass.analysis.budget import DEFAULT_MEMORY
from qpass.errors import UsageError
from qpass.formats.files import load
from qpass.hardware import Hardware
from qpass.job import Job, PTQJob, QATJob
from qpass.options import QuantOptions
from qpass.paddle_config import options_of
from qpass.post_training import prepared
from qpass.runtime.data import Batches
from qpass.target_job import reach_target

if TYPE_CHECKING:
    from qpass.analysis.evaluate import Evaluate
    from qpass.analysis.result import AnalysisResult
    from qpass.analysis.target import TargetResult
    from qpass.ir.model import Model
    from qpass.runtime.data import Data


class _Analysis:
    """What both modes share: the job, and its three methods."""

    _job: Job

    @property
    def result(self) -> AnalysisResult:
        """The ranking; computed by the first call that needs it."""
        return self._job.result

    def metric_error_analyse(self) -> AnalysisResult:
        """Evaluate every layer and write `analysis.txt`, `.json`, `.csv`, the chart and the histograms."""
        self._job.write_ranking()
        self._job.write_histograms()
        return self._job.result

    def statistical_analyse(self) -> list[Path]:
        """Write `statistic.csv` and the box plots of weights and activations; the files."""
        return self._job.write_statistics()

    def analysis(self) -> AnalysisResult:
        """Everything: `statistical_analyse` where there are data (it is quick), then `metric_error_analyse`."""
        if self._job.source is not None:
            self.statistical_analyse()
        return self.metric_error_analyse()

    def get_target_quant_model(self, target_metric: float) -> TargetResult:
        """Find a skip list that reaches a metric and from which no layer can be dropped, and save that model.

        The model goes to ``target_quant_model/model`` in the folder for results, with ``target.txt``, ``.json`` and
        ``.csv`` (every model tried) and ``skip_tensor_list.txt`` beside it. First nothing is skipped: layers are ranked
        only where that misses the target. Evaluate on all the data that the target is about.

        Parameters
        ----------
        target_metric : float
            Absolute, on the scale of the evaluation; a metric that equals it reaches it.

        Raises
        ------
        UsageError
            If the target is no finite number.
        TargetError
            If even the float model misses the target, or nothing but the float model reaches it; what was tried is
            written.
        """
        return reach_target(self._job, target_metric, self._job.save_dir / "target_quant_model" / "model").result


class AnalysisPTQ(_Analysis):
    """Which layers of a float model lose accuracy to int8: each layer alone is quantized.

    Parameters
    ----------
    model_dir : str or Path
        Folder, prefix or `.pdmodel` file of the float model.
    model_filename, params_filename : str, optional
        Files inside the folder, with or without suffix.
    eval_function : callable, optional
        ``eval_function(executor, program, feed_names, fetch_list) -> float``, or the short form
        ``evaluate(predict) -> float``. None: cosine similarity of all outputs with the float model's, on `data_loader`.
    data_loader : iterable
        Calibration batches: a `paddle.io.DataLoader`, or any iterable of arrays, tuples or dicts.
    save_dir : str or Path
        Folder for everything that is written; created.
    checkpoint_name : str
        File in `save_dir` that gets a line after every layer.
    num_histogram_plots : int
        How many of the best and the worst layers get a histogram page; 0 writes none.
    resume : bool
        Go on from the checkpoint.
    settle : float, optional
        As in `analyze_ptq`: stop a layer when its place is settled, with this confidence (0 to 1).
    breakdown : bool
        As in `analyze_ptq`: take every layer apart; writes ``breakdown.txt`` too.
    estimate : int, optional
        As in `analyze_ptq`: evaluate only that many layers, those with the largest estimate; writes ``estimate.txt``.
    ptq_config : mapping, optional
        Arguments of `quant_post_static` by their names: ``algo``, ``hist_percent``, ``weight_quantize_type``,
        ``weight_bits``, ``activation_bits``, ``quantizable_op_type``, ``skip_tensor_list``, ``is_full_quantize``,
        ``onnx_format``, ``round_type``, ``bias_correction``, ``optimize_model``, ``batch_nums``, ``deploy_backend``,
        ``target``, ``compat``, ``overrides``, ``equalize``, ``outputs``, ``engine``; besides ``simulate``,
        ``fast`` and ``higher_is_better``. Layers are ranked with plain rounding and without ops that have no weights;
        `get_target_quant_model` measures and saves models with everything that is asked for.
    workers : int
        Processes that run variants; 1 is this process alone. `eval_function` always runs in this process. A script
        needs ``if __name__ == "__main__":`` around an analysis with workers, as for any process pool.
    scheduler : str, optional
        Address of a Dask scheduler (``tcp://host:8786``) whose workers run variants instead.
    memory : int or str
        What this process and each worker may take beyond what running the model takes: bytes, or as ``512M``.

    Raises
    ------
    QPassError
        If the model, the options or the data are not usable; nothing is written then.
    """

    def __init__(
        self,
        model_dir: str | Path,
        model_filename: str | None = None,
        params_filename: str | None = None,
        eval_function: Evaluate | None = None,
        data_loader: Data | None = None,
        save_dir: str | Path = "analysis_results",
        checkpoint_name: str = "analysis_checkpoint.jsonl",
        num_histogram_plots: int = 10,
        resume: bool = False,
        settle: float | None = None,
        breakdown: bool = False,
        estimate: int | None = None,
        ptq_config: Mapping[str, object] | None = None,
        workers: int = 1,
        scheduler: str | None = None,
        memory: int | str = DEFAULT_MEMORY,
    ) -> None:
        if data_loader is None:
            raise UsageError("data_loader is None", where="AnalysisPTQ", hint="calibration needs batches of inputs")
        options = options_of(ptq_config or {}, "ptq_config")
        hardware = Hardware(workers, scheduler, memory)
        model = load(model_dir, model_filename=model_filename, params_filename=params_filename)
        self._job = PTQJob(
            model=prepared(model, options),
            source=Batches.of(model, data_loader),
            evaluate=eval_function,
            save_dir=Path(save_dir),
            checkpoint_name=checkpoint_name,
            resume=resume,
            settle=settle,
            breakdown=breakdown,
            estimate=estimate,
            num_histogram_plots=num_histogram_plots,
            hardware=hardware,
            options=options,
        )


AnalysisQuant = AnalysisPTQ
"""The name PaddleSlim gave the same analysis before."""


class AnalysisQAT(_Analysis):
    """Which layers of a quantized model lose accuracy: each layer alone is un-quantized.

    Parameters
    ----------
    quant_model_dir : str or Path
        Folder, prefix or `.pdmodel` file of the quantized model.
    float_model_dir : str or Path, optional
        The float twin; its layers may have other names. None: weights are the quantized model's own.
    model_filename, params_filename : str, optional
        Files inside both folders, with or without suffix.
    quantizable_op_type : sequence of str
        Op types whose layers are examined; `mul`, `matmul` and `matmul_v2` count as one family.
    qat_metric : float, optional
        Metric of the quantized model where it is known; None computes it.
    eval_function : callable, optional
        As in `AnalysisPTQ`; None: cosine similarity of all outputs with the float model's, on `data_loader`.
    data_loader : iterable, optional
        Batches; needed without `eval_function`. No histograms and no statistics are written without them.
    save_dir : str or Path
        Folder for everything that is written; created.
    resume : bool
        Go on from the checkpoint.
    settle : float, optional
        As in `analyze_ptq`: stop a layer when its place is settled, with this confidence (0 to 1).
    breakdown : bool
        As in `analyze_ptq`: take every layer apart; writes ``breakdown.txt`` too.
    estimate : int, optional
        As in `analyze_ptq`: evaluate only that many layers, those with the largest estimate; writes ``estimate.txt``.
    restore : {"float", "self"}
        What a stripped layer's weight becomes: the float model's, or the quantized model's own latent weight.
    mapping : mapping, optional
        Quantized layer name -> float layer name, where alignment needs help.
    num_histogram_plots : int
        How many of the best and the worst layers get a histogram page; 0 writes none.
    higher_is_better : bool
        Direction of the metric.
    workers, scheduler, memory
        As in `AnalysisPTQ`.
    fast : bool
        As in `analyze_ptq`: quantize activations by oneDNN's own ops.

    Raises
    ------
    QPassError
        If a model, an option or the data are not usable; nothing is written then.
    """

    def __init__(
        self,
        quant_model_dir: str | Path,
        float_model_dir: str | Path | None,
        model_filename: str | None = None,
        params_filename: str | None = None,
        quantizable_op_type: Sequence[str] = ("conv2d", "depthwise_conv2d", "mul"),
        qat_metric: float | None = None,
        eval_function: Evaluate | None = None,
        data_loader: Data | None = None,
        save_dir: str | Path = "analysis_results",
        resume: bool = False,
        settle: float | None = None,
        breakdown: bool = False,
        estimate: int | None = None,
        restore: str = "float",
        mapping: Mapping[str, str] | None = None,
        num_histogram_plots: int = 10,
        higher_is_better: bool = True,
        workers: int = 1,
        scheduler: str | None = None,
        memory: int | str = DEFAULT_MEMORY,
        fast: bool = False,
    ) -> None:
        def read(folder: str | Path) -> Model:
            return load(folder, model_filename=model_filename, params_filename=params_filename)

        hardware = Hardware(workers, scheduler, memory)
        model = read(quant_model_dir)
        self._job = QATJob(
            model=model,
            float_model=None if float_model_dir is None else read(float_model_dir),
            source=None if data_loader is None else Batches.of(model, data_loader),
            evaluate=eval_function,
            save_dir=Path(save_dir),
            resume=resume,
            settle=settle,
            breakdown=breakdown,
            estimate=estimate,
            restore=restore,
            mapping=mapping,
            qat_metric=qat_metric,
            num_histogram_plots=num_histogram_plots,
            hardware=hardware,
            options=QuantOptions.checked(
                {"op_types": quantizable_op_type, "higher_is_better": higher_is_better, "fast": fast},
                {"op_types": "quantizable_op_type"},
            ),
        )
