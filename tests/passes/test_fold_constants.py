"""What can be computed before the model runs is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, ops, run_passes
from onnxopt import ir
from onnxopt.passes.base import Options
from onnxopt.passes.fold_constants import EXPANDING_BYTES, MAX_FOLDED_TRIPS, RANDOM, STREAMED_BYTES
from onnxopt.pipeline import PassManager

PASS = "fold_constants"
RNG = np.random.default_rng(0)
FEEDS = [{"x": RNG.standard_normal((3, 4)).astype(np.float32), "flag": np.array(flag)} for flag in (True, False)]


def graph(body: str, *, outputs: str = "float[3,4] y", opset: int = 17, **weights: np.ndarray) -> onnx.ModelProto:
    return model(f"g (float[3,4] x, bool flag) => ({outputs}) {{ {body} }}", opset=opset, **weights)


def folded(proto: onnx.ModelProto, *, passes: Sequence[str] = (PASS,), **options: int) -> onnx.ModelProto:
    """The model after the pass with a folding budget of `fold_budget_bytes`."""
    loaded = ir.load(onnx.ModelProto.FromString(proto.SerializeToString()))
    PassManager("generic", passes, strict=True, options=Options(**options)).run(loaded)
    return ir.to_proto(loaded)


def w(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return (RNG.standard_normal(shape) * 3).astype(dtype)


# --- what is folded ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("a = Neg(w)\n y = Add(x, a)", {"w": w(4)}),
        ("a = Mul(w, v)\n b = Exp(a)\n c = Transpose(b)\n y = MatMul(x, c)", {"w": w(4, 4), "v": w(4)}),
        ("a, b = Split<axis=0>(w)\n c = Sub(a, b)\n y = Add(x, c)", {"w": w(2, 4)}),
        ("a, b = TopK(w, k)\n c = Gather(w, b)\n y = Add(x, c)", {"w": w(9), "k": np.array([4])}),
        ("a = Range(i, j, k)\n b = Cast<to=1>(a)\n y = Add(x, b)", {"i": np.array(0), "j": np.array(4), "k": np.array(1)}),
        ("a = ConstantOfShape<value = float[1] {2}>(s)\n y = Add(x, a)", {"s": np.array([3, 1])}),
        ("a = Clip(w, , h)\n y = Add(x, a)", {"w": w(4), "h": np.array(1, np.float32)}),
        ("a = Constant<value = float[4] {1, 2, 3, 4}>()\n b = Neg(a)\n y = Add(x, b)", {}),
        ("a = Softmax(w)\n b = LayerNormalization(a, v, v)\n y = Add(x, b)", {"w": w(3, 4), "v": w(4)}),
    ],
    ids=["one node", "chain", "several outputs", "second output", "range", "fill", "absent input", "constant", "norm"],
)  # fmt: skip
def test_becomes_a_constant(body: str, weights: dict[str, np.ndarray]) -> None:
    before = graph(body, **weights)
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert op_list(after) in (["Add"], ["MatMul"])
    assert_same(before, after, FEEDS)


@pytest.mark.parametrize(
    "dtype",
    [np.float32, np.float16, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint64, np.bool_],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 4), (0, 4)])
def test_types_and_shapes(dtype: type, shape: tuple[int, ...]) -> None:
    weight = RNG.integers(0, 2, shape).astype(dtype)
    before = graph("a = Reshape(w, s)\n z = Identity(a)\n y = Neg(x)", outputs="y, z", s=np.array([-1]), w=weight)
    if 0 in shape:
        before.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array([0]), "s"))
    after, _ = run_passes(before, PASS)
    assert "Reshape" not in op_list(after)
    assert_same(before, after, FEEDS, rtol=0, atol=0)


def test_what_is_not_finite() -> None:
    weight = np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)
    before = graph("a = Neg(w)\n b = Sqrt(a)\n c = Div(b, w)\n y = Add(x, c)", w=weight)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Add"]
    assert_same(before, after, FEEDS)


def test_integers_that_overflow_wrap() -> None:
    body = "a = Mul(w, w)\n b = Add(a, w)\n c = Cast<to=1>(b)\n y = Add(x, c)"
    before = graph(body, w=np.array([1 << 30, -(1 << 31), (1 << 31) - 1, 3], np.int32))
    after, _ = run_passes(before, "fold_shapes", PASS)
    assert op_list(after) == ["Add"]
    assert_same(before, after, FEEDS)


def test_only_what_others_use_is_kept() -> None:
    before = graph("a = Neg(w)\n b = Exp(a)\n c = Abs(b)\n y = Add(x, c)", w=w(4))
    after, report = run_passes(before, PASS, "eliminate_dead_code")
    assert (len(after.graph.initializer), report.records[0].patches) == (1, 1)


def test_an_output_of_the_graph_keeps_its_name() -> None:
    before = graph("z = Neg(w)\n y = Add(x, z)", outputs="y, z", w=w(4))
    after, _ = run_passes(before, PASS)
    assert [one.name for one in after.graph.output] == ["y", "z"]
    assert_same(before, after, FEEDS, rtol=0, atol=0)


# --- subgraphs -----------------------------------------------------------------------------------------------------
def test_inside_branches() -> None:
    branches = "then_branch = a () => (float[3,4] t) { b = Neg(w) t = Add(x, b) }"
    branches += ", else_branch = c () => (float[3,4] e) { d = Constant<value_float=2.0>() f = Exp(d) e = Mul(x, f) }"
    before = graph(f"y = If(flag) <{branches}>", w=w(4))
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert [[node.op_type for node in one.g.node] for one in after.graph.node[0].attribute] == [["Add"], ["Mul"]]
    assert_same(before, after, FEEDS)


def test_an_if_of_constants() -> None:
    branches = "then_branch = a () => (float[4] t) { t = Neg(w) }, else_branch = c () => (float[4] e) { e = Exp(w) }"
    before = graph(f"b = If(c) <{branches}>\n y = Add(x, b)", w=w(4), c=np.array(False))
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert op_list(after) == ["Add"]
    assert_same(before, after, FEEDS)


@pytest.mark.parametrize(("trips", "left"), [(0, ["Add"]), (5, ["Add"]), (MAX_FOLDED_TRIPS + 1, ["Loop", "Add"])])
def test_a_loop_of_constants(trips: int, left: list[str]) -> None:
    body = "{ k2 = Identity(k) f = Cast<to=1>(i) s2 = Mul(w, f) }"
    loop = f"b = Loop (n, , w) <body = g2 (int64 i, bool k, float[4] s) => (bool k2, float[4] s2) {body}>"
    before = graph(f"{loop}\n y = Add(x, b)", w=w(4), n=np.array(trips))
    before.graph.value_info.append(onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [4]))
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert op_list(after) == left
    assert_same(before, after, FEEDS)


def test_a_loop_without_end_is_not_run() -> None:
    loop = "b = Loop (, yes, w) <body = g2 (int64 i, bool k, float[4] s) => (bool k2, float[4] s2) { k2 = Identity(k) s2 = Neg(s) }>"
    before = graph(f"{loop}\n y = Add(x, b)", w=w(4), yes=np.array(True))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Loop", "Add"]


@pytest.mark.parametrize("captured", ["x", "flag"])
def test_a_branch_that_captures_an_input_stays(captured: str) -> None:
    branches = f"then_branch = a () => (float[3,4] t) {{ p = Cast<to=1>({captured}) t = Add(w, p) }}"
    branches += ", else_branch = c () => (float[3,4] e) { e = Exp(w) }"
    before = graph(f"y = If(c) <{branches}>", w=w(3, 4), c=np.array(True))
    after, _ = run_passes(before, PASS)
    assert "If" in op_list(after)
    assert_same(before, after, FEEDS)


# --- what is not folded --------------------------------------------------------------------------------------------
RANDOM_NODES = {
    "RandomNormal": "RandomNormal<shape=[4]>()",
    "RandomUniform": "RandomUniform<shape=[4]>()",
    "RandomNormalLike": "RandomNormalLike(w)",
    "RandomUniformLike": "RandomUniformLike(w)",
    "Bernoulli": "Bernoulli(p)",
    "Multinomial": "Multinomial(q)",
    "Dropout": "Dropout(w, half, yes)",
}


def test_every_random_op_is_tested() -> None:
    assert set(RANDOM_NODES) == RANDOM


@pytest.mark.parametrize("op", RANDOM_NODES)
@pytest.mark.parametrize("inside", [False, True], ids=["main graph", "branch"])
def test_nothing_random(op: str, inside: bool) -> None:
    node = RANDOM_NODES[op]
    weights = {
        "w": w(4),
        "p": np.full(4, 0.5, np.float32),
        "q": np.full((1, 4), 0.25, np.float32),
        "half": np.array(0.5, np.float32),
        "yes": np.array(True),
    }
    if inside:
        node = f"If(yes) <then_branch = a () => (t) {{ t = {node} }}, else_branch = b () => (e) {{ e = {node} }}>"
    before = graph(f"r = {node}\n c = Cast<to=1>(r)\n n = Neg(c)\n y = Add(x, n)", **weights)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)


@pytest.mark.parametrize("size", [EXPANDING_BYTES // 4, EXPANDING_BYTES])
@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_a_result_that_grows_needs_the_budget(size: int, budget: int) -> None:
    before = graph(
        "a = Expand(w, s)\n b = ReduceMax<keepdims=0>(a)\n c = Mul(x, b)\n y = Identity(c)\n z = Identity(a)",
        outputs=f"float[3,4] y, float[{size}] z",
        w=w(1),
        s=np.array([size]),
    )
    after = folded(before, fold_budget_bytes=budget)
    assert ("Expand" not in op_list(after)) == (4 * size <= max(EXPANDING_BYTES, budget))
    assert_same(before, after, FEEDS)


def test_a_result_as_large_as_its_input_needs_no_budget() -> None:
    before = graph("a = Neg(w)\n y = MatMul(x, a)", outputs="float[3,4000] y", w=w(4, 4000))
    after = folded(before, fold_budget_bytes=0)
    assert op_list(after) == ["MatMul"]
    assert_same(before, after, FEEDS)


def test_weights_that_others_use_too_count_as_growth() -> None:
    before = graph(
        "a = Neg(w)\n p = MatMul(x, a)\n q = MatMul(x, w)\n y = Sub(p, q)", outputs="float[3,4000] y", w=w(4, 4000)
    )
    assert "Neg" in op_list(folded(before, fold_budget_bytes=0))
    assert "Neg" not in op_list(folded(before, fold_budget_bytes=1 << 20))


@pytest.mark.parametrize(
    "body",
    [
        "a = Cast<to=1>(w)\n b = Mul(a, scale)\n y = MatMul(x, b)",
        "b = DequantizeLinear(w, scale)\n y = MatMul(x, b)",
        "a = Cast<to=1>(w)\n c = Sub(a, zero)\n b = Mul(c, scale)\n y = MatMul(x, b)",
        "t = Transpose<perm=[0, 1]>(w)\n b = DequantizeLinear(t, scale)\n y = MatMul(x, b)",
    ],
    ids=["cast and scale", "dequantize", "zero point", "transposed"],
)
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_compressed_weights_stay(body: str, dtype: type) -> None:
    weights = {
        "w": RNG.integers(0, 99, (4, 4000)).astype(dtype),
        "scale": np.array(0.1, np.float32),
        "zero": np.array(3, np.float32),
    }
    used = {name: array for name, array in weights.items() if name in body}
    before = graph(body, outputs="float[3,4000] y", **used)
    after, _ = run_passes(before, PASS)
    sizes = {one.data_type: len(one.raw_data) for one in after.graph.initializer}
    assert sizes[onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))] == 16000
    assert "Cast" in op_list(after) or "DequantizeLinear" in op_list(after)
    assert_same(before, after, FEEDS)


@pytest.mark.parametrize("shape", [(4, 5), (5,)], ids=["weights", "bias"])
def test_dequantized_constants_of_any_size_stay(shape: tuple[int, ...]) -> None:
    dtype = np.int8 if len(shape) == 2 else np.int32
    constants = {"w": RNG.integers(0, 99, shape).astype(dtype), "scale": np.array(0.1, np.float32)}
    before = graph("b = DequantizeLinear(w, scale)\n y = Add(x, b)", outputs="float[?,?] y", **constants)
    before.graph.input[0].type.tensor_type.shape.dim[-1].dim_value = 5
    before.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["DequantizeLinear", "Add"]


@pytest.mark.parametrize("kind", ["INT4", "UINT4"])
def test_weights_of_four_bits_stay(kind: str) -> None:
    before = graph(
        "b = DequantizeLinear(w, scale)\n y = MatMul(x, b)",
        outputs="float[3,4000] y",
        opset=21,
        scale=np.array(0.1, np.float32),
    )
    before.ir_version = 10
    numbers = RNG.integers(0, 7, 16000).tolist()
    before.graph.initializer.append(onnx.helper.make_tensor("w", getattr(onnx.TensorProto, kind), [4, 4000], numbers))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["DequantizeLinear", "MatMul"]
    assert_same(before, after, FEEDS)


def test_a_small_table_of_bytes_is_folded() -> None:
    before = graph("a = Cast<to=1>(w)\n y = Add(x, a)", w=np.arange(4, dtype=np.uint8))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Add"]


def test_half_precision_weights_become_float() -> None:
    before = graph("a = Cast<to=1>(w)\n y = MatMul(x, a)", outputs="float[3,4000] y", w=w(4, 4000, dtype=np.float16))
    assert op_list(folded(before, fold_budget_bytes=1 << 20)) == ["MatMul"]
    assert op_list(folded(before, fold_budget_bytes=0)) == ["Cast", "MatMul"]


def test_a_default_that_the_caller_may_override_stays() -> None:
    before = graph("a = Neg(w)\n y = Add(x, a)", w=w(4))
    before.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4]))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Neg", "Add"]
    assert_same(before, after, [FEEDS[0], {**FEEDS[0], "w": np.ones(4, np.float32)}])


def test_ops_of_other_domains_stay() -> None:
    before = graph("a = Neg(w)\n y = Add(x, a)", w=w(4))
    before.graph.node[0].domain = "custom"
    before.opset_import.add(domain="custom", version=1)
    assert op_list(run_passes(before, PASS)[0]) == ["Neg", "Add"]


def test_what_onnxruntime_cannot_compute_costs_only_itself() -> None:
    body = """a = Neg(w)
        b = Gather(w, far)
        c = Add(a, b)
        d = Exp(w)
        e = Add(x, d)
        y = Add(e, c)"""
    before = graph(body, w=w(4), far=np.array([9]))
    after, _ = run_passes(before, PASS)
    assert sorted(op_list(after)) == ["Add", "Add", "Add", "Gather", "Neg"]


def test_integer_division_by_zero_is_left_to_the_runtime() -> None:
    before = graph("a = Div(w, zero)\n b = Cast<to=1>(a)\n y = Add(x, b)", w=np.array([5]), zero=np.array([0]))
    after, _ = run_passes(before, "fold_shapes", PASS)
    assert [one.name for one in after.graph.output] == ["y"]


def texts() -> dict[str, np.ndarray]:
    return {"w": np.array(["a", "b", "c", "d"], object)}


def test_strings_stay() -> None:
    before = graph("z = Reshape(w, s)\n y = Neg(x)", outputs="y, string[2,2] z", s=np.array([2, 2]), **texts())
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Reshape", "Neg"]
    assert_same(before, after, FEEDS)


def test_what_is_read_from_strings() -> None:
    before = graph("a = Equal(w, v)\n b = Cast<to=1>(a)\n y = Add(x, b)", opset=19, v=np.array("b", object), **texts())
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert op_list(after) == ["Add"]
    assert_same(before, after, FEEDS)


def test_strings_of_unknown_type() -> None:
    body = "s = SequenceConstruct(w, w)\n t = SequenceAt(s, i)\n b = Gather(t, i)\n z = Identity(b)\n y = Neg(x)"
    before = graph(body, outputs="float[3,4] y, string z", i=np.array(1), **texts())
    after, _ = run_passes(before, PASS)
    assert_same(before, after, FEEDS)


# --- large weights -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("perm", ["", "<perm=[1, 0]>", "<perm=[0, 1]>"])
def test_transposes_of_mapped_weights(tmp_path: Path, perm: str) -> None:
    weight = w(STREAMED_BYTES // 16, 4)
    body = (
        f"a = Transpose{perm}(w)\n y = MatMul(x, a)"
        if "0, 1" not in perm
        else f"b = Transpose{perm}(w)\n a = Transpose(b)\n y = MatMul(x, a)"
    )
    before = graph(body, outputs="float[3,n] y", w=weight)
    onnx.save(before, tmp_path / "model.onnx")
    loaded = ir.load(tmp_path / "model.onnx")
    PassManager("generic", [PASS], strict=True).run(loaded)
    ir.save(loaded, tmp_path / "after.onnx")
    after = onnx.load(tmp_path / "after.onnx")
    assert ops(after).get("Transpose", 0) == 0
    assert_same(before, after, FEEDS, rtol=0, atol=0)
