"""What the parameter of a quantized weight holds: its integers, and putting an array in the place of what it held."""

from __future__ import annotations

import dataclasses

import numpy as np

from qpass.errors import QuantError
from qpass.ir.graph import Graph, ValueRef
from qpass.ir.model import Model
from qpass.quant.encoding import check_threshold, declare_param
from qpass.quant.fakequant import quantize
from qpass.quant.layers import find_embeddings, find_layers
from qpass.quant.site import QuantSite, Storage
from qpass.rewrite.edit import Edit
from qpass.rewrite.uses import used_names


def integers_alone(model: Model) -> dict[int, str]:
    """Ops that read an integer weight with nothing before them to make floats of it, by uid, and that weight.

    Only Paddle Lite runs such models (`QuantizeWeights`, Paddle's `WeightQuantization`).
    """
    found: dict[int, str] = {}
    for layer in (*find_layers(model), *find_embeddings(model)):
        for op in layer.ops:
            name = model.graph.by_uid[op.uid].input(op.weight.slot)[op.weight.index]
            if name in model.params and model.params[name].dtype in (np.int8, np.int16):
                found[op.uid] = name
    return found


def integers(model: Model, site: QuantSite) -> np.ndarray:
    """The integers of a quantized weight, stored or computed: int8 for up to 8 bits, else int16.

    Raises
    ------
    QuantError
        If the model has no parameters, the threshold is unknown or unfit, or what is stored is no such integer.
    """
    name = site.value.name
    if name not in model.params:
        raise QuantError(
            "the model has no parameters, and its integers are not known without", where=f"weight {name!r}"
        )
    weight = model.params[name]
    check_threshold(site, weight)
    if site.storage is Storage.FLOAT:
        return quantize(weight, site.threshold, site.spec)
    held: np.ndarray = weight.astype(np.int8 if site.spec.bits <= 8 else np.int16)
    if not np.array_equal(held, weight):
        raise QuantError(f"expected integers of {site.spec.bits} bits, found other numbers", where=f"weight {name!r}")
    return held


def hold(e: Edit, graph: Graph, site: QuantSite, array: np.ndarray, storage: Storage) -> QuantSite:
    """Let the uses of a weight read `array` as its parameter; the site as it is then.

    A weight that others read too stays for them: the uses of `site` read a copy, ``<weight>.folded``.
    """
    name, readers = site.value.name, set(site.uses)
    blocks = e.model.blocks
    elsewhere = used_names(e.model, without=graph) if len(blocks) > 1 else set()
    if name in elsewhere or any(use not in readers for use in graph.uses(site.value)):
        # Declared as float32 whatever it holds, as the framework declares its int8 weights.
        name = declare_param(e, f"{name}.folded", e.model.params[name])
        e.set_param(name, array)
        for use in site.uses:
            e.rewire(use.op, use.slot, use.index, name)
    else:
        e.set_param(name, array)
    return dataclasses.replace(site, value=ValueRef(name, 0), storage=storage)


def held_as_floats(e: Edit, graph: Graph, site: QuantSite) -> QuantSite:
    """Let the parameter of a weight hold its integers in float32; the site as it is then.

    Raises
    ------
    QuantError
        As `integers` does.
    """
    if site.storage is Storage.INT_AS_FLOAT:
        return site
    return hold(e, graph, site, integers(e.model, site).astype(np.float32), Storage.INT_AS_FLOAT)
