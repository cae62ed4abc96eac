"""An executor for evaluation functions as Paddle users write them, over any engine's session.

``eval_function(executor, program, feed_names, fetch_list)`` gets a real `paddle.static.Program` and real variables, and
calls ``executor.run(program, feed=..., fetch_list=...)``. Runs of that program for the model's own outputs go to the
engine; any other run goes to a real `paddle.static.Executor`.
"""

from __future__ import annotations

import contextlib
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qpass.errors import EngineError
from qpass.formats import pdmodel
from qpass.ir.model import Model
from qpass.runtime.engine import Session
from qpass.runtime.paddle_env import PADDLE_ERRORS, engine_error, import_paddle, legacy_static

EvalFunction = Callable[[Any, Any, list[str], list[Any]], object]


def call_eval_function(function: EvalFunction, model: Model, session: Session) -> object:
    """Call a Paddle-style evaluation function on a model; what it returns.

    Its code runs in the caller's mode (dynamic mode by default), not under the guard for legacy programs.

    Parameters
    ----------
    function : callable
        ``function(executor, program, feed_names, fetch_list)``.
    model : Model
    session : Session
        Of `model`, for its own outputs.

    Raises
    ------
    EngineError
        If Paddle refuses the program.
    """
    return FacadeExecutor(Face(model), session).called_by(function)


class Face:
    """What an evaluation function is shown of a model.

    Parameters
    ----------
    model : Model

    Attributes
    ----------
    model : Model
    program : paddle.static.Program
    fetch_list : list of paddle.static.Variable
        The model's outputs.

    Raises
    ------
    EngineError
        If Paddle refuses the program.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        try:
            with legacy_static() as paddle:
                self.program: Any = paddle.static.Program.parse_from_string(pdmodel.encode(model.blocks, model.extra))
                _give_roles(self.program)
                block = self.program.global_block()
                self.fetch_list: list[Any] = [block.var(port.name) for port in model.fetches]
        except PADDLE_ERRORS as e:
            raise engine_error("Paddle refuses the program", e) from e


class FacadeExecutor:
    """Stands for a `paddle.static.Executor`; attributes that it lacks are those of a real one.

    Several threads may call `run`; the runs are done one at a time.

    Parameters
    ----------
    face : Face
    session : Session
        Answers runs of the face's program for its outputs.

    Attributes
    ----------
    program : paddle.static.Program
    fell_through : bool
        Whether anything was asked of a real executor: that one knows the face's model, not what the session runs.
    """

    def __init__(self, face: Face, session: Session) -> None:
        self.program = face.program
        self.fell_through = False
        self._face = face
        self._session = session
        self._real: Any = None
        self._scope: Any = None
        self._lock = threading.RLock()
        self._feeds = frozenset(session.feed_names)

    def called_by(self, function: EvalFunction) -> object:
        """Call the function with this executor; what it returns."""
        feeds = [port.name for port in self._face.model.feeds]
        return function(self, self.program, feeds, list(self._face.fetch_list))

    def run(
        self,
        program: Any = None,
        feed: Any = None,
        fetch_list: Any = None,
        feed_var_name: str = "feed",
        fetch_var_name: str = "fetch",
        scope: Any = None,
        return_numpy: bool = True,
        **options: Any,
    ) -> list[Any]:
        """Run a program, as `paddle.static.Executor.run` does.

        Parameters
        ----------
        program : paddle.static.Program
        feed : dict, or a list or tuple of one dict
            Arrays, tensors or nested lists by input name; names that the program does not read are passed over.
        fetch_list : variable or name, or a sequence of them
        feed_var_name, fetch_var_name : str
            For a real executor.
        scope : paddle.static.Scope, optional
            For a real executor; the model's parameters live in a scope of its own.
        return_numpy : bool
            Arrays; else Paddle's tensors.
        **options
            For a real executor.
        """
        wanted = fetch_list if isinstance(fetch_list, (list, tuple)) else [] if fetch_list is None else [fetch_list]
        if program is not self.program or not self._are_outputs(wanted):
            return self._run_real(
                program,
                feed=feed,
                fetch_list=wanted,
                feed_var_name=feed_var_name,
                fetch_var_name=fetch_var_name,
                scope=scope,
                return_numpy=return_numpy,
                **options,
            )
        batch = self._batch(feed)
        with self._lock:
            outputs = dict(zip(self._session.fetch_names, self._session.run(batch), strict=True))
        arrays = [outputs[_name(item)] for item in wanted]
        return arrays if return_numpy else [_tensor(array) for array in arrays]

    def close(self) -> None:
        """Do nothing: the session is the caller's."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._executor(), name)

    def _are_outputs(self, fetch_list: Sequence[Any]) -> bool:
        return bool(fetch_list) and all(_name(item) in self._session.fetch_names for item in fetch_list)

    def _batch(self, feed: Any) -> dict[str, np.ndarray]:
        if isinstance(feed, (list, tuple)) and len(feed) == 1:
            feed = feed[0]
        if not isinstance(feed, Mapping):
            raise EngineError(
                f"feed is a {type(feed).__name__}, expected a dict of arrays",
                where="executor.run",
                hint="feed={name: x}",
            )
        return {name: np.asarray(value) for name, value in feed.items() if name in self._feeds}

    def _executor(self) -> Any:
        with self._lock:
            self.fell_through = True
            if self._real is None:
                with legacy_static() as paddle:
                    place = paddle.CPUPlace()
                    self._scope = paddle.static.Scope()
                    for name, array in self._face.model.params.items():
                        self._scope.var(name).get_tensor().set(np.array(array), place)
                    self._real = paddle.static.Executor(place)
            return self._real

    def _run_real(self, program: Any, *, scope: Any, **arguments: Any) -> list[Any]:
        with self._lock:
            executor = self._executor()
            with legacy_static() if _is_legacy(program) else contextlib.nullcontext():
                found: list[Any] = executor.run(program, scope=self._scope if scope is None else scope, **arguments)
        return found


def _is_legacy(program: Any) -> bool:
    """Whether a program is of the old IR; what users of Paddle 3 build themselves is not."""
    legacy: type = import_paddle().base.framework.Program
    return isinstance(getattr(program, "_program", program), legacy)  # a CompiledProgram holds one


def _give_roles(program: Any) -> None:
    """Say of every op that it belongs to the forward part, where nothing is said: `clone(for_test=True)` asks."""
    for block in program.blocks:
        for op in block.ops:
            if not op.has_attr("op_role"):
                op._set_attr("op_role", 0)


def _name(item: Any) -> str:
    return item if isinstance(item, str) else str(getattr(item, "name", ""))


def _tensor(array: np.ndarray) -> Any:
    core: types.ModuleType = import_paddle().base.core
    # Paddle 3 renamed the class
    made = (core.DenseTensor if hasattr(core, "DenseTensor") else core.LoDTensor)()
    made.set(array, core.CPUPlace())
    return made
