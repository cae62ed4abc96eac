"""The errors qpass raises: one root class, one subclass per kind of failure.

Every message says where the failure is (file, offset, block, op, slot), what was expected there, and what to do next.
"""

from __future__ import annotations


class QPassError(Exception):
    """Root of every error that qpass raises on purpose.

    Parameters
    ----------
    what : str
        What went wrong, with the expectation that was not met.
    where : str, optional
        The place: a file, an offset in it, a block, an op, a slot.
    hint : str, optional
        What the reader can do next.
    """

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.what = what
        self.where = where
        self.hint = hint
        text = f"{where}: {what}" if where else what
        super().__init__(f"{text}\n  hint: {hint}" if hint else text)


class FormatError(QPassError):
    """A file is not what its name or its header promises, or cannot be written."""


class VerifyError(QPassError):
    """A graph breaks an invariant of the IR."""


class EditError(QPassError):
    """An edit transaction asks for something impossible; nothing was changed."""


class PassError(QPassError):
    """A pass has wrong options or cannot be applied to this model."""


class QuantError(QPassError):
    """A quantization site, scale or encoding is inconsistent or not supported."""


class DataError(QPassError):
    """Calibration or evaluation data do not fit the model's interface."""


class EngineError(QPassError):
    """An engine cannot be made, or failed while it ran a model."""


class EvalError(QPassError):
    """The user's evaluation function raised, or returned no usable number."""


class AlignError(QPassError):
    """A quantized model and its float twin cannot be matched layer by layer."""


class CheckpointError(QPassError):
    """A checkpoint cannot be read, or belongs to another job."""


class TargetError(QPassError):
    """A target metric is out of reach of quantization."""


class UsageError(QPassError):
    """An argument is wrong; the command line answers with exit code 2."""
