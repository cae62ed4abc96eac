"""Worker processes: they die and are replaced, and end with whoever started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.workers import Sums, expected, figures, group_lives, run_all, start, wait_until

from qpass.errors import EngineError, UsageError
from qpass.runtime.jobs import InProcess
from qpass.runtime.processes import ProcessPool, opened, processes

TESTS = Path(__file__).resolve().parents[1]

LONG_RUN = """
import sys
from pathlib import Path
from support.workers import Sums, start
from qpass.runtime.processes import processes

if __name__ == "__main__":
    with processes(2) as workers:
        for done in start(workers, 100, 1, Sums(slow=4)):
            if done.program == 3:
                Path(sys.argv[1]).touch()
"""


def test_results_are_those_of_one_process_and_no_process_stays(tmp_path: Path) -> None:
    once = tmp_path / "once"
    with processes(2) as workers:
        assert workers.count == 2
        assert figures(run_all(workers, 5, 3)) == expected(5, 3)
        before = {child.pid for child in multiprocessing.active_children()}
        assert figures(run_all(workers, 9, 1, Sums(deadly=5, once=str(once)))) == expected(9, 1)
        after = {child.pid for child in multiprocessing.active_children()}
        assert len(before) == 2
        assert len(before & after) == 1  # the other went on
    assert once.exists()
    assert multiprocessing.active_children() == []


def test_ctrl_c_is_nothing_to_workers_from_their_first_moment() -> None:
    with ProcessPool(2) as pool:
        masks = [pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, []) for _ in range(4)]
        assert {signal.SIGINT} == set.intersection(*(set(mask.result()) for mask in masks))
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(os.getpid)


def test_a_program_that_kills_every_worker_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qpass.runtime.pool._TRIES", 1)
    with processes(2) as workers:
        results = start(workers, 4, 1, Sums(deadly=1))
        assert figures([next(results)]) == expected(1, 1)
        with pytest.raises(EngineError) as raised:
            next(results)
    assert "workers died 2 times while they ran program 2 of 4 (a process ended with exit code 3" in str(raised.value)
    assert "run out of memory" in str(raised.value)
    assert multiprocessing.active_children() == []


def test_one_worker_or_none_is_this_process() -> None:
    for count in (0, 1):
        with opened(count) as workers:
            assert isinstance(workers, InProcess)
    with opened(None) as workers:
        assert isinstance(workers, InProcess)
    mine = InProcess()
    with opened(mine) as workers:
        assert workers is mine


@pytest.mark.parametrize("count", [-1, True])
def test_other_counts_are_refused(count: int) -> None:
    with pytest.raises(UsageError, match="expected a number >= 0"), processes(count):
        pass


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_an_interrupted_or_killed_parent(tmp_path: Path, sent: signal.Signals) -> None:
    script, marker = tmp_path / "long_run.py", tmp_path / "running"
    script.write_text(LONG_RUN, encoding="utf-8")
    path = os.pathsep.join([str(TESTS), *sys.path])
    parent = subprocess.Popen(
        [sys.executable, str(script), str(marker)],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    wait_until(marker.exists)
    if sent == signal.SIGINT:
        os.killpg(parent.pid, sent)  # as a terminal does
    else:
        parent.kill()
    _, errors = parent.communicate(timeout=20)
    assert parent.returncode == -sent
    wait_until(lambda: not group_lives(parent.pid), seconds=20)
    assert errors.count(b"Traceback") == (1 if sent == signal.SIGINT else 0)  # the parent's own
