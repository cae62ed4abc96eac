"""Passes as text: what is read, what is written, and what each mistake is told."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpass.errors import PassError, UsageError
from qpass.ir.model import Model
from qpass.passes import REGISTRY, FoldBatchNorm, RemoveUnused
from qpass.passes import parse_passes as parse_known
from qpass.rewrite.passes import Pass
from qpass.rewrite.spec import parse_passes, to_spec


class Colour(enum.Enum):
    RED = 1
    DARK_BLUE = 2


class _Idle(Pass):
    def run(self, model: Model) -> Model:
        return model


@dataclass(frozen=True)
class Everything(_Idle):
    """Every type of option."""

    flag: bool = False
    count: int = 3
    ratio: float = 0.5
    name: str = "x"
    layers: tuple[str, ...] = ()
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[int, float] = (1, 1.0)
    maybe: Optional[str] = None  # noqa: UP045 - the other spelling is tested below
    several: tuple[str, ...] | None = None
    colour: Colour = Colour.RED
    restore: Literal["float", "self"] = "float"


@dataclass(frozen=True)
class Needy(_Idle):
    """One option without a default."""

    scale_of: int


@dataclass(frozen=True)
class Arrays(_Idle):
    """An option that has no form as text."""

    table: dict[str, float] | None = None


KNOWN = (Everything, Needy, Arrays, FoldBatchNorm, RemoveUnused)

floats = st.floats(allow_nan=False)
everything = st.builds(
    Everything,
    flag=st.booleans(),
    count=st.integers(),
    ratio=floats,
    name=st.text(),
    layers=st.lists(st.text()).map(tuple),
    sizes=st.lists(st.integers()).map(tuple),
    pair=st.tuples(st.integers(), floats),
    maybe=st.none() | st.text() | st.just("none"),
    several=st.none() | st.lists(st.text() | st.just("none")).map(tuple),
    colour=st.sampled_from(Colour),
    restore=st.sampled_from(["float", "self"]),
)


@given(each=everything | st.builds(Needy, st.integers()) | st.just(FoldBatchNorm()))
def test_round_trip(each: Pass) -> None:
    assert parse_passes(to_spec(each), KNOWN) == (each,)


@given(several=st.lists(everything | st.just(RemoveUnused()), max_size=3))
def test_round_trip_of_lists(several: list[Pass]) -> None:
    assert parse_passes(",".join(map(to_spec, several)), KNOWN) == tuple(several)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("  ", ()),
        ("fold-batch-norm", (FoldBatchNorm(),)),
        ("fold-batch-norm , remove-unused", (FoldBatchNorm(), RemoveUnused())),
        ("fold-batch-norm{}", (FoldBatchNorm(),)),
        ("everything{layers=conv2d_1.w_0}", (Everything(layers=("conv2d_1.w_0",)),)),
        ("everything{layers=a,b flag=true}", (Everything(layers=("a", "b"), flag=True),)),
        ("everything{ layers=a,b ; flag=true; }", (Everything(layers=("a", "b"), flag=True),)),
        ('everything{layers="a, b",c maybe="none"}', (Everything(layers=("a, b", "c"), maybe="none"),)),
        ("everything{layers=}", (Everything(),)),
        ("everything{maybe=none several=none}", (Everything(),)),
        ("everything{ratio=1e-3 count=-7 pair=2,0.5}", (Everything(ratio=1e-3, count=-7, pair=(2, 0.5)),)),
        ("everything{colour=dark_blue restore=self}", (Everything(colour=Colour.DARK_BLUE, restore="self"),)),
        ("needy{scale-of=3}", (Needy(3),)),
        ("needy{scale_of=3}", (Needy(3),)),
    ],
)
def test_reading(text: str, expected: tuple[Pass, ...]) -> None:
    assert parse_passes(text, KNOWN) == expected


def test_writing() -> None:
    assert to_spec(FoldBatchNorm()) == "fold-batch-norm"
    assert to_spec(Everything(flag=True, layers=("a", "b c"))) == 'everything{flag=true layers=a,"b c"}'
    assert to_spec(Needy(3)) == "needy{scale-of=3}"


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("fold-batchnorm", 1, "unknown pass 'fold-batchnorm'\n  hint: did you mean 'fold-batch-norm'?"),
        ("remove-unused,zzz", 15, "unknown pass 'zzz'\n  hint: passes: arrays, everything, fold-batch-norm"),
        ("everything{layer=a}", 12, "has no option 'layer'\n  hint: did you mean 'layers'?"),
        ("fold-batch-norm{x=1}", 17, "has no option 'x'\n  hint: options: none"),
        ("everything{flag=yes}", 17, "option 'flag' of everything: 'yes' is neither true nor false"),
        ("everything{count=1.5}", 18, "'1.5' is not an integer"),
        ("everything{ratio=big}", 18, "'big' is not a number"),
        ("everything{count=1,2}", 18, "expected one value, found 2"),
        ("everything{count=}", 12, "expected one value, found 0"),
        ("everything{pair=1}", 17, "expected 2 values, found 1"),
        ("everything{colour=green}", 19, "'green' is none of red, dark_blue"),
        ("everything{restore=both}", 20, "'both' is none of float, self"),
        ("everything{flag=true flag=true}", 22, "option 'flag' is given twice"),
        ("everything{flag}", 16, "expected '=', found '}'"),
        ("everything{flag=true", 21, "expected a blank, ';' or '}' after a value"),
        ("everything{", 12, "ends, expected an option or '}'"),
        ("everything{layers=a,}", 21, "expected a value, found '}'"),
        ('everything{name="a}', 17, "not a quoted string"),
        ('everything{name="a"b}', 20, "expected a blank, ';' or '}'"),
        ("everything}", 11, "expected ',', found '}'"),
        ("fold-batch-norm,", 17, "the text ends after ','"),
        (",fold-batch-norm", 1, "expected the name of a pass, found ','"),
        ("needy", 6, "needy needs the option 'scale_of'"),
        ("arrays{table=a}", 14, "has no form as text"),
    ],
)
def test_mistakes(text: str, position: int, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_passes(text, KNOWN)
    assert words in str(caught.value)
    assert f"position {position}:" in str(caught.value)


def test_options_without_a_form() -> None:
    with pytest.raises(PassError, match="arrays, option table: dict has no form as text"):
        to_spec(Arrays({"a": 1.0}))


def test_registry_of_the_library() -> None:
    assert parse_known("drop-identity,fold-batch-norm")[1] == FoldBatchNorm()
    assert all(cls.__doc__ and cls.__doc__.splitlines()[0].endswith((".", "...")) for cls in REGISTRY)
