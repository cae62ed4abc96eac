"""`qpass quantize --target-metric`: as many layers in int8 as a metric allows."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from qpass.cli.analyze import SweepInterruptedError
from qpass.cli.common import add_simulate, finite, load_model, print_json, size
from qpass.cli.recipe import recipe_fields
from qpass.errors import UsageError

RESULTS = "analysis_results"
_WITH_TARGET = ("eval", "lower_is_better", "results", "resume", "simulate")


def add_target(parser: argparse.ArgumentParser) -> None:
    """Arguments of the search for a target metric."""
    group = parser.add_argument_group(
        "target accuracy",
        "Starts with nothing skipped. Where that misses the target, ranks the layers, bisects over the ranking, and "
        "quantizes layers again until no single one can be dropped from the skip list; each claim is an evaluation of "
        "the very model. Reports every model tried (target.txt, .json, .csv). Exit code 1 where even the float model "
        "misses the target, or only the float model reaches it.",
    )
    group.add_argument(
        "--target-metric",
        type=finite,
        metavar="X",
        help="metric that the int8 model must reach, on the scale of --eval",
    )
    group.add_argument("--eval", metavar="M:F", help="module:function, see README; higher is better")
    group.add_argument("--lower-is-better", action="store_true", help="the metric is a loss")
    add_simulate(group)
    group.add_argument(
        "--results", metavar="DIR", help=f"folder for reports, ranking and checkpoints (default {RESULTS})"
    )
    group.add_argument(
        "--resume", action="store_true", help="go on from the checkpoints in DIR; a ranking by qpass analyze counts"
    )


def wants_target(args: argparse.Namespace) -> bool:
    """Whether a target was given.

    Raises
    ------
    UsageError
        If arguments are given that only go with a target, or do not go with one.
    """
    if args.target_metric is None:
        for name in _WITH_TARGET:
            if getattr(args, name):
                raise UsageError(f"--{name.replace('_', '-')} goes with --target-metric")
        return False
    if args.eval is None:
        raise UsageError(
            "--target-metric needs --eval: the function that measures the metric",
            hint="--eval module:function, where function(predict) gives a number; see README",
        )
    if args.skip:
        raise UsageError("--skip does not go with --target-metric: the search finds the layers to skip")
    return True


def quantize_to_target(args: argparse.Namespace) -> int:
    """Run `qpass quantize` with a target; `wants_target` has checked the arguments."""
    try:
        return _search(args)
    except KeyboardInterrupt:
        raise SweepInterruptedError(args.results or RESULTS) from None


def _search(args: argparse.Namespace) -> int:
    from qpass.cli.progress import Bar
    from qpass.formats.files import check_target
    from qpass.job import PTQJob
    from qpass.options import QuantOptions
    from qpass.post_training import prepared
    from qpass.quant.scales import ScaleTable
    from qpass.report.digits import Digits
    from qpass.report.target import summary, trial_line
    from qpass.runtime.data import Batches, load_data, load_function
    from qpass.target_job import reach_target

    options = QuantOptions.checked(
        {**recipe_fields(args), "simulate": args.simulate, "higher_is_better": not args.lower_is_better}
    )
    model = prepared(load_model(args), options)
    evaluate = load_function(args.eval)
    with Bar("layers") as bar:
        job = PTQJob(
            model=model,
            source=None if args.data is None else Batches.of(model, load_data(args.data, batch_size=args.batch_size)),
            table=None if args.scales is None else ScaleTable.load(args.scales),
            evaluate=evaluate,
            save_dir=Path(args.results or RESULTS),
            options=options,
            resume=args.resume,
            progress=bar,
        )
        check_target(model, args.output, overwrite=args.overwrite)
        found = reach_target(
            job,
            args.target_metric,
            args.output,
            overwrite=args.overwrite,
            on_trial=lambda trial: bar.say(trial_line(trial, Digits(6))),
        )
    if args.scales_out:
        job.scales.save(args.scales_out)
    if args.json:
        print_json({**json.loads(found.result.to_json()), "files": [str(file) for file in found.files]})
        return 0
    print(summary(found.result))
    print(f"skip_tensor_list: {', '.join(found.result.skip_tensor_list) or 'nothing'}")
    print(f"parameters {size(model.params.nbytes)} -> {size(found.model.params.nbytes)}")
    for file in found.files:
        print(f"wrote {file}")
    return 0
