"""Accuracy of every calibration algorithm, beside the framework's own PTQ in the same run; see `results.py`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from classifiers import CLASSIFIERS, Classifier
from framework_ptq import OP_TYPES, framework_ptq
from markdown_table import table
from paired_difference import paired_difference, points

import qpass
from qpass.deploy import prepared_for
from qpass.ir.model import Model
from qpass.runtime.simulate import simulate

ALGOS = ("abs_max", "avg", "hist", "KL", "mse", "emd", "ptf")
MARGIN = 0.003
"""How much worse than the framework's best algorithm an accuracy may be."""

ENGINE_MARGIN = 0.005
"""How much worse than the float model the engine may be."""

EARLIER = {
    "resnet8_cifar10": (76.85, 76.90, 77.15, 76.75, 76.60, 77.00, 77.10, 76.50),
    "ppocr_cls": (97.8, 97.3, 97.2, 97.7, 98.2, 97.8, 97.1, 97.4),
}
"""Top-1 of the float model and of the framework's algorithms in the order of `ALGOS`, measured before qpass was."""

Facts = dict[str, Any]
Hits = Mapping[str, np.ndarray]


def accuracy_by_algorithm(name: str, quick: bool = False) -> Facts:
    """Every algorithm of both sides: seconds, accuracies, and their differences with intervals."""
    judge = CLASSIFIERS[name](quick)
    model = qpass.load(judge.prefix)
    judge.right(model)  # the first use of Paddle loads libraries, which is nobody's calibration
    float_hits = judge.right(model)
    with tempfile.TemporaryDirectory() as folder:
        theirs = {algo: framework(judge, algo, Path(folder) / algo) for algo in ALGOS}
        ours = {algo: own(judge, algo, None, Path(folder) / "own" / algo) for algo in ALGOS}
        compatible = {algo: own(judge, algo, "paddle", Path(folder) / "paddle" / algo) for algo in ALGOS}
    engine = in_the_engine(judge, model)
    best = max(theirs.values(), key=lambda row: row[1]["simulated"].mean())[1]["simulated"]
    return {
        "model": name,
        "images": len(judge.labels),
        "calibration": sum(map(len, judge.calibration)),
        "float": float(float_hits.mean()),
        "framework": {algo: described(*row) for algo, row in theirs.items()},
        "qpass": {algo: described(*row) for algo, row in ours.items()},
        "compat": {algo: described(*row) for algo, row in compatible.items()},
        "onednn": {algo: shares(hits) for algo, hits in engine.items()},
        "differences": {
            algo: {
                "same algorithm": paired_difference(ours[algo][1]["simulated"], theirs[algo][1]["simulated"]),
                "best algorithm": paired_difference(ours[algo][1]["simulated"], best),
                "compat, same": paired_difference(compatible[algo][1]["simulated"], theirs[algo][1]["simulated"]),
                "compat, best": paired_difference(compatible[algo][1]["simulated"], best),
                "engine, theirs": paired_difference(engine[algo]["engine"], theirs[algo][1]["engine"]),
                "engine, float": paired_difference(engine[algo]["engine"], float_hits),
                "engine, simulated": paired_difference(engine[algo]["engine"], engine[algo]["simulated"]),
            }
            for algo in ALGOS
        },
    }


def framework(judge: Classifier, algo: str, folder: Path) -> tuple[float, Hits]:
    """The framework's file (encoding B, PaddleSlim's default): seconds to make it; hits simulated and in the engine."""
    start = time.perf_counter()
    prefix = framework_ptq(judge.prefix, folder / "inference", judge.calibration, algo, onnx_format=True)
    seconds = time.perf_counter() - start
    made = qpass.load(prefix)
    return seconds, {"simulated": judge.right(made), "engine": judge.right(made, "int8")}


def own(judge: Classifier, algo: str, compat: str | None, folder: Path) -> tuple[float, Hits]:
    """The same job by qpass, from files to files: seconds; hits simulated."""
    start = time.perf_counter()
    model = qpass.load(judge.prefix)
    scales = qpass.calibrate(model, judge.calibration, algo=algo, compat=compat, op_types=OP_TYPES)
    made = qpass.quantize(model, scales, op_types=OP_TYPES)
    qpass.save(made, folder / "inference")
    seconds = time.perf_counter() - start
    return seconds, {"simulated": judge.right(made)}


def in_the_engine(judge: Classifier, model: Model) -> dict[str, Hits]:
    """Hits of what qpass writes for oneDNN, by algorithm: as `simulate` foretells, and in the engine."""
    prepared = prepared_for(model, "onednn")
    tables = qpass.calibrate_many(prepared, judge.calibration, algos=ALGOS)
    made = {algo: qpass.quantize(prepared, scales, target="onednn") for algo, scales in tables.items()}
    return {
        algo: {"simulated": judge.right(simulate(model, "onednn")), "engine": judge.right(model, "int8")}
        for algo, model in made.items()
    }


def described(seconds: float, hits: Hits) -> Facts:
    return {"seconds": round(seconds, 2), **shares(hits)}


def shares(hits: Hits) -> Facts:
    return {way: float(right.mean()) for way, right in hits.items()}


def algorithm_section(name: str, facts: Facts, peer: str) -> str:
    """The tables of one model."""
    run = (
        f"{facts['images']:,} images, calibrated on {facts['calibration']}; the float model has {facts['float']:.2%} "
        f"right (Paddle {facts['paddle']}, Python {facts['python']}, {facts['cores']} cores).\n"
    )
    return "\n".join(
        (
            run,
            "Simulated: each file run as it stands in Paddle Inference with float kernels.\n",
            simulated_table(facts),
            verdict(facts) + "\n",
            'In the oneDNN int8 engine: the framework\'s file, and what `target="onednn"` writes.\n',
            engine_table(facts),
            engine_verdict(facts) + "\n",
            "From the float files to the quantized ones, one algorithm at a time:\n",
            seconds_table(facts),
        )
    )


def simulated_table(facts: Facts) -> str:
    before = dict(zip(ALGOS, EARLIER[facts["model"]][1:], strict=True))
    header = ("algorithm", "framework, earlier", "framework", "qpass", "difference", "less its best algorithm")
    header = (*header, '`compat="paddle"`', "difference")
    rows = []
    for algo in ALGOS:
        gaps = facts["differences"][algo]
        rows.append(
            (
                algo,
                f"{before[algo]:.2f}%",
                f"{facts['framework'][algo]['simulated']:.2%}",
                f"{facts['qpass'][algo]['simulated']:.2%}",
                points(gaps["same algorithm"]),
                points(gaps["best algorithm"]),
                f"{facts['compat'][algo]['simulated']:.2%}",
                points(gaps["compat, same"]),
            )
        )
    return table(header, rows)


def verdict(facts: Facts) -> str:
    """Which algorithms are worse than the framework's best by more than the margin, and how sure that is."""
    best = max(ALGOS, key=lambda algo: facts["framework"][algo]["simulated"])
    gaps = {algo: facts["differences"][algo]["best algorithm"] for algo in ALGOS}
    worse = [algo for algo in ALGOS if gaps[algo][0] < -MARGIN - 1e-9]
    sure = [algo for algo in worse if gaps[algo][2] < -MARGIN]
    top = max(ALGOS, key=lambda algo: facts["qpass"][algo]["simulated"])
    words = (
        f"The framework's best algorithm here is {best}, {facts['framework'][best]['simulated']:.2%}; that of qpass is "
        f"{top}, {facts['qpass'][top]['simulated']:.2%}, {points(gaps[top])} points. "
    )
    apart = [algo for algo in ALGOS if not covers_zero(facts["differences"][algo]["same algorithm"])]
    words += (
        f"Against the same algorithm of the framework the interval leaves out 0 for: {', '.join(apart) or 'none'}. "
    )
    if not worse:
        return words + f"No algorithm of qpass is more than {100 * MARGIN:.1f} points below the framework's best."
    return words + (
        f"More than {100 * MARGIN:.1f} points below the framework's best: {', '.join(worse)}; with the whole interval "
        f"below that margin: {', '.join(sure) or 'none'}. (The best of seven on the same images is flattered.)"
    )


def covers_zero(difference: tuple[float, float, float]) -> bool:
    return difference[1] <= 0 <= difference[2]


def engine_table(facts: Facts) -> str:
    header = ("algorithm", "framework: simulated", "engine", 'qpass: `simulate="onednn"`', "engine")
    header = (*header, "engine less simulated", "less float", "less the framework's file")
    rows = []
    for algo in ALGOS:
        gaps = facts["differences"][algo]
        rows.append(
            (
                algo,
                f"{facts['framework'][algo]['simulated']:.2%}",
                f"{facts['framework'][algo]['engine']:.2%}",
                f"{facts['onednn'][algo]['simulated']:.2%}",
                f"{facts['onednn'][algo]['engine']:.2%}",
                points(gaps["engine, simulated"]),
                points(gaps["engine, float"]),
                points(gaps["engine, theirs"]),
            )
        )
    return table(header, rows)


def engine_verdict(facts: Facts) -> str:
    """How far simulation and engine are apart, and which algorithms the engine runs far below the float model."""
    gaps = facts["differences"]
    far = max(ALGOS, key=lambda algo: abs(gaps[algo]["engine, simulated"][0]))
    below = [algo for algo in ALGOS if gaps[algo]["engine, float"][0] < -ENGINE_MARGIN - 1e-9]
    return (
        f'Simulation by `simulate="onednn"` and engine are farthest apart with {far}: '
        f"{points(gaps[far]['engine, simulated'])} points. More than {100 * ENGINE_MARGIN:.1f} points below the float "
        f"model in the engine: {', '.join(below) or 'none'}."
    )


def seconds_table(facts: Facts) -> str:
    rows = []
    for algo in ALGOS:
        theirs, ours, same = (facts[side][algo]["seconds"] for side in ("framework", "qpass", "compat"))
        rows.append((algo, theirs, ours, f"{theirs / ours:.1f}x", same, f"{theirs / same:.1f}x"))
    header = ("algorithm", "framework, s", "qpass, s", "quicker by", '`compat="paddle"`, s', "quicker by")
    return table(header, rows)
