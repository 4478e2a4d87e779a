"""Loading: nothing is lost, weights stay in the file, malformed models are refused with a sentence."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from canonical import canonical
from onnx import TensorProto
from onnx import helper as make

import helpers
from onnxopt import ir
from onnxopt.errors import ModelError, OptionError

RICH = """
<ir_version: 11, opset_import: ["": 21, "un.known": 3, "f": 1], producer_name: "p", producer_version: "1",
 domain: "d", model_version: 4, doc_string: "doc">
g (float[N, 4] x, bool c, float[2] default = {1.0, 2.0}) => (float[N, 4] y, float[N, ?] z) {
    a = un.known.Weird <foo = 3, t = float[2] {1, 2}, strings = ["a", "b"], floats = [1.0, 2.0]> (x, , default)
    b, , m = un.known.Three (a)
    y = Add (a, b)
    z = f.F <alpha = 2.0> (y)
}
<domain: "f", opset_import: ["": 21]> F <alpha: float = 1.0, beta> (i) => (o) {
    k = Constant <value_float: float = @alpha> ()
    o = Mul (i, k)
}
"""

STORED = {
    TensorProto.INT2: 1,
    TensorProto.INT4: 1,
    TensorProto.UINT4: 1,
    TensorProto.FLOAT4E2M1: 1,
    TensorProto.BFLOAT16: 4,
    TensorProto.FLOAT8E4M3FN: 2,
    TensorProto.FLOAT8E5M2FNUZ: 2,
    TensorProto.FLOAT8E8M0: 2,
    TensorProto.COMPLEX64: 16,
    TensorProto.BOOL: 2,
}
"""Bytes of two elements of types that formats and runtimes handle in their own ways."""


def _rich_model() -> onnx.ModelProto:
    model = onnx.parser.parse_model(RICH)
    _add_documentation(model)
    _add_attributes(model.graph.node[0])
    graph = model.graph
    graph.value_info.add(name="b").type.sequence_type.elem_type.tensor_type.elem_type = 1
    sequence = graph.value_info.add(name="m").type.sequence_type
    sequence.elem_type.map_type.key_type = 7
    sequence.elem_type.map_type.value_type.tensor_type.elem_type = 1
    for dtype, size in STORED.items():
        tensor = graph.initializer.add(name=f"raw{dtype}", data_type=dtype, dims=[2], raw_data=bytes([1] * size))
        tensor.doc_string = "tensor"
        tensor.metadata_props.add(key="t", value="v")
    graph.initializer.append(make.make_tensor("typed_bf16", TensorProto.BFLOAT16, [2], [1.0, 2.0]))
    graph.initializer.append(make.make_tensor("typed_int4", TensorProto.INT4, [3], [1, 2, -3]))
    graph.initializer.append(make.make_tensor("strings", TensorProto.STRING, [2], [b"a", b"\xff"]))
    overload = model.functions.add()
    overload.CopyFrom(model.functions[0])
    overload.overload, overload.doc_string = "second", "a function"
    overload.metadata_props.add(key="f", value="v")
    overload.value_info.add(name="k").type.tensor_type.elem_type = 1
    training = model.training_info.add()
    training.algorithm.name = "sgd"
    training.initialization_binding.add(key="a", value="b")
    return model


def _add_documentation(model: onnx.ModelProto) -> None:
    graph = model.graph
    for one in (model, graph, graph.node[0], graph.input[0]):
        one.metadata_props.add(key="k", value="v")
    for one in (graph, graph.node[0], graph.node[0].attribute[0], graph.input[0]):
        one.doc_string = "documented"
    graph.input[0].type.denotation = "IMAGE"
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    info = graph.value_info.add(name="a", doc_string="value")
    info.type.tensor_type.elem_type = 1
    for name in ("a", "default"):
        annotation = graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="default")
    model.configuration.add(name="two", num_devices=2)
    graph.node[0].device_configurations.add(configuration_id="two")


def _add_attributes(node: onnx.NodeProto) -> None:
    kinds = onnx.AttributeProto
    node.attribute.add(name="type", type=kinds.TYPE_PROTO).tp.tensor_type.elem_type = 1
    node.attribute.add(name="types", type=kinds.TYPE_PROTOS).type_protos.add().tensor_type.elem_type = 1
    node.attribute.add(name="tensors", type=kinds.TENSORS).tensors.append(make.make_tensor("q", 1, [1], [1.0]))
    inner = node.attribute.add(name="graphs", type=kinds.GRAPHS).graphs.add(name="sub", doc_string="graph")
    inner.node.add(op_type="Neg", input=["x"], output=["r"])
    inner.output.add(name="r")
    node.attribute.add(name="sparse", type=kinds.SPARSE_TENSOR).sparse_tensor.CopyFrom(_sparse("s"))
    node.attribute.add(name="sparses", type=kinds.SPARSE_TENSORS).sparse_tensors.append(_sparse("s"))


def _sparse(name: str) -> onnx.SparseTensorProto:
    return make.make_sparse_tensor(make.make_tensor(name, 1, [1], [4.0]), make.make_tensor("", 7, [1], [1]), [3])


def _as_loaded(proto: onnx.ModelProto) -> onnx.ModelProto:
    return ir.to_proto(ir.load(onnx.ModelProto.FromString(proto.SerializeToString())))


def test_nothing_is_lost_in_memory() -> None:
    assert canonical(_as_loaded(_rich_model())) == canonical(_rich_model())


def test_nothing_is_lost_through_files(tmp_path: Path) -> None:
    proto = _rich_model()
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(5000, dtype=np.float32), "large"))
    onnx.save(proto, tmp_path / "in.onnx")
    ir.save(ir.load(tmp_path / "in.onnx"), tmp_path / "out.onnx")
    assert canonical(onnx.load(tmp_path / "out.onnx")) == canonical(proto)


def test_standard_models_come_back_as_they_were() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = {case.name: case.model for case in collect_testcases(None) if case.model is not None}
    data = Path(onnx.__file__).parent / "backend/test/data"
    cases |= {str(path): onnx.load(path) for path in data.rglob("model.onnx") if "node" not in path.parts}
    different = [name for name, proto in cases.items() if not _is_kept(proto)]
    assert not different
    assert len(cases) > 1900


def _is_kept(proto: onnx.ModelProto) -> bool:
    if canonical(_as_loaded(proto)) == canonical(proto):
        return True
    # onnx-ir writes types of initializers in subgraphs as value infos; nothing else may differ.
    settled = _as_loaded(proto)
    return canonical(_as_loaded(settled)) == canonical(settled) and settled.ByteSize() > proto.ByteSize()


def test_sparse_initializer_becomes_a_constant_of_the_same_value() -> None:
    proto = helpers.model("g (float[3] x) => (float[3] y) { y = Add (x, s) }")
    proto.graph.sparse_initializer.append(_sparse("s"))
    loaded = _as_loaded(proto)
    assert loaded.graph.node[0].attribute[0].sparse_tensor == _sparse("s")
    helpers.assert_same(proto, loaded, {"x": np.ones(3, np.float32)})


@pytest.mark.parametrize("opset", [7, 9, 13, 21, 24])
def test_opsets_stay(opset: int) -> None:
    proto = helpers.model("g (float[2] x) => (float[2] y) { y = Abs (x) }", opset=opset)
    assert _as_loaded(proto).opset_import[0].version == opset


def test_weights_are_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    weight = np.ones((64 << 20) // 4, np.float32)
    onnx.save(helpers.model("g (float[1] x) => (float[N] y) { y = Add (x, w) }", w=weight), path)
    code = (
        "import sys; from onnxopt import ir; anon = lambda: next(int(l.split()[1]) for l in open('/proc/self/status')"
        " if l.startswith('RssAnon')); a = anon(); m = ir.load(sys.argv[1]); ir.save(m, sys.argv[2]); print(anon() - a)"
    )
    done = subprocess.run([sys.executable, "-c", code, path, tmp_path / "out.onnx"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 16 << 10  # KiB
    np.testing.assert_array_equal(
        onnx.numpy_helper.to_array(onnx.load(tmp_path / "out.onnx").graph.initializer[0]), weight
    )


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8, np.float64], ids=str)
def test_unaligned_weights_read_right(tmp_path: Path, dtype: type[np.generic]) -> None:
    weight = np.arange(3001).astype(dtype)
    arrays = {}
    for pad in range(8):
        path = tmp_path / f"{pad}.onnx"
        onnx.save(helpers.model("g (float[1] x) => (float[1] y) { y = Abs (x) }", **{"w" * (pad + 1): weight}), path)
        value = ir.load(path).graph.initializers["w" * (pad + 1)].const_value
        assert value is not None
        arrays[pad] = value.numpy()
    for array in arrays.values():
        np.testing.assert_array_equal(array, weight)


def test_import_does_not_load_sympy_or_onnxruntime() -> None:
    code = "import sys; from onnxopt import ir; print(sorted({'sympy', 'onnxruntime', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# --- refusals --------------------------------------------------------------------------------------------------------
GRAPHS = {
    "name_defined_twice": ("g (float[2] x) => (float[2] y) { y = Abs (x) y = Neg (x) }", "'y' is redeclared"),
    "input_defined_again": ("g (float[2] x) => (float[2] x) { x = Abs (x) }", "'x' is redeclared"),
    "dangling_input": ("g (float[2] x) => (float[2] y) { y = Add (x, nowhere) }", "'nowhere'"),
    "cycle": ("g (float[2] x) => (float[2] y) { a = Add (x, b) b = Abs (a) y = Abs (b) }", "cycle"),
    "cycle_of_one": ("g (float[2] x) => (float[2] y) { a = Add (x, a) y = Abs (a) }", "cycle"),
    "missing_output": ("g (float[2] x) => (float[2] nowhere) { y = Abs (x) }", "'nowhere'"),
    "too_few_inputs": ("g (float[2] x) => (float[2] y) { y = Where (x) }", "has 1 inputs; Where takes 3"),
    "too_many_inputs": ("g (float[2] x) => (float[2] y) { y = Abs (x, x) }", "has 2 inputs; Abs takes 1"),
    "required_input_left_out": ("g (float[2] x) => (float[2] y) { y = Add (, x) }", "leaves out its input 0"),
    "attribute_of_wrong_type": ("g (float[2] x) => (float[2] y) { y = Cast <to = 1.0> (x) }", "'to'.*FLOAT"),
    "branch_with_too_few_outputs": (
        "g (bool c) => (float[2] y) { y = If (c) <then_branch = t () => () { p = Constant <value = float[2] {1, 2}> () },"
        " else_branch = e () => (float[2] r) { r = Constant <value = float[2] {1, 2}> () }> }",
        "0 outputs",
    ),
    "dangling_capture": (
        "g (bool c) => (float[2] y) { y = If (c) <then_branch = t () => (float[2] p) { p = Abs (q) },"
        " else_branch = e () => (float[2] r) { r = Constant <value = float[2] {1, 2}> () }> }",
        "'q'",
    ),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_refuses_malformed_graph(case: str) -> None:
    text, message = GRAPHS[case]
    with pytest.raises(ModelError, match=message):
        ir.load(helpers.model(text))


def test_sorts_nodes_that_are_merely_out_of_order() -> None:
    loaded = _as_loaded(helpers.model("g (float[2] x) => (float[2] y) { y = Abs (a) a = Neg (x) }"))
    assert helpers.op_list(loaded) == ["Neg", "Abs"]


def test_sorts_nodes_by_what_subgraphs_capture() -> None:
    proto = helpers.model(
        "g (bool c, float[2] x) => (float[2] y) {"
        " y = If (c) <then_branch = t () => (float[2] p) { p = Abs (a) }, else_branch = e () => (float[2] q) { q = Neg (a) }>"
        " a = Exp (x) }"
    )
    assert helpers.op_list(_as_loaded(proto)) == ["Exp", "If"]


def _negative_dim(tensor: TensorProto) -> None:
    tensor.dims[0] = -2


def _overflowing_dims(tensor: TensorProto) -> None:
    tensor.dims[:] = [1 << 40, 1 << 40]


def _too_few_bytes(tensor: TensorProto) -> None:
    tensor.raw_data = tensor.raw_data[:-1]


def _too_many_bytes(tensor: TensorProto) -> None:
    tensor.raw_data += b"\0"


def _no_data(tensor: TensorProto) -> None:
    tensor.ClearField("raw_data")


def _too_few_numbers(tensor: TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.float_data.append(1.0)


def _wrong_field(tensor: TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.dims[:] = [0]
    tensor.int64_data.append(1)


def _unknown_type(tensor: TensorProto) -> None:
    tensor.data_type = 99


@pytest.mark.parametrize("size", [2, 5000], ids=["small", "large"])
@pytest.mark.parametrize(
    "spoil",
    [
        _negative_dim,
        _overflowing_dims,
        _too_few_bytes,
        _too_many_bytes,
        _no_data,
        _too_few_numbers,
        _wrong_field,
        _unknown_type,
    ],
)
def test_refuses_tensor_that_lies_about_its_size(
    tmp_path: Path, spoil: Callable[[TensorProto], None], size: int
) -> None:
    proto = helpers.model("g (float[1] x) => (float[N] y) { y = Add (x, w) }", w=np.ones(size, np.float32))
    spoil(proto.graph.initializer[0])
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    for source in (path, proto):
        with pytest.raises(ModelError):
            ir.load(source)


def test_refuses_attribute_tensor_that_lies_about_its_size() -> None:
    proto = helpers.model("g () => (float[2] y) { y = Constant <value = float[2] {1, 2}> () }")
    proto.graph.node[0].attribute[0].t.dims[0] = 1 << 50
    with pytest.raises(ModelError):
        ir.load(proto)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"hello", b"\x3a\xff\xff\xff\xff\x0f", bytes(range(256))])
def test_refuses_what_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx"):
        ir.load(path)


def test_refuses_folder_missing_file_and_other_objects(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a file"):
        ir.load(tmp_path)
    with pytest.raises(ModelError, match="no model file"):
        ir.load(tmp_path / "absent.onnx")
    with pytest.raises(OptionError, match="int"):
        ir.load(3)
