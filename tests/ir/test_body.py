"""Functions that are kept as steps are those that their nodes would be."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from onnxopt import ir
from onnxopt.ir.serialize import serialize
from onnxopt.ops.base import BodyBuilder, OpSpec

SPEC = OpSpec("Made", (), (ir.DataType.FLOAT,), {})


def _built() -> ir.Body:
    builder = BodyBuilder(2, 17)
    x, y = builder.inputs
    total = builder.op("Sum", [x, None, y])
    parts = builder.several("Split", [total, builder.integers(1, 2)], {"axis": 0}, 2)
    scaled = builder.op("Mul", [parts[1], builder.constant(np.array(0.5, np.float32))])
    made = builder.function(SPEC, "first", [scaled, parts[0]])
    assert isinstance(made, ir.Body)
    return made


def _bytes(*functions: ir.Function) -> bytes:
    model = onnx_ir.Model(ir.PlainGraph([], [], nodes=[], opset_imports={"": 17}), ir_version=10, functions=functions)
    return serialize(model).SerializeToString(deterministic=True)


def test_is_written_as_its_nodes_are() -> None:
    steps, nodes = _built(), _built()
    assert [node.name for node in nodes.graph] == [f"n{index}" for index in range(5)]
    assert steps.steps is not None and nodes.steps is None
    assert _bytes(steps) == _bytes(nodes)


def test_knows_its_interface_without_nodes() -> None:
    made = _built()
    names = [[value.name for value in values] for values in (made.inputs, made.outputs)]
    assert names == [["i0", "i1"], ["v4", "v2_0"]]
    assert made.identifier() == (SPEC.domain, "Made", "first") and made.opset_imports == {"": 17}
    assert made.steps is not None
    assert [one is two for one, two in zip(made.graph.inputs, made.inputs, strict=True)] == [True, True]


@pytest.mark.parametrize("made", [False, True], ids=["steps", "nodes"])
def test_is_copied_into_another(made: bool) -> None:
    function = _built()
    if made:
        assert len(function.graph) == 5
    builder = BodyBuilder(2, 17)
    known = dict(zip(function.inputs, reversed(builder.inputs), strict=True))
    builder.copy(function, known)
    copied = builder.function(SPEC, "second", [known[value] for value in function.outputs])
    assert [node.op_type for node in copied] == [node.op_type for node in function]
    assert [value and value.name for value in copied.graph[0].inputs] == ["i1", None, "i0"]
    assert not {value for node in copied for value in node.outputs} & {
        value for node in function for value in node.outputs
    }


def test_tells_the_graphs_that_it_holds() -> None:
    inner = ir.PlainGraph([], [], nodes=[])
    builder = BodyBuilder(1, 17)
    result = builder.op("If", builder.inputs, {"then_branch": inner})
    holder, plain = builder.function(SPEC, "holder", [result]), _built()
    assert (ir.graphs_of(holder), ir.graphs_of(plain)) == ([inner], [])
    assert not ir.is_graph_of(plain, inner)
    assert ir.graphs_of(plain) == [] and plain.steps is not None
    graph = plain.graph
    assert ir.graphs_of(plain) == [graph] and ir.is_graph_of(plain, graph)
