"""`ScaleTable`: the thresholds of every tensor that calibration saw, with how they were found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from qpass.errors import FormatError, QuantError
from qpass.formats.atomic import write_together
from qpass.ir.graph import Graph, ValueRef

_VERSION = 1


@dataclass(frozen=True, eq=False)
class ScaleTable:
    """Thresholds by value name.

    A threshold is the absolute value that maps to the highest level, in the tensor's own units: absmax, not absmax/127.

    Parameters
    ----------
    activations : Mapping[str, float]
        Threshold of each activation, by `key`.
    weights : Mapping[str, np.ndarray]
        Thresholds of each weight: float32, shape () per tensor or (C,) per channel.
    weight_axes : Mapping[str, int or None]
        Channel axis of each weight; None is per tensor.
    algo, weight_algo : str
        How they were found.
    program_digest, params_digest, data_digest : str
        Of the calibrated model and its data; empty when unknown.
    samples : int
        Number of samples seen.
    """

    activations: Mapping[str, float]
    weights: Mapping[str, np.ndarray]
    weight_axes: Mapping[str, int | None]
    algo: str = "avg"
    weight_algo: str = "channel_wise_abs_max"
    program_digest: str = ""
    params_digest: str = ""
    data_digest: str = ""
    samples: int = 0
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("activations", "weights", "weight_axes", "ranges"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        for name, threshold in self.activations.items():
            if not np.isfinite(threshold) or threshold < 0:
                raise QuantError(f"threshold {threshold} is not a finite number >= 0", where=f"activation {name!r}")
        for name, array in self.weights.items():
            if not np.isfinite(array).all() or (array < 0).any():
                raise QuantError("a threshold is not a finite number >= 0", where=f"weight {name!r}")
            if name not in self.weight_axes:
                raise QuantError("no channel axis is given for it (None is per tensor)", where=f"weight {name!r}")

    def to_json(self) -> str:
        """The table as JSON text, in a stable order."""
        body = {
            "qpass_scales": _VERSION,
            "algo": self.algo,
            "weight_algo": self.weight_algo,
            "program_digest": self.program_digest,
            "params_digest": self.params_digest,
            "data_digest": self.data_digest,
            "samples": self.samples,
            "activations": {
                n: {"threshold": t, "range": list(self.ranges.get(n, ()))} for n, t in self.activations.items()
            },
            "weights": {
                n: {"axis": self.weight_axes[n], "threshold": np.asarray(t, np.float64).tolist()}
                for n, t in self.weights.items()
            },
        }
        return json.dumps(body, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "scale table") -> ScaleTable:
        """Read what `to_json` wrote.

        Raises
        ------
        QuantError
            If the text is not a scale table.
        """
        try:
            body = json.loads(text)
            if body["qpass_scales"] != _VERSION:
                raise QuantError(f"scale table version {body['qpass_scales']}, expected {_VERSION}", where=where)
            acts, weights = body["activations"], body["weights"]
            return cls(
                activations={n: float(a["threshold"]) for n, a in acts.items()},
                weights={n: np.asarray(w["threshold"], np.float32) for n, w in weights.items()},
                weight_axes={n: None if w["axis"] is None else int(w["axis"]) for n, w in weights.items()},
                algo=body["algo"],
                weight_algo=body["weight_algo"],
                program_digest=body["program_digest"],
                params_digest=body["params_digest"],
                data_digest=body["data_digest"],
                samples=body["samples"],
                ranges={n: (float(a["range"][0]), float(a["range"][1])) for n, a in acts.items() if a["range"]},
            )
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as e:
            raise QuantError(
                f"not a scale table ({type(e).__name__}: {e})",
                where=where,
                hint="write one with qpass quantize --scales-out",
            ) from e

    def save(self, path: str | Path) -> None:
        """Write the table as JSON, whole or not at all; its folder is made.

        Raises
        ------
        FormatError
            If the file system refuses.
        """
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_together({target: [self.to_json().encode()]})
        except OSError as e:
            raise FormatError(
                f"cannot write the scale table ({e.strerror or e})",
                where=str(path),
                hint="free some space, or choose a folder that can be written",
            ) from e

    @classmethod
    def load(cls, path: str | Path) -> ScaleTable:
        """Read a JSON table.

        Raises
        ------
        QuantError
            If the file is missing or not a scale table.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as e:
            raise QuantError(f"cannot read it ({e.strerror})", where=str(path)) from e
        except ValueError as e:
            raise QuantError("not a scale table (no UTF-8 text)", where=str(path)) from e
        return cls.from_json(text, str(path))


def key(graph: Graph, ref: ValueRef) -> str:
    """Name of a value in a scale table: its own name, or ``name@version`` where the name is written more than once."""
    return ref.name if graph.last(ref.name) == ref else str(ref)
