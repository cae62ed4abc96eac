"""`qpass demo`: the whole job on the bundled model and data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from qpass.cli.common import size

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from qpass.ir.model import Model
    from qpass.job import Job


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qpass demo`."""
    parser.epilog = "example:\n  qpass demo -o demo_results"
    parser.add_argument("-o", "--output", default="demo_results", metavar="DIR", help="default: demo_results")
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    """Run `qpass demo`: both modes, the skip lists, the int8 model and the pictures."""
    from qpass import demo
    from qpass.cli.progress import Bar
    from qpass.formats.files import load
    from qpass.job import PTQJob, QATJob
    from qpass.options import QuantOptions
    from qpass.runtime.data import Batches

    folder = Path(args.output)
    model, twin = load(demo.float_prefix()), load(demo.qat_prefix())
    print("A small CNN for handwritten digits, its quantization-aware trained twin, and 500 held-out digits.\n")
    print("1. The float model: each layer alone is quantized to int8 (metric: mean probability of the true digit)")
    with Bar("layers") as bar:
        ptq = PTQJob(
            model=model,
            source=Batches.of(model, demo.calibration_data()),
            evaluate=demo.true_class_probability,
            save_dir=folder / "ptq",
            options=QuantOptions(),
            progress=bar,
        )
        _ = ptq.result
    _finish(ptq)
    print("\n2. The quantized twin: each layer alone is put back to float")
    with Bar("layers") as bar:
        qat = QATJob(
            model=twin,
            float_model=model,
            source=Batches.of(twin, demo.calibration_data()),
            evaluate=demo.true_class_probability,
            save_dir=folder / "qat",
            options=QuantOptions(),
            progress=bar,
        )
        _ = qat.result
    _finish(qat)
    print("\n3. Accuracy on the 500 held-out digits")
    _print_accuracies(folder, ptq, qat)
    return 0


def _finish(job: Job) -> None:
    from qpass.cli.analyze import print_result
    from qpass.job import default_skip_list

    result = job.result
    skip = default_skip_list(result)
    files = [*job.write_ranking(), *job.write_histograms(), *job.write_statistics()]
    files += [job.write_skip_list(skip), job.write_model(skip)]
    print_result(result, skip, files)


def _print_accuracies(folder: Path, ptq: Job, qat: Job) -> None:
    from qpass import demo
    from qpass.formats.files import load, save

    everything, _ = save(ptq.rewrite(()), folder / "int8" / "inference", overwrite=True)
    rows = {
        "float": demo.float_prefix(),
        "int8, every layer": everything,
        "int8, but for the skip list": folder / "ptq" / "model" / "inference.pdmodel",
        "quantization-aware twin": demo.qat_prefix(),
        "twin, skip list back in float": folder / "qat" / "model" / "inference.pdmodel",
    }
    for name, path in rows.items():
        model = load(path)
        accuracy = demo.accuracy(_predictor(model))
        print(f"  {name:31} {accuracy:6.1%}   parameters {size(model.params.nbytes)}")


def _predictor(model: Model) -> Callable[[np.ndarray], list[np.ndarray]]:
    from qpass.runtime.engines import get_engine

    session = get_engine("inference").session(model)
    return lambda images: session.run({model.feeds[0].name: images})
