"""Where regions are grown, where not, and that the fused model is a graph that gives the same answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from helpers import model, op_list, ops, run_passes, set_costs
from onnxopt import ir
from onnxopt.fusions import fused_elementwise as fusion
from onnxopt.pipeline import PassManager
from onnxopt.runtime.costs import Costs
from onnxopt.runtime.library import library_path

pytest.importorskip("onnxopt._native", reason="the native library is not built")

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def fuse_small_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests use small tensors, and regions of any size."""
    set_costs(monkeypatch, small_region_nodes=fusion.MIN_NODES)


def fuse(proto: onnx.ModelProto) -> onnx.ModelProto:
    result, _ = run_passes(proto, "fuse_elementwise", target="cpu")
    return result


def run(proto: onnx.ModelProto, feeds: dict[str, Array], *, library: bool) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if library:
        options.register_custom_ops_library(str(library_path()))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results: list[Array] = session.run(None, feeds)
    return results


def assert_same_three_ways(before: onnx.ModelProto, after: onnx.ModelProto, feeds: dict[str, Array]) -> None:
    expected = run(before, feeds, library=False)
    for library in (True, False):
        for actual, wanted in zip(run(after, feeds, library=library), expected, strict=True):
            assert (actual.dtype, actual.shape) == (wanted.dtype, wanted.shape)
            if wanted.dtype.kind == "f":
                np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)
            else:
                np.testing.assert_array_equal(actual, wanted)


def feeds_of(proto: onnx.ModelProto, **dims: int) -> dict[str, Array]:
    rng = np.random.default_rng(7)
    feeds = {}
    for value in proto.graph.input:
        shape = [dim.dim_value or dims[dim.dim_param] for dim in value.type.tensor_type.shape.dim]
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feeds[value.name] = (
            rng.normal(0, 2, shape).astype(kind) if kind.kind == "f" else rng.integers(0, 2, shape).astype(kind)
        )
    return feeds


FUSED: dict[str, tuple[str, dict[str, int]]] = {
    "chain": ("g (float[N] x) => (float[N] y) { a = Exp(x) b = Neg(a) y = Tanh(b) }", {"FusedElementwise": 1}),
    "diamond": (
        "g (float[N] x) => (float[N] y) { a = Exp(x) b = Neg(a) c = Tanh(a) y = Add(b, c) }",
        {"FusedElementwise": 1},
    ),
    "two roots": (
        "g (float[N] x, float[N] z) => (float[N] y) { a = Exp(x) b = Neg(z) y = Add(a, b) }",
        {"FusedElementwise": 1},
    ),
    "inner value that is an output": (
        "g (float[N] x) => (float[N] y, float[N] a) { a = Exp(x) y = Neg(a) }",
        {"FusedElementwise": 1},
    ),
    "inner value that another op reads": (
        "g (float[N,4] x) => (float[N,4] y, float[N,4] s) { a = Exp(x) y = Neg(a) s = Softmax(a) }",
        {"FusedElementwise": 1, "Softmax": 1},
    ),
    "broadcast row": (
        "g (float[N,4] x, float[4] b) => (float[N,4] y) { a = Add(x, b) y = Exp(a) }",
        {"FusedElementwise": 1},
    ),
    "value used twice": (
        "g (float[N] x) => (float[N] y) { a = Mul(x, x) y = Mul(a, a) }",
        {"FusedElementwise": 1},
    ),
    "types change": (
        "g (float[N] x) => (int64[N] y) { a = Less(x, x) b = Not(a) y = Cast<to=7>(b) }",
        {"FusedElementwise": 1},
    ),
    "other op between": (
        "g (float[N,4] x) => (float[N,4] y) { a = Exp(x) b = Neg(a) s = Softmax(b) c = Neg(s) y = Exp(c) }",
        {"FusedElementwise": 2, "Softmax": 1},
    ),
    "other path around": (
        "g (float[N,4] x) => (float[N,4] y) { a = Exp(x) s = Softmax(a) y = Add(a, s) }",
        {"Exp": 1, "Softmax": 1, "Add": 1},
    ),
    "two regions that read from each other": (
        """g (float[3,4] x, float[4] v) => (float[3,4] p, float[4] q) {
            a = Exp(x) b = Exp(v) r = ReduceMax<axes=[0], keepdims=0>(a)
            c = Add(a, b) d = Add(b, r) p = Neg(c) q = Neg(d) }""",
        {"FusedElementwise": 2, "Exp": 1, "ReduceMax": 1},
    ),
    "operands of a smaller shape are not repeated": (
        "g (float[N,4] x, float[4] b) => (float[N,4] y) { a = Exp(b) c = Tanh(a) d = Add(x, c) y = Neg(d) }",
        {"FusedElementwise": 2},
    ),
}


@pytest.mark.parametrize("case", FUSED)
def test_fuses(case: str) -> None:
    text, expected = FUSED[case]
    before = model(text)
    after = fuse(before)
    assert ops(after) == expected
    assert_same_three_ways(before, after, feeds_of(before, N=5))


LEFT: dict[str, str] = {
    "single op": "g (float[N] x) => (float[N] y) { y = Exp(x) }",
    "ops that are not connected": "g (float[N] x, float[N] z) => (float[N] y, float[N] w) { y = Exp(x) w = Exp(z) }",
    "shapes that may differ": "g (float[N] x, float[M] z) => (float[K] y) { a = Exp(x) y = Add(a, z) }",
    "activation of a convolution": """g (float[1,3,8,8] x, float[4,3,3,3] w) => (float[1,4,6,6] y) {
        c = Conv(x, w) y = Relu(c) }""",
    "residual of a convolution": """g (float[1,4,8,8] x, float[4,4,1,1] w) => (float[1,4,8,8] y) {
        c = Conv(x, w) a = Add(c, x) y = Relu(a) }""",
}


@pytest.mark.parametrize("case", LEFT)
def test_leaves(case: str) -> None:
    before = model(LEFT[case])
    after = fuse(before)
    assert op_list(after) == op_list(before)
    assert not after.functions


@pytest.mark.parametrize(
    ("shape", "fused"), [("4,8", False), ("64,64", True), ("N,8", False), ("N,64", True), ("N,2,8", True)]
)
def test_few_ops_on_a_small_tensor_are_left(shape: str, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    after = fuse(model(f"g (float[{shape}] x) => (float[{shape}] y) {{ a = Exp(x) y = Neg(a) }}"))
    assert ("FusedElementwise" in ops(after)) is fused


@pytest.mark.parametrize("op", sorted(fusion.SLOW_ALONE))
@pytest.mark.parametrize(("shape", "fused"), [("4,8", False), ("64,64", True)])
def test_what_onnxruntime_computes_element_by_element_is_a_region_alone(
    op: str, shape: str, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    before = model(f"g (float[{shape}] x) => (float[{shape}] y) {{ y = {op}(x) }}", opset=18)
    after = fuse(before)
    assert op_list(after) == ["FusedElementwise" if fused else op]
    positive = {"x": np.abs(feeds_of(before)["x"])}
    assert_same_three_ways(before, after, positive)


def test_few_ops_in_a_body_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    before = model(
        """g (bool c, float[N] x) => (float[N] y) {
            y = If(c) < then_branch = t () => (float[N] p) { a = Exp(x) p = Neg(a) },
                        else_branch = e () => (float[N] q) { q = Neg(x) } > }"""
    )
    assert not fuse(before).functions


def test_many_ops_on_a_small_tensor_are_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    least = Costs.of("cpu").small_region_nodes
    lines = ["v0 = Tanh(x)"] + [f"v{k} = Tanh(v{k - 1})" for k in range(1, least)]
    after = fuse(model(f"g (float[4] x) => (float[4] v{least - 1}) {{ {' '.join(lines)} }}"))
    assert ops(after) == {"FusedElementwise": 1}


@pytest.mark.parametrize(
    ("dtype", "middle", "fused"),
    [
        ("float16", "b = Neg(a) c = Mul(a, b)", False),
        ("float16", "b = Neg(a) d = Mul(a, b) e = Sub(d, b) c = Add(e, d)", True),
        ("float16", "r = Reshape(x, same) b = Neg(r) c = Mul(r, b)", True),
        ("float", "b = Neg(a) c = Mul(a, b)", True),
    ],
)
def test_halves_are_not_cast_for_few_ops(dtype: str, middle: str, fused: bool) -> None:
    """onnxruntime computes Conv in float32, and what is element-wise around it, without a cast between them."""
    text = f"""g ({dtype}[1,8,40,50] x, {dtype}[8,8,1,1] w) => (y, z) {{
      a = Conv(x, w) {middle} y = {"Identity" if "same" in middle else "Conv"}(c{"" if "same" in middle else ", w"}) z = Relu(a)
    }}"""
    assert ("FusedElementwise" in ops(fuse(model(text, same=np.array([1, 8, 40, 50]))))) is fused


def test_says_why_not() -> None:
    loaded = ir.load(model(LEFT["activation of a convolution"]))
    report = PassManager("cpu", ["fuse_elementwise"], explain=True).run(loaded)
    assert any("Conv" in str(miss.refusal) for miss in report.near_misses)


def test_generic_target_gets_no_custom_ops() -> None:
    loaded = ir.load(model(FUSED["chain"][0]))
    PassManager("generic").run(loaded)
    assert {node.domain for node in loaded.graph} == {""}
    assert not loaded.functions


def test_inside_branches() -> None:
    before = model(
        """g (bool c, float[N] x) => (float[N] y) {
            y = If(c) <
                then_branch = t () => (float[N] p) { a = Exp(x) p = Neg(a) },
                else_branch = e () => (float[N] q) { b = Neg(x) q = Tanh(b) } > }"""
    )
    after = fuse(before)
    (branch,) = after.graph.node
    for attr in branch.attribute:
        assert [node.op_type for node in attr.g.node] == ["FusedElementwise"]
    for condition in (True, False):
        feeds = {"c": np.array(condition), "x": np.linspace(-1, 1, 5, dtype=np.float32)}
        assert_same_three_ways(before, after, feeds)


def test_not_across_the_border_of_a_graph() -> None:
    """What a branch reads from outside is computed there, once, and the node that holds the branch lies between."""
    before = model(
        """g (bool c, float[N] x) => (float[N] y) {
            a = Exp(x) b = Neg(a)
            d = If(c) < then_branch = t () => (float[N] p) { e = Neg(b) p = Exp(e) },
                        else_branch = f () => (float[N] q) { q = Identity(a) } >
            y = Add(b, d) }"""
    )
    after = fuse(before)
    assert ops(after) == {"FusedElementwise": 1, "If": 1, "Add": 1}
    for condition in (True, False):
        feeds = {"c": np.array(condition), "x": np.linspace(-1, 1, 5, dtype=np.float32)}
        assert_same_three_ways(before, after, feeds)


def test_what_nothing_uses_is_left_out() -> None:
    after = fuse(model("g (float[N] x) => (float[N] y) { d = Exp(x) e = Neg(d) a = Exp(x) b = Tanh(a) y = Neg(a) }"))
    (node,) = (node for node in after.graph.node if node.op_type == "FusedElementwise")
    assert "tanh" not in node.attribute[0].s.decode()
    onnx.checker.check_model(after)


def test_names_of_outputs_stay() -> None:
    before = model("g (float[N] x) => (float[N] y, float[N] a) { a = Exp(x) y = Neg(a) }")
    assert [value.name for value in fuse(before).graph.output] == ["y", "a"]


# --- the kernel's limits ---
def assert_within_limits(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        if node.op_type == "FusedElementwise":
            assert len(node.input) <= fusion.op.MAX_INPUTS
            assert len(node.output) <= fusion.op.MAX_OUTPUTS
            assert node.attribute[0].s.decode().count("=") <= fusion.op.MAX_STATEMENTS


def test_long_chain_is_cut() -> None:
    lines = ["v0 = Tanh(x)"] + [f"v{k} = Tanh(v{k - 1})" for k in range(1, 150)]
    before = model(f"g (float[N] x) => (float[N] v149) {{ {' '.join(lines)} }}")
    after = fuse(before)
    assert ops(after) == {"FusedElementwise": -(-150 // fusion.MAX_NODES)}
    assert_within_limits(after)
    assert_same_three_ways(before, after, feeds_of(before, N=5))


def test_region_of_many_inputs_is_cut() -> None:
    names = ", ".join(f"float[N] x{k}" for k in range(50))
    lines = ["v1 = Add(x0, x1)"] + [f"v{k} = Add(v{k - 1}, x{k})" for k in range(2, 50)]
    before = model(f"g ({names}) => (float[N] v49) {{ {' '.join(lines)} }}")
    after = fuse(before)
    assert ops(after)["FusedElementwise"] >= 2
    assert sum(ops(after).values()) <= 4
    assert_within_limits(after)
    assert_same_three_ways(before, after, feeds_of(before, N=5))


def test_region_of_many_outputs_is_cut() -> None:
    lines = ["v0 = Tanh(x)"] + [f"v{k} = Tanh(v{k - 1})" for k in range(1, 40)]
    outputs = ", ".join(f"float[N] v{k}" for k in range(40))
    before = model(f"g (float[N] x) => ({outputs}) {{ {' '.join(lines)} }}")
    after = fuse(before)
    assert set(ops(after)) == {"FusedElementwise"}
    assert_within_limits(after)
    assert_same_three_ways(before, after, feeds_of(before, N=5))


# --- random graphs ---
SHAPES = ([3, 4], [4], [3, 1], [])


@st.composite
def graphs(draw: st.DrawFn) -> str:
    """Element-wise ops over several shapes, with reductions and Softmax between them."""
    shapes: dict[str, list[int]] = {f"x{k}": list(shape) for k, shape in enumerate(SHAPES)}
    lines = []
    for number in range(draw(st.integers(2, 30))):
        names = list(shapes)
        kind = draw(st.sampled_from(["one", "two", "two", "two", "row", "softmax"]))
        first = draw(st.sampled_from(names[-8:]))
        name = f"v{number}"
        if kind == "row" and shapes[first] == [3, 4]:
            lines.append(f"{name} = ReduceMax<axes=[0], keepdims=0>({first})")
            shapes[name] = [4]
        elif kind == "softmax" and shapes[first]:
            lines.append(f"{name} = Softmax({first})")
            shapes[name] = shapes[first]
        elif kind == "two":
            second = draw(st.sampled_from(names))
            op = draw(st.sampled_from(["Add", "Sub", "Max", "Min"]))
            lines.append(f"{name} = {op}({first}, {second})")
            shapes[name] = list(np.broadcast_shapes(shapes[first], shapes[second]))
        else:
            lines.append(f"{name} = {draw(st.sampled_from(['Tanh', 'Sigmoid', 'Neg', 'Abs']))}({first})")
            shapes[name] = shapes[first]
    made = [name for name in shapes if name.startswith("v")]
    outputs = sorted({made[-1], *draw(st.lists(st.sampled_from(made), max_size=3))})
    inputs = ", ".join(
        f"float[{','.join(map(str, shape))}] x{k}" if shape else f"float x{k}" for k, shape in enumerate(SHAPES)
    )
    results = ", ".join(
        f"float[{','.join(map(str, shapes[name]))}] {name}" if shapes[name] else f"float {name}" for name in outputs
    )
    return f"g ({inputs}) => ({results}) {{ {' '.join(lines)} }}"


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_random_graphs(text: str) -> None:
    before = model(text)
    after = fuse(before)
    assert_within_limits(after)
    assert_same_three_ways(before, after, feeds_of(before))
