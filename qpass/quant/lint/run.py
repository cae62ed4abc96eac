"""Linting a model for a target, and the passes that mend what was found."""

from __future__ import annotations

from collections.abc import Sequence

from qpass.ir.model import Model
from qpass.quant.lint.engine_rules import ENGINE_RULES
from qpass.quant.lint.placement_rules import PLACEMENT_RULES
from qpass.quant.lint.rule import Finding, Fix, Rule, Subject
from qpass.quant.lint.scale_rules import SCALE_RULES
from qpass.quant.lint.spelling_rules import SPELLING_RULES
from qpass.quant.presets import find_target

RULES: tuple[Rule, ...] = (*SPELLING_RULES, *SCALE_RULES, *PLACEMENT_RULES, *ENGINE_RULES)
"""Every rule. `lint` reports in this order."""

_ORDER = (
    "convert-encoding",
    "add-quant-defaults",
    "mend-pairs",
    "drop-observers",
    "mend-scales",
    "strip-quant",
    "fold-quant",
    "tie-concat-scales",
    "fold-batch-norm",
    "fold-bias",
    "legalize-onednn",
    "mark-skip-quant",
)
"""Marks come last: which ops need one depends on what is left quantized."""


def lint(model: Model, target: str) -> tuple[Finding, ...]:
    """Every trap of `target` that the root block of `model` falls into, rule by rule, in program order.

    Raises
    ------
    UsageError
        If there is no such target.
    """
    subject = Subject(model, find_target(target))
    position = model.graph.position
    return tuple(
        Finding(
            rule=rule.name,
            block=0,
            position=-1 if hit.op is None else position[hit.op.uid],
            op="" if hit.op is None else hit.op.type,
            tensor=hit.tensor,
            what=hit.what,
            consequence=rule.consequence,
            source=rule.source,
            fix=None if hit.fix is None else hit.fix.spec,
            mend=hit.fix,
        )
        for rule in RULES
        if target in rule.targets
        for hit in rule.check(subject)
    )


def fixes(findings: Sequence[Finding]) -> tuple[str, ...]:
    """Text specs of the passes that mend `findings`, each once, in the order in which they have to run."""
    merged: dict[tuple[str, str], dict[str, None]] = {}
    for finding in findings:
        if finding.mend is not None:
            names = merged.setdefault((finding.mend.name, finding.mend.options), {})
            names.update(dict.fromkeys(finding.mend.layers))
    ordered = sorted(merged, key=lambda key: _ORDER.index(key[0]))
    return tuple(Fix(name, options, tuple(merged[name, options])).spec for name, options in ordered)
