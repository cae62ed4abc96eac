"""How the time of a sensitivity analysis grows with layers, with images, and with workers; draws `docs/scaling.png`.

    python tools/bench/scaling.py                         three plots, printed as tables too
    python tools/bench/scaling.py --out scaling.png --repeat 1

Nets are chains of 10 to 200 convolutions with equal multiply-adds in all, so that a net of more layers is not a larger
one; weights are random. Times are of `analyze_ptq` on given scales, label-free, the medians of several runs. Since
narrow convolutions run at another rate than wide ones, time against layers is given in passes as well: multiples of one
plain run of the same net over the same images.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent / "vs_paddleslim"))

import nets
from markdown_table import table

import qpass
from qpass.ir.model import Model
from qpass.runtime.data import Batches
from qpass.runtime.engines import get_engine
from qpass.runtime.processes import processes

CHAINS: dict[int, int] = {10: 72, 22: 48, 50: 32, 89: 24, 200: 16}
"""Layers -> channels: layers times channels squared is the same to 3 %."""

SIDE, BATCH = 16, 32
IMAGES = (64, 128, 256, 512, 1024)
WORKERS = (1, 2, 3, 4)
FEW_LAYERS, FEW_IMAGES, MANY_IMAGES = 22, 64, 512

Points = list[tuple[int, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description="How the time of a sensitivity analysis grows.")
    parser.add_argument(
        "--out", default="docs/scaling.png", metavar="FILE", help="the picture, default docs/scaling.png"
    )
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="runs of each point, default 3")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = {layers: chain(Path(folder) / str(layers), layers) for layers in CHAINS}
    few = models[FEW_LAYERS]
    seconds = {layers: sweep(model, FEW_IMAGES, args.repeat) for layers, model in models.items()}
    passes = [(layers, seconds[layers] / plain(models[layers], FEW_IMAGES, args.repeat)) for layers in CHAINS]
    images = [(count, sweep(few, count, args.repeat)) for count in IMAGES]
    workers = [(count, sweep(few, MANY_IMAGES, args.repeat, count)) for count in WORKERS]
    rows = [[str(n), f"{seconds[n]:.2f}", f"{p:.1f}", f"{p / n:.2f}"] for n, p in passes]
    print(table(["layers", "seconds", "passes", "passes a layer"], rows))
    print(table(["images", "seconds", "ms an image"], [[str(n), f"{s:.2f}", f"{1e3 * s / n:.1f}"] for n, s in images]))
    print(table(["workers", "seconds"], [[str(n), f"{s:.2f}"] for n, s in workers]))
    draw(Path(args.out), passes, images, workers)


def chain(prefix: Path, layers: int) -> Model:
    """A chain of convolutions."""
    nets.deep_chain(prefix, layers, CHAINS[layers], SIDE)
    return qpass.load(prefix)


def sweep(model: Model, images: int, repeat: int, workers: int = 1) -> float:
    """Seconds of an analysis."""
    batches = data(images)
    scales = qpass.calibrate(model, batches[:2])
    if workers == 1:
        return median(lambda: qpass.analyze_ptq(model, scales, data=batches), repeat)
    with processes(workers) as pool:
        return median(lambda: qpass.analyze_ptq(model, scales, data=batches, workers=pool), repeat)


def plain(model: Model, images: int, repeat: int) -> float:
    """Seconds of one plain run of all batches, in the engine's own way, the first one left out."""
    session = get_engine("inference").session(model)
    batches = list(Batches.of(model, data(images)))

    def run() -> None:
        for batch in batches:
            session.run(batch)

    run()
    return median(run, max(repeat, 3))


def data(images: int) -> Sequence[np.ndarray]:
    """Batches of seeded images."""
    every = nets.smooth_images(images, SIDE, seed=3)
    return [every[i : i + BATCH] for i in range(0, images, BATCH)]


def median(what: Callable[[], object], repeat: int) -> float:
    """Median seconds of several runs."""
    taken = []
    for _ in range(repeat):
        start = time.perf_counter()
        what()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def draw(path: Path, layers: Points, images: Points, workers: Points) -> None:
    """Three plots side by side, each with the straight line through its first point."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    titles = (
        ("layers", "plain passes", f"{FEW_IMAGES} images"),
        ("images", "seconds", f"{FEW_LAYERS} layers"),
        ("workers", "seconds", f"{FEW_LAYERS} layers, {MANY_IMAGES} images"),
    )
    for axes, points, (x, y, title) in zip(figure.subplots(1, 3), (layers, images, workers), titles, strict=True):
        at, found = zip(*points, strict=True)
        linear = [found[0] * n / at[0] if x != "workers" else found[0] * at[0] / n for n in at]
        axes.plot(at, linear, color="0.7", linestyle="--", label="linear")
        axes.plot(at, found, color="C0", marker="o", label="measured")
        axes.set(xlabel=x, ylabel=y, title=title, ylim=(0, None))
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
