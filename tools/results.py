"""Runs the measurements that `docs/results.md` reports, each in a process of its own, and writes that page.

    python tools/results.py                   every job, then the page
    python tools/results.py qat-ppocr ...     these jobs, then the page
    python tools/results.py --page            the page alone
    python tools/results.py --quick ptq-algos-resnet8    a small run, printed; nothing is written

Needs the model corpus (see `corpus_data.py`). A job leaves ``docs/results/<job>.json`` and, where it ranks layers,
``docs/results/<job>.png``; a job that is run with several versions of Paddle a file each.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import rankings
import refinements
from algorithm_accuracy import accuracy_by_algorithm, algorithm_section
from bench import onednn_int8
from markdown_table import table

from qpass.report.ranking_chart import ranking_png

TOOLS = Path(__file__).resolve().parent
DOCS = TOOLS.parent / "docs"

Facts = dict[str, Any]


class Job(NamedTuple):
    """One section of the page.

    `run` is told whether a small run will do; jobs that know no small run do not listen.
    """

    run: Callable[[bool], Facts]
    title: str
    about: str
    section: Callable[[str, Facts, str], str]
    peer: str = ""
    by_version: bool = False

    def files(self, name: str) -> list[Path]:
        """What earlier runs left; of several versions of Paddle the newest first."""
        pattern = f"{name}-paddle*.json" if self.by_version else f"{name}.json"
        return sorted((DOCS / "results").glob(pattern), reverse=True)


def refinements_section(name: str, facts: Facts, peer: str) -> str:
    header, *rows = refinements.lines(facts)
    return f"The float model: {facts['float']:.2%}.\n\n{table(header, rows)}"


def beside_paddleslim(quick: bool) -> Facts:
    """What `tools/bench/vs_paddleslim` measures."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        few = ["--repeat", "1", "--only", "resnet8_cifar10 avg"] if quick else []
        subprocess.run([sys.executable, TOOLS / "bench" / "vs_paddleslim", "--json", file, *few], check=True)
        found: Facts = json.loads(file.read_text(encoding="utf-8"))
        return found


def paddleslim_section(name: str, facts: Facts, peer: str) -> str:
    sys.path.insert(0, str(TOOLS / "bench" / "vs_paddleslim"))
    from cases import CASES
    from compare import OWN, PEER, Row, report

    rows = []
    for case in facts["cases"]:
        sides = {side: case[side] for side in (PEER, OWN) if side in case}
        rows.append(Row(case["case"], CASES[case["case"]], sides, case["multiply_adds"]))
    return report(rows, facts["multiply_adds_a_second"])


SROIE = f"{rankings.LINES} SROIE lines at 0 and 180 degrees, batch {rankings.BATCH}"
REFINED = (
    "Weights of 8 and 4 bits, one threshold a channel or one a tensor; activations of 8 bits; simulated. Accuracy, and "
    "likeness of the outputs with the float model's; seconds of calibration and refinement, the slowest of the row."
)
BY = (
    "Weights per channel. The framework's side is `paddle.static.quantization.PostTrainingQuantization` of the same "
    "Paddle on the same batches, in the same process. Differences are in percentage points of accuracy on the same "
    "images, with their 95 % interval by the paired bootstrap (10,000 draws, seed 0)."
)
JOBS = {
    "ptq-algos-resnet8": Job(
        lambda quick: accuracy_by_algorithm("resnet8_cifar10", quick),
        "PTQ by algorithm, beside the framework's own: ResNet-8 on CIFAR-10",
        "2,000 test images, every fifth in sorted order; calibrated on the first 32 training images of each class, "
        f"shuffled. {BY}",
        section=algorithm_section,
    ),
    "ptq-algos-ppocr": Job(
        lambda quick: accuracy_by_algorithm("ppocr_cls", quick),
        "PTQ by algorithm, beside the framework's own: PP-OCR text-direction classifier",
        f"500 SROIE lines at 0 and 180 degrees; calibrated on 50 others, at 0 and 180 degrees too. {BY}",
        section=algorithm_section,
    ),
    "onednn-int8": Job(
        onednn_int8.measure,
        "The oneDNN int8 engine: time, accuracy and sizes of files",
        'What `target="onednn"` writes, beside the framework\'s own PTQ with `avg` in both of its encodings, measured '
        "in the same run by `tools/bench/onednn_int8.py`. For the official QAT twin: the file as it was published, and "
        "what becomes of it when it is converted. Accuracies are on 2,000 CIFAR-10 test images and 500 SROIE lines at "
        "0 and 180 degrees.",
        section=onednn_int8.section,
        by_version=True,
    ),
    "vs-paddleslim": Job(
        beside_paddleslim,
        "Sensitivity analysis beside PaddleSlim",
        "Both sides on the same model, data, algorithm of scales and evaluation function, each run in a fresh process, "
        "in turns: `tools/bench/vs_paddleslim`. Seconds are from the model's files to the metric of every layer, "
        "without imports; megabytes are the peak of the process with Paddle. The limit is what must be computed again "
        "(the multiply-adds downstream of every layer, for every sample) at the rate of numpy's matrix product. The "
        "goals were set on another machine.",
        section=paddleslim_section,
    ),
    "refinements-resnet8": Job(
        lambda _: refinements.resnet8(),
        "Bias correction, equalization and adaptive rounding beside plain PTQ: ResNet-8 on CIFAR-10",
        f"2,000 test images; calibrated by `avg` on the first 32 training images of each class. {REFINED}",
        section=refinements_section,
    ),
    "refinements-ppocr": Job(
        lambda _: refinements.ppocr_cls(),
        "The same: PP-OCR text-direction classifier",
        f"500 SROIE lines at 0 and 180 degrees; calibrated by `avg` on 50 others. {REFINED}",
        section=refinements_section,
    ),
    "qat-ppocr": Job(
        lambda _: rankings.qat_ppocr("float"),
        "QAT mode: PP-OCR text-direction classifier, weights restored from the float twin",
        f"{SROIE}. Baseline: the quantized model; reference: the float one.",
        peer='PaddleSlim 2.6.0 crashes on this model ("Output Y cannot be found in operator '
        'fake_quantize_dequantize_moving_average_abs_max").',
        section=rankings.ranking_section,
    ),
    "qat-ppocr-self": Job(
        lambda _: rankings.qat_ppocr("self"),
        "QAT mode: the same, weights restored from the quantized model itself",
        f"{SROIE}. What quantization alone costs, without the drift of weights in training.",
        section=rankings.ranking_section,
    ),
    "ptq-ppocr": Job(
        lambda _: rankings.ptq_ppocr(),
        "PTQ mode: PP-OCR text-direction classifier",
        f"{SROIE}; calibrated on 50 other lines at 0 and 180 degrees. Baseline: the float model; "
        "reference: all layers int8.",
        peer="PaddleSlim 2.6.0 on Paddle 3.3.1, 200 images: 124 s, memory 532 to 1,818 MB; by accuracy 41 of 54 layers "
        "tie.",
        section=rankings.ranking_section,
    ),
    "ptq-resnet8": Job(
        lambda _: rankings.ptq_resnet8(),
        "PTQ mode: ResNet-8 on CIFAR-10",
        f"{rankings.IMAGES:,} test images, every tenth in sorted order, batch 100; calibrated on 200 training images. "
        "Baseline: the float model; reference: all layers int8.",
        peer="PaddleSlim 2.6.0 on Paddle 3.3.1, 320 + 1,000 images: 23 s, memory 422 to 814 MB.",
        section=rankings.ranking_section,
    ),
    "ptq-resnet8-outputs": Job(
        lambda _: rankings.ptq_resnet8_outputs(),
        "PTQ mode without labels: ResNet-8 on CIFAR-10",
        f"No evaluation function: cosine similarity of the outputs with the float model's, on {rankings.IMAGES:,} test "
        "images.",
        section=rankings.outputs_section,
    ),
    "strip-ppocr": Job(
        lambda _: rankings.strip_ppocr(),
        "The quantized classifier with everything stripped",
        "SROIE lines at 0 and 180 degrees, by Paddle Inference on the files. The stripped model keeps its own weights "
        '(`restore="self"`). The 500 are every fourth line in the order of the label file: of the selections tried the '
        "one that gives the 97.8 % and 97.4 % reported for these models; all 2,076 lines stand beside it.",
        section=rankings.strip_section,
    ),
}


def measured(job: str, quick: bool) -> Facts:
    """What a job finds, and on what it ran."""
    facts = JOBS[job].run(quick)
    facts["paddle"] = importlib.metadata.version("paddlepaddle")
    facts["python"] = platform.python_version()
    facts["cores"] = os.cpu_count()
    return facts


def run_here(job: str) -> None:
    """Do one job in this process and write its files."""
    facts = measured(job, quick=False)
    (DOCS / "results").mkdir(parents=True, exist_ok=True)
    name = f"{job}-paddle{facts['paddle']}" if JOBS[job].by_version else job
    (DOCS / "results" / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    for kind, picture in (("analysis", f"results/{job}.png"), ("outputs", "ranking.png")):
        if kind in facts:
            (DOCS / picture).write_bytes(ranking_png(rankings.read_result(facts, kind)))


def page() -> str:
    """The text of `docs/results.md`, from the files of the jobs that were run."""
    parts = [
        "# Results\n",
        "Written by `tools/results.py` from the files in `results/`; run it again to reproduce them. Accuracies of "
        "quantized models come first, then rankings of layers. The metric of a ranking is the mean probability of the "
        "true class (finer than accuracy, which stands beside it); most sensitive first. Its last column compares the "
        "outputs with the float model's: the lower, the further they are. Its time is the wall clock of one analysis "
        "in a fresh process without imports, its memory the peak of that process with Paddle.\n",
    ]
    return "\n".join([*parts, *sections()])


def sections() -> Iterator[str]:
    for name, job in JOBS.items():
        found = [json.loads(file.read_text(encoding="utf-8")) for file in job.files(name)]
        if found:
            yield f"## {job.title}\n\n{job.about}\n"
            yield from (job.section(name, facts, job.peer) for facts in found)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the measurements of docs/results.md and write the page.")
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"of {', '.join(JOBS)}; default all")
    parser.add_argument("--page", action="store_true", help="write the page from what earlier runs left")
    parser.add_argument("--quick", action="store_true", help="a small run where the job knows one; print its section")
    parser.add_argument("--here", action="store_true", help="do one job in this process and stop")
    args = parser.parse_args()
    unknown = sorted(set(args.jobs) - set(JOBS))
    if unknown:
        parser.error(f"unknown job {', '.join(unknown)}")
    if args.quick:
        for job in args.jobs or list(JOBS):
            print(JOBS[job].section(job, measured(job, quick=True), JOBS[job].peer), flush=True)
        return
    if args.here:
        for job in args.jobs:
            run_here(job)
        return
    for job in [] if args.page else args.jobs or list(JOBS):
        start = time.perf_counter()
        subprocess.run([sys.executable, __file__, "--here", job], check=True)
        print(f"{job}: {time.perf_counter() - start:.0f} s", flush=True)
    (DOCS / "results.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
