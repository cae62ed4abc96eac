"""Which of Paddle Inference's own graph passes are wrong for a model. Each case was seen with 2.6.2 and 3.3.1."""

from __future__ import annotations

from qpass.ir.graph import Graph
from qpass.ir.model import Model

_FOLD_BATCH_NORM = (
    "conv_bn_fuse_pass",
    "conv_eltwiseadd_bn_fuse_pass",
    "conv_transpose_bn_fuse_pass",
    "conv_transpose_eltwiseadd_bn_fuse_pass",
)
_FOLDED = ("conv2d", "depthwise_conv2d", "conv2d_transpose", "batch_norm", "elementwise_add")


def unfit_passes(model: Model) -> tuple[str, ...]:
    """Names of the passes to leave out, so that every fetch gives what the program says.

    - The passes that fold batch norms write into the weight in place: a weight that several convolutions share is
      scaled several times, and the outputs are silently wrong.
    - `batch_norm_act_fuse_pass` drops the value between batch norm and activation although it is fetched: not found.
    - `constant_folding_pass` folds the fetch of a value that depends on no input: refused.
    """
    graph = model.graph
    fetched = [graph.last(port.name) for port in model.fetches]
    feeds = {op.uid for op in graph.ops if op.type == "feed"}
    fed = {op.uid for op in graph.downstream(feeds)} | feeds
    unfit: list[str] = []
    if _shares_constants(graph, fed):
        unfit.extend(_FOLD_BATCH_NORM)
    if any(len(graph.readers(value)) > 1 for value in fetched):
        unfit.append("batch_norm_act_fuse_pass")
    if any(op is not None and op.uid not in fed for op in map(graph.writer, fetched)):
        unfit.append("constant_folding_pass")
    return tuple(unfit)


def _shares_constants(graph: Graph, fed: set[int]) -> bool:
    """Whether two ops that batch norms are folded into read one parameter, or one value computed from parameters."""
    if all(op.type != "batch_norm" for op in graph.ops):
        return False
    computed = {name for op in graph.ops if op.uid not in fed for _, _, name in op.writes()}
    seen: set[str] = set()
    for op in graph.ops:
        if op.type not in _FOLDED:
            continue
        names = {name for _, _, name in op.reads()}
        constants = {n for n in names if n in computed or (n in graph.decls and graph.decls[n].persistable)}
        if constants & seen:
            return True
        seen |= constants
    return False
