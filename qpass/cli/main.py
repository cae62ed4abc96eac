"""The `qpass` command: parser, dispatch, errors. Each subcommand has a module of its own beside this one.

Exit codes: 0 done, 1 the job failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import TextIO

from qpass._version import __version__
from qpass.errors import QPassError, UsageError

COMMANDS = {
    "inspect": "what is in a model: ops, layers, quantization sites, sizes",
    "dump": "the canonical text form of a model",
    "diff": "what differs between two models",
    "run": "apply passes to a file",
    "convert": "spell the quantization of a model in another encoding",
    "lint": "traps of a deployment engine that a file falls into",
    "compare": "what an engine computes, beside simulation and float model",
    "quantize": "calibrate and write an int8 model",
    "analyze": "rank the layers by what int8 costs them",
    "skiplist": "the layers to leave in float, from an analysis",
    "demo": "the whole job on the bundled model",
    "doctor": "what this installation can do",
}


def build_parser(commands: Sequence[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The parser, with the full arguments of `commands` only: the others are named, so that help lists them all."""
    parser = argparse.ArgumentParser(
        prog="qpass",
        description="Compiler passes for Paddle inference models: quantize, strip, fold, analyze.",
        epilog="exit codes: 0 done, 1 the job failed, 2 wrong usage.  `qpass COMMAND --help` shows an example of each.",
    )
    parser.add_argument("--version", action="version", version=f"qpass {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        sub = subparsers.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name in commands:
            importlib.import_module(f"qpass.cli.{name}").configure(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    named = next((a for a in arguments if a in COMMANDS), None)
    args = build_parser((named,) if named else ()).parse_args(arguments)
    warnings.showwarning = _show_warning
    try:
        code: int = args.execute(args)
        sys.stdout.flush()
    except QPassError as error:
        if args.debug:
            traceback.print_exc()
        print(f"qpass {args.command}: {in_options(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except BrokenPipeError:
        _drop_output()
        return 1
    except OSError as error:
        if args.debug:
            traceback.print_exc()
        print(f"qpass {args.command}: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        _drop_output()
        return 1
    except KeyboardInterrupt:
        if args.debug:
            traceback.print_exc()
        print(f"qpass {args.command}: interrupted", file=sys.stderr)
        return 1
    return code


OPTIONS = {
    "overwrite=True": "--overwrite",
    "model_filename=": "--model-filename",
    "params_filename=": "--params-filename",
    ", or pass structure_only=True for the program alone": "",
    "restore='float'": "--restore float",
    "restore='self'": "--restore self",
    "mapping={quantized layer: float layer}": "--map FILE",
    "engine='inference'": "--engine inference",
    "higher_is_better=False": "--lower-is-better",
    "leave higher_is_better alone": "leave it out",
    "evaluate=": "--eval",
    "without resume": "without --resume",
    "leave settle out": "leave --settle out",
    " as save_dir": " as --output",
    "analyze_qat": "qpass analyze",
}
"""The library's words for its arguments -> the command line's."""


def in_options(error: QPassError) -> str:
    """The message of an error, with the options of the command line in place of the arguments of functions."""

    def worded(text: str) -> str:
        for argument, option in OPTIONS.items():
            text = text.replace(argument, option)
        return text

    return str(QPassError(worded(error.what), where=error.where, hint=error.hint and worded(error.hint)))


def _drop_output() -> None:
    """Let nothing more go to standard output, so that the interpreter's last flush cannot fail."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"qpass: warning: {message}", file=file or sys.stderr)
