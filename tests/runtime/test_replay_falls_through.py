"""In a replay, too, runs of anything but the program's outputs go to a real executor, on the model under evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support.replays import ENGINE, model_and_variant, replayed

from qpass import demo
from qpass.runtime.facade import call_eval_function
from qpass.runtime.replay import Recording, RecordingSession

IMAGES = demo.test_data()[0][:9]


@contextlib.contextmanager
def static_mode() -> Iterator[Any]:
    import paddle

    paddle.enable_static()
    try:
        yield paddle
    finally:
        paddle.disable_static()


def fetches_an_inner_variable(executor, program, feed_names, fetch_list):
    inner = next(op for op in program.global_block().ops if op.type == "softmax").input("X")[0]
    return executor.run(program, feed={feed_names[0]: IMAGES}, fetch_list=[inner])[0]


def runs_a_clone(executor, program, feed_names, fetch_list):
    with static_mode():
        clone = program.clone(for_test=True)
        return executor.run(clone, feed={feed_names[0]: IMAGES}, fetch_list=fetch_list)[0]


def runs_another_program(executor, program, feed_names, fetch_list):
    (out,) = executor.run(program, feed={feed_names[0]: IMAGES}, fetch_list=fetch_list)
    with static_mode() as paddle:
        metric = paddle.static.Program()
        with paddle.static.program_guard(metric, paddle.static.Program()):
            x = paddle.static.data("x", [-1, 10], "float32")
            best = paddle.max(x, axis=1)
        return executor.run(metric, feed={"x": out}, fetch_list=[best])[0]


def gets_tensors_for_a_list(executor, program, feed_names, fetch_list):
    (out,) = executor.run(program, [{feed_names[0]: IMAGES}], fetch_list, return_numpy=False)
    return np.array(out)


@pytest.mark.parametrize(
    ("function", "runs"),
    [
        (fetches_an_inner_variable, 0),
        (runs_a_clone, 0),
        (runs_another_program, 1),
        (gets_tensors_for_a_list, 1),
    ],
)
def test_whatever_else_a_function_runs_is_of_the_model_under_evaluation(
    function: Callable[..., Any], runs: int
) -> None:
    model, variant = model_and_variant()
    recording = Recording(model)
    expected = call_eval_function(function, model, ENGINE.session(model))
    found = call_eval_function(function, model, RecordingSession(ENGINE.session(model), recording))
    np.testing.assert_array_equal(found, expected)
    assert recording.calls == runs
    with replayed(variant, recording) as replay:
        found = call_eval_function(function, variant, replay)
    np.testing.assert_array_equal(found, call_eval_function(function, variant, ENGINE.session(variant)))
    assert np.abs(np.asarray(found) - np.asarray(expected)).max() > 1e-3
    assert (replay.hits, replay.misses) == (runs, 0)
