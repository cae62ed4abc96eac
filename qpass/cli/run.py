"""`qpass run`: apply passes to a file."""

from __future__ import annotations

import argparse

from qpass.cli.common import add_json, add_model, add_output, load_model, print_json, written


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qpass run`."""
    parser.epilog = (
        "example:\n"
        "  qpass run inference.pdmodel -p 'fold-batch-norm,drop-identity' -o out/inference\n"
        "  qpass run quant/inference -p 'strip-quant{layers=conv2d_1.w_0}' -o out/inference\n"
        "  qpass run --list"
    )
    parser.add_argument("--list", action=_ListPasses, help="list the passes with their options, and exit")
    add_model(parser)
    parser.add_argument("-p", "--passes", required=True, metavar="SPEC", help="passes, by commas, each with {options}")
    add_output(parser, "prefix of the files to write")
    add_json(parser)
    parser.set_defaults(execute=execute)


class _ListPasses(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, help: str | None = None) -> None:  # noqa: A002
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import dataclasses
        import inspect

        from qpass.passes import REGISTRY
        from qpass.rewrite.passes import spec_name

        for cls in REGISTRY:
            summary = (inspect.getdoc(cls) or "").splitlines()[0]
            options = " ".join(f.name.replace("_", "-") for f in dataclasses.fields(cls))  # type: ignore[arg-type]
            print(f"{spec_name(cls)}{'{' + options + '}' if options else ''}\n    {summary}")
        parser.exit()


def execute(args: argparse.Namespace) -> int:
    """Run `qpass run`."""
    from qpass.formats.files import save
    from qpass.passes import parse_passes
    from qpass.rewrite.pipeline import run_with_report

    pipeline = parse_passes(args.passes)
    model = load_model(args)
    made, report = run_with_report(model, pipeline)
    program, params = save(made, args.output, overwrite=args.overwrite)
    if args.json:
        print_json({"program": str(program), "params": str(params), "passes": report.to_dicts()})
        return 0
    print(report)
    print(written(model, program, params))
    return 0
