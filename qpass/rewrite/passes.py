"""The `Pass` protocol: a pure function from model to model, with options as frozen dataclass fields."""

from __future__ import annotations

import abc
import re
from typing import ClassVar

from qpass.errors import PassError
from qpass.ir.model import Model
from qpass.ir.verify import verify


class Pass(abc.ABC):
    """Base of every pass.

    A concrete pass is a frozen dataclass with a one-line docstring and a `run` method. Calling it runs it and checks
    the result: the graph verifies, and the interface is unchanged unless the class says otherwise. A pass returns the
    same object when it changed nothing, and `repr(pass)` is the Python expression that replays it.

    Attributes
    ----------
    changes_interface : bool
        Whether the pass may change feeds and fetches.
    """

    changes_interface: ClassVar[bool] = False

    @abc.abstractmethod
    def run(self, model: Model) -> Model:
        """The rewritten model, or `model` itself."""

    def __call__(self, model: Model) -> Model:
        """Run the pass and verify what it made.

        Raises
        ------
        VerifyError
            If the result breaks an invariant of the IR: a defect of the pass.
        PassError
            If the pass cannot be applied, or changed an interface it promised to keep.
        """
        made = self.run(model)
        if made is model:
            return model
        verify(made)
        if not self.changes_interface and (made.feeds, made.fetches) != (model.feeds, model.fetches):
            raise PassError("the pass changed feeds or fetches", where=repr(self), hint="a defect of the pass")
        return made


def spec_name(cls: type[Pass]) -> str:
    """Name of a pass on the command line: ``FoldBatchNorm`` -> ``fold-batch-norm``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()
