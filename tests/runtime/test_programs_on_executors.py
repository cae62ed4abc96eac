"""Jobs on any executor: the order of results, how many are sent ahead, executors that break."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from support import workers as doubles
from support.pickling import through_pickle
from support.workers import AnyOrder, Sums, expected, figures, run_all, start

from qpass.errors import EngineError
from qpass.runtime import pool
from qpass.runtime.jobs import InProcess
from qpass.runtime.pool import ExecutorWorkers, ProgramJob, library, run_job


def test_in_this_process() -> None:
    assert figures(run_all(InProcess(), 3, 4)) == expected(3, 4)
    assert run_all(InProcess(), 0, 4) == run_all(InProcess(), 3, 0) == []


@pytest.mark.parametrize(("count", "programs", "batches"), [(1, 5, 3), (2, 5, 1), (3, 4, 7), (8, 2, 3), (2, 0, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_any_order_gives_the_same_results_in_the_same_order(count: int, programs: int, batches: int, seed: int) -> None:
    executor = AnyOrder(seed)
    assert figures(run_all(ExecutorWorkers(executor, count), programs, batches)) == expected(programs, batches)


def test_no_batches_no_results() -> None:
    assert run_all(ExecutorWorkers(AnyOrder(), 2), 3, 0) == []


def test_threads_run_jobs_too() -> None:
    with ThreadPoolExecutor(3) as executor:
        assert figures(run_all(ExecutorWorkers(executor, 3), 5, 4)) == expected(5, 4)


def test_few_jobs_are_sent_ahead_and_programs_are_made_when_their_turn_comes() -> None:
    made = []

    def make(i: int):
        made.append(i)
        return doubles.program(i)

    executor = AnyOrder()
    workers = ExecutorWorkers(executor, 2)
    results = workers.run(Sums(), [lambda i=i: make(i) for i in range(20)], [lambda: doubles.batch(0)])
    next(results)
    assert made == [0, 1, 2, 3]
    assert len(list(results)) == 19
    assert executor.most <= 4


def test_the_batches_of_a_program_are_shared_among_workers() -> None:
    executor = AnyOrder()
    run_all(ExecutorWorkers(executor, 3), 1, 7)
    assert executor.calls == 3


def test_large_batches_are_sent_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_FEED_BYTES", 12)
    executor = AnyOrder()
    assert figures(run_all(ExecutorWorkers(executor, 1), 2, 4)) == expected(2, 4)
    assert executor.calls == 8


def test_what_is_abandoned_is_cancelled() -> None:
    executor = AnyOrder()
    results = start(ExecutorWorkers(executor, 4), 30, 1)
    next(results)
    results.close()
    assert sum(1 for future, _ in executor.waiting if not future.cancelled()) == 0
    assert executor.calls <= 9


def test_jobs_survive_pickle_and_say_what_is_wrong() -> None:
    job = ProgramJob(Sums(), doubles.program(7), "token", library(), 0, 0, (doubles.batch(1),))
    ((total, number),) = run_job(through_pickle(job))
    assert (float(total), int(number)) == (6.0, 7)
    other = ProgramJob(Sums(), doubles.program(7), "token", "qpass 0.0 with paddle 1.0", 0, 0, ())
    with pytest.raises(EngineError, match=r"a worker has qpass .*, and the analysis qpass 0.0 with paddle 1.0"):
        run_job(other)
    error = through_pickle(EngineError("what", where="where", hint="hint"))
    assert (error.what, error.where, error.hint, str(error)) == ("what", "where", "hint", "where: what\n  hint: hint")


def test_a_session_is_kept_for_the_next_job_of_the_same_program() -> None:
    made = []

    class Counting(Sums):
        def session(self, model, fetch=None):
            made.append(model.graph.ops[0].int_attr("number", -1))
            return super().session(model, fetch)

    def job(number: int) -> ProgramJob:
        return ProgramJob(Counting(), doubles.program(number), f"t{number}", library(), 0, 0, (doubles.batch(0),))

    for number in (3, 3, 4, 4, 3):
        run_job(job(number))
    assert made == [3, 4, 3]


@pytest.mark.parametrize("breaks_at", [[1], [4], [2, 3], [1, 2, 3], [8], [1, 4, 7, 10]])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_jobs_of_workers_that_die_are_done_again(breaks_at: list[int], count: int) -> None:
    executor = AnyOrder(count, breaks_at)
    assert figures(run_all(ExecutorWorkers(executor, count), 8, 1)) == expected(8, 1)
    assert executor.calls == 8 + len(breaks_at)  # nothing else is done again


def test_a_job_that_is_the_death_of_all_its_workers_ends_the_run() -> None:
    executor = AnyOrder(breaks_at=range(3, 99))
    said = r"workers \(1\): workers died 4 times while they ran program \d of 8(.|\n)*__main__"
    with pytest.raises(EngineError, match=said):
        run_all(ExecutorWorkers(executor, 1), 8, 1)
    assert executor.calls >= 2 + 4


def test_an_executor_that_is_broken_for_good_is_an_error() -> None:
    results = start(ExecutorWorkers(AnyOrder(breaks_at=[1], for_good=True), 1), 8, 1)
    with pytest.raises(EngineError, match=r"takes no more jobs \(no worker left\)"):
        list(results)


def test_results_before_an_error_are_given_out() -> None:
    results = start(ExecutorWorkers(AnyOrder(), 2), 5, 1, Sums(wrong=2))
    assert figures([next(results), next(results)]) == expected(2, 1)
    with pytest.raises(EngineError, match="program 2: refused"):
        next(results)


def test_no_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="count is 0"):
        ExecutorWorkers(AnyOrder(), 0)
