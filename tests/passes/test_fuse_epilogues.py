"""Which regions become epilogues, of which op, and which do not and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from helpers import assert_same, model, op_list, ops, run_passes
from onnxopt import ir
from onnxopt.fusions import epilogue
from onnxopt.pipeline import PassManager

pytest.importorskip("onnxopt._native", reason="the native library is not built")
pytestmark = pytest.mark.usefixtures("fuse_small_products")

Array = np.ndarray[Any, Any]
PASSES = ("fuse_gemms", "fuse_epilogues")
RNG = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return RNG.normal(0, 1, shape).astype(np.float32)


WEIGHTS = {
    "w": normal(12, 20),
    "v": normal(12, 20),
    "u": normal(20, 12),
    "b": normal(20),
    "one": np.array(1, np.float32),
}


def make(text: str, **options: Any) -> onnx.ModelProto:
    """The model with those of the weights that it names."""
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return model(text, **options, **{name: array for name, array in WEIGHTS.items() if name in words})


def fuse(proto: onnx.ModelProto) -> onnx.ModelProto:
    after, _ = run_passes(proto, *PASSES, target="cpu")
    return after


def feeds_of(proto: onnx.ModelProto, **dims: int) -> dict[str, Array]:
    feeds = {}
    for value in proto.graph.input:
        shape = [dim.dim_value or dims.get(dim.dim_param, 3) for dim in value.type.tensor_type.shape.dim]
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feeds[value.name] = (
            RNG.normal(0, 2, shape).astype(kind) if kind.kind == "f" else RNG.integers(0, 2, shape).astype(kind)
        )
    return feeds


def assert_same_three_ways(before: onnx.ModelProto, after: onnx.ModelProto, feeds: dict[str, Array]) -> None:
    """The kernel and the body compute what the model computed."""
    for library in (True, False):
        assert_same(before, after, feeds, rtol=2e-5, atol=4e-6, library=library)


def programs(proto: onnx.ModelProto) -> list[str]:
    return [attr.s.decode() for node in proto.graph.node for attr in node.attribute if attr.name == "epilogue"]


# --- what is fused ---
FUSED: dict[str, tuple[str, list[str]]] = {
    "one op": ("g (float[N,12] x) => (float[N,20] y) { p = MatMul(x, w) y = Relu(p) }", ["FusedGemm"]),
    "bias and chain": (
        "g (float[N,12] x) => (float[N,20] y) { p = MatMul(x, w) q = Add(p, b) s = Sigmoid(q) y = Mul(q, s) }",
        ["FusedGemm"],
    ),
    "residual": ("g (float[N,12] x, float[N,20] r) => (float[N,20] y) { p = MatMul(x, w) y = Add(p, r) }", ["FusedGemm"]),
    "residual first": (
        "g (float[N,12] x, float[N,20] r) => (float[N,20] y) { p = MatMul(x, w) y = Add(r, p) }",
        ["FusedGemm"],
    ),
    "residual of each position": (
        "g (float[B,S,12] x, float[1,S,20] r) => (float[B,S,20] y) { p = MatMul(x, w) y = Add(p, r) }",
        ["FusedGemm"],
    ),
    "scale of each row": (
        "g (float[B,S,12] x, float[B,S,1] r) => (float[B,S,20] y) { p = MatMul(x, w) y = Mul(p, r) }",
        ["FusedGemm"],
    ),
    "gate of each batch": (
        "g (float[B,S,12] x, float[B,1,20] r) => (float[B,S,20] y) { p = MatMul(x, w) y = Mul(p, r) }",
        ["FusedGemm"],
    ),
    "mask": (
        "g (float[N,12] x, bool[N,1] m) => (float[N,20] y) { p = MatMul(x, w) y = Where(m, p, one) }",
        ["FusedGemm"],
    ),
    "integer operand": (
        "g (float[N,12] x, int64[20] k) => (float[N,20] y) { p = MatMul(x, w) f = Cast<to=1>(k) y = Add(p, f) }",
        ["Cast", "FusedGemm"],
    ),
    "bool result": (
        "g (float[N,12] x) => (bool[N,20] y) { p = MatMul(x, w) y = Greater(p, one) }",
        ["FusedGemm"],
    ),
    "half result": ("g (float[N,12] x) => (float16[N,20] y) { p = MatMul(x, w) y = Cast<to=10>(p) }", ["FusedGemm"]),
    "inner value that is an output": (
        "g (float[N,12] x) => (float[N,20] y, float[N,20] q) { p = MatMul(x, w) q = Relu(p) y = Neg(q) }",
        ["FusedGemm"],
    ),
    "inner value that another op reads": (
        "g (float[N,12] x) => (float[N,20] y, float[N,20] z) { p = MatMul(x, w) q = Relu(p) y = Neg(q) z = Softmax(q) }",
        ["FusedGemm", "Softmax"],
    ),
    "result used twice in the region": (
        "g (float[N,12] x) => (float[N,20] y) { p = MatMul(x, w) y = Mul(p, p) }",
        ["FusedGemm"],
    ),
    "two products": (
        "g (float[N,12] x) => (float[N,20] y) { p = MatMul(x, w) q = MatMul(x, v) s = Sigmoid(p) y = Mul(s, q) }",
        ["FusedGemm", "FusedGemm"],
    ),
    "next product": (
        "g (float[N,12] x) => (float[N,12] y) { p = MatMul(x, w) q = Relu(p) r = MatMul(q, u) y = Tanh(r) }",
        ["FusedGemm", "FusedGemm"],
    ),
    "residual around two products": (
        "g (float[N,12] x) => (float[N,12] y) { p = MatMul(x, w) q = Relu(p) r = MatMul(q, u) y = Add(r, x) }",
        ["FusedGemm", "FusedGemm"],
    ),
    "two regions": (
        "g (float[N,12] x) => (float[N,20] y) { p = MatMul(x, w) q = Relu(p) s = Softmax(q) y = Neg(s) }",
        ["FusedGemm", "Softmax", "Neg"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FUSED)
def test_fuses(case: str) -> None:
    text, expected = FUSED[case]
    before = make(text)
    after = fuse(before)
    assert op_list(after) == expected
    assert programs(after)
    assert [value.name for value in after.graph.output] == [value.name for value in before.graph.output]
    for dims in ({}, {"N": 1, "B": 1, "S": 1}, {"N": 0, "B": 2, "S": 0}, {"N": 30, "B": 4, "S": 13}):
        assert_same_three_ways(before, after, feeds_of(before, **dims))


@pytest.mark.parametrize("opset", range(7, 25))
def test_every_opset(opset: int) -> None:
    before = make(
        "g (float[N,12] x, float[N,20] r) => (float[N,20] y) { p = MatMul(x, w) q = Add(p, b) s = Sigmoid(q) t = Mul(q, s) y = Add(t, r) }",
        opset=opset,
        ir_version=4 if opset < 9 else 8,
    )
    after = fuse(before)
    assert op_list(after) == ["FusedGemm"]
    assert_same_three_ways(before, after, feeds_of(before))


def test_last_of_several_hosts_computes_the_region() -> None:
    before = make(FUSED["two products"][0])
    first, second = fuse(before).graph.node
    assert [attr.name for attr in first.attribute if attr.name == "epilogue"] == []
    assert first.output[0] in second.input


def test_regions_of_equal_text_share_a_body() -> None:
    before = make(
        "g (float[N,12] x, float[N,12] z) => (float[N,20] y, float[N,20] t) { p = MatMul(x, w) y = Relu(p) q = MatMul(z, v) t = Relu(q) }"
    )
    after = fuse(before)
    assert op_list(after) == ["FusedGemm", "FusedGemm"]
    assert len({node.overload for node in after.graph.node}) == 1
    assert_same_three_ways(before, after, feeds_of(before))


def test_constants_of_the_region_are_in_the_program() -> None:
    before = make("g (float[N,12] x) => (float[N,20] y) { p = MatMul(x, w) y = Add(p, one) }")
    after = fuse(before)
    assert programs(after) == ["i0:f32 | t0=add(i0,#0x1.0000000000000p+0:f32) | t0:f32"]
    assert_same_three_ways(before, after, feeds_of(before))


@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
def test_values_that_are_not_finite(special: float) -> None:
    before = make("g (float[N,12] x) => (float[N,20] y) { p = MatMul(x, w) q = Add(p, b) r = Tanh(q) y = Relu(r) }")
    feeds = feeds_of(before)
    feeds["x"][1, 2] = special
    assert_same_three_ways(before, fuse(before), feeds)


# --- what is not, and why ---
REFUSED: dict[str, tuple[str, list[str], str]] = {
    "result that is an output": (
        "g (float[N,12] x) => (float[N,20] y, float[N,20] p) { p = MatMul(x, w) y = Relu(p) }",
        ["FusedGemm", "Relu"],
        "is also used elsewhere",
    ),
    "result that another op reads": (
        "g (float[N,12] x) => (float[N,20] y, float[N,20] z) { p = MatMul(x, w) y = Relu(p) z = Softmax(p) }",
        ["FusedGemm", "Relu", "Softmax"],
        "is also used elsewhere",
    ),
    "rows that are broadcast": (
        "g (float[1,12] x, float[N,20] r) => (float[N,20] y) { p = MatMul(x, w) y = Add(p, r) }",
        ["FusedGemm", "Add"],
        "may be broadcast",
    ),
    "rows that may be broadcast": (
        "g (float[M,12] x, float[N,20] r) => (float[A,20] y) { p = MatMul(x, w) y = Add(p, r) }",
        ["FusedGemm", "Add"],
        "may be broadcast",
    ),
    "result of less rank": (
        "g (float[N,12] x, float[B,N,20] r) => (float[B,N,20] y) { p = MatMul(x, w) y = Add(p, r) }",
        ["FusedGemm", "Add"],
        "may be broadcast",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    text, expected, sentence = REFUSED[case]
    before = make(text)
    after, report = run_passes(before, *PASSES, target="cpu", explain=True)
    assert op_list(after) == expected
    assert not programs(after)
    assert any(sentence in str(miss.refusal) for miss in report.near_misses), [
        str(m.refusal) for m in report.near_misses
    ]
    assert_same_three_ways(before, after, feeds_of(before))


def test_refuses_types_that_programs_do_not_have() -> None:
    before = make("g (float[N,12] x) => (double[N,20] y) { p = MatMul(x, w) y = Cast<to=11>(p) }")
    assert op_list(fuse(before)) == ["FusedGemm", "Cast"]


def test_refuses_a_second_epilogue() -> None:
    once = fuse(make("g (float[N,12] x) => (float[N,20] y) { p = MatMul(x, w) q = Relu(p) y = Identity(q) }"))
    once.graph.node[1].op_type = "Neg"
    after, report = run_passes(once, "fuse_epilogues", target="cpu", explain=True)
    assert op_list(after) == ["FusedGemm", "Neg"]
    assert "FusedGemm has an epilogue already" in [str(miss.refusal) for miss in report.near_misses]


def test_leaves_branches_alone() -> None:
    before = make(
        """g (bool c, float[N,12] x) => (float[N,20] y) {
            p = MatMul(x, w)
            y = If(c) < then_branch = t () => (float[N,20] a) { a = Relu(p) },
                        else_branch = e () => (float[N,20] d) { d = Neg(p) } > }"""
    )
    after = fuse(before)
    assert op_list(after) == ["FusedGemm", "If"]
    assert not programs(after)
    for condition in (True, False):
        assert_same_three_ways(before, after, feeds_of(before) | {"c": np.array(condition)})


def test_result_that_a_branch_reads_too_stays() -> None:
    before = make(
        """g (bool c, float[N,12] x) => (float[N,20] y, float[N,20] z) {
            p = MatMul(x, w) z = Relu(p)
            y = If(c) < then_branch = t () => (float[N,20] a) { a = Exp(p) },
                        else_branch = e () => (float[N,20] d) { d = Neg(p) } > }"""
    )
    after = fuse(before)
    assert op_list(after) == ["FusedGemm", "Relu", "If"]
    assert_same_three_ways(before, after, feeds_of(before) | {"c": np.array(True)})


def test_region_whose_other_operand_is_made_later() -> None:
    before = make(
        """g (float[N,12] x, float[N,20] z) => (float[N,20] y, float[N,20] e) {
            p = MatMul(x, w) q = Relu(p) e = Softmax(z) y = Add(q, e) }"""
    )
    after = fuse(before)
    assert sorted(op_list(after)) == ["FusedGemm", "Softmax"]
    assert_same_three_ways(before, after, feeds_of(before))


def test_region_that_its_own_operand_depends_on() -> None:
    """The softmax reads what the region makes, and the region cannot read it before."""
    before = make("g (float[N,12] x) => (float[N,20] y) { p = MatMul(x, w) q = Relu(p) s = Softmax(q) y = Add(q, s) }")
    after = fuse(before)
    assert op_list(after) == ["FusedGemm", "Softmax", "Add"]
    assert_same_three_ways(before, after, feeds_of(before))


# --- other targets ---
@pytest.mark.parametrize("case", FUSED)
def test_standard_ops_come_back(case: str) -> None:
    before = make(FUSED[case][0])
    after, _ = run_passes(fuse(before), "inline_custom_ops", "fold_constants")
    assert not after.functions
    assert ops(after) == ops(before)
    assert_same(before, after, feeds_of(before), rtol=2e-5, atol=4e-6)


@pytest.mark.parametrize("case", FUSED)
def test_whole_pipeline_and_back(case: str) -> None:
    before = make(FUSED[case][0])
    loaded = ir.load(before)
    PassManager("cpu", strict=True).run(loaded)
    once = ir.to_proto(loaded)
    onnx.checker.check_model(once)
    assert_same_three_ways(before, once, feeds_of(before))
    again = ir.load(once)
    PassManager("generic", strict=True).run(again)
    back = ir.to_proto(again)
    assert {node.domain for node in back.graph.node} == {""}
    assert "Transpose" not in ops(back)
    assert_same(before, back, feeds_of(before), rtol=2e-5, atol=4e-6)


def test_ops_that_take_epilogues_have_the_attribute() -> None:
    for spec in epilogue.OPS.values():
        assert "epilogue" in spec.attributes


def test_weights_are_those_of_the_product() -> None:
    after, _ = run_passes(make(FUSED["bias and chain"][0]), *PASSES, "eliminate_dead_code", target="cpu")
    arrays = [numpy_helper.to_array(one) for one in after.graph.initializer]
    packed, bias = sorted(arrays, key=lambda one: -one.ndim)
    np.testing.assert_array_equal(packed, ir.pack(WEIGHTS["w"]))
    np.testing.assert_array_equal(bias, WEIGHTS["b"])
