"""Do the quantization of weights once and for all: store integers, or the floats that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qpass.errors import PassError, QuantError
from qpass.ir.model import Model
from qpass.ir.op import Op
from qpass.quant.apart import set_apart
from qpass.quant.encoding import check_threshold, declare_param, replace_maker
from qpass.quant.encoding_b import linear_attrs
from qpass.quant.encodings import find_sites
from qpass.quant.fakequant import fake_quantize, quantize
from qpass.quant.layers import find_weights, select
from qpass.quant.ops import DATA_SLOTS
from qpass.quant.site import QuantSite, Role, Storage
from qpass.quant.spec import QuantSpec
from qpass.quant.strip import strip_sites
from qpass.rewrite.edit import Edit, edit
from qpass.rewrite.passes import Pass
from qpass.rewrite.uses import op_names, undeclare_unused

_TARGETS = ("int8", "float")


@dataclass(frozen=True)
class FoldQuant(Pass):
    """Store quantized weights as int8 behind one dequantize_linear, or as float32 values on the grid behind nothing.

    Either way the model computes what it computed before. Activations are left as they are; for an engine that runs
    int8 they belong in encoding B as well: `ConvertEncoding`. Weights of encoding A, whose scales are taken out after
    the op, are left too. A weight that others read unquantized stays for them; its layer goes by the name of the folded
    copy, ``<weight>.folded``.

    Parameters
    ----------
    to : str
        ``int8`` (as encoding B stores them) or ``float``.
    layers : tuple of str
        Layers by weight name; empty is all.

    Raises
    ------
    PassError
        If `to` is neither.
    QuantError
        If there is no layer of a name, or the weights have more than 8 bits and shall be stored as int8.
    """

    to: str = "int8"
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.to not in _TARGETS:
            raise PassError(f"fold to {self.to!r}, expected one of {', '.join(_TARGETS)}", where="FoldQuant")

    def run(self, model: Model) -> Model:
        """The model with folded weights, or `model` itself when there was nothing to fold."""
        wanted = {layer.name for layer in select(find_weights(model), self.layers)} if self.layers else None
        sites = [
            site
            for site in find_sites(model)
            if site.role is Role.WEIGHT
            and site.encoding != "A"
            and not site.observer_only
            and (wanted is None or site.value.name in wanted)
            and (self.to == "float" or site.storage is not Storage.INT)
        ]
        for site in sites:
            if site.value.name not in model.params:
                raise QuantError("the model has no parameters to fold", where=f"weight {site.value.name!r}")
            check_threshold(site, model.params[site.value.name])
        apart, sites = set_apart(model, sites, ".folded")
        return _to_float(apart, sites) if self.to == "float" else _to_int8(apart, sites)


def _to_float(model: Model, sites: Sequence[QuantSite]) -> Model:
    with edit(model) as e:
        for site in sites:
            if site.storage is Storage.FLOAT:
                weight = model.params[site.value.name]
                e.set_param(site.value.name, fake_quantize(weight, site.threshold, site.spec))
    return strip_sites(e.model, sites, None, ())


def _to_int8(model: Model, sites: Sequence[QuantSite]) -> Model:
    gone: dict[int, Op] = {}
    with edit(model) as e:
        for site in sites:
            name, last = site.value.name, model.graph.by_uid[site.ops[-1]]
            if site.spec.bits > 8:
                raise QuantError(
                    f"{site.spec.bits} bits do not fit int8", where=f"weight {name!r}", hint="fold to float"
                )
            weight = model.params[name]
            ints = quantize(weight, site.threshold, site.spec) if site.storage is Storage.FLOAT else _cast(weight, name)
            e.set_param(name, ints)
            if site.encoding == "B":
                e.rewire(last, "X", 0, name)
            else:
                replace_maker(e, model.graph, last, _dequantize(e, site, last))
                gone[last.uid] = last
            gone.update((uid, model.graph.by_uid[uid]) for uid in site.ops[:-1])
        for uid in {uid for site in sites for uid in site.ops[:-1]}:
            e.remove(uid)
    return undeclare_unused(e.model, {name for op in gone.values() for name in op_names(op)})


def _cast(ints: np.ndarray, name: str) -> np.ndarray:
    cast: np.ndarray = ints.astype(np.int8)
    if not np.array_equal(cast, ints):
        raise QuantError("expected integers of int8 held in floats, found other numbers", where=f"weight {name!r}")
    return cast


def _dequantize(e: Edit, site: QuantSite, last: Op) -> Op:
    name, count = site.value.name, np.asarray(site.threshold).size
    scale = declare_param(e, f"{name}@scale", np.asarray(site.threshold, np.float32).reshape(count))
    zero = declare_param(e, f"{name}@zero_point", np.zeros(count, np.int32))
    out = last.output(DATA_SLOTS[last.type][1])
    attrs = linear_attrs(QuantSpec(site.spec.bits, site.spec.axis))
    return Op.make("dequantize_linear", {"X": name, "Scale": scale, "ZeroPoint": zero}, {"Y": out}, attrs)
