"""`qpass lint`: the traps of a deployment engine that a file falls into, and the passes that mend them."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from qpass.cli.common import add_json, add_model, load_model, print_json
from qpass.errors import UsageError
from qpass.ir.model import Model
from qpass.quant.encodings import find_sites
from qpass.quant.layers import find_layers
from qpass.quant.lint.rule import Finding
from qpass.quant.presets import TARGETS
from qpass.quant.stored import integers_alone


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qpass lint`."""
    parser.epilog = (
        "example:\n  qpass lint int8/inference --target onednn\n"
        "  qpass lint int8/inference --target tensorrt --fix -o mended/inference\n"
        "\n"
        "exit codes: 0 nothing found (with --fix: nothing left), 1 findings, 2 wrong usage"
    )
    parser.add_argument("--rules", action=_ListRules, help="list the rules with their targets, and exit")
    add_model(parser)
    parser.add_argument("--target", required=True, metavar="TARGET", help=f"the engine: {', '.join(TARGETS)}")
    parser.add_argument("--fix", action="store_true", help="apply the passes that mend, and write the model")
    parser.add_argument("-o", "--output", metavar="OUT", help="with --fix: prefix of the files to write")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    add_json(parser)
    parser.set_defaults(execute=execute)


class _ListRules(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, help: str | None = None) -> None:  # noqa: A002
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from qpass.quant.lint.run import RULES

        for rule in RULES:
            mends = f"\n    mended by {rule.mends}" if rule.mends else ""
            print(f"{rule.name}  ({', '.join(rule.targets)})\n    {rule.what}: {rule.consequence}{mends}")
        parser.exit()


def execute(args: argparse.Namespace) -> int:
    """Run `qpass lint`."""
    from qpass.formats.files import check_target, save
    from qpass.mend import mend
    from qpass.quant.lint.run import lint
    from qpass.quant.presets import find_target

    find_target(args.target)
    if args.fix and args.output is None:
        raise UsageError("--fix writes a model, and there is no name for it", hint="add -o OUT")
    if args.output is not None and not args.fix:
        raise UsageError("-o goes with --fix")
    model = load_model(args)
    if args.fix:
        check_target(model, args.output, overwrite=args.overwrite)
    found = lint(model, args.target)
    specs: tuple[str, ...] = ()
    left = found
    files: tuple[str, ...] = ()
    if args.fix:
        model, specs = mend(model, args.target)
        left = lint(model, args.target)
        files = tuple(map(str, save(model, args.output, overwrite=args.overwrite)))
    if args.json:
        print_json(
            {
                "target": args.target,
                "quantized": bool(find_sites(model)),
                "findings": _dicts(found),
                **({"applied": specs, "left": _dicts(left), "files": files} if args.fix else {}),
            }
        )
    else:
        print("\n".join(_report(model, args.target, found, specs, left, fix=args.fix)))
        if files:
            print(f"wrote {' and '.join(files)}")
    return 1 if left else 0


def _dicts(findings: Sequence[Finding]) -> list[dict[str, object]]:
    rows = [dataclasses.asdict(finding) for finding in findings]
    return [{key: value for key, value in row.items() if key != "mend"} for row in rows]


def _report(
    model: Model, target: str, found: Sequence[Finding], specs: Sequence[str], left: Sequence[Finding], *, fix: bool
) -> list[str]:
    lines = []
    if alone := set(integers_alone(model).values()):
        lines.append(f"weights stored as integers alone, as Paddle Lite reads them: {len(alone)}")
    elif not find_sites(model):
        lines.append(f"nothing is quantized in this model; {len(find_layers(model))} layers could be")
    lines += _by_rule(found)
    lines.append(f"{_count(found)} for {target}")
    if fix and specs:
        lines += ["", "applied:", *(f"  {spec}" for spec in specs), f"{_count(left)} left", *_by_rule(left)]
    elif found:
        from qpass.quant.lint.run import fixes

        named = fixes(found)
        if named:
            lines.append(f"passes that mend: {','.join(named)}  (--fix applies them)")
    return lines


def _count(findings: Sequence[Finding]) -> str:
    return f"{len(findings) or 'no'} {'finding' if len(findings) == 1 else 'findings'}"


def _by_rule(findings: Sequence[Finding]) -> list[str]:
    lines: list[str] = []
    for rule in dict.fromkeys(finding.rule for finding in findings):
        rows = [finding for finding in findings if finding.rule == rule]
        lines.append(f"{rule}: {rows[0].consequence}")
        lines.append(f"  source: {rows[0].source}")
        for row in rows:
            lines.append(f"  {row.where}: {row.what}")
            if row.fix is not None:
                lines.append(f"    mend: {row.fix}")
    return lines
