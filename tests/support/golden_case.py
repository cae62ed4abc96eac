"""Golden cases of passes: one text file a case.

::

    passes: fold-batch-norm
    miss: others use the weight        (optional: what `explain` must say)
    --- input
    qpass text 1
    ...
    --- expected
    qpass text 1
    ...

Scale tables (``scales=two_products.json``) and moments (``moments=two_products.npz``) stand beside the cases.

A case without an expected text must come back as the same object. Parameters get values that follow from their names,
so that the digests in the expected text check the arithmetic. ``python tests/support/golden_case.py`` writes all cases
again, inputs in canonical form; look at the difference before you keep it.
"""

from __future__ import annotations

import re
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qpass.ir.dtype import DType
from qpass.ir.model import Model
from qpass.ir.params import Params
from qpass.ir.text import dump, parse
from qpass.ir.verify import persistable_tensors, verify
from qpass.passes import CrossLayerEqualization, parse_passes
from qpass.rewrite.apply import PatternPass
from qpass.rewrite.passes import Pass
from qpass.rewrite.pipeline import run

FOLDER = Path(__file__).resolve().parents[1] / "data" / "passes"


@dataclass(frozen=True)
class Case:
    passes: str
    miss: str | None
    before: str
    expected: str | None

    @classmethod
    def read(cls, text: str) -> Case:
        head, before = text.split("--- input\n")
        before, _, expected = before.partition("--- expected\n")
        fields = dict(line.split(": ", 1) for line in head.splitlines())
        return cls(fields.pop("passes"), fields.pop("miss", None), before, expected or None)

    def input(self) -> Model:
        return filled(parse(self.before))

    def result(self) -> Model:
        return run(self.input(), named_passes(self.passes))

    def misses(self) -> str:
        model, found = self.input(), []
        for each in named_passes(self.passes):
            if isinstance(each, PatternPass | CrossLayerEqualization):
                found += [str(miss) for miss in each.explain(model)]
        return "\n".join(found)

    def rewritten(self) -> str:
        """The file as it should be, by what the passes do now."""
        before = self.input()
        head = f"passes: {self.passes}\n" + (f"miss: {self.miss}\n" if self.miss else "")
        text = f"{head}--- input\n{shown(before)}"
        made = run(before, named_passes(self.passes))
        return text if made is before else f"{text}--- expected\n{shown(made)}"


def named_passes(text: str) -> tuple[Pass, ...]:
    files = r"(scales|moments)=(\w+\.(?:json|npz))"
    return parse_passes(re.sub(files, lambda found: f'{found[1]}="{FOLDER / found[2]}"', text))


def shown(model: Model) -> str:
    return dump(model, full=True)


def filled(model: Model) -> Model:
    """`model` with a value for every parameter, by its name; statistics called ``*var*`` are positive."""
    arrays = {name: _value(name, d.dtype, d.shape) for name, d in persistable_tensors(model).items()}
    return verify(model.replaced(params=Params(arrays)))


def _value(name: str, dtype: DType | None, shape: tuple[int, ...]) -> np.ndarray:
    assert dtype is not None
    random = np.random.default_rng(zlib.crc32(name.encode()))
    if not dtype.is_float:
        return random.integers(-100, 100, shape).astype(dtype.numpy)
    positive = re.search("var|scale", name) is not None
    values = random.integers(1, 16, shape) if positive else random.integers(-16, 16, shape)
    # Integers over 8 from a stream that numpy keeps stable: no rounding, the same on every machine.
    return (values / 8).astype(dtype.numpy)


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.txt")):
        old = path.read_text(encoding="utf-8")
        new = Case.read(old).rewritten()
        if new != old:
            path.write_text(new, encoding="utf-8")
            print(f"wrote {path.name}", file=sys.stderr)
