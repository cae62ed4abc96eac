"""Running passes one after another: a composition of passes is a pass."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass

from qpass.formats import pdmodel
from qpass.ir.model import Model
from qpass.rewrite.passes import Pass
from qpass.rewrite.spec import to_spec


@dataclass(frozen=True)
class Pipeline(Pass):
    """Passes one after another, in the order given.

    Parameters
    ----------
    passes : tuple of Pass
        Pipelines among them are allowed.
    """

    passes: tuple[Pass, ...] = ()

    def run(self, model: Model) -> Model:
        """The model after the last pass, or `model` itself when none changed it."""
        for each in self.passes:
            model = each(model)
        return model

    def __call__(self, model: Model) -> Model:
        """Run the passes; each checks its own result, and whether it may change the interface."""
        return self.run(model)


@dataclass(frozen=True)
class Size:
    """How large a model is.

    Parameters
    ----------
    ops : int
        Over all blocks.
    params : int
        Number of parameters.
    param_bytes : int
        Bytes of parameter data, without the headers of a file.
    program_bytes : int
        Bytes of the program as a `.pdmodel` file.
    """

    ops: int
    params: int
    param_bytes: int
    program_bytes: int

    @classmethod
    def of(cls, model: Model) -> Size:
        """Measure `model`."""
        program = pdmodel.encode(model.blocks, model.extra)
        ops = sum(len(graph.ops) for graph in model.blocks)
        return cls(ops, len(model.params), model.params.nbytes, len(program))


@dataclass(frozen=True)
class Record:
    """What one pass did.

    Parameters
    ----------
    spec : str
        The pass as text, as on the command line.
    changed : bool
    before, after : Size
    seconds : float
        Wall-clock time of the pass, verification included.
    """

    spec: str
    changed: bool
    before: Size
    after: Size
    seconds: float

    def __str__(self) -> str:
        if not self.changed:
            return f"{self.spec}: nothing to do ({self.seconds:.3f} s)"
        pairs = ((f.name.replace("_", " "), f.name) for f in dataclasses.fields(Size))
        changes = [
            f"{words} {getattr(self.before, name)} -> {getattr(self.after, name)}"
            for words, name in pairs
            if getattr(self.before, name) != getattr(self.after, name)
        ]
        return f"{self.spec}: {', '.join(changes) or 'changed, same size'} ({self.seconds:.3f} s)"


@dataclass(frozen=True)
class Report:
    """What a run of several passes did.

    Parameters
    ----------
    records : tuple of Record
        One for each pass, in order; the passes of a nested pipeline count one by one.
    """

    records: tuple[Record, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether any pass changed the model."""
        return any(record.changed for record in self.records)

    def to_dicts(self) -> list[dict[str, object]]:
        """The records as plain dictionaries, for JSON."""
        return [dataclasses.asdict(record) for record in self.records]

    def __str__(self) -> str:
        return "\n".join(map(str, self.records)) or "no passes"


def run(model: Model, passes: Pass | Iterable[Pass]) -> Model:
    """Run passes in the order given.

    Parameters
    ----------
    model : Model
    passes : Pass or iterable of Pass

    Returns
    -------
    Model
        `model` itself when no pass changed anything.

    Raises
    ------
    PassError
        If a pass cannot be applied.
    """
    return Pipeline((passes,) if isinstance(passes, Pass) else tuple(passes))(model)


def run_with_report(model: Model, passes: Pass | Iterable[Pass]) -> tuple[Model, Report]:
    """Run passes in the order given, and say what each of them did.

    Measuring the program writes it out after every pass that changed something; `run` does not.

    Parameters
    ----------
    model : Model
    passes : Pass or iterable of Pass

    Raises
    ------
    PassError
        If a pass cannot be applied.
    """
    records: list[Record] = []
    before = Size.of(model)
    for each in _flat((passes,) if isinstance(passes, Pass) else passes):
        start = time.perf_counter()
        made = each(model)
        seconds = time.perf_counter() - start
        after = before if made is model else Size.of(made)
        records.append(Record(to_spec(each), made is not model, before, after, seconds))
        model, before = made, after
    return model, Report(tuple(records))


def _flat(passes: Iterable[Pass]) -> Iterable[Pass]:
    for each in passes:
        if isinstance(each, Pipeline):
            yield from _flat(each.passes)
        else:
            yield each
