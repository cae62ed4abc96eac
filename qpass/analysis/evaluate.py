"""Evaluations: what a metric is, whoever computes it.

Three forms: a Paddle-style function of four arguments, a short function of one, and none (label-free: how alike the
outputs are to a reference model's).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

import numpy as np

from qpass.analysis.checkpoint import Record
from qpass.analysis.metric import Comparison
from qpass.errors import EvalError, UsageError
from qpass.ir.model import Model
from qpass.runtime.data import Batches, as_feed
from qpass.runtime.engine import Engine, Session
from qpass.runtime.facade import call_eval_function
from qpass.runtime.spool import Spool

Evaluate: TypeAlias = Callable[..., object]
"""``eval_function(executor, program, feed_names, fetch_list) -> float`` or ``evaluate(predict) -> float``."""

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
        """The metric of `model`.

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
        session = self._engine.session(model)
        where = f"{self.name}, {what}"
        try:
            if self._form == "paddle":
                value = call_eval_function(self._function, model, session)
            else:
                value = self._function(_predictor(model, session))
        except Exception as e:
            raise EvalError(
                f"the evaluation function raised {type(e).__name__}: {e}", where=where, hint="--debug shows where"
            ) from e
        return Record(_number(value, where), {})


class OutputEvaluation:
    """Cosine similarity of all outputs with a reference model's, the SQNR as a detail; needs no labels.

    Inputs and reference outputs are kept from the first measurement on, so every model sees the same batches even where
    a loader shuffles.

    Parameters
    ----------
    reference : Model
    data : Batches
    engine : Engine
    """

    name = "cosine"

    def __init__(self, reference: Model, data: Batches, engine: Engine) -> None:
        self._reference = reference
        self._data = data
        self._engine = engine
        self._kept: Spool | None = None

    def data_digest(self) -> str:
        """Digest of the batches that are kept."""
        self._batches()
        return self._data.digest()

    def measure(self, model: Model, what: str) -> Record:
        """Compare the outputs of `model` with the reference's.

        Raises
        ------
        EvalError
            If the numbers or shapes of outputs differ, or they are not finite.
        DataError
            If the data do not fit the models.
        """
        names = [port.name for port in self._reference.fetches]
        session = self._engine.session(model)
        comparison = Comparison(names)
        try:
            for arrays in self._batches():
                feed, expected = arrays[: len(model.feeds)], arrays[len(model.feeds) :]
                comparison.add(expected, session.run(dict(zip(session.feed_names, feed, strict=True))))
            found = comparison.result()
        except EvalError as e:
            raise EvalError(e.what, where=f"{what}, {e.where}" if e.where else what, hint=e.hint) from e
        return Record(found.cosine, {"cosine": found.cosine, "sqnr_db": found.sqnr_db})

    def _batches(self) -> Spool:
        if self._kept is None:
            session = self._engine.session(self._reference)
            kept = Spool()
            for batch in self._data:
                outputs = session.run(dict(zip(session.feed_names, batch.values(), strict=True)))
                kept.add([*batch.values(), *outputs])
            self._kept = kept
        return self._kept


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


def _number(value: object, where: str) -> float:
    """The float that an evaluation returned."""
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "size", 1) == 1:
        value = item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        hint = "is a return statement missing?" if value is None else "return one number, the metric"
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
