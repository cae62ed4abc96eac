"""Values of a graph: versions, the networkx view, program order, reachability."""

from __future__ import annotations

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.build import Builder
from support.corpus import PROGRAMS, corpus
from support.strategies import models

from qpass.formats import pdmodel
from qpass.ir.graph import Decl, Graph, Use, ValueRef
from qpass.ir.model import Model
from qpass.ir.op import Op


def straight(*ops: tuple[str, dict, dict]) -> Graph:
    made = tuple(Op.make(*op) for op in ops)
    names = dict.fromkeys(n for op in made for _, _, n in (*op.reads(), *op.writes()))
    numbered = tuple(Op(op.type, op.inputs, op.outputs, uid=10 * i) for i, op in enumerate(made))
    return Graph(numbered, {name: Decl(name) for name in names})


def op_nodes(nodes: set) -> set[int]:
    return {node for node in nodes if isinstance(node, int)}


def test_versions_count_the_writes_of_a_name():
    graph = straight(
        ("first", {"X": "a"}, {"Out": "b"}),
        ("again", {"X": "b"}, {"Out": "b"}),
        ("other", {"X": ["a", "b", "b"]}, {"Out": ["a", "c"]}),
        ("last", {"X": ["a", "", "@EMPTY@"]}, {"Out": "b"}),
    )
    first, again, other, last = graph.ops
    assert graph.read(first, "X") == ValueRef("a", 0)
    assert (graph.read(again, "X"), graph.written(again, "Out")) == (ValueRef("b", 1), ValueRef("b", 2))
    assert [graph.read(other, "X", i) for i in range(3)] == [("a", 0), ("b", 2), ("b", 2)]
    assert graph.read(last, "X") == ValueRef("a", 1)
    assert graph.last("b") == ValueRef("b", 3)
    assert graph.last("nowhere") == ValueRef("nowhere", 0)
    with pytest.raises(KeyError):
        graph.read(last, "X", 1)


def test_writers_readers_and_uses():
    graph = straight(
        ("first", {"X": "a"}, {"Out": "b"}), ("add", {"X": "b", "Y": "b"}, {"Out": "c"}), ("end", {"X": "b"}, {})
    )
    first, add, end = graph.ops
    b = ValueRef("b", 1)
    assert graph.writer(b) is first
    assert graph.definition(b) == Use(0, "Out", 0)
    assert graph.writer(ValueRef("a", 0)) is None
    assert graph.uses(b) == (Use(10, "X", 0), Use(10, "Y", 0), Use(20, "X", 0))
    assert graph.readers(b) == (add, end)


def test_networkx_view_keeps_both_edges_of_add_a_a_and_is_frozen():
    graph = Builder().feed("x", [-1, 4]).add("x").model().graph
    add = next(op for op in graph.ops if op.type == "elementwise_add")
    x = ValueRef("x", 1)
    assert set(graph.nx[x][add.uid]) == {("X", 0), ("Y", 0)}
    assert graph.nx.nodes[add.uid]["op"] is add
    assert graph.nx.nodes[x]["decl"] is graph.decls["x"]
    with pytest.raises(nx.NetworkXError):
        graph.nx.add_node(99)


def test_in_place_pairs_do_not_make_a_cycle():
    graph = Builder().feed("x", [-1, 2, 4, 4]).batch_norm().model().graph
    norm = next(op for op in graph.ops if op.type == "batch_norm")
    assert norm.input("Mean") == norm.output("MeanOut")
    assert nx.is_directed_acyclic_graph(graph.nx)


@given(models())
def test_networkx_view_has_one_edge_an_operand_and_no_cycle(model: Model):
    for graph in model.blocks:
        operands = sum(len([*op.reads(), *op.writes()]) for op in graph.ops)
        assert graph.nx.number_of_edges() == operands
        assert nx.is_directed_acyclic_graph(graph.nx)
        assert all(len(list(graph.nx.predecessors(node))) <= 1 for node in graph.nx if isinstance(node, ValueRef))


@given(models())
def test_topological_order_of_a_program_is_its_own(model: Model):
    assert all(graph.topological() == graph.ops for graph in model.blocks)


@pytest.mark.parametrize("path", PROGRAMS)
def test_topological_order_of_the_corpus_is_its_own(path: str):
    blocks, _ = pdmodel.decode(corpus(path).read_bytes(), path)
    assert all(graph.topological() == graph.ops for graph in blocks)
    assert all(nx.is_directed_acyclic_graph(graph.nx) for graph in blocks)


def test_topological_order_keeps_an_overwriter_behind_the_readers_of_the_old_value():
    graph = straight(("read", {"X": "a"}, {"Out": "b"}), ("overwrite", {"X": "c"}, {"Out": "a"}))
    swapped = {0: 1, 10: 0}
    object.__setattr__(graph, "position", swapped)
    assert [op.type for op in graph.topological()] == ["read", "overwrite"]


@given(models(sub_blocks=False), st.data())
def test_reach_is_that_of_networkx(model: Model, data: st.DataObject):
    graph = model.graph
    uids = data.draw(st.sets(st.sampled_from([op.uid for op in graph.ops]), min_size=1, max_size=3))
    below = op_nodes(set().union(*(nx.descendants(graph.nx, uid) for uid in uids))) - uids
    above = op_nodes(set().union(*(nx.ancestors(graph.nx, uid) for uid in uids))) - uids
    assert [op.uid for op in graph.downstream(uids)] == [op.uid for op in graph.ops if op.uid in below]
    assert [op.uid for op in graph.upstream(uids)] == [op.uid for op in graph.ops if op.uid in above]
