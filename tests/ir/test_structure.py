"""Nodes are sorted where they are out of order, and only there."""

from __future__ import annotations

import onnx_ir
import pytest

import helpers
from onnxopt import ir
from onnxopt.errors import ModelError

CHAIN = "g (float[2] x) => (float[2] y) { a = Abs (x) b = Neg (x) y = Add (a, b) }"
CAPTURING = """
g (float[2] x, bool c) => (float[2] y) {
    a = Abs (x)
    y = If (c) <then_branch = t () => (float[2] p) { p = Neg (a) }, else_branch = e () => (float[2] q) { q = Neg (x) }>
}
"""


def _ops(graph: ir.Graph) -> list[str]:
    return [node.op_type for node in graph]


def test_graphs_in_order_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = ir.load(helpers.model(CAPTURING)).graph
    monkeypatch.delattr(onnx_ir.Graph, "sort")
    ir.sort_nodes(graph)
    assert _ops(graph) == ["Abs", "If"]


@pytest.mark.parametrize(("text", "expected"), [(CHAIN, ["Abs", "Neg", "Add"]), (CAPTURING, ["Abs", "If"])])
def test_sorts_what_is_read_before_it_is_made(text: str, expected: list[str]) -> None:
    graph = ir.load(helpers.model(text)).graph
    last = graph[-1]
    graph.remove(last)
    graph.insert_before(graph[0], last)
    ir.sort_nodes(graph)
    assert _ops(graph) == expected


def test_sorts_branches_too() -> None:
    text = CAPTURING.replace("p = Neg (a)", "b = Abs (a) p = Neg (b)")
    graph = ir.load(helpers.model(text)).graph
    branch = graph[-1].attributes["then_branch"].as_graph()
    last = branch[-1]
    branch.remove(last)
    branch.insert_before(branch[0], last)
    ir.sort_nodes(graph)
    assert _ops(branch) == ["Abs", "Neg"]


def test_refuses_cycles() -> None:
    graph = ir.load(helpers.model(CHAIN)).graph
    graph[0].replace_input_with(0, graph[-1].outputs[0])
    with pytest.raises(ModelError, match="cycle"):
        ir.sort_nodes(graph)


def test_strays_use_nothing_any_more() -> None:
    model = ir.load(helpers.model(CAPTURING))
    x, (first, branching) = model.graph.inputs[0], model.graph
    stray = ir.Node("", "Abs", [x])
    branch = branching.attributes["then_branch"].as_graph()
    inner = ir.Graph([], [], nodes=[ir.Node("", "Neg", [first.outputs[0]])])
    holder = ir.Node("", "If", [model.graph.inputs[1]], [ir.make_attribute("then_branch", inner)])
    ir.release_strays(model)
    assert [user.op_type for user, _ in x.uses()] == ["Abs", "Neg"] and stray.inputs == (None,)
    assert [user for user, _ in first.outputs[0].uses()] == [branch[0]]
    assert holder.inputs == (None,) and branching.inputs[0] is model.graph.inputs[1]
