from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest

from qpass import demo
from qpass.analysis.evaluate import describe, evaluation, form_of
from qpass.analysis.metric import SQNR_LIMIT
from qpass.errors import EvalError, UsageError
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.rewrite.edit import edit
from qpass.runtime.data import Batches
from qpass.runtime.engines import get_engine

IMAGES = demo.calibration_data()[0]


@pytest.fixture(scope="module")
def model() -> Model:
    return load(demo.float_prefix())


def measured(function: Callable[..., object], model: Model) -> float:
    made = evaluation(function, reference=model, data=None, engine=get_engine("inference"))
    return made.measure(model, "the model").metric


def four(executor, program, feed_names, fetch_list):
    return 4.0


def one(predict):
    return 1.0


class Both:
    def method(self, predict: object) -> float:
        return 1.0

    def __call__(self, executor: object, program: object, feed_names: object, fetch_list: object) -> float:
        return 4.0


@pytest.mark.parametrize(
    ("function", "form"),
    [
        (four, "paddle"),
        (one, "predict"),
        (Both().method, "predict"),
        (Both(), "paddle"),
        (functools.partial(lambda labels, predict: 1.0, [1, 2]), "predict"),
        (lambda predict, verbose=False: 1.0, "predict"),
        (lambda predict, a=1, b=2, c=3: 1.0, "predict"),
        (lambda executor, program, feed_names, fetch_list=None: 1.0, "paddle"),
        (lambda executor, program, feed_names, fetch_list, *, top=1: 1.0, "paddle"),
    ],
)
def test_the_form_is_told_by_the_signature(function: Callable[..., object], form: str) -> None:
    assert form_of(function) == form


@pytest.mark.parametrize(
    "function", [lambda: 1.0, lambda a, b: 1.0, lambda *args: 1.0, lambda a, *, b: 1.0, lambda a, b, c, d, e: 1.0]
)
def test_other_signatures_are_refused_with_both_forms_shown(function: Callable[..., object]) -> None:
    with pytest.raises(UsageError, match=r"expected 4 arguments or 1\n.*eval_function\(executor.*evaluate\(predict\)"):
        form_of(function)


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(UsageError, match="'accuracy', expected a function"):
        form_of("accuracy")  # type: ignore[arg-type]


def test_names_of_functions_do_not_depend_on_the_run() -> None:
    assert describe(four).endswith(".four")
    assert describe(functools.partial(four, 1)) == describe(four)
    assert describe(Both()).endswith(".Both")


def test_both_forms_of_one_metric_agree(model: Model) -> None:
    short = measured(demo.accuracy, model)
    assert short == measured(demo.eval_function, model)
    assert short > 0.9


def test_predict_takes_arrays_tuples_and_dicts(model: Model) -> None:
    name = model.feeds[0].name

    def evaluate(predict: Callable[[object], list[np.ndarray]]) -> float:
        outputs = [predict(IMAGES), predict((IMAGES,)), predict({name: IMAGES}), predict({name: IMAGES.tolist()})]
        assert all(len(out) == 1 and out[0].shape == (len(IMAGES), 10) for out in outputs)
        return max(float(np.abs(out[0] - outputs[0][0]).max()) for out in outputs[:3])

    assert measured(evaluate, model) == 0.0


@pytest.mark.parametrize("value", [3, np.float32(3), np.float64(3), np.array(3), np.array([3]), np.int64(3)])
def test_numbers_of_any_kind_are_taken(model: Model, value: object) -> None:
    assert measured(lambda predict: value, model) == 3.0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"returned None, expected a number.*\n.*return statement"),
        (float("nan"), "returned nan, expected a finite number"),
        (np.float32("inf"), "returned inf"),
        ("0.5", "returned '0.5'"),
        (True, "returned True"),
        (np.ones((3, 2)), r"returned array"),
        ((0.5, 0.9), r"returned \(0.5, 0.9\)"),
        pytest.param(10**400, "a int, expected a finite number", id="a huge integer"),
    ],
)
def test_what_is_no_usable_number_is_refused_naming_function_and_model(
    model: Model, value: object, message: str
) -> None:
    with pytest.raises(EvalError, match=message) as caught:
        measured(lambda predict: value, model)
    assert "lambda" in str(caught.value)
    assert "the model" in str(caught.value)


@pytest.mark.parametrize("form", ["paddle", "predict"])
def test_what_the_function_raises_is_kept_as_the_cause(model: Model, form: str) -> None:
    def short(predict: object) -> float:
        raise KeyError("label")

    def long(executor: object, program: object, feed_names: object, fetch_list: object) -> float:
        raise KeyError("label")

    with pytest.raises(EvalError, match=r"raised KeyError: 'label'") as caught:
        measured(long if form == "paddle" else short, model)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_keyboard_interrupt_is_no_error_of_the_function(model: Model) -> None:
    def evaluate(predict: object) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(evaluate, model)


def test_wrong_input_in_predict_says_what_is_wrong(model: Model) -> None:
    with pytest.raises(EvalError, match="raised DataError"):
        measured(lambda predict: float(predict(np.zeros((3, 8, 8), np.float32))[0].sum()), model)


def test_without_a_function_outputs_are_compared_even_where_the_loader_shuffles(model: Model) -> None:
    class Shuffled:
        passes = 0

        def __iter__(self):
            Shuffled.passes += 1
            order = np.random.default_rng(Shuffled.passes).permutation(len(IMAGES))
            yield from (IMAGES[order[:20]], IMAGES[order[20:30]])

    made = evaluation(None, reference=model, data=Batches.of(model, Shuffled()), engine=get_engine("inference"))
    for _ in range(2):
        found = made.measure(model, "the float model")
        assert found.metric == 1.0
        assert found.details == {"cosine": 1.0, "sqnr_db": SQNR_LIMIT}
    assert Shuffled.passes == 1


def test_outputs_that_are_not_finite_are_refused_naming_the_model(model: Model) -> None:
    with edit(model) as e:
        e.set_param("linear_1.b_0", np.full_like(model.params["linear_1.b_0"], np.inf))
    made = evaluation(None, reference=model, data=Batches.of(model, [IMAGES]), engine=get_engine("executor"))
    with pytest.raises(EvalError, match=r"^layer 'a' alone, output '.*': the variant has values that are NaN"):
        made.measure(e.model, "layer 'a' alone")


def test_without_a_function_there_must_be_data(model: Model) -> None:
    with pytest.raises(UsageError, match="must be data"):
        evaluation(None, reference=model, data=None, engine=get_engine("inference"))
