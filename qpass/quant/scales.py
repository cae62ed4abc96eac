"""`ScaleTable`: the scales of every tensor that calibration saw, how they were found, and what was seen."""

from __future__ import annotations

import dataclasses
import difflib
import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from qpass.errors import FormatError, QuantError, UsageError
from qpass.formats.atomic import write_together
from qpass.ir.graph import Graph, ValueRef
from qpass.ir.model import Model
from qpass.quant import scale_csv
from qpass.quant.observer_options import DEFAULT_OPTIONS, ObserverOptions
from qpass.quant.record import Statistics

_VERSION = 2
_HEADER = ("algo", "weight_algo", "compat", "program_digest", "params_digest", "data_digest", "samples")


@dataclass(frozen=True, eq=False)
class ScaleTable:
    """Scales by value name.

    A scale is the absolute value that maps to the highest level, in the tensor's own units: absmax, not absmax/127.

    Parameters
    ----------
    activations : Mapping[str, float]
        Scale of each activation, by `key`. 0 only where the statistics say that there was nothing but 0.
    weights : Mapping[str, np.ndarray]
        Scales of each weight: float32, shape () per tensor or (C,) per channel; 0 where there is nothing but 0.
    weight_axes : Mapping[str, int or None]
        Channel axis of each weight; None is per tensor.
    algo, weight_algo : str
        How they were found.
    program_digest, params_digest, data_digest : str
        Of the calibrated model and its data; empty when unknown.
    samples : int
        Number of samples seen.
    statistics : Mapping[str, Statistics]
        What activations were like.
    algos : Mapping[str, str]
        How the scales of single activations and weights were found, where it was in another way.
    compat : str or None
        Whose version of `algo`.
    options : ObserverOptions
        Numbers that `algo` went by.

    Raises
    ------
    QuantError
        If a scale is negative or not finite, or 0 for a tensor that is not known to be 0; if a weight has no axis.
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
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    algos: Mapping[str, str] = field(default_factory=dict)
    compat: str | None = None
    options: ObserverOptions = DEFAULT_OPTIONS

    def __post_init__(self) -> None:
        for name in ("activations", "weights", "weight_axes", "statistics", "algos"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        for name, scale in self.activations.items():
            where = f"activation {name!r}"
            held = _float32(scale)
            if not np.isfinite(held) or scale < 0:
                raise QuantError(f"scale {scale} is not a finite number > 0 (float32)", where=where)
            if held == 0 and (name not in self.statistics or self.statistics[name].absmax > 0):
                raise QuantError(
                    f"scale {scale:g} would make everything 0",
                    where=where,
                    hint="give the largest absolute value to keep, or leave the tensor in float",
                )
        for name, array in self.weights.items():
            if not np.isfinite(array).all() or (array < 0).any():
                raise QuantError("a scale is not a finite number >= 0 (float32)", where=f"weight {name!r}")
            if name not in self.weight_axes:
                raise QuantError("no channel axis is given for it (None is per tensor)", where=f"weight {name!r}")

    def algo_of(self, name: str) -> str:
        """How the scale of an activation or a weight was found."""
        return self.algos.get(name, self.weight_algo if name in self.weights else self.algo)

    def updated(self, scales: Mapping[str, float], algo: str = "manual") -> ScaleTable:
        """The table with other scales for some of its activations.

        Parameters
        ----------
        scales : Mapping[str, float]
        algo : str
            How they were found.

        Raises
        ------
        QuantError
            If the table has no activation of a name, or a scale is not a finite number > 0.
        """
        for name in scales:
            if name not in self.activations:
                raise QuantError(f"the scale table has no activation {name!r}{_nearest(name, self.activations)}")
        return dataclasses.replace(
            self,
            activations={**self.activations, **{name: float(scale) for name, scale in scales.items()}},
            algos={**self.algos, **dict.fromkeys(scales, algo)},
        )

    def check_model(self, model: Model) -> None:
        """Refuse a model that the table was not made for.

        Raises
        ------
        QuantError
            If a tensor of the table is not in the model or has another shape, the model's weights are not those that
            were calibrated, or a weight's scale is 0 where the weight is not.
        """
        graph = model.graph
        known = {key(graph, graph.read(op, slot, i)) for op in graph.ops for slot, i, _ in op.reads()}
        known |= {key(graph, graph.written(op, slot, i)) for op in graph.ops for slot, i, _ in op.writes()}
        for what, names in (("activation", self.activations), ("weight", self.weights)):
            for name in names:
                if name not in known or (what == "weight" and name not in model.params):
                    raise QuantError(
                        f"the scale table has {what} {name!r}, the model has not{_nearest(name, known)}",
                        where=model.source.program,
                        hint="the scale table belongs to another model; calibrate this one",
                    )
        for name in self.weights:
            self._check_weight(name, model.params[name])
        if self.params_digest and self.params_digest != model.params_digest():
            raise QuantError(
                "the scale table was made for other weights",
                where=model.source.program,
                hint="quantize with the target and the foldings of the run that wrote the table, or calibrate this "
                "model; emptying the table's params_digest uses its scales all the same",
            )

    def _check_weight(self, name: str, weight: np.ndarray) -> None:
        scale, axis = self.weights[name], self.weight_axes[name]
        expected = 1 if axis is None else weight.shape[axis] if 0 <= axis < weight.ndim else 0
        if scale.size != expected:
            raise QuantError(
                f"{scale.size} scales on axis {axis}, but the weight has shape {list(weight.shape)}",
                where=f"weight {name!r}",
                hint="the scale table belongs to another model; calibrate this one",
            )
        others = tuple(a for a in range(weight.ndim) if a != axis)
        if (weight.any(axis=others) & (scale.reshape(() if axis is None else -1) == 0)).any():
            raise QuantError("a scale is 0 where the weight is not", where=f"weight {name!r}")

    def to_json(self) -> str:
        """The table as JSON text, in a stable order."""
        body = _body(self)
        flat = {**body["header"], "activations": body["activations"], "weights": body["weights"]}
        return json.dumps(flat, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "scale table") -> ScaleTable:
        """Read what `to_json` wrote, now or in version 1.

        Raises
        ------
        QuantError
            If the text is not a scale table.
        """
        with _readable(where):
            flat = json.loads(text)
            _check_fields(flat, "the table")
            activations, weights = flat["activations"], flat["weights"]
            for what, found in (("activations", activations), ("weights", weights)):
                _check_fields(found, what)
                for name, one in found.items():
                    _check_fields(one, f"{what}: {name!r}")
            if flat["qpass_scales"] == 1:
                activations = {
                    name: _of_version_1(found["threshold"], found["range"]) for name, found in activations.items()
                }
                weights = {name: {"axis": w["axis"], "scale": w["threshold"]} for name, w in weights.items()}
            return _table({"header": flat, "activations": activations, "weights": weights}, where)

    def to_csv(self) -> str:
        """The table as CSV text, a line an activation and a line a channel of a weight."""
        return scale_csv.write(_body(self))

    @classmethod
    def from_csv(cls, text: str, where: str = "scale table") -> ScaleTable:
        """Read what `to_csv` wrote, or lines by hand: the columns kind, name and scale are enough.

        Raises
        ------
        QuantError
            If the text is not a scale table; names the line that is none.
        """
        body = scale_csv.read(text, where)
        with _readable(where):
            return _table({**body, "header": {"qpass_scales": _VERSION, **body["header"]}}, where)

    def save(self, path: str | Path) -> None:
        """Write the table, whole or not at all, as CSV if the path ends in ``.csv``, else as JSON; its folder is made.

        Raises
        ------
        FormatError
            If the file system refuses.
        """
        target = Path(path)
        text = self.to_csv() if target.suffix.lower() == ".csv" else self.to_json()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_together({target: [text.encode()]})
        except OSError as e:
            raise FormatError(
                f"cannot write the scale table ({e.strerror or e})",
                where=str(path),
                hint="free some space, or choose a folder that can be written",
            ) from e

    @classmethod
    def load(cls, path: str | Path) -> ScaleTable:
        """Read a table: CSV if the path ends in ``.csv``, else JSON.

        Raises
        ------
        QuantError
            If the file is missing or not a scale table.
        """
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except OSError as e:
            raise QuantError(f"cannot read it ({e.strerror})", where=str(path)) from e
        except ValueError as e:
            raise QuantError("not a scale table (no UTF-8 text)", where=str(path)) from e
        read = cls.from_csv if Path(path).suffix.lower() == ".csv" else cls.from_json
        return read(text, str(path))


def key(graph: Graph, ref: ValueRef) -> str:
    """Name of a value in a scale table: its own name, or ``name@version`` where the name is written more than once."""
    return ref.name if graph.last(ref.name) == ref else str(ref)


def _nearest(name: str, known: Mapping[str, object] | set[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), 1)
    return f"; the nearest is {near[0]!r}" if near else ""


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """Whatever is wrong with the form of a table becomes one message."""
    try:
        yield
    except UsageError as e:
        raise QuantError(f"not a scale table ({e.what})", where=where) from e
    except (LookupError, TypeError, ValueError, OverflowError, RecursionError) as e:
        why = f"{e} is missing" if isinstance(e, KeyError) else str(e)
        raise QuantError(
            f"not a scale table ({why})", where=where, hint="write one with qpass quantize --scales-out"
        ) from e


def _check_fields(found: object, what: str) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{what} is {reprlib.repr(found)}, expected an object with fields")


def _body(table: ScaleTable) -> scale_csv.Body:
    header: dict[str, object] = {"qpass_scales": _VERSION, **{name: getattr(table, name) for name in _HEADER}}
    activations: dict[str, scale_csv.Activation] = {}
    for name, scale in table.activations.items():
        activations[name] = {"scale": scale, "algo": table.algo_of(name)}
        if known := table.statistics.get(name):
            activations[name].update({"minimum": known.minimum, "maximum": known.maximum, "count": known.count})
            if known.mean is not None and known.std is not None:
                activations[name].update({"mean": known.mean, "std": known.std})
    weights: dict[str, scale_csv.Weight] = {
        name: {
            "axis": table.weight_axes[name],
            "algo": table.algo_of(name),
            "scale": np.asarray(scale, np.float64).tolist(),
        }
        for name, scale in table.weights.items()
    }
    header["options"] = dataclasses.asdict(table.options)
    return {"header": header, "activations": activations, "weights": weights}


def _table(body: scale_csv.Body, where: str) -> ScaleTable:
    header, activations, weights = body["header"], body["activations"], body["weights"]
    if header["qpass_scales"] not in (1, _VERSION):
        raise QuantError(f"scale table version {header['qpass_scales']}, expected 1 or {_VERSION}", where=where)
    given = {name: _fitting(name, header[name]) for name in _HEADER if header.get(name) not in (None, "")}
    table = ScaleTable(
        activations={name: float(found["scale"]) for name, found in activations.items()},
        weights={name: _float32(weight["scale"]) for name, weight in weights.items()},
        weight_axes={name: None if w["axis"] is None else int(w["axis"]) for name, w in weights.items()},
        statistics={name: _statistics(found) for name, found in activations.items() if "minimum" in found},
        options=ObserverOptions(**header.get("options", {})),  # type: ignore[arg-type]
        **given,  # type: ignore[arg-type]
    )
    algos = {name: str(found.get("algo") or "") for name, found in (*activations.items(), *weights.items())}
    return dataclasses.replace(table, algos={n: a for n, a in algos.items() if a and a != table.algo_of(n)})


def _float32(scale: float | Sequence[float]) -> np.ndarray:
    """As a model stores it; infinite where it is too large for that."""
    with np.errstate(over="ignore"):
        return np.asarray(scale, np.float64).astype(np.float32)


def _fitting(name: str, value: object) -> object:
    if not isinstance(value, int if name == "samples" else str):
        raise ValueError(f"{name} is {value!r}")
    return value


def _statistics(found: scale_csv.Activation) -> Statistics:
    return Statistics(
        float(found["minimum"]),
        float(found["maximum"]),
        int(found.get("count", 0)),
        float(found["mean"]) if "mean" in found else None,
        float(found["std"]) if "std" in found else None,
    )


def _of_version_1(threshold: float, limits: Sequence[float]) -> scale_csv.Activation:
    made: scale_csv.Activation = {"scale": threshold}
    if limits:
        made["minimum"], made["maximum"] = limits
    return made
