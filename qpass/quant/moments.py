"""`LayerMoments`: what the rounding of a layer's weight must know of its input, in a size that no data change.

Over all patches x of a layer's input (`qpass.quant.products`), the mean ``E[x]`` and the second moment ``E[x x^T]`` say
everything about first and second moments of what an error D of its rows does to its output::

    E[D x]     = D E[x]
    E[|D x|^2] = sum over rows d of D of  d E[x x^T] d^T
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from qpass.errors import FormatError, QuantError
from qpass.formats.atomic import write_together
from qpass.quant.layers import Layer

_VERSION = 1
_HEAD = "qpass_moments"


@dataclass(frozen=True, eq=False)
class LayerMoments:
    """Moments of the patches that one layer multiplies by.

    Parameters
    ----------
    mean : np.ndarray
        float64 [groups, length of a patch]: mean over samples and positions.
    output : np.ndarray
        float64 [output channels]: mean output of the float weight, without what is added to it afterwards.
    second : np.ndarray or None
        float64 [groups, length, length]: mean of ``x x^T``; None where only means were gathered.
    """

    mean: npt.NDArray[np.float64]
    output: npt.NDArray[np.float64]
    second: npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        given = [a for a in (self.mean, self.output, self.second) if a is not None]
        groups = self.mean.shape[0] if self.mean.ndim == 2 else 0
        fits = groups and self.output.ndim == 1 and not self.output.size % groups
        if not fits or (self.second is not None and self.second.shape != (*self.mean.shape, self.mean.shape[1])):
            raise QuantError(f"moments of shapes {[a.shape for a in given]} do not fit each other")
        if not all(np.isfinite(a).all() for a in given):
            raise QuantError("a moment is NaN or infinite", hint="the model diverges on its calibration data")


@dataclass(frozen=True, eq=False)
class MomentTable:
    """Moments of layers by weight name.

    Parameters
    ----------
    layers : Mapping[str, LayerMoments]
    samples : int
        Number of samples seen.
    params_digest, data_digest : str
        Of the model that ran and of its data; empty when unknown.
    """

    layers: Mapping[str, LayerMoments]
    samples: int = 0
    params_digest: str = ""
    data_digest: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))

    def of(self, layer: Layer, rows: np.ndarray) -> LayerMoments:
        """The moments of a layer whose weight has these rows.

        Raises
        ------
        QuantError
            If the table has none for it, or those of another weight.
        """
        where = f"layer {layer.name!r}"
        hint = "collect the moments of this model, for all layers that are quantized"
        if layer.name not in self.layers:
            raise QuantError(
                f"the table has moments of {len(self.layers)} layers, not of this one", where=where, hint=hint
            )
        found = self.layers[layer.name]
        if found.mean.shape != (len(rows), rows.shape[2]) or found.output.size != len(rows) * rows.shape[1]:
            raise QuantError(
                f"moments of {list(found.mean.shape)} inputs and {found.output.size} outputs, expected "
                f"{[len(rows), rows.shape[2]]} and {len(rows) * rows.shape[1]}",
                where=where,
                hint=hint,
            )
        return found

    def save(self, path: str | Path) -> None:
        """Write the table as ``.npz``, whole or not at all.

        Raises
        ------
        FormatError
            If the file system refuses.
        """
        head = {
            _HEAD: _VERSION,
            "samples": self.samples,
            "params_digest": self.params_digest,
            "data_digest": self.data_digest,
            "layers": [[name, one.second is not None] for name, one in self.layers.items()],
        }
        arrays: dict[str, np.ndarray] = {"head": np.frombuffer(json.dumps(head).encode(), np.uint8)}
        for i, one in enumerate(self.layers.values()):
            arrays |= {f"{i}.mean": one.mean, f"{i}.output": one.output}
            arrays |= {} if one.second is None else {f"{i}.second": one.second}
        stream = io.BytesIO()
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for its own options
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_together({target: [stream.getvalue()]})
        except OSError as e:
            hint = "free some space, or choose a folder that can be written"
            raise FormatError(f"cannot write the moments ({e.strerror or e})", where=str(path), hint=hint) from e

    @classmethod
    def load(cls, path: str | Path) -> MomentTable:
        """Read what `save` wrote.

        Raises
        ------
        QuantError
            If the file is missing or not a table of moments.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                head = json.loads(bytes(file["head"]))
                if head[_HEAD] != _VERSION:
                    raise QuantError(f"moments of version {head[_HEAD]}, expected {_VERSION}", where=str(path))
                layers = {
                    str(name): LayerMoments(*_arrays(file, i, bool(second)))
                    for i, (name, second) in enumerate(head["layers"])
                }
                return cls(layers, int(head["samples"]), str(head["params_digest"]), str(head["data_digest"]))
        except OSError as e:
            raise QuantError(f"cannot read it ({e.strerror or e})", where=str(path)) from e
        except (LookupError, TypeError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as e:
            hint = "write one with MomentTable.save"
            raise QuantError(f"not a table of moments ({type(e).__name__}: {e})", where=str(path), hint=hint) from e


def _arrays(file: Mapping[str, np.ndarray], index: int, second: bool) -> Sequence[npt.NDArray[np.float64]]:
    names = ("mean", "output", "second") if second else ("mean", "output")
    return [np.asarray(file[f"{index}.{name}"], np.float64) for name in names]
