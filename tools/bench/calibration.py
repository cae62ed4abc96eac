"""Times calibration against plain inference and against the framework's own PTQ, and watches its memory.

    python tools/bench/calibration.py                    all three parts
    python tools/bench/calibration.py inference memory   these parts

inference
    Time of `calibrate` with abs_max, with avg and with all algorithms together, as a multiple of running the same
    batches through the default engine (Paddle Inference with oneDNN, float). Twice: the batches alone (sessions are
    ready), and whole calls (what a user waits for: each side makes its session). Goals: 1.5 and 4. All are those of
    the framework and the moving average; the search of entropy takes 70 ms a tensor.
framework
    Quantizing `resnet8_cifar10` with KL, mse and emd on 320 images, by `qpass.calibrate` + `qpass.quantize` and by
    `paddle.static.quantization.PostTrainingQuantization.quantize`, in one process. Goals: 20, 10 and 10 times as fast.
memory
    Peak memory of a process that calibrates all algorithms on 4 and on 40 batches made on the fly.

Needs the model corpus (see `tools/corpus_data.py`). Times are the best of several rounds, the sides taking turns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import corpus_data

import qpass
from qpass.ir.graph import ValueRef
from qpass.ir.model import Model
from qpass.quant.observers import ACTIVATION_ALGOS, new_record
from qpass.runtime.calibrate import observe
from qpass.runtime.data import Batches
from qpass.runtime.engine import Engine, Session
from qpass.runtime.engines import get_engine

PARTS = ("inference", "framework", "memory")
TOGETHER = tuple(algo for algo in ACTIVATION_ALGOS if algo != "entropy")
CASES: dict[str, tuple[int, Callable[[], np.ndarray]]] = {
    "resnet8_cifar10": (32, lambda: corpus_data.cifar10(320, "cifar10_train_10k.zip")[0]),
    "ppocr_cls": (20, lambda: corpus_data.text_lines(50)[0]),
}


class Ready:
    """An engine that gives one session, made beforehand."""

    name = "ready"

    def __init__(self, model: Model, fetch: Sequence[ValueRef] | None) -> None:
        self._session = get_engine("inference").session(model, fetch)

    def session(self, model: Model, fetch: Sequence[ValueRef] | None = None) -> Session:
        """The session."""
        return self._session


def best(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Best wall time of each side, in seconds; one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: min(taken) for name, taken in times.items()}


def inference(rounds: int) -> None:
    """Print the multiples of plain inference."""
    algos = {"abs_max": ("abs_max",), "avg": ("avg",), f"all {len(TOGETHER)}": TOGETHER}
    for name, (size, images) in CASES.items():
        model = qpass.load(corpus_data.model_prefix(name))
        source = Batches.of(model, images(), batch_size=size)
        source.digest()
        refs = [model.graph.last(value) for value in qpass.calibrate(model, source).activations]
        plain, fetching = Ready(model, None), Ready(model, refs)
        ready = {"plain": partial(run, plain, model, source), "fetch only": partial(run, fetching, model, source)}
        whole = {"plain": partial(run, get_engine("inference"), model, source)}
        for label, kinds in algos.items():
            ready[label] = partial(watch, fetching, model, source, refs, kinds)
            whole[label] = partial(qpass.calibrate_many, model, source, algos=kinds)
        for what, sides in (("batches alone", ready), ("whole calls", whole)):
            taken = best(sides, rounds)
            words = ", ".join(f"{k} {v * 1e3:.0f} ms = {v / taken['plain']:.2f}x" for k, v in taken.items())
            print(f"{name}, batch {size}, {what}: {words}")


def run(engine: Engine, model: Model, source: Batches) -> None:
    """Run all batches and take all outputs."""
    session = engine.session(model)
    for batch in source:
        for _ in session.stream(batch):
            pass


def watch(engine: Engine, model: Model, source: Batches, refs: Sequence[ValueRef], algos: Sequence[str]) -> None:
    """Show all batches to records."""
    observe(model, source, {ref: new_record(ref.name, algos) for ref in refs}, engine)


def framework(_: int) -> None:
    """Print the times of quantizing with the framework and with qpass."""
    size, images = CASES["resnet8_cifar10"]
    x = images()
    folder = corpus_data.model_prefix("resnet8_cifar10").parent
    for algo in ("KL", "mse", "emd"):
        ours = best({"ours": lambda algo=algo: quantized(folder, x, size, algo)}, 3)["ours"]
        theirs = seconds_of_framework(folder, x, size, algo)
        print(
            f"resnet8_cifar10, {algo}: framework {theirs:.2f} s, qpass {ours:.3f} s = {theirs / ours:.0f} times as fast"
        )


def quantized(folder: Path, x: np.ndarray, size: int, algo: str) -> Model:
    """Load, calibrate and quantize."""
    model = qpass.load(folder)
    return qpass.quantize(model, qpass.calibrate(model, x, algo=algo, batch_size=size))


def seconds_of_framework(folder: Path, x: np.ndarray, size: int, algo: str) -> float:
    """Seconds of one `PostTrainingQuantization.quantize`."""
    from qpass.runtime.paddle_env import legacy_static

    with legacy_static() as paddle:
        from paddle.static.quantization import PostTrainingQuantization

        class Loader(paddle.io.DataLoader):
            """2.6 asserts the class; what it calls is this."""

            def __init__(self) -> None:
                pass

            def __call__(self) -> Iterator[dict[str, np.ndarray]]:
                return ({"image": x[i : i + size]} for i in range(0, len(x), size))

        ptq = PostTrainingQuantization(
            executor=paddle.static.Executor(paddle.CPUPlace()),
            model_dir=str(folder),
            model_filename="inference.pdmodel",
            params_filename="inference.pdiparams",
            data_loader=Loader(),
            batch_nums=-(-len(x) // size),
            algo=algo,
            onnx_format=True,
            quantizable_op_type=["conv2d", "depthwise_conv2d", "matmul_v2", "mul"],
            optimize_model=False,
        )
        start = time.perf_counter()
        with Quiet():
            ptq.quantize()
        return time.perf_counter() - start


class Quiet:
    """Keeps the progress bars of the framework off the terminal."""

    def __enter__(self) -> None:
        self._file = tempfile.TemporaryFile("w")
        self._kept = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = self._file

    def __exit__(self, *exc: object) -> None:
        sys.stdout, sys.stderr = self._kept
        self._file.close()


def memory(_: int) -> None:
    """Print the peak memory for few and many batches."""
    for name in CASES:
        peaks = []
        for count in (4, 40):
            command = [sys.executable, str(Path(__file__).resolve()), "--child", name, str(count)]
            found = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks.append(float(found.stdout.split()[-1]))
        print(f"{name}, all algorithms: peak {peaks[0]:.0f} MB for 4 batches, {peaks[1]:.0f} MB for 40")


def child(name: str, count: int) -> None:
    """Calibrate on made-up batches; print the peak memory in MB."""
    size, _ = CASES[name]
    model = qpass.load(corpus_data.model_prefix(name))
    shape = {"resnet8_cifar10": (size, 3, 32, 32), "ppocr_cls": (size, 3, 48, 192)}[name]
    rng = np.random.default_rng(0)

    def batches() -> Iterator[np.ndarray]:
        return (rng.standard_normal(shape, dtype=np.float32) for _ in range(count))

    qpass.calibrate_many(model, batches, algos=TOGETHER)
    # ru_maxrss would begin with the peak of the process that started this one
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    print(int(line.split()[1]) / 1024)


def main() -> None:
    """Run the parts that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; default all")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of which the best counts (default 5)")
    parser.add_argument("--child", nargs=2, metavar=("MODEL", "BATCHES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], int(args.child[1]))
        return
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}")
    for part in args.parts or PARTS:
        {"inference": inference, "framework": framework, "memory": memory}[part](args.rounds)


if __name__ == "__main__":
    main()
