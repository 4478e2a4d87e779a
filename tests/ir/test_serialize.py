"""What is read and written here is what onnx-ir reads and writes."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir
import pytest
from onnx_ir import serde

import helpers
from onnxopt.ir.deserialize import deserialize
from onnxopt.ir.serialize import serialize


def _refuse(tensor: onnx_ir.ExternalTensor) -> onnx_ir.TensorProtocol:
    raise AssertionError(f"'{tensor.name}' lies elsewhere")


MODELS = sorted((Path(onnx.__file__).parent / "backend/test/data").rglob("pytorch-*/*/model.onnx"))


def _without_infos_of_initializers(proto: onnx.ModelProto) -> onnx.ModelProto:
    names = {one.name for one in proto.graph.initializer}
    kept = [info for info in proto.graph.value_info if info.name not in names]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
    return proto


def test_reads_and_writes_what_onnx_ir_does() -> None:
    different = []
    for path in MODELS:
        proto = onnx.load(path)
        wanted = _without_infos_of_initializers(serde.serialize_model(serde.deserialize_model(proto)))
        if serialize(deserialize(proto, _refuse)) != wanted or serialize(serde.deserialize_model(proto)) != wanted:
            different.append(path)
    assert not different
    assert len(MODELS) > 50


SCOPES = """
g (float[2] x, bool c) => (float[2] y, float[2] late) {
    y = If (c) <then_branch = t () => (float[2] p) { p = Add (x, late) }, else_branch = e () => (float[2] q) { q = Neg (x) }>
    late = Abs (x)
}
"""


def test_subgraphs_see_what_later_nodes_of_outer_graphs_make() -> None:
    graph = deserialize(helpers.model(SCOPES), _refuse).graph
    branch = graph[0].attributes["then_branch"].as_graph()
    assert branch[0].inputs == (graph.inputs[0], graph[1].outputs[0])


@pytest.mark.parametrize("kind", ["graph", "function"])
def test_what_nothing_makes_is_one_value(kind: str) -> None:
    proto = helpers.model("g (float[2] x) => (float[2] y) { a = Add (x, lost) y = Mul (a, lost) }")
    if kind == "function":
        proto.functions.add(name="F", domain="f", input=["x"], output=["y"], node=proto.graph.node)
    model = deserialize(proto, _refuse)
    graph = model.graph if kind == "graph" else next(iter(model.functions.values())).graph
    assert graph[0].inputs[1] is graph[1].inputs[1]
