"""Paddle Inference's oneDNN int8 engine: time, accuracy and file sizes of the framework's files and of qpass's.

    python tools/bench/onednn_int8.py                  all models, a table
    python tools/bench/onednn_int8.py --quick          few rounds, few images
    python tools/bench/onednn_int8.py --json FILE      the figures too
    python tools/bench/onednn_int8.py --models mobilenet_v1 --rounds 50

Needs the model corpus (see `corpus_data.py`). MobileNetV1 has random weights: its time counts, its outputs do not. All
variants of a model are run in turns, so that a machine that gets busy is busy for all of them; times are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from classifiers import CLASSIFIERS, Classifier
from framework_ptq import OP_TYPES, framework_ptq
from markdown_table import table

import qpass
from qpass.deploy import prepared_for, spelled_for
from qpass.ir.model import Model
from qpass.passes import ConvertEncoding, DropDebugInfo, FoldQuant
from qpass.runtime.engines import get_engine
from qpass.runtime.paddle_env import cpu_flags, default_threads, legacy_static
from qpass.runtime.simulate import has_vnni, simulate

MODELS = ("mobilenet_v1", "resnet8_cifar10", "ppocr_cls", "ppocr_cls_qat")
QAT_TWINS = {"ppocr_cls_qat": "ppocr_cls"}
MOBILENET_BATCH = 16
ALGO = "avg"
ROUNDS = 30

Facts = dict[str, Any]


class Case(NamedTuple):
    """The variants of one model, by name, and what they are run on.

    `packed` is quantized for no engine in particular, so that all its weights are stored as int8.
    """

    variants: Mapping[str, Model]
    packed: Model
    batch: np.ndarray
    judge: Classifier | None


FLOAT, FRAMEWORK_A, FRAMEWORK_B, PUBLISHED, OWN = "float", "framework, A", "framework, B", "as published", "qpass"


def measure(quick: bool = False, models: tuple[str, ...] = MODELS, rounds: int = ROUNDS) -> Facts:
    """Every model: batch times in turns, accuracies where there are labels, sizes of files."""
    with tempfile.TemporaryDirectory() as folder:
        cases = {name: case(name, Path(folder) / name, quick) for name in models}
        return {
            "cpu flags": list(cpu_flags()),
            "vnni": has_vnni(),
            "threads": default_threads(),
            "models": {
                name: {
                    "missing": [n for n in expected(name) if n not in made.variants],
                    "batch": len(made.batch),
                    "seconds": times(made, 3 if quick else rounds),
                    "accuracy": accuracies(made),
                    "bytes": sizes(made),
                }
                for name, made in cases.items()
            },
        }


def expected(name: str) -> tuple[str, ...]:
    """The files of others that a model is measured with."""
    return (PUBLISHED,) if name in QAT_TWINS else (FRAMEWORK_A, FRAMEWORK_B)


def case(name: str, folder: Path, quick: bool) -> Case:
    """The float model, the framework's files, and what qpass writes for the engine."""
    if name in QAT_TWINS:
        judge = CLASSIFIERS[name](quick)
        published = qpass.load(judge.prefix)
        variants = {
            FLOAT: qpass.load(CLASSIFIERS[QAT_TWINS[name]](True).prefix),
            PUBLISHED: published,
            OWN: spelled_for(published, "onednn"),
        }
        packed = FoldQuant("int8")(ConvertEncoding("B")(published))
        return Case(variants, packed, judge.images[: judge.batch], judge)
    judge = None if name == "mobilenet_v1" else CLASSIFIERS[name](quick)
    prefix = mobilenet_v1(folder / "float" / "inference") if judge is None else judge.prefix
    batch = noise() if judge is None else judge.images[: judge.batch]
    calibration = [batch] if judge is None else list(judge.calibration)
    model = qpass.load(prefix)
    prepared = prepared_for(model, "onednn")
    scales = qpass.calibrate(prepared, calibration, algo=ALGO, op_types=OP_TYPES)
    variants = {
        FLOAT: model,
        **framework(prefix, folder, calibration),
        OWN: qpass.quantize(prepared, scales, target="onednn"),
    }
    return Case(variants, qpass.quantize(prepared, scales, op_types=OP_TYPES), batch, judge)


def framework(prefix: Path, folder: Path, calibration: list[np.ndarray]) -> dict[str, Model]:
    """The framework's files; none where it fails (2.6.2 with `avg` at an activation without dimensions)."""
    found = {}
    for name, onnx_format in ((FRAMEWORK_A, False), (FRAMEWORK_B, True)):
        try:
            made = framework_ptq(prefix, folder / name[-1] / "inference", calibration, ALGO, onnx_format=onnx_format)
        except IndexError as e:
            print(f"{prefix.parent.name}: the framework's PTQ fails, {e}", file=sys.stderr)
        else:
            found[name] = qpass.load(made)
    return found


def noise() -> np.ndarray:
    shape = (MOBILENET_BATCH, 3, 224, 224)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def mobilenet_v1(prefix: Path) -> Path:
    """MobileNetV1 for 224 x 224 with random weights, written by Paddle."""
    with legacy_static() as paddle:
        paddle.seed(0)
        program, startup = paddle.static.Program(), paddle.static.Program()
        executor = paddle.static.Executor(paddle.CPUPlace())
        with (
            paddle.static.scope_guard(paddle.static.Scope()),
            paddle.static.program_guard(program, startup),
            paddle.utils.unique_name.guard(),
        ):
            image = paddle.static.data("image", [-1, 3, 224, 224])
            net = paddle.vision.models.mobilenet_v1()
            net.eval()
            outputs = [net(image)]
            executor.run(startup)
            paddle.static.save_inference_model(str(prefix), [image], outputs, executor, program=program)
    return prefix


def times(made: Case, rounds: int) -> dict[str, float]:
    """Median seconds a batch of each variant: float in float, the others in int8, run in turns."""
    sessions = {
        name: get_engine("inference" if name == FLOAT else "int8").session(model)
        for name, model in made.variants.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(rounds + 2):
        for name, session in sessions.items():
            feed = {session.feed_names[0]: made.batch}
            start = time.perf_counter()
            session.run(feed)
            if turn > 1:  # the first runs allocate memory
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def accuracies(made: Case) -> dict[str, dict[str, float]]:
    """Share of images that each variant has right: as its file simulates, as `simulate` foretells, in the engine."""
    judge = made.judge
    if judge is None:
        return {}
    found = {FLOAT: {"float": float(judge.right(made.variants[FLOAT]).mean())}}
    for name, model in made.variants.items():
        if name != FLOAT:
            ways = {
                "file": judge.right(model),
                "simulate": judge.right(simulate(model, "onednn")),
                "engine": judge.right(model, "int8"),
            }
            found[name] = {way: float(right.mean()) for way, right in ways.items()}
    return found


def sizes(made: Case) -> dict[str, int]:
    """Bytes of program and parameters together; also without what only debugging reads."""
    lean = {FLOAT: made.variants[FLOAT], OWN: made.variants[OWN], "qpass, for no engine": made.packed}
    return {
        **{name: written(model) for name, model in made.variants.items()},
        **{f"{name}, drop-debug-info": written(DropDebugInfo()(model)) for name, model in lean.items()},
    }


def written(model: Model) -> int:
    return sum(map(len, qpass.to_bytes(model)))


def section(name: str, facts: Facts, peer: str) -> str:
    """The tables of one run."""
    known = " ".join(facts["cpu flags"]) or "none"
    has = "has 8-bit dot products" if facts["vnni"] else "has no 8-bit dot products (VNNI, AMX), so int8 gains less"
    place = f"Paddle {facts['paddle']}, Python {facts['python']}. " if "paddle" in facts else ""
    run = f"{place}Threads: {facts['threads']}. CPU flags: {known}; this CPU {has}.\n"
    missing = [
        f"{model} ({', '.join(found['missing'])})" for model, found in facts["models"].items() if found["missing"]
    ]
    fails = f"The framework's PTQ of this version fails on: {'; '.join(missing)}.\n"
    return "\n".join((run, *([fails] if missing else []), time_table(facts), accuracy_table(facts), size_table(facts)))


def time_table(facts: Facts) -> str:
    rows = []
    for model, found in facts["models"].items():
        seconds = found["seconds"]
        theirs = [seconds[name] for name in (FRAMEWORK_A, FRAMEWORK_B, PUBLISHED) if name in seconds]
        for variant, taken in seconds.items():
            against_float = "" if variant == FLOAT else f"{seconds[FLOAT] / taken:.2f}x"
            against_theirs = f"{min(theirs) / taken:.2f}x" if variant == OWN and theirs else ""
            label = f"{model}, batch {found['batch']}"
            rows.append((label, variant, f"{1000 * taken:.2f}", against_float, against_theirs))
    return table(("model", "file", "ms a batch", "float / this", "quickest other int8 / this"), rows)


def accuracy_table(facts: Facts) -> str:
    rows = []
    for model, found in facts["models"].items():
        for variant, shares in found["accuracy"].items():
            if variant != FLOAT:
                first = f"{found['accuracy'][FLOAT]['float']:.2%}"
                rows.append((model, variant, first, *(f"{shares[w]:.2%}" for w in ("file", "simulate", "engine"))))
    return table(("model", "file", "float", "simulated", '`simulate="onednn"`', "engine"), rows) if rows else ""


def size_table(facts: Facts) -> str:
    rows = [
        (model, variant, f"{size / 1000:,.0f}", f"{size / found['bytes'][FLOAT]:.0%}")
        for model, found in facts["models"].items()
        for variant, size in found["bytes"].items()
    ]
    return table(("model", "file", "kB", "of float"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time, accuracy and file sizes in the oneDNN int8 engine.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"timed runs of each file, default {ROUNDS}")
    parser.add_argument("--quick", action="store_true", help="three rounds, few images")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    args = parser.parse_args()
    facts = measure(args.quick, tuple(args.models), args.rounds)
    if args.json:
        Path(args.json).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(section("onednn-int8", facts, ""))


if __name__ == "__main__":
    main()
