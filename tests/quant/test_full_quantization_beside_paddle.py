"""What `is_full_quantize` of the framework quantizes, beside the recipe of the same name, value by value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from support.corpus import corpus, golden
from support.paddle_quantizers import post_training

from qpass import Recipe, calibrate, load, quantize
from qpass.ir.model import Model
from qpass.quant.encodings import find_sites
from qpass.quant.layers import root
from qpass.quant.recipe import FULL_OP_TYPES


def read_quantized(model: Model, *, observers: bool) -> dict[tuple[str, str, str], float]:
    """Threshold of each operand: by the value, the type of the op and what it makes."""
    graph = model.graph
    found = {}
    for site in find_sites(model):
        for use in site.uses if site.observer_only is observers else ():
            op = graph.by_uid[use.op]
            made = next((name for _, _, name in op.writes()), "")
            found[root(graph, site.value).name, op.type, made] = float(np.max(site.threshold))
    return found


def test_all_but_additions_of_biases(tmp_path: Path) -> None:
    folder = corpus("models/resnet8_cifar10")
    with np.load(golden("resnet8_calibration.npz")) as data:
        x = data["x"][:8].astype(np.float32)
    options = {"algo": "abs_max", "onnx_format": True, "is_full_quantize": True}
    theirs = load(post_training(folder, "image", [x], tmp_path, **options))
    recipe = Recipe(activation_op_types=FULL_OP_TYPES, outputs=True)
    model = load(folder)
    ours = quantize(model, calibrate(model, [x], algo="abs_max", engine="executor", recipe=recipe), recipe=recipe)

    expected, found = read_quantized(theirs, observers=False), read_quantized(ours, observers=False)
    # The framework quantizes sums with a bias too, the bias (behind a reshape) and what it is added to. Engines compute
    # them as part of the layer before, and a bias of zeros gets the scale 0 (docs/lint.md). Paddle 2.6 and 3.3 agree.
    biased = {key for key in expected if key[1] == "elementwise_add" and key[2].startswith(("conv2d", "linear"))}
    sums = {key[2] for key in biased}
    assert len(sums) == 10
    assert {key[0] for key in biased} == {
        *(f"conv2d_{i}.tmp_0" for i in range(9)),
        *(f"reshape2_{i}.tmp_0" for i in range(9)),
        "linear_0.tmp_0",
    }
    assert found == {key: threshold for key, threshold in expected.items() if key not in biased}
    assert len(found) > 40

    # Nobody reads the result of a layer quantized then, so an observer keeps its scale.
    assert read_quantized(theirs, observers=True) == {}
    assert {name for name, _, _ in read_quantized(ours, observers=True)} == {
        name for name, _, _ in biased if not name.startswith("reshape2")
    }
