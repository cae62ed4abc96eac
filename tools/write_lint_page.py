"""Write docs/lint.md from the registry of lint rules and the table of targets.

python tools/write_lint_page.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qpass.quant.lint.rule import Rule
from qpass.quant.lint.run import RULES
from qpass.quant.presets import TARGETS, Target

PAGE = Path(__file__).resolve().parents[1] / "docs" / "lint.md"

_HEAD = """# What lint looks for

<!-- Written by tools/write_lint_page.py; change the rules in qpass/quant/lint/ and run it again. -->

```
qpass lint int8/inference --target onednn
qpass lint int8/inference --target onednn --fix -o mended/inference
```

lists the traps of a deployment engine that a file falls into, op by op, with the pass that mends each; `--fix` applies
these passes, lints again and writes the model. Exit codes: 0 nothing found (with `--fix`: nothing left), 1 findings,
2 wrong usage. `--json` prints the findings for programs. In Python, `lint(model, target)` of `qpass.quant.lint.run`
gives the findings and `mend(model, target)` of `qpass.mend` the mended model.

Nothing is run: rules read the file. Of the engines, oneDNN was run to check them (Paddle 2.6.2 and 3.3.1,
`tests/runtime/test_what_the_int8_engine_quantizes.py`); TensorRT and Paddle Lite were not: their rules follow the named
source files and what users reported. A file `*_onednn_pass.cc` of Paddle 3 is in 2.6 `mkldnn/*_mkldnn_pass.cc`.
"""

_MARKS = """
## How an op is kept in float under oneDNN

The engine does not look where quantization ops stand: it collects scales of values, spreads them over ops that move
values and over pools, and quantizes every op of its list for which it has them. `mark-skip-quant` computes what that
would be and spares what no pair stands before:

- the attribute `skip_quant`, an **integer** 1. The framework's own passes write a boolean, at which the engine stops;
- before a product with a bias, and in a residual sum, an `assign`: both lose the attribute when they are fused (into
  `fc`, into the convolution), but what `assign` makes has no scale, and without one neither is quantized.

The price is speed: values are dequantized before a spared op, and a residual sum is no longer part of its convolution.
"""


def page() -> str:
    """The text of the page."""
    return "\n".join((_HEAD, "## Targets\n", *_targets(), *_rules())) + _MARKS


def _targets() -> Iterator[str]:
    yield "| target | engine | reads | written | bits | weights of | full: inputs of | before | after |"
    yield "|---|---|---|---|---|---|---|---|---|"
    yield from (_target(target) for target in TARGETS.values())
    yield ""
    yield from (f"- `{target.name}`: {target.source}." for target in TARGETS.values())


def _target(target: Target) -> str:
    bits = f"{target.bits[0]} to {target.bits[-1]}" if len(target.bits) > 2 else ", ".join(map(str, target.bits))
    cells = (
        f"`{target.name}`",
        target.engine,
        ", ".join(target.accepts),
        target.encoding,
        bits,
        _code(target.op_types),
        _code(target.activation_op_types),
        _code(target.before),
        _code(target.after),
    )
    return f"| {' | '.join(cells)} |"


def _rules() -> Iterator[str]:
    yield "\n## Rules\n"
    yield "| rule | targets | what | what the engine does | mended by | source |"
    yield "|---|---|---|---|---|---|"
    yield from (_rule(rule) for rule in RULES)


def _rule(rule: Rule) -> str:
    mends = rule.mends or "nothing: it needs data, or a decision"
    cells = (f"`{rule.name}`", ", ".join(rule.targets), rule.what, rule.consequence, mends, rule.source)
    return f"| {' | '.join(cells)} |"


def _code(words: tuple[str, ...]) -> str:
    return ", ".join(f"`{word}`" for word in words) or "-"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
