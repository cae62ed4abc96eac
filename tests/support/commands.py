"""Running `qpass` in this process, and reading the commands that texts show."""

from __future__ import annotations

import contextlib
import io
import shlex
import warnings
from typing import NamedTuple

from qpass.cli.main import build_parser, main
from qpass.passes import parse_passes


class Answer(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


def qpass(*arguments: object) -> Answer:
    """Run one command; the exit code with what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as e:
            code = int(e.code or 0)
    return Answer(code, out.getvalue(), err.getvalue())


def commands_in(text: str) -> list[list[str]]:
    """The arguments of every line of a text that begins with ``qpass``, without redirections."""
    lines = (shlex.split(line, comments=True) for line in text.splitlines() if line.strip().startswith("qpass "))
    return [list(line[1 : next((i for i, word in enumerate(line) if word in (">", "|")), None)]) for line in lines]


def check_command(arguments: list[str]) -> None:
    """Fail unless the command line takes these arguments, and names passes that exist."""
    if arguments == ["run", "--list"]:  # prints and leaves
        return
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        try:
            args = build_parser((arguments[0],)).parse_args(arguments)
        except SystemExit as e:
            raise AssertionError(f"qpass {shlex.join(arguments)}: {err.getvalue()}") from e
    if arguments[0] == "run":
        parse_passes(args.passes)
