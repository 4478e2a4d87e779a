"""Models to and from onnx-graphsurgeon, and users' functions over its graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

import helpers
import onnxopt
from onnxopt import ir
from onnxopt.errors import ModelError, PassError

WEIGHT = np.arange(128 * 64, dtype=np.float32).reshape(128, 64) / 8192


def _rich_model() -> onnx.ModelProto:
    """A model with everything that a gs.Graph has no place for."""
    proto = helpers.model(
        """g (float[N, 128] x, bool c) => (float[N, 64] y) {
            a = MatMul (x, w)
            b = Relu (a)
            y = If (c) <
                then_branch = t () => (float[N, 64] p) { p = Add (b, inner) },
                else_branch = e () => (float[N, 64] q) { q = Neg (b) }
            >
        }""",
        opset=17,
        ir_version=10,
        w=WEIGHT,
        inner=np.ones((64,), np.float32),
    )
    proto.doc_string, proto.domain, proto.model_version = "a model", "org.example", 7
    proto.metadata_props.add(key="k", value="v")
    graph = proto.graph
    graph.metadata_props.add(key="g", value="w")
    graph.node[1].doc_string = "a node"
    graph.node[1].metadata_props.add(key="n", value="m")
    graph.value_info.add(name="b", doc_string="a value").type.tensor_type.elem_type = 1
    annotation = graph.quantization_annotation.add(tensor_name="b")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="inner")
    function = proto.functions.add(name="F", domain="f", overload="one", input=["i"], output=["o"])
    function.node.add(op_type="Neg", input=["i"], output=["o"])
    function.opset_import.add(version=17)
    proto.opset_import.add(domain="f", version=1)
    graph.node.add(op_type="F", domain="f", overload="one", input=["a"], output=["unused"], name="call")
    return proto


def _by_name(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with initializers and value infos in the order of their names."""
    copy = onnx.ModelProto.FromString(ir.to_proto(ir.load(proto)).SerializeToString())
    for field in (copy.graph.initializer, copy.graph.value_info):
        field.sort(key=lambda one: one.name)
    return copy


def test_round_trip_gives_the_same_outputs() -> None:
    proto = _rich_model()
    back = ir.to_proto(ir.from_graphsurgeon(ir.to_graphsurgeon(ir.load(proto))))
    feeds = {"x": np.ones((2, 128), np.float32), "c": np.array(True)}
    del proto.graph.node[-1], proto.functions[:], back.graph.node[-1], back.functions[:]
    helpers.assert_same(proto, back, feeds)


def test_optimize_returns_a_graph_for_a_graph() -> None:
    graph = gs.import_onnx(helpers.model("g (float[2] x) => (float[2] y) { a = Identity (x) y = Abs (a) }"))
    result = onnxopt.optimize(graph)
    assert isinstance(result, gs.Graph)
    assert [node.op for node in result.nodes] == ["Abs"]


def test_weights_of_a_file_are_shared_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(_rich_model(), path)
    model = ir.load(path)
    before = model.graph.initializers["w"].const_value
    assert ir.apply_graphsurgeon(model, _rename_graph)
    assert model.graph.initializers["w"].const_value is before


def _rename_graph(graph: gs.Graph) -> None:
    graph.name = "renamed"


def test_what_the_function_leaves_alone_stays_as_it_was() -> None:
    model = ir.load(_rich_model())
    before = _by_name(_rich_model())
    assert ir.apply_graphsurgeon(model, _rename_graph)
    model.graph.name = before.graph.name
    assert _by_name(ir.to_proto(model)) == before


def test_changed_nodes_keep_their_metadata() -> None:
    def to_abs(graph: gs.Graph) -> None:
        graph.nodes[1].op = "Abs"
        graph.nodes[2].attrs["then_branch"].nodes[0].op = "Sub"

    model = ir.load(_rich_model())
    assert ir.apply_graphsurgeon(model, to_abs)
    proto = ir.to_proto(model)
    changed = proto.graph.node[1]
    assert (changed.op_type, changed.doc_string) == ("Abs", "a node")
    assert changed.metadata_props[0].value == "m"
    assert proto.graph.node[2].attribute[0].g.node[0].op_type == "Sub"
    assert {one.name for one in proto.graph.initializer} == {"w", "inner"}
    assert [one.overload for one in proto.functions] == ["one"]
    assert proto.graph.node[3].overload == "one"


def test_overridable_initializer_stays_an_input() -> None:
    proto = helpers.model("g (float[2] d, float[2] x) => (float[2] y) { y = Add (x, d) }", d=np.ones(2, np.float32))
    model = ir.load(proto)
    assert ir.apply_graphsurgeon(model, _rename_graph)
    assert [one.name for one in ir.to_proto(model).graph.input] == ["d", "x"]


def test_reading_a_constant_is_no_change() -> None:
    def read(graph: gs.Graph) -> None:
        assert float(graph.tensors()["w"].values.sum()) == pytest.approx(float(WEIGHT.sum()), rel=1e-5)

    assert not ir.apply_graphsurgeon(ir.load(_rich_model()), read)


def test_changed_constant_is_taken_over() -> None:
    def double(graph: gs.Graph) -> None:
        graph.tensors()["w"].values *= 2

    model = ir.load(_rich_model())
    assert ir.apply_graphsurgeon(model, double)
    value = model.graph.initializers["w"].const_value
    assert value is not None
    np.testing.assert_array_equal(value.numpy(), WEIGHT * 2)


def test_int4_weights_survive_being_read_and_changed() -> None:
    proto = helpers.model("g (float[2] x) => (float[2] y) { y = Abs (x) }", opset=21, ir_version=10)
    packed = onnx.helper.make_tensor("q", onnx.TensorProto.INT4, [3], b"\x21\x03", raw=True)
    proto.graph.initializer.append(packed)
    proto.graph.node.add(op_type="Identity", input=["q"], output=["z"])
    proto.graph.output.add(name="z").type.tensor_type.elem_type = onnx.TensorProto.INT4

    def change(graph: gs.Graph) -> None:
        values = graph.tensors()["q"].values
        values[0] = 7

    model = ir.load(proto)
    assert ir.apply_graphsurgeon(model, change)
    assert ir.to_proto(model).graph.initializer[0].raw_data == b"\x27\x03"


def test_function_may_return_another_graph() -> None:
    def copied(graph: gs.Graph) -> gs.Graph:
        other = graph.copy()
        other.nodes[1].op = "Abs"
        return other

    model = ir.load(_rich_model())
    assert ir.apply_graphsurgeon(model, copied)
    assert ir.to_proto(model).graph.node[1].metadata_props[0].value == "m"


@pytest.mark.parametrize("result", ["failure", 3], ids=["raises", "returns_a_number"])
def test_bad_function_is_named(result: object) -> None:
    def bad(graph: gs.Graph) -> object:
        if result == "failure":
            raise KeyError("no such tensor")
        return result

    with pytest.raises(PassError, match="'bad'"):
        ir.apply_graphsurgeon(ir.load(_rich_model()), bad)


def test_malformed_result_is_refused_and_the_model_stays() -> None:
    def cut(graph: gs.Graph) -> None:
        del graph.nodes[0]

    model = ir.load(_rich_model())
    with pytest.raises(ModelError, match="nothing defines"):
        ir.apply_graphsurgeon(model, cut)
    assert model.graph.num_nodes() == 4
