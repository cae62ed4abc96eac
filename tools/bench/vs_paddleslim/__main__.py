"""Sensitivity analysis by qpass and by PaddleSlim 2.6.0: time, memory, and whether they find the same.

    python tools/bench/vs_paddleslim                                     all cases, median of three
    python tools/bench/vs_paddleslim --cases                             their names
    python tools/bench/vs_paddleslim --only "ppocr_cls avg" --repeat 1   one of them, once
    python tools/bench/vs_paddleslim --side qpass                        without PaddleSlim

Both sides get the same model, data, evaluation function and arguments, in turns, each time in a fresh process with the
same number of threads. Seconds are from the model's files to the metric of every layer, without imports; megabytes
(10^6 bytes) are the peak of the process, with imports. The limit is that of `limit.py`: what must be computed again, at
the rate of numpy's matrix product. Needs the model corpus (`tools/corpus_data.py`) and PaddleSlim
(`paddleslim_shims.py`).

Where metrics of the two sides may differ: PaddleSlim works with the framework's old format alone, which clips to
[-127, 127], so a layer whose input falls below its negative threshold (the first) may differ; and in QAT mode it strips
the activation and leaves the weight quantized.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import paddleslim_shims
from cases import ABOUT, CASES, WORKS, analysis_arguments
from compare import OWN, PEER, Row, report

HERE = Path(__file__).resolve().parent

Facts = dict[str, Any]


def main() -> None:
    args = arguments()
    if args.cases:
        print("\n".join(CASES))
        return
    sides = (PEER, OWN) if args.side == "both" else (args.side,)
    if PEER in sides and (absent := paddleslim_shims.missing()):
        sys.exit(f"missing: {', '.join(absent)}\n{paddleslim_shims.INSTALL}")
    bench = Bench(sides, args.repeat, args.threads, {PEER: args.peer_timeout})
    print(f"{machine(args.threads)}, {args.repeat} runs a side\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        found: list[Row] = []
        for name in args.only or CASES:
            found.append(bench.measure(name, Path(folder)))
            if args.json:
                cases = [{"case": row.name, "multiply_adds": row.multiply_adds, **row.sides} for row in found]
                figures = {"multiply_adds_a_second": bench.rate, "cases": cases}
                Path(args.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(f"Matrix product: {bench.rate / 1e9:.1f} G multiply-adds a second\n")
    print(report(found, bench.rate))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vs_paddleslim", description="Sensitivity analysis: qpass and PaddleSlim.")
    parser.add_argument("--cases", action="store_true", help="print the names of the cases")
    parser.add_argument(
        "--only", action="append", choices=list(CASES), metavar="CASE", help="this case; may be repeated"
    )
    parser.add_argument("--side", choices=(OWN, PEER, "both"), default="both")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="runs of each side, default 3")
    parser.add_argument(
        "--peer-timeout", type=float, default=900, metavar="SECONDS", help="stop PaddleSlim after so long, default 900"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="default: all CPUs")
    parser.add_argument("--json", metavar="FILE", help="write the figures of every run there, case by case")
    args = parser.parse_args()
    if args.repeat < 1 or args.threads < 1:
        parser.error("--repeat and --threads are numbers >= 1")
    return args


class Bench:
    """Runs cases side by side.

    Parameters
    ----------
    sides : sequence of str
    repeat, threads : int
    timeouts : dict
        Seconds after which a run of a side is stopped; not in it: never.

    Attributes
    ----------
    rate : float
        Multiply-adds a second: the best of one measurement before every case, since others may keep the machine busy.
    """

    def __init__(self, sides: Sequence[str], repeat: int, threads: int, timeouts: dict[str, float]) -> None:
        self.sides, self.repeat, self.timeouts = sides, repeat, timeouts
        # Paddle's own number of threads comes from its flag, that of its libraries from OMP_NUM_THREADS.
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FLAGS_paddle_num_threads")
        self.environment = {**os.environ, **dict.fromkeys(names, str(threads)), "GLOG_minloglevel": "2"}
        self.rate = 0.0

    def measure(self, name: str, folder: Path) -> Row:
        """Run all sides of a case; its models and data are made below `folder` unless they are there."""
        case = CASES[name]
        work, place = WORKS[case.work], folder / case.work
        if not place.exists():
            try:
                self._python(HERE / "cases.py", case.work, place)
            except subprocess.CalledProcessError as e:
                sys.exit(f"{name}: its models and data cannot be made: {cause(e)}")
        self.rate = max(self.rate, float(self._python(HERE / "limit.py")))
        about = json.loads((place / ABOUT).read_text(encoding="utf-8"))
        job = {
            "folder": str(place),
            "mode": work.mode,
            "metric": work.metric,
            "batch": work.batch,
            "feed": about["feed"],
            "arguments": analysis_arguments(case, about["batches"]),
            "fast": case.fast,
        }
        found: dict[str, Facts] = {side: {"runs": []} for side in self.sides}
        for _ in range(self.repeat):
            for side, facts in found.items():
                if "error" not in facts and "timeout" not in facts:
                    self._run(name, side, job, facts)
        return Row(name, case, found, about["multiply_adds"])

    def _run(self, name: str, side: str, job: Facts, facts: Facts) -> None:
        """Run a side once and put down what came of it."""
        with tempfile.TemporaryDirectory() as folder:
            asked, answer = Path(folder, "job.json"), Path(folder, "result.json")
            asked.write_text(json.dumps(job), encoding="utf-8")
            try:
                self._python(HERE / "sides.py", side, asked, answer, timeout=self.timeouts.get(side))
            except subprocess.TimeoutExpired as e:
                facts["timeout"] = e.timeout
                words = f"stopped after {e.timeout:g} s"
            except subprocess.CalledProcessError as e:
                facts["error"] = cause(e)
                words = facts["error"]
            else:
                facts["runs"].append(json.loads(answer.read_text(encoding="utf-8")))
                words = "{seconds:.2f} s, {megabytes:.0f} MB".format_map(facts["runs"][-1])
        print(f"{name}: {side}: {words}", file=sys.stderr, flush=True)

    def _python(self, *arguments: object, timeout: float | None = None) -> str:
        """Run a script of this folder in a process of its own; what it printed."""
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout, check=True
        )
        return done.stdout


def cause(failed: subprocess.CalledProcessError) -> str:
    """The last line that tells what went wrong."""
    if failed.returncode < 0:
        return f"killed by signal {-failed.returncode}"
    lines = [line.strip() for line in failed.stderr.splitlines() if "Error" in line]
    return lines[-1] if lines else f"exit code {failed.returncode}"


def machine(threads: int) -> str:
    """Where this runs, and whether others keep it busy."""
    load = os.getloadavg()[0]
    versions = f"Paddle {metadata.version('paddlepaddle')}, Python {platform.python_version()}"
    return f"{versions}, {threads} threads, load of the machine before {load:.1f}"


if __name__ == "__main__":
    main()
