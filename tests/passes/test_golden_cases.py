"""Every golden case of the passes, as whole texts; and that a damaged golden is noticed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from support.golden_case import FOLDER, Case, named_passes, shown

from qpass.passes import AddQuantDefaults, DropDebugInfo, DropIdentity, FoldBatchNorm, RemoveUnused
from qpass.rewrite.passes import spec_name
from qpass.rewrite.pipeline import run

CASES = {path.stem: Case.read(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.txt"))}
CHANGED = [stem for stem, case in CASES.items() if case.expected is not None]


def check(case: Case) -> None:
    before, passes = case.input(), named_passes(case.passes)
    made = run(before, passes)
    if case.expected is None:
        assert made is before
    else:
        assert shown(made) == case.expected
    assert run(made, passes) is made
    assert case.miss is None or case.miss in case.misses()


@pytest.mark.parametrize("stem", CASES)
def test_golden(stem: str) -> None:
    check(CASES[stem])


@pytest.mark.parametrize("stem", CASES)
def test_files_are_canonical(stem: str) -> None:
    assert CASES[stem].rewritten() == (FOLDER / f"{stem}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("cls", [AddQuantDefaults, DropDebugInfo, DropIdentity, FoldBatchNorm, RemoveUnused])
def test_every_pass_has_cases_that_change_and_cases_that_do_not(cls: type) -> None:
    mine = [case for case in CASES.values() if case.passes == spec_name(cls)]
    assert {case.expected is None for case in mine} == {True, False}


DAMAGE: dict[str, Callable[[str], str | None]] = {
    "a line is missing": lambda text: "".join(text.splitlines(keepends=True)[:-1]),
    "a digit is another": lambda text: text[:-2] + ("0" if text[-2] != "0" else "1") + "\n",
    "an operand is another": lambda text: text.replace("x@1", "x@2", 1),
    "the expectation is missing": lambda text: None,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("stem", CHANGED)
def test_a_damaged_golden_is_noticed(stem: str, damage: str) -> None:
    expected = CASES[stem].expected
    assert expected is not None
    with pytest.raises(AssertionError):
        check(dataclasses.replace(CASES[stem], expected=DAMAGE[damage](expected)))


@pytest.mark.parametrize("stem", [stem for stem in CASES if stem not in CHANGED])
def test_an_expectation_too_many_is_noticed(stem: str) -> None:
    with pytest.raises(AssertionError):
        check(dataclasses.replace(CASES[stem], expected="qpass text 1\n"))
