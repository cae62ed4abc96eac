from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from qpass import demo
from qpass.errors import EngineError
from qpass.formats.files import load
from qpass.ir.model import Model
from qpass.runtime.engine import Session
from qpass.runtime.engines import get_engine
from qpass.runtime.facade import call_eval_function

IMAGES = demo.calibration_data()[0][:6]


class Counting:
    """A session that counts its runs."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.feed_names, self.fetch_names = session.feed_names, session.fetch_names
        self.runs = 0

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.runs += 1
        return self._session.run(feed)


@pytest.fixture(scope="module")
def model() -> Model:
    return load(demo.float_prefix())


def called(function: Callable[..., object], model: Model) -> tuple[Any, int]:
    session = Counting(get_engine("inference").session(model))
    return call_eval_function(function, model, session), session.runs  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def expected(model: Model) -> np.ndarray:
    return get_engine("executor").session(model).run({model.feeds[0].name: IMAGES})[0]


@pytest.mark.parametrize("batch", [lambda d: d, lambda d: [d], lambda d: (d,), lambda d: {**d, "label": np.ones(6)}])
@pytest.mark.parametrize("by_name", [False, True])
def test_runs_of_the_program_go_to_the_engine(model: Model, expected: np.ndarray, batch: Any, by_name: bool) -> None:
    def evaluate(executor, program, feed_names, fetch_list):
        fetch = [v.name for v in fetch_list] if by_name else fetch_list
        return executor.run(program, feed=batch({feed_names[0]: IMAGES}), fetch_list=fetch, return_numpy=True)

    (found,), runs = called(evaluate, model)
    assert runs == 1
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_positional_arguments_and_tensors(model: Model, expected: np.ndarray) -> None:
    import paddle

    def evaluate(executor, program, feed_names, fetch_list):
        # As evaluation functions written for Paddle do it: a dygraph tensor in, Paddle's own tensors out.
        (out,) = executor.run(program, {feed_names[0]: paddle.to_tensor(IMAGES)}, fetch_list, return_numpy=False)
        assert out.shape() == [6, 10]
        return np.array(out)

    found, runs = called(evaluate, model)
    assert runs == 1
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("by_name", [False, True])
def test_one_output_need_not_be_a_list(model: Model, expected: np.ndarray, by_name: bool) -> None:
    def evaluate(executor, program, feed_names, fetch_list):
        fetch = fetch_list[0].name if by_name else fetch_list[0]
        return executor.run(program, feed={feed_names[0]: IMAGES}, fetch_list=fetch)

    (found,), runs = called(evaluate, model)
    assert runs == 1
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_programs_can_be_cloned_for_test(model: Model, expected: np.ndarray) -> None:
    # `clone(for_test=True)` asks every op for its op_role; neither this model's ops nor inserted ones have any.
    def evaluate(executor, program, feed_names, fetch_list):
        paddle.enable_static()
        try:
            clone = program.clone(for_test=True)
        finally:
            paddle.disable_static()
        return executor.run(clone, feed={feed_names[0]: IMAGES}, fetch_list=fetch_list)

    import paddle

    (found,), runs = called(evaluate, model)
    assert runs == 0
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_other_fetches_go_to_a_real_executor_with_the_models_parameters(model: Model, expected: np.ndarray) -> None:
    inner = next(op for op in model.graph.ops if op.type == "softmax").input("X")[0]

    def evaluate(executor, program, feed_names, fetch_list):
        return executor.run(program, feed={feed_names[0]: IMAGES}, fetch_list=[inner, fetch_list[0]])

    (logits, out), runs = called(evaluate, model)
    assert runs == 0
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    e = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(e / e.sum(1, keepdims=True), out, rtol=1e-4, atol=1e-6)


def test_other_fetches_from_several_threads(model: Model, expected: np.ndarray) -> None:
    # Paddle's switch to static mode does nothing in threads other than the one that imported it.
    inner = next(op for op in model.graph.ops if op.type == "softmax").input("X")[0]

    def evaluate(executor, program, feed_names, fetch_list):
        def one(row: int) -> np.ndarray:
            fetch = [inner, fetch_list[0]] if row % 2 else fetch_list
            return executor.run(program, feed={feed_names[0]: IMAGES[row : row + 1]}, fetch_list=fetch)[-1]

        with ThreadPoolExecutor(4) as pool:
            return np.concatenate(list(pool.map(one, range(6))))

    found, runs = called(evaluate, model)
    assert runs == 3
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_programs_of_the_users_own_are_run_in_the_users_mode(model: Model, expected: np.ndarray) -> None:
    import paddle

    def evaluate(executor, program, feed_names, fetch_list):
        paddle.enable_static()  # from here on Paddle 3 builds programs of its new IR
        try:
            metric = paddle.static.Program()
            with paddle.static.program_guard(metric, paddle.static.Program()):
                doubled = paddle.static.data("x", [-1, 10], "float32") * 2.0
            (out,) = executor.run(program, feed={feed_names[0]: IMAGES}, fetch_list=fetch_list)
            return executor.run(metric, feed={"x": out}, fetch_list=[doubled])[0]
        finally:
            paddle.disable_static()

    found, runs = called(evaluate, model)
    assert runs == 1
    np.testing.assert_allclose(found, 2 * expected, rtol=1e-5, atol=1e-6)


def test_a_clone_of_the_program_goes_to_a_real_executor(model: Model, expected: np.ndarray) -> None:
    import paddle

    def evaluate(executor, program, feed_names, fetch_list):
        paddle.enable_static()  # Paddle cannot clone programs in dynamic mode
        try:
            copy = program.clone()
            return executor.run(copy, feed={feed_names[0]: IMAGES}, fetch_list=[v.name for v in fetch_list])
        finally:
            paddle.disable_static()

    (found,), runs = called(evaluate, model)
    assert runs == 0
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_program_may_be_looked_at(model: Model) -> None:
    def evaluate(executor, program, feed_names, fetch_list):
        assert feed_names == [port.name for port in model.feeds]
        assert [tuple(v.shape) for v in fetch_list] == [port.shape for port in model.fetches]
        assert [op.type for op in program.global_block().ops] == [op.type for op in model.graph.ops]
        executor.close()
        return "CPU" in str(executor.place) or "cpu" in str(executor.place).lower()

    assert called(evaluate, model)[0]


def test_the_users_code_runs_in_its_own_mode(model: Model) -> None:
    import paddle

    def evaluate(executor, program, feed_names, fetch_list):
        assert paddle.in_dynamic_mode()
        (out,) = executor.run(program, feed={feed_names[0]: IMAGES}, fetch_list=fetch_list)
        assert paddle.in_dynamic_mode()
        metric = paddle.metric.Accuracy()
        metric.update(metric.compute(paddle.to_tensor(out), paddle.to_tensor(out.argmax(1)[:, None])))
        return float(paddle.to_tensor(out).sum()), metric.accumulate()

    total, accuracy = called(evaluate, model)[0]
    assert total == pytest.approx(6.0, rel=1e-5)
    assert accuracy == 1.0


def test_a_feed_that_is_no_dict_is_refused(model: Model) -> None:
    def evaluate(executor, program, feed_names, fetch_list):
        return executor.run(program, feed=IMAGES, fetch_list=fetch_list)

    with pytest.raises(EngineError, match="feed is a ndarray, expected a dict"):
        called(evaluate, model)
