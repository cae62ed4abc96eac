"""The reference engine: `paddle.static.Executor`, one kernel after the other as the program says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qpass.formats import pdmodel
from qpass.ir.graph import ValueRef
from qpass.ir.model import Model
from qpass.runtime.paddle_env import PADDLE_ERRORS, engine_error, import_paddle, legacy_static
from qpass.runtime.session import TargetSession
from qpass.runtime.targets import Targets, targets


class ExecutorEngine:
    """Sessions of `paddle.static.Executor` on CPU, each in a scope of its own.

    Works in dynamic and in static mode, and in a default Paddle 3 process; the mode is restored after every call.

    Raises
    ------
    EngineError
        If paddle is absent or too old.
    """

    def __init__(self) -> None:
        import_paddle()

    @property
    def name(self) -> str:
        """Name under which `get_engine` finds it."""
        return "executor"

    def session(self, model: Model, fetch: Sequence[ValueRef] | None = None) -> ExecutorSession:
        """Make `model` ready to run.

        Parameters
        ----------
        model : Model
        fetch : sequence of ValueRef, optional
            Values of the root block to return in place of the model's outputs.

        Raises
        ------
        EngineError
            If a value to fetch does not exist, parameters are missing, or Paddle refuses the program.
        """
        return ExecutorSession(targets(model, fetch))


class ExecutorSession(TargetSession):
    """A `Session` over one executor, one program and one scope."""

    def __init__(self, wanted: Targets) -> None:
        super().__init__(wanted)
        model = wanted.model
        self._fetch = [port.name for port in model.fetches]
        try:
            with legacy_static() as paddle:
                place = paddle.CPUPlace()
                self._scope: Any = paddle.static.Scope()
                for name, array in model.params.items():
                    self._scope.var(name).get_tensor().set(np.array(array), place)
                self._executor: Any = paddle.static.Executor(place)
                encoded = pdmodel.encode(model.blocks, model.extra)
                self._program: Any = paddle.static.Program.parse_from_string(encoded)
        except PADDLE_ERRORS as e:
            raise engine_error("Paddle refuses the program", e) from e

    def _compute(self, batch: Mapping[str, np.ndarray]) -> Callable[[int], np.ndarray]:
        tensors: list[Any] = []
        try:
            if self._fetch:
                with legacy_static():
                    tensors = self._executor.run(
                        self._program, feed=batch, fetch_list=self._fetch, scope=self._scope, return_numpy=False
                    )
        except PADDLE_ERRORS as e:
            raise engine_error("the executor failed while it ran the model", e) from e
        return lambda column: np.array(tensors[column])
