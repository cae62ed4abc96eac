"""The default engine: Paddle Inference, in memory, with oneDNN and the framework's own graph passes."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qpass.errors import EngineError
from qpass.formats import pdiparams, pdmodel
from qpass.ir.graph import ValueRef
from qpass.ir.model import Model
from qpass.quant.encodings import find_sites
from qpass.runtime.paddle_env import (
    PADDLE_ERRORS,
    compiled_with_cuda,
    default_threads,
    engine_error,
    import_paddle,
    silent_stderr,
)
from qpass.runtime.paddle_passes import unfit_passes
from qpass.runtime.session import TargetSession
from qpass.runtime.targets import Targets, targets

SAVED = ("_optimized.pdmodel", "_optimized.pdiparams")
"""Names under which Paddle saves and finds the program that its passes made."""

_GPU_MEMORY_MB = 256  # first allocation; the pool grows as needed


class PaddleInferenceEngine:
    """Sessions of `paddle.inference.Predictor`.

    Parameters
    ----------
    threads : int, optional
        Threads of the math library; default `default_threads`.
    onednn, passes : bool
        oneDNN kernels and the framework's graph passes. Both on is fastest by far (MobileNetV1 at 224: 0.20 s a batch
        against 0.75 and 0.92 with one of them); outputs agree with the executor to 1e-6 relative. With both off they
        are bit-equal to it.
    device : {"cpu", "gpu"}
    int8 : bool
        Let oneDNN run quantized ops in int8; then there is no way back to a run without oneDNN.
    delete_passes : sequence of str
        Graph passes of the framework to leave out.
    save_program : str or Path, optional
        Folder into which the framework saves the program that its passes made.
    as_made : bool
        The models are programs that such passes have made (`engine_program`): they run as they are.

    Raises
    ------
    EngineError
        If paddle is absent or too old, or `device` is "gpu" and the installed paddle is a CPU build.
    """

    def __init__(
        self,
        *,
        threads: int | None = None,
        onednn: bool = True,
        passes: bool = True,
        device: str = "cpu",
        int8: bool = False,
        delete_passes: Sequence[str] = (),
        save_program: str | Path | None = None,
        as_made: bool = False,
    ) -> None:
        import_paddle()
        if device == "gpu" and not compiled_with_cuda():
            raise EngineError(
                "the installed paddle is a CPU build",
                where="engine 'gpu'",
                hint="install paddlepaddle-gpu, or use engine='inference'",
            )
        self._threads = default_threads() if threads is None else threads
        self._onednn = onednn
        self._passes = passes
        self._device = device
        self._int8 = int8
        self._delete_passes = tuple(delete_passes)
        self._save_program = None if save_program is None else str(save_program)
        self._as_made = as_made

    @property
    def name(self) -> str:
        """Name under which `get_engine` finds it."""
        return "int8" if self._int8 else "gpu" if self._device == "gpu" else "inference"

    @property
    def on_onednn(self) -> bool:
        """Whether it runs float kernels of oneDNN after the framework's graph passes, as it does by default."""
        return self._onednn and self._passes and not self._int8 and self._device == "cpu"

    def of_made_programs(self) -> PaddleInferenceEngine:
        """The same engine for programs that its passes have made."""
        return PaddleInferenceEngine(threads=self._threads, passes=False, as_made=True)

    def session(self, model: Model, fetch: Sequence[ValueRef] | None = None) -> PredictorSession:
        """Make `model` ready to run.

        Parameters
        ----------
        model : Model
        fetch : sequence of ValueRef, optional
            Values of the root block to return in place of the model's outputs.

        Raises
        ------
        EngineError
            If a value to fetch does not exist, parameters are missing, or Paddle refuses the model.
        """
        if self._int8 and not find_sites(model):
            raise EngineError(
                "the model is not quantized: nothing of it would run in int8",
                where="engine 'int8'",
                hint="quantize it with target 'onednn', or use engine='inference'",
            )
        onednn = self._onednn and self._device == "cpu"
        return PredictorSession(targets(model, fetch), self._predictor, onednn=onednn, fall_back=not self._int8)

    def _predictor(self, model: Model, onednn: bool) -> Any:
        from paddle import inference

        program = pdmodel.encode(model.blocks, model.extra)
        params = b"".join(pdiparams.encode(model.params))
        config: Any = inference.Config()
        config.disable_glog_info()
        config.set_cpu_math_library_num_threads(self._threads)
        if self._device == "gpu":
            config.enable_use_gpu(_GPU_MEMORY_MB, 0)
        elif onednn:
            config.enable_mkldnn()
            if self._int8:
                config.enable_mkldnn_int8()
        elif hasattr(config, "disable_mkldnn"):  # off by default where this is absent (2.6)
            config.disable_mkldnn()
        if self._as_made and hasattr(config, "use_optimized_model"):
            with contextlib.suppress(OSError):  # no room on the disk: the slower way takes none
                return _of_made_program(config, program, params)
        config.set_model_buffer(program, len(program), params, len(params))
        config.switch_ir_optim(self._passes)
        for name in (*unfit_passes(model), *self._delete_passes):
            config.delete_pass(name)
        if self._save_program is not None:
            config.set_optim_cache_dir(self._save_program)
            config.enable_save_optim_model(True)
        if not self._as_made:
            config.enable_memory_optim()
        with silent_stderr() if self._int8 else contextlib.nullcontext():
            return inference.create_predictor(config)


def _of_made_program(config: Any, program: bytes, params: bytes) -> Any:
    """A predictor that takes the program for one that it saved itself.

    Without passes Paddle still takes a program apart and puts it together again: 0.73 s and 64 kB an op for 4,300 ops,
    against 0.09 s and next to nothing this way (3.3.1; 2.6 has no such way).
    """
    from paddle import inference

    with tempfile.TemporaryDirectory(prefix="qpass-") as folder:
        paths = [Path(folder) / name for name in SAVED]
        for path, data in zip(paths, (program, params), strict=True):
            path.write_bytes(data)
        config.set_model(*map(str, paths))
        config.set_optim_cache_dir(folder)
        config.use_optimized_model(True)
        return inference.create_predictor(config)


class OneDNNWarning(UserWarning):
    """oneDNN cannot run a model; it runs without oneDNN, slower and with the same results."""


class PredictorSession(TargetSession):
    """A `Session` over one predictor; without oneDNN when a predictor with oneDNN fails.

    Parameters
    ----------
    wanted : Targets
    build : callable
        Makes a predictor of a model, with oneDNN or without.
    onednn : bool
        Whether to try oneDNN first.
    fall_back : bool
        Whether to go on without oneDNN when it fails.

    Raises
    ------
    EngineError
        If Paddle refuses the model.
    """

    def __init__(
        self, wanted: Targets, build: Callable[[Model, bool], Any], *, onednn: bool, fall_back: bool = True
    ) -> None:
        super().__init__(wanted)
        self._build = build
        self._onednn = onednn
        self._fall_back = fall_back
        self._predictor: Any = None
        # A predictor of no outputs cannot be made; feeds and parameters need none.
        self._needed = bool(wanted.model.fetches)
        if self._needed:
            self._attempt("refuses the model", self._ready)

    def _ready(self) -> Any:
        if self._predictor is None:
            self._predictor = self._build(self._targets.model, self._onednn)
        return self._predictor

    def _attempt(self, failure: str, action: Callable[[], object]) -> None:
        """Do `action`; once more without oneDNN when it fails with it.

        Paddle's oneDNN kernels refuse some shapes that its own kernels run: a bias added to a 1x1 convolution output
        that is fetched gives "could not create a primitive descriptor for a binary operation primitive" (3.3.1).
        """
        try:
            action()
            return
        except PADDLE_ERRORS as e:
            error = engine_error(f"Paddle Inference {failure}", e)
            if not (self._onednn and self._fall_back):
                raise error from e
        self._onednn = False
        self._predictor = None
        try:
            action()
        except PADDLE_ERRORS as e:
            raise engine_error(f"Paddle Inference {failure}", e) from e
        warnings.warn(f"oneDNN cannot run this model, going on without it: {error.what}", OneDNNWarning, stacklevel=4)

    def _compute(self, batch: Mapping[str, np.ndarray]) -> Callable[[int], np.ndarray]:
        def run() -> None:
            predictor = self._ready()
            for name, array in batch.items():
                predictor.get_input_handle(name).copy_from_cpu(array)
            predictor.run()

        if self._needed:
            self._attempt("failed while it ran the model", run)
        return self._copy

    def _copy(self, column: int) -> np.ndarray:
        name = self._targets.model.fetches[column].name
        copied: np.ndarray = self._predictor.get_output_handle(name).copy_to_cpu()
        return copied
