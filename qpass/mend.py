"""`mend`: apply the passes that lint names."""

from __future__ import annotations

from qpass.ir.model import Model
from qpass.passes import parse_passes
from qpass.quant.lint.run import fixes, lint
from qpass.rewrite.pipeline import run

_ROUNDS = 4
"""Passes may uncover what stood behind what they mended: an encoding, then its scales, then what is left unmarked."""


def mend(model: Model, target: str) -> tuple[Model, tuple[str, ...]]:
    """Apply the passes that mend what lint finds, until it finds nothing more that a pass can mend.

    Parameters
    ----------
    model : Model
    target : str
        ``onednn``, ``tensorrt``, ``lite`` or ``generic``.

    Returns
    -------
    Model
        `model` itself when there was nothing to do.
    tuple of str
        The passes that were run, as text.

    Raises
    ------
    UsageError
        If there is no such target.
    QuantError
        If a pass cannot be applied to what lint found.
    """
    done: list[str] = []
    for _ in range(_ROUNDS):
        specs = fixes(lint(model, target))
        made = run(model, parse_passes(",".join(specs)))
        if made is model:
            break
        done += specs
        model = made
    return model, tuple(done)
