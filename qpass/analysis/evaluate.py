"""Evaluations: what a metric is, whoever computes it.

Three forms: a Paddle-style function of four arguments, a short function of one, and none (label-free: how alike the
outputs are to a reference model's).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Literal, Protocol, TypeAlias

import numpy as np

from qpass.analysis.checkpoint import Record
from qpass.analysis.likeness import OutputEvaluation, Pair
from qpass.errors import EvalError, UsageError
from qpass.ir.model import Model
from qpass.runtime.data import Batches, as_feed
from qpass.runtime.engine import Engine, Session
from qpass.runtime.facade import FacadeExecutor, Face

Evaluate: TypeAlias = Callable[..., object]
"""``eval_function(executor, program, feed_names, fetch_list) -> float`` or ``evaluate(predict) -> float``.

A function may give a 1-D array in place of the number: a score for each sample (1 where the answer is right), of which
the mean is the metric.
"""

_FORMS = (
    "write eval_function(executor, program, feed_names, fetch_list) -> float, or evaluate(predict) -> float, where "
    "predict(batch) gives the list of outputs"
)


class Evaluation(Protocol):
    """Measures models."""

    @property
    def name(self) -> str:
        """What is measured."""

    def data_digest(self) -> str:
        """Digest of the data that are measured on; empty where only the user's function knows them."""

    def measure(self, model: Model, what: str) -> Record:
        """The metric of `model`, run on the engine.

        Parameters
        ----------
        model : Model
        what : str
            Words for the model, for messages.

        Raises
        ------
        EvalError
            If there is no usable number.
        """

    def measure_on(self, model: Model, session: Session, what: str, whole: Callable[[], Model] | None = None) -> Record:
        """The metric of what a session runs.

        Parameters
        ----------
        model : Model
        session : Session
        what : str
            Words for the model, for messages.
        whole : callable, optional
            Makes the model that `session` runs, where that is a variant of `model`: asked for only when the function
            looks behind the session.

        Raises
        ------
        EvalError
            If there is no usable number.
        """

    def feed(self, model: Model, session: Session, what: str) -> None:
        """Show a session everything that models are measured on.

        Raises
        ------
        EvalError, DataError
            As the function and the data do.
        """

    def expect(self, reference: Callable[[], Session]) -> None:
        """Take the outputs that others are compared with from this session, in place of the reference model's."""

    def compare(self, pairs: Iterable[Pair], what: str) -> Record | None:
        """The metric of outputs, batch by batch; None where outputs alone do not give it.

        Parameters
        ----------
        pairs : iterable of (list of np.ndarray, list of np.ndarray)
            Outputs of the reference model and of the one that is measured.
        what : str
            Words for the model, for messages.

        Raises
        ------
        EvalError
            If the numbers or shapes of outputs differ, or they are not finite.
        """


def evaluation(evaluate: Evaluate | None, *, reference: Model, data: Batches | None, engine: Engine) -> Evaluation:
    """The evaluation the user asks for.

    Parameters
    ----------
    evaluate : callable or None
        One of the two forms of `Evaluate`; None measures how alike outputs are to the reference model's, over `data`.
    reference : Model
        What outputs are compared with.
    data : Batches, optional
        Needed without `evaluate`.
    engine : Engine

    Raises
    ------
    UsageError
        If `evaluate` is neither form, or data are missing.
    """
    if evaluate is not None:
        return FunctionEvaluation(evaluate, engine)
    if data is None:
        raise UsageError(
            "without an evaluation function there must be data",
            where="evaluate=None",
            hint="give data (batches of inputs): outputs are compared with the float model's",
        )
    return OutputEvaluation(reference, data, engine)


def form_of(evaluate: Evaluate) -> Literal["paddle", "predict"]:
    """Which of the two forms a function has, by the arguments it can be called with.

    Raises
    ------
    UsageError
        If it has neither, or could be both.
    """
    if not callable(evaluate):
        raise UsageError(f"the evaluation is {evaluate!r}, expected a function", where="evaluate", hint=_FORMS)
    try:
        signature = inspect.signature(evaluate)
    except (TypeError, ValueError) as e:
        raise UsageError(f"its signature cannot be read ({e})", where=describe(evaluate), hint=_FORMS) from e
    one, four = _takes(signature, 1), _takes(signature, 4)
    if one and four:
        required = [p for p in signature.parameters.values() if p.kind in _POSITIONAL and p.default is p.empty]
        one, four = len(required) == 1, len(required) == 4
    if one == four:
        raise UsageError(f"it takes {signature}, expected 4 arguments or 1", where=describe(evaluate), hint=_FORMS)
    return "paddle" if four else "predict"


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def describe(evaluate: Evaluate) -> str:
    """The name of a function, the same in every run."""
    named = getattr(evaluate, "func", evaluate)  # functools.partial
    if not hasattr(named, "__qualname__"):
        named = type(named)
    return f"{named.__module__}.{named.__qualname__}"


class FunctionEvaluation:
    """The metric that the user's function computes.

    Parameters
    ----------
    function : Evaluate
    engine : Engine
    """

    def __init__(self, function: Evaluate, engine: Engine) -> None:
        self._form = form_of(function)
        self._function = function
        self._engine = engine
        self._face: Face | None = None
        self._looks_behind = False
        self.name = describe(function)

    def data_digest(self) -> str:
        """Empty: the function brings its own data."""
        return ""

    def measure(self, model: Model, what: str) -> Record:
        """Call the function on `model`.

        Raises
        ------
        EvalError
            If it raises, or returns no finite number.
        EngineError
            If the engine refuses the model.
        """
        return self.measure_on(model, self._engine.session(model), what)

    def measure_on(self, model: Model, session: Session, what: str, whole: Callable[[], Model] | None = None) -> Record:
        """Call the function on a session.

        Raises
        ------
        EvalError
            If it raises, or returns no finite number.
        EngineError
            If Paddle refuses the program.
        """
        where = f"{self.name}, {what}"
        if whole is None:
            return _record(self._called(model, session, where), where)
        if not self._looks_behind:
            value = self._called(model, session, where)
        if self._looks_behind:
            value = self._called(whole(), session, where)
        return _record(value, where)

    def feed(self, model: Model, session: Session, what: str) -> None:
        """Call the function for what it feeds."""
        self._called(model, session, f"{self.name}, {what}")

    def expect(self, reference: Callable[[], Session]) -> None:
        """Do nothing: the function knows what it expects."""

    def compare(self, pairs: Iterable[Pair], what: str) -> Record | None:
        """None: only the function knows."""
        return None

    def _called(self, model: Model, session: Session, where: str) -> object:
        try:
            if self._form == "predict":
                return self._function(_predictor(model, session))
            if self._face is None or self._face.model is not model:
                self._face = Face(model)
            executor = FacadeExecutor(self._face, session)
            value = executor.called_by(self._function)
            self._looks_behind |= executor.fell_through
            return value
        except Exception as e:
            raise EvalError(
                f"the evaluation function raised {type(e).__name__}: {e}", where=where, hint="--debug shows where"
            ) from e


def check_direction(evaluate: Evaluate | None, higher_is_better: bool) -> None:
    """Refuse a direction that the metric cannot have.

    Raises
    ------
    UsageError
        If there is no function and lower were better: cosine similarity is better when higher.
    """
    if evaluate is None and not higher_is_better:
        raise UsageError(
            "higher_is_better=False needs an evaluation function: without one the metric is cosine similarity",
            hint="leave higher_is_better alone, or give evaluate=",
        )


def check_interface(model: Model, reference: Model) -> None:
    """Refuse a pair of models whose outputs cannot be compared.

    Raises
    ------
    UsageError
        If the numbers of inputs or outputs differ.
    """
    for kind, ours, theirs in (
        ("inputs", model.feeds, reference.feeds),
        ("outputs", model.fetches, reference.fetches),
    ):
        if len(ours) != len(theirs):
            raise UsageError(
                f"the models differ in {kind}: {[str(p) for p in ours]} against {[str(p) for p in theirs]}",
                hint="give the float model that the quantized one was made from, or an evaluation function",
            )


def _predictor(model: Model, session: Session) -> Callable[[object], list[np.ndarray]]:
    def predict(batch: object) -> list[np.ndarray]:
        """Outputs of the model under evaluation for one batch: an array, a tuple of arrays, or a dict by input name."""
        return session.run(as_feed(model.feeds, batch, "predict"))

    return predict


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _record(value: object, where: str) -> Record:
    """What an evaluation returned: one number, or a score for each sample."""
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.size > 1 and value.dtype.kind in "biuf":
        scores = value.astype(np.float64)
        return Record(_number(float(scores.mean()), where), {}, scores=tuple(scores.tolist()))
    return Record(_number(value, where), {})


def _number(value: object, where: str) -> float:
    """The float that an evaluation returned."""
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "size", 1) == 1:
        value = item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        hint = "is a return statement missing?" if value is None else "return one number, or a score for each sample"
        raise EvalError(f"the evaluation function returned {_short(value)}, expected a number", where=where, hint=hint)
    if not -sys.float_info.max <= value <= sys.float_info.max:
        raise EvalError(
            f"the evaluation function returned {_short(value)}, expected a finite number",
            where=where,
            hint="does it divide by a count of zero, or take the logarithm of zero?",
        )
    return float(value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
