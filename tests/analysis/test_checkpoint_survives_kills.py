from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qpass.analysis.checkpoint import Checkpoint, Record
from qpass.errors import CheckpointError

JOB = {"mode": "ptq", "program": "a1", "params": "b2", "data": "c3", "settings": "{}"}

WORKER = """
import sys, time
from qpass.analysis.checkpoint import Checkpoint, Record
job = {"mode": "ptq"}
with Checkpoint(sys.argv[1], job, resume=True) as checkpoint:
    print(len(checkpoint.done), flush=True)
    for i in range(len(checkpoint.done), 400):
        checkpoint.add(f"layer{i}", Record(i / 7, {"cosine": 1 / (i + 1)}))
        print(i, flush=True)
"""


def filled(path: Path, count: int = 3) -> Path:
    with Checkpoint(path, JOB, resume=False) as checkpoint:
        for i in range(count):
            checkpoint.add(f"layer{i}", Record(0.1 + i, {"cosine": 1 / 3}))
    return path


def test_what_was_added_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = filled(tmp_path / "sub" / "folder" / "check.jsonl")
    with Checkpoint(path, JOB, resume=True) as checkpoint:
        assert list(checkpoint.done.items()) == [(f"layer{i}", Record(0.1 + i, {"cosine": 1 / 3})) for i in range(3)]
        checkpoint.add("layer3", Record(9.0, {}))
    with Checkpoint(path, JOB, resume=True) as checkpoint:
        assert list(checkpoint.done) == ["layer0", "layer1", "layer2", "layer3"]


@pytest.mark.parametrize("cut", range(1, 90))
def test_a_file_cut_short_anywhere_resumes_with_the_whole_lines(tmp_path: Path, cut: int) -> None:
    path = filled(tmp_path / "check.jsonl", 1)
    data = path.read_bytes()
    kept = data[: max(0, len(data) - 2 * cut)]
    path.write_bytes(kept)
    with Checkpoint(path, JOB, resume=True) as checkpoint:
        assert list(checkpoint.done) == (["layer0"] if kept.count(b"\n") == 2 else [])
        checkpoint.add("next", Record(2.0, {}))
    lines = path.read_bytes().splitlines()
    assert json.loads(lines[0])["job"] == JOB
    assert json.loads(lines[-1])["key"] == "next"
    assert len(lines) == kept.count(b"\n") + 1 + (kept.count(b"\n") == 0)


def test_a_last_line_of_zeros_is_dropped(tmp_path: Path) -> None:
    path = filled(tmp_path / "check.jsonl")
    path.write_bytes(path.read_bytes() + b"\0" * 40 + b"\n")
    with Checkpoint(path, JOB, resume=True) as checkpoint:
        assert len(checkpoint.done) == 3
    assert b"\0" not in path.read_bytes()


def test_a_broken_line_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = filled(tmp_path / "check.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"oops\n", *lines[3:]]))
    with pytest.raises(CheckpointError, match="line 3: not a checkpoint record"):
        Checkpoint(path, JOB, resume=True)


def test_another_job_is_refused_field_by_field(tmp_path: Path) -> None:
    path = filled(tmp_path / "check.jsonl")
    before = path.read_bytes()
    other = {**JOB, "data": "dd", "settings": '{"algo": "hist"}', "scales": "new"}
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(path, other, resume=True)
    text = str(caught.value)
    assert "data: c3 in the checkpoint, dd now" in text
    assert 'settings: {} in the checkpoint, {"algo": "hist"} now' in text
    assert "scales: nothing in the checkpoint, new now" in text
    assert "program" not in text
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"\x80\x04\x95pickle\n", b"[1, 2]\n", b"\x80\x04", b'{"a": 1}\n', b"hello"])
def test_a_foreign_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "check.jsonl"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        Checkpoint(path, JOB, resume=True)
    assert path.read_bytes() == content


def test_without_resume_the_old_file_is_kept_aside(tmp_path: Path) -> None:
    path = filled(tmp_path / "check.jsonl")
    before = path.read_bytes()
    with Checkpoint(path, JOB, resume=False) as checkpoint:
        assert not checkpoint.done
    assert (tmp_path / "check.jsonl.bak").read_bytes() == before


def test_a_full_disk_is_one_clear_error() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    checkpoint = Checkpoint.__new__(Checkpoint)
    checkpoint.path, checkpoint.done = Path("check.jsonl"), {}
    with (
        Path("/dev/full").open("wb", buffering=0) as checkpoint._file,
        pytest.raises(CheckpointError, match="No space left"),
    ):
        checkpoint.add("layer", Record(1.0, {}))
    assert not checkpoint.done


def test_a_folder_in_the_way_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "check.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"check\.jsonl"):
        Checkpoint(tmp_path / "check.jsonl", JOB, resume=True)


def test_killed_at_random_moments_nothing_that_was_reported_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "check.jsonl"
    for attempt in range(6):
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(path)], stdout=subprocess.PIPE, text=True, cwd=tmp_path
        )
        assert worker.stdout is not None
        worker.stdout.readline()
        time.sleep(0.003 * (attempt + 1) ** 2)
        os.kill(worker.pid, signal.SIGKILL)
        reported = [int(line) for line in worker.stdout.read().splitlines()]
        worker.wait()
        with Checkpoint(path, {"mode": "ptq"}, resume=True) as checkpoint:
            done = checkpoint.done
        assert list(done) == [f"layer{i}" for i in range(len(done))]
        assert all(record == Record(i / 7, {"cosine": 1 / (i + 1)}) for i, record in enumerate(done.values()))
        if reported:
            assert len(done) - (reported[-1] + 1) in (0, 1)
