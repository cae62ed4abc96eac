"""Analyses on a Dask cluster of this machine: the same bytes, also when a worker is killed in mid-run."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.workers import Sums, expected, figures, run_all, start

import qpass
from qpass import demo
from qpass.errors import EngineError, UsageError
from qpass.hardware import Hardware
from qpass.runtime import cluster as module

distributed = pytest.importorskip("distributed", reason="needs Dask: pip install qpass[distributed]")

IMAGES = np.concatenate(demo.calibration_data())


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def pids(address: str) -> list[int]:
    with distributed.Client(address, set_as_default=False) as client:
        return sorted(client.run(os.getpid).values())


def test_results_are_those_of_one_process(address: str) -> None:
    with Hardware(scheduler=address).open() as workers:
        assert workers.count == 2
        assert figures(run_all(workers, 5, 3)) == expected(5, 3)
        assert figures(run_all(workers, 5, 3)) == expected(5, 3)
        with pytest.raises(EngineError, match="program 2: refused"):
            run_all(workers, 5, 1, Sums(wrong=2))
    with qpass.cluster(address) as workers:  # leaving it has left the cluster running
        assert figures(run_all(workers, 1, 1)) == expected(1, 1)


def test_a_worker_killed_in_mid_run_changes_nothing(address: str, pids: list[int], tmp_path: Path) -> None:
    model = qpass.load(demo.float_prefix())
    table = qpass.calibrate(model, [IMAGES])

    def analyse(name: str, workers, then=lambda call: None) -> tuple[str, bytes]:
        calls = []

        def metric(predict: demo.Predict) -> float:  # closures cannot be pickled
            calls.append(None)
            then(len(calls))
            return float(np.abs(predict(IMAGES)[0][:, :3]).sum())

        path = tmp_path / name
        result = qpass.analyze_ptq(
            model, table, evaluate=metric, checkpoint=path, memory_bytes=1 << 20, workers=workers
        )
        return result.to_json(), path.read_bytes()

    def kill(call: int) -> None:
        if call == 3:
            os.kill(pids[0], signal.SIGKILL)

    with qpass.cluster(address) as workers:
        killed = analyse("killed", workers, kill)
    assert killed == analyse("alone", None)
    with distributed.Client(address, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        assert pids[0] not in client.run(os.getpid).values()


def test_a_program_that_kills_workers_is_an_error() -> None:
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),  # 3 by default: workers take seconds to start
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as own,
        qpass.cluster(own.scheduler_address) as workers,
    ):
        results = start(workers, 4, 1, Sums(deadly=1))
        assert figures([next(results)]) == expected(1, 1)
        with pytest.raises(
            EngineError, match=r"a program was the death of every worker that ran it \(1\)\n  hint: they may"
        ):
            next(results)


@pytest.mark.parametrize("wrong", ["", "nonsense", "tcp://host", "ftp://host:80", "tcp://host:port"])
def test_what_is_no_address_is_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match=r"no address of a Dask scheduler\n  hint: .*tcp://host:8786"):
        qpass.cluster(wrong).__enter__()


def test_nobody_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS", 1)
    with pytest.raises(EngineError, match="cannot connect to a Dask scheduler"):
        qpass.cluster("tcp://127.0.0.1:1").__enter__()


def test_a_scheduler_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS", 1)
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=":0") as cluster,
        pytest.raises(EngineError, match=r"the scheduler has no workers\n  hint: dask worker tcp://"),
    ):
        qpass.cluster(cluster.scheduler_address).__enter__()


def test_workers_of_another_version_are_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_check_versions", lambda found, address: checked.append(dict(found)))
    checked: list[dict[str, object]] = []
    with qpass.cluster(address):
        pass
    assert set(checked[0].values()) == {module.library()}
    monkeypatch.undo()
    for found in ("qpass 0.0 with paddle 2.0", ImportError("No module named 'qpass'")):
        with pytest.raises(EngineError, match=r"worker tcp://a:1 (has qpass 0\.0 with|cannot run jobs \(No module)"):
            module._check_versions({"tcp://a:1": found}, "tcp://b:2")


def test_without_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(EngineError, match=r"cannot be imported(.|\n)*pip install 'qpass\[distributed\]'"):
        qpass.cluster("tcp://127.0.0.1:8786").__enter__()
