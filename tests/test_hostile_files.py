"""Hostile files end in an `OnnxOptError` with a sentence or in a model: never a crash, a hang, or gigabytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

import helpers
import hostile
import onnxopt
from onnxopt import ir
from onnxopt.errors import ModelError, OnnxOptError

BATCHES = [pytest.param(kind, 1500, id=f"{kind}_1500") for kind in ("bytes", "messages")]
BATCHES += [pytest.param(kind, 20_000, id=f"{kind}_20000", marks=pytest.mark.slow) for kind in ("bytes", "messages")]


@pytest.mark.parametrize(("kind", "count"), BATCHES)
def test_mutated_models(kind: str, count: int) -> None:
    first = int(os.environ.get("ONNXOPT_TEST_SEED", "0"))
    command = [sys.executable, str(Path(hostile.__file__)), kind, str(first), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    seeds = [line for line in done.stderr.splitlines() if line.isdigit()]
    assert done.returncode == 0, f"seed {seeds[-1] if seeds else 'none'}: {done.stderr[-3000:]}"
    result = json.loads(done.stdout)
    print(result)
    assert sum(result["outcomes"].values()) == count
    assert result["peak_bytes"] < hostile.MEMORY_LIMIT
    assert result["slowest_seconds"] < hostile.SECONDS_LIMIT


CONFINED = """
import signal, sys
signal.alarm(60)
import onnxopt
from onnxopt.errors import OnnxOptError
try:
    onnxopt.optimize(sys.argv[1], sys.argv[2])
    print("model")
except OnnxOptError as error:
    print(type(error).__name__, error)
import hostile
print(hostile.peak_bytes(), file=sys.stderr)
"""


def _optimize_alone(path: Path) -> str:
    """The outcome of `optimize` in a process of its own, which must stay below the memory limit."""
    out = path.with_suffix(".out.onnx")
    tests = str(Path(hostile.__file__).parent)
    command = [sys.executable, "-c", f"import sys; sys.path.append({tests!r}){CONFINED}", path, out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stderr.split()[-1]) < hostile.MEMORY_LIMIT
    assert out.exists() == (done.stdout == "model\n")
    return done.stdout


def _nested_ifs(depth: int) -> onnx.ModelProto:
    """Ifs in branches of Ifs, made from the inside out."""

    def leaf(name: str, op: str) -> onnx.GraphProto:
        node = onnx.helper.make_node(op, ["x"], [name])
        info = onnx.helper.make_tensor_value_info(name, 1, [2])
        return onnx.helper.make_graph([node], name, [], [info])

    inner = leaf("inner", "Abs")
    for level in range(depth):
        node = onnx.helper.make_node("If", ["c"], [f"o{level}"])
        for name, graph in (("then_branch", inner), ("else_branch", leaf(f"e{level}", "Neg"))):
            attribute = node.attribute.add(name=name, type=onnx.AttributeProto.GRAPH)
            attribute.g.CopyFrom(graph)
        info = onnx.helper.make_tensor_value_info(f"o{level}", 1, [2])
        inner = onnx.helper.make_graph([node], f"g{level}", [], [info])
    inner.input.append(onnx.helper.make_tensor_value_info("x", 1, [2]))
    inner.input.append(onnx.helper.make_tensor_value_info("c", 9, []))
    return onnx.helper.make_model(inner, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def _serialized_ifs(depth: int) -> bytes:
    """The same as bytes: protobuf refuses to serialize what is nested so deep, a hostile file does not ask it."""
    from onnxopt.ir import wire

    def message(number: int, payload: bytes) -> bytes:
        return wire.field(number, len(payload)) + payload

    empty = onnx.helper.make_graph([], "g", [], []).SerializeToString()
    graph = empty
    for _ in range(depth):
        attribute = message(1, b"then_branch") + message(6, graph) + wire.varint(20 << 3) + b"\x05"
        node = message(4, b"If") + message(5, attribute)
        graph = message(1, node) + empty
    return wire.varint(1 << 3) + b"\x08" + message(7, graph) + message(8, wire.varint(2 << 3) + b"\x11")


@pytest.mark.parametrize("depth", [20, 500, 5000])
def test_nested_ifs(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(_serialized_ifs(depth))
    outcome = _optimize_alone(path)
    assert outcome.startswith("ModelError") or (outcome == "model\n" and depth == 20), outcome


def test_nested_ifs_that_protobuf_reads_keep_their_meaning() -> None:
    proto = _nested_ifs(20)
    result = onnxopt.optimize(proto, target="generic")
    for condition in (True, False):
        helpers.assert_same(proto, result, {"x": np.array([-1, 2], np.float32), "c": np.array(condition)})


def test_model_in_memory_nested_500_deep_is_refused() -> None:
    import onnx_ir

    condition = onnx_ir.Value(name="c", type=onnx_ir.TensorType(onnx_ir.DataType.BOOL), shape=onnx_ir.Shape([]))
    graph = onnx_ir.Graph([], [], nodes=[], name="inner")
    for _ in range(500):
        node = onnx_ir.Node("", "If", [condition], [onnx_ir.AttrGraph("then_branch", graph)], num_outputs=0)
        graph = onnx_ir.Graph([], [], nodes=[node], name="outer", opset_imports={"": 17})
    graph.inputs.append(condition)
    with pytest.raises(ModelError, match="deep"):
        ir.load(onnx_ir.Model(graph, ir_version=8))


BOMBS = {
    "constant_of_shape": """g () => (float[A, B] y) {
        s = Constant <value = int64[2] {1000000, 250000}> () y = ConstantOfShape <value = float[1] {1}> (s) }""",
    "expand": """g () => (float[A, B] y) {
        a = Constant <value = float {1}> () s = Constant <value = int64[2] {1000000, 250000}> () y = Expand (a, s) }""",
    "tile": """g () => (float[A] y) {
        a = Constant <value = float[2] {1, 2}> () s = Constant <value = int64[1] {500000000000}> () y = Tile (a, s) }""",
    "range": """g () => (int64[A] y) {
        a = Constant <value = int64 {0}> () b = Constant <value = int64 {1000000000000}> ()
        d = Constant <value = int64 {1}> () y = Range (a, b, d) }""",
    "pad": """g () => (float[A] y) {
        a = Constant <value = float[2] {1, 2}> () p = Constant <value = int64[2] {0, 1000000000000}> () y = Pad (a, p) }""",
    "one_hot": """g () => (float[A, B] y) {
        i = Constant <value = int64[2] {0, 1}> () d = Constant <value = int64 {1000000000000}> ()
        v = Constant <value = float[2] {0, 1}> () y = OneHot (i, d, v) }""",
    "resize": """g () => (float[A, B, C, D] y) {
        a = Constant <value = float[1, 1, 1, 1] {1}> () s = Constant <value = float[4] {1, 1, 1000000, 1000000}> ()
        y = Resize (a, , s) }""",
    "step_by_step": """g () => (float[A] y) {
        a = Constant <value = float[2] {1, 2}> () s = Constant <value = int64[1] {30000}> ()
        b = Tile (a, s) c = Tile (b, s) d = Tile (c, s) y = Abs (d) }""",
    "outer_product": """g () => (float[A, B] y) {
        s = Constant <value = int64[2] {1000000, 1}> () t = Constant <value = int64[2] {1, 1000000}> ()
        a = ConstantOfShape <value = float[1] {1}> (s) b = ConstantOfShape <value = float[1] {1}> (t) y = MatMul (a, b) }""",
    "window": "g () => (float[A] y) { n = Constant <value = int64 {1000000000000}> () y = HannWindow (n) }",
    "center_crop_pad": """g () => (float[A] y) {
        a = Constant <value = float[1] {1}> () s = Constant <value = int64[1] {1000000000000}> () y = CenterCropPad (a, s) }""",
    "inside_a_branch": """g () => (float z) {
        c = Constant <value = bool {1}> () n = Constant <value = int64 {3}> () x = Constant <value = float {1}> ()
        z = Loop (n, c, x) <body = b (int64 i, bool d, float s) => (bool o, float r) {
            o = Identity (d) k = Constant <value = int64[2] {1000000, 250000}> () e = ConstantOfShape <value = float[1] {1}> (k)
            t = ReduceSum <keepdims = 0> (e) r = Add (s, t) }> }""",
    "random": "g () => (float[A] y) { y = RandomNormal <shape = [1000000000000]> () }",
    "loop": """g (float[2] x) => (float[2] y) {
        n = Constant <value = int64 {1000000000000}> () c = Constant <value = bool {1}> ()
        y = Loop (n, c, x) <body = b (int64 i, bool d, float[2] s) => (bool o, float[2] r) { o = Identity (d) r = Exp (s) }> }""",
    "loop_of_constants": """g () => (float[2] y) {
        n = Constant <value = int64 {1000000000000}> () c = Constant <value = bool {1}> () x = Constant <value = float[2] {1, 2}> ()
        y = Loop (n, c, x) <body = b (int64 i, bool d, float[2] s) => (bool o, float[2] r) { o = Identity (d) r = Exp (s) }> }""",
}


@pytest.mark.parametrize("name", BOMBS)
def test_constants_of_a_terabyte_are_left_alone(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(helpers.model(BOMBS[name], opset=18).SerializeToString())
    assert _optimize_alone(path) == "model\n"


def test_functions_that_multiply_are_survived(tmp_path: Path) -> None:
    """Every function calls the next ten times: 10^15 nodes in a file of a few kilobytes."""
    proto = helpers.model("g (float[2] x) => (float[2] y) { y = f.F0 (x) }")
    proto.opset_import.add(domain="f", version=1)
    for level in range(15):
        function = proto.functions.add(name=f"F{level}", domain="f", input=["x"], output=["v10"])
        function.opset_import.extend(proto.opset_import)
        for step in range(10):
            inputs = ["x" if step == 0 else f"v{step}"]
            op, domain = (f"F{level + 1}", "f") if level < 14 else ("Neg", "")
            function.node.add(op_type=op, domain=domain, input=inputs, output=[f"v{step + 1}"])
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    assert _optimize_alone(path) == "model\n"


def test_functions_that_call_themselves_are_survived(tmp_path: Path) -> None:
    proto = helpers.model("g (float[2] x) => (float[2] y) { y = f.F (x) }")
    proto.opset_import.add(domain="f", version=1)
    function = proto.functions.add(name="F", domain="f", input=["x"], output=["y"])
    function.opset_import.extend(proto.opset_import)
    function.node.add(op_type="F", domain="f", input=["x"], output=["z"])
    function.node.add(op_type="F", domain="f", input=["z"], output=["y"])
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    assert _optimize_alone(path).startswith(("model", "ModelError"))


def test_long_chain_is_no_recursion() -> None:
    nodes = "".join(f"v{index + 1} = Tanh (v{index})" for index in range(5000))
    proto = helpers.model(f"g (float[2] v0) => (float[2] v5000) {{ {nodes} }}")
    start = time.perf_counter()
    assert len(ir.to_proto(ir.load(proto)).graph.node) == 5000
    onnxopt.optimize(proto)
    assert time.perf_counter() - start < hostile.SECONDS_LIMIT


def test_unsorted_chain_is_sorted_in_time() -> None:
    proto = helpers.model("g (float[2] v0) => (float[2] v5000) { v1 = Tanh (v0) }")
    del proto.graph.node[:]
    for index in reversed(range(5000)):
        proto.graph.node.add(op_type="Tanh", input=[f"v{index}"], output=[f"v{index + 1}"])
    start = time.perf_counter()
    assert ir.to_proto(ir.load(proto)).graph.node[0].input[0] == "v0"
    assert time.perf_counter() - start < hostile.SECONDS_LIMIT


def test_tensor_of_petabytes_without_data(tmp_path: Path) -> None:
    proto = helpers.model("g (float[1] x) => (float[N] y) { y = Add (x, w) }")
    proto.graph.initializer.add(name="w", data_type=1, dims=[1 << 50])
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    assert _optimize_alone(path).startswith("ModelError")


@pytest.mark.parametrize("cut", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_large_file(tmp_path: Path, cut: float) -> None:
    data = helpers.model(
        "g (float[1] x) => (float[N] y) { y = Add (x, w) }", w=np.ones(1 << 20, np.float32)
    ).SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(data[: int(len(data) * cut)])
    with pytest.raises(OnnxOptError, match=r"model\.onnx"):
        onnxopt.optimize(path)
