"""FusedElementwise: every op and type computed three ways: as it was, by the kernel, and by the body alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from helpers import model, ops, run_passes, set_costs
from onnxopt import ir
from onnxopt.fusions import fused_elementwise as fusion
from onnxopt.ops import fused_elementwise as fused
from onnxopt.pipeline import PassManager
from onnxopt.runtime.library import library_path

pytest.importorskip("onnxopt._native", reason="the native library is not built")
from onnxopt import _native as native

Array = np.ndarray[Any, Any]
TYPES = {
    ir.DataType.FLOAT: ("float", np.float32),
    ir.DataType.FLOAT16: ("float16", np.float16),
    ir.DataType.INT32: ("int32", np.int32),
    ir.DataType.INT64: ("int64", np.int64),
    ir.DataType.BOOL: ("bool", np.bool_),
}
FIRST_OPSET = {"Celu": 12, "HardSwish": 14, "Mish": 18, "Gelu": 20, "Swish": 24}
NEWEST_OPSET = 21
"""The newest opset that all releases of onnxruntime in use load."""


@pytest.fixture(autouse=True)
def fuse_small_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests use small tensors, and regions of any size."""
    set_costs(monkeypatch, small_region_nodes=fusion.MIN_NODES)


def session(proto: onnx.ModelProto, *, library: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if library:
        options.register_custom_ops_library(str(library_path()))
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def fuse(proto: onnx.ModelProto) -> onnx.ModelProto:
    result, _ = run_passes(proto, "fuse_elementwise", target="cpu")
    return result


def expressions(proto: onnx.ModelProto) -> list[str]:
    fused_nodes = [node for node in proto.graph.node if node.op_type == "FusedElementwise"]
    return [node.attribute[0].s.decode() for node in fused_nodes]


def assert_close(actual: Array, expected: Array) -> None:
    """Within the op's tolerance of the largest operand-sized number around: equal for integers and bools, NaN equals NaN."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    if expected.dtype.kind != "f":
        np.testing.assert_array_equal(actual, expected)
        return
    tolerance = {np.dtype(np.float32): 2e-6, np.dtype(np.float16): 2e-3}[expected.dtype]
    np.testing.assert_allclose(actual.astype(np.float64), expected.astype(np.float64), rtol=tolerance, atol=tolerance)


def compare_three_ways(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> onnx.ModelProto:
    """The fused model, after its outputs were compared with those of the original."""
    try:
        reference = session(proto, library=False)
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:
        pytest.skip("onnxruntime has no kernel for this op and type")
    expected = reference.run(None, dict(feeds))
    after = fuse(proto)
    for library in (True, False):
        for actual, wanted in zip(session(after, library=library).run(None, dict(feeds)), expected, strict=True):
            assert_close(actual, wanted)
    return after


def samples(dtype: ir.DataType, shape: tuple[int, ...], seed: int) -> Array:
    """Values with the extremes and the not finite ones of a type among them."""
    rng = np.random.default_rng(seed)
    kind = np.dtype(TYPES[dtype][1])
    count = int(np.prod(shape))
    if kind == np.bool_:
        return rng.integers(0, 2, shape).astype(np.bool_)
    if kind.kind == "i":
        info = np.iinfo(kind)
        values = rng.integers(-9, 10, count).astype(kind)
        values[::5] = rng.choice(np.array([info.min, info.max, 0], kind), len(values[::5]))
        return values.reshape(shape)
    values = rng.normal(0, 3, count).astype(kind)
    big = float(np.finfo(kind).max)
    edges = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1.0, -1.0, 0.5, 2.5, big, -big], kind)
    values[::4] = rng.choice(edges, len(values[::4]))
    return values.reshape(shape)


def arity(op: str) -> int:
    operands = fused.LOWERINGS[op].operands
    return 3 if operands[-1] >= 3 else operands[-1]


def result_type(op: str, dtype: ir.DataType) -> ir.DataType:
    comparison = op in ("IsNaN", "IsInf", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
    return ir.DataType.BOOL if comparison else dtype


def one_op(
    op: str,
    dtypes: list[ir.DataType],
    result: ir.DataType,
    shapes: list[tuple[int, ...]],
    opset: int,
    **attributes: Any,
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The op, and one more so that there is a region; both results are outputs."""
    names = [f"x{k}" for k in range(len(dtypes))]
    onnx_types = [int(dtype.value) for dtype in dtypes]
    shape = list(np.broadcast_shapes(*shapes))
    follower = "Not" if result is ir.DataType.BOOL else "Abs"
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], **attributes), helper.make_node(follower, ["y"], ["z"])],
        "g",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in zip(names, onnx_types, shapes, strict=True)],
        [helper.make_tensor_value_info(n, int(result.value), shape) for n in ("y", "z")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    feeds = {n: samples(t, s, k) for k, (n, t, s) in enumerate(zip(names, dtypes, shapes, strict=True))}
    return proto, feeds


INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)
SHAPES = {
    "equal": [(3, 5, 7)] * 3,
    "row": [(3, 5, 7), (7,), (1, 1, 7)],
    "column": [(3, 5, 7), (5, 1), (3, 1, 1)],
    "scalar": [(3, 5, 7), (), (1,)],
    "both ways": [(3, 1, 7), (5, 1), (5, 7)],
}


def computed() -> list[tuple[str, ir.DataType]]:
    """Every op and type that a region may hold."""
    found = [(op, dtype) for op, lowering in fused.LOWERINGS.items() for dtype in lowering.dtypes if op != "Cast"]
    refused = [(op, dtype) for op in ("Div", "Mod") for dtype in INTEGERS]
    refused += [(op, ir.DataType.BFLOAT16) for op in fused.LOWERINGS]  # of which processors have no kernel
    return sorted(set(found) - set(refused), key=lambda case: (case[0], case[1].value))


def cases() -> list[tuple[str, ir.DataType, str]]:
    """With every way of broadcasting that the op's operands allow."""
    return [
        (op, dtype, layout)
        for op, dtype in computed()
        for layout in SHAPES
        if layout == "equal" or arity(op) > 1
        if layout == "scalar" or op != "Clip"
        if layout != "both ways" or op != "PRelu"
    ]


@pytest.mark.parametrize(("op", "dtype", "layout"), cases())
def test_op(op: str, dtype: ir.DataType, layout: str) -> None:
    count = arity(op)
    shapes = SHAPES[layout][:count] if op != "Clip" else [(3, 5, 7), (), ()]
    dtypes = [dtype] * count
    if op == "Where":
        dtypes[0] = ir.DataType.BOOL
    proto, feeds = one_op(op, dtypes, result_type(op, dtype), shapes, max(FIRST_OPSET.get(op, 0), NEWEST_OPSET))
    if op == "Clip":
        low, high = (-2, 3) if dtype in INTEGERS else (-1.5, 2.25)
        feeds["x1"], feeds["x2"] = (np.array(bound, TYPES[dtype][1]) for bound in (low, high))
    after = compare_three_ways(proto, feeds)
    assert list(ops(after)) == ["FusedElementwise"]


@pytest.mark.parametrize("to", TYPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_cast(dtype: ir.DataType, to: ir.DataType) -> None:
    proto, feeds = one_op("Cast", [dtype], to, [(3, 41)], NEWEST_OPSET, to=int(to.value))
    if dtype in fused.FLOATS and to in INTEGERS:
        # What a float that does not fit becomes is not defined, and onnxruntime's answer depends on the machine.
        feeds["x0"] = np.clip(np.nan_to_num(feeds["x0"], posinf=9, neginf=-9), -3e4, 3e4).astype(TYPES[dtype][1])
    after = compare_three_ways(proto, feeds)
    assert list(ops(after)) == ["FusedElementwise"]


ATTRIBUTES: list[tuple[str, int, dict[str, Any]]] = [
    ("LeakyRelu", 16, {"alpha": 0.3}),
    ("LeakyRelu", 16, {"alpha": -0.3}),
    ("Elu", 6, {"alpha": 0.7}),
    ("Celu", 12, {"alpha": 0.7}),
    ("Selu", 6, {"alpha": 1.1, "gamma": 2.0}),
    ("HardSigmoid", 6, {"alpha": 1 / 6, "beta": 0.4}),
    ("ThresholdedRelu", 10, {"alpha": -0.5}),
    ("Gelu", 20, {"approximate": "tanh"}),
    ("Clip", 6, {"min": -0.5, "max": 1.5}),
    ("Clip", 6, {"min": -0.5}),
    ("Clip", 6, {"max": 1.5}),
]


@pytest.mark.parametrize(("op", "opset", "attributes"), ATTRIBUTES)
def test_attributes(op: str, opset: int, attributes: dict[str, Any]) -> None:
    proto, feeds = one_op(op, [ir.DataType.FLOAT], ir.DataType.FLOAT, [(3, 35)], opset, **attributes)
    after = compare_three_ways(proto, feeds)
    assert list(ops(after)) == ["FusedElementwise"]


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT32, ir.DataType.INT64])
@pytest.mark.parametrize("operands", ["x, lo,", "x,, hi", "x, lo, hi", "x, lo", "x"])
def test_clip_with_absent_bounds(operands: str, dtype: ir.DataType) -> None:
    name, kind = TYPES[dtype]
    proto = model(
        f"g ({name}[40] x) => ({name}[40] z) {{ y = Clip({operands}) w = Neg(y) z = Abs(w) }}",
        lo=np.array(-1, kind),
        hi=np.array(2, kind),
    )
    compare_three_ways(proto, {"x": samples(dtype, (40,), 2)})


@pytest.mark.parametrize("dtype", [ir.DataType.INT32, ir.DataType.INT64])
@pytest.mark.parametrize("divisor", [1, 3, 40])
@pytest.mark.parametrize("op", ["Div(x, d)", "Mod(x, d)", "Mod<fmod = 1>(x, d)"])
def test_division_by_a_positive_number(op: str, divisor: int, dtype: ir.DataType) -> None:
    name, kind = TYPES[dtype]
    proto = model(f"g ({name}[40] x) => ({name}[40] z) {{ y = {op} w = Neg(y) z = Abs(w) }}", d=np.array(divisor, kind))
    after = compare_three_ways(proto, {"x": samples(dtype, (40,), 3)})
    assert list(ops(after)) == ["FusedElementwise"]


@pytest.mark.parametrize("divisor", [0, -3])
def test_division_by_other_numbers_is_left_alone(divisor: int) -> None:
    proto = model("g (int64[40] x) => (int64[40] z) { y = Mod(x, d) w = Neg(y) z = Abs(w) }", d=np.array(divisor))
    after, _ = run_passes(proto, "fuse_elementwise", target="cpu")
    assert "Mod" in ops(after)


@pytest.mark.parametrize("opset", range(7, 25))
def test_every_opset(opset: int) -> None:
    proto = model(
        "g (float[N,5] x, float[5] b) => (float[N,5] y) { s = Add(x, b) t = Sigmoid(s) u = Mul(s, t) c = Less(u, b) y = Where(c, u, s) }"
        if opset >= 9
        else "g (float[N,5] x, float[5] b) => (float[N,5] y) { s = Add(x, b) t = Sigmoid(s) u = Mul(s, t) y = Tanh(u) }",
        opset=opset,
        ir_version=3 if opset < 9 else 8,
    )
    after = compare_three_ways(proto, {"x": samples(ir.DataType.FLOAT, (3, 5), 1), "b": np.ones(5, np.float32)})
    assert list(ops(after)) == ["FusedElementwise"]
    assert {entry.domain: entry.version for entry in after.opset_import}[""] == opset


def test_empty_tensors() -> None:
    proto = model("g (float[N,5] x) => (float[N,5] y, float[N,5] z) { a = Exp(x) y = Neg(a) z = Tanh(y) }")
    compare_three_ways(proto, {"x": np.zeros((0, 5), np.float32)})


def test_half_region_between_ops_that_onnxruntime_computes_in_float() -> None:
    """onnxruntime then gives float32 to the node, and expects it back."""
    proto = model(
        """g (float16[N,4] x, float16[4,4] w) => (float16[N,4] y) {
            a = MatMul(x, w) b = Sigmoid(a) c = Add(a, b) d = Cast<to=1>(c) e = Cast<to=10>(d) f = Mul(e, c)
            y = MatMul(f, w) }"""
    )
    rng = np.random.default_rng(3)
    feeds = {"x": rng.normal(0, 0.5, (3, 4)).astype(np.float16), "w": rng.normal(0, 0.5, (4, 4)).astype(np.float16)}
    after = fuse(proto)
    expected = session(proto, library=False).run(None, feeds)
    for library in (True, False):
        (actual,) = session(after, library=library).run(None, feeds)
        np.testing.assert_allclose(actual, expected[0], rtol=4e-3, atol=4e-3)


@pytest.mark.slow
def test_node_tests_of_the_standard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every case of the standard that has an element-wise op; here a single op is a region too."""
    from onnx.backend.test.case.node import collect_testcases

    monkeypatch.setattr(fusion, "MIN_NODES", 1)
    set_costs(monkeypatch, small_region_nodes=1)
    compared = 0
    for case in collect_testcases(None):
        before = case.model
        loaded = ir.load(onnx.ModelProto.FromString(before.SerializeToString()))
        if not PassManager("cpu", ["fuse_elementwise"], strict=True).run(loaded).patches:
            continue
        after = ir.to_proto(loaded)
        try:
            reference = session(before, library=False)
            feeds = {i.name: np.asarray(v) for i, v in zip(reference.get_inputs(), case.data_sets[0][0], strict=False)}
            expected = reference.run(None, feeds)
        except Exception:  # onnxruntime does not run it
            continue
        for library in (True, False):
            for actual, wanted in zip(session(after, library=library).run(None, feeds), expected, strict=True):
                assert (actual.dtype, actual.shape) == (wanted.dtype, wanted.shape), case.name
                tolerance = 2e-3 if wanted.dtype == np.float16 else 1e-5
                np.testing.assert_allclose(actual, wanted, rtol=tolerance, atol=1e-6, err_msg=case.name)
        compared += 1
    assert compared > 400


# --- the expression ---
def test_scalar_constants_become_exact_literals() -> None:
    proto = model(
        "g (float[N] x) => (float[N] y) { a = Mul(x, c) y = Add(a, d) }",
        c=np.array(0.1, np.float32),
        d=np.array([3], np.float32),
    )
    (text,) = expressions(fuse(proto))
    numbers = [float.fromhex(match) for match in re.findall(r"#([^:]+):f32", text)]
    assert numbers == [float(np.float32(0.1)), 3.0]
    assert text.split(" | ")[0] == "i0:f32"


def test_constants_of_one_element_that_give_a_dim_stay_operands() -> None:
    proto = model(
        "g (float x) => (float[1,1] y) { a = Mul(x, c) y = Exp(a) }",
        c=np.array([[0.1]], np.float32),
    )
    after = compare_three_ways(proto, {"x": np.array(2, np.float32)})
    for text in expressions(after):
        assert text.split(" | ")[0] == "i0:f32 i1:f32"


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan, -0.0, 1e-45, 3.4028235e38])
def test_extreme_literals(number: float) -> None:
    proto = model("g (float[N] x) => (float[N] y) { a = Mul(x, c) y = Neg(a) }", c=np.array(number, np.float32))
    compare_three_ways(proto, {"x": samples(ir.DataType.FLOAT, (33,), 3)})


@pytest.mark.parametrize("number", [np.iinfo(np.int64).min, np.iinfo(np.int64).max])
def test_extreme_integer_literals(number: int) -> None:
    proto = model("g (int64[N] x) => (int64[N] y) { a = Add(x, c) y = Neg(a) }", c=np.array(number, np.int64))
    compare_three_ways(proto, {"x": samples(ir.DataType.INT64, (33,), 3)})


def test_equal_statements_are_written_once() -> None:
    proto = model("g (float[N] x) => (float[N] y) { a = Exp(x) b = Exp(x) y = Add(a, b) }")
    (text,) = expressions(fuse(proto))
    assert text.split(" | ")[1].split() == ["t0=exp(i0)", "t1=add(t0,t0)"]


GELUS = {
    "quotient": "a = Div(x, root) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)",
    "product": "a = Mul(x, inverse) b = Erf(a) c = Add(one, b) d = Mul(half, x) y = Mul(d, c)",
    "half first": "a = Mul(inverse, x) b = Erf(a) c = Add(b, one) d = Mul(c, half) y = Mul(x, d)",
}


@pytest.mark.parametrize("case", GELUS)
def test_decomposed_gelu_is_one_statement(case: str) -> None:
    proto = model(
        f"g (float[N] x) => (float[N] y) {{ {GELUS[case]} }}",
        root=np.array(np.sqrt(2), np.float32),
        inverse=np.array(np.sqrt(0.5), np.float32),
        half=np.array(0.5, np.float32),
        one=np.array(1, np.float32),
    )
    after = compare_three_ways(
        proto, {"x": np.array([-np.inf, np.inf, np.nan, -5, -1, -0.0, 0, 1e-3, 2, 9], np.float32)}
    )
    assert expressions(after) == ["i0:f32 | t0=gelu(i0) | t0:f32"]


@pytest.mark.parametrize(
    ("exponent", "statements"),
    [(2.0, "t0=mul(i0,i0)"), (3.0, "t0=mul(i0,i0) t1=mul(t0,i0)"), (2.0000002, "t0=pow(i0,#0x1.0000020000000p+1:f32)")],
)
def test_small_whole_powers_are_products(exponent: float, statements: str) -> None:
    proto = model(
        "g (float[N] x) => (float[N] y) { p = Pow(x, exponent) y = Neg(p) }", exponent=np.array(exponent, np.float32)
    )
    x = np.array([-np.inf, np.inf, np.nan, -3, -1e30, -0.0, 0, 1e-30, 2.5, 1e13], np.float32)
    [found] = expressions(compare_three_ways(proto, {"x": x}))
    assert found.split(" | ")[1].startswith(statements)


def test_other_products_with_erf_stay() -> None:
    proto = model(
        "g (float[N] x, float[N] z) => (float[N] y) { a = Mul(x, c) b = Erf(a) d = Add(b, one) e = Mul(z, d) y = Mul(e, half) }",
        c=np.array(np.sqrt(0.5), np.float32),
        half=np.array(0.5, np.float32),
        one=np.array(1, np.float32),
    )
    after = compare_three_ways(proto, {"x": np.linspace(-3, 3, 9, dtype=np.float32), "z": np.ones(9, np.float32)})
    assert "erf" in expressions(after)[0]


def test_gate_that_others_read_stays() -> None:
    proto = model("g (float[N] x) => (float[N] y, float[N] s) { s = Sigmoid(x) y = Mul(x, s) }")
    after = compare_three_ways(proto, {"x": np.array([-np.inf, np.inf, np.nan, 1], np.float32)})
    assert expressions(after) == ["i0:f32 | t0=sigmoid(i0) t1=silu(i0) | t0:f32 t1:f32"]


def test_statements_that_are_not_needed_are_not_written() -> None:
    proto = model("g (float[N] x) => (float[N] y) { s = Sigmoid(x) t = Mul(s, x) y = Neg(t) }")
    assert expressions(fuse(proto)) == ["i0:f32 | t0=silu(i0) t1=neg(t0) | t1:f32"]


def test_variadic_ops_become_chains() -> None:
    proto = model("g (float[N] x, float[N] y, float[N] z) => (float[N] w) { a = Sum(x, y, z) w = Mean(a, x) }")
    (text,) = expressions(fuse(proto))
    assert text.split(" | ")[1].split() == [
        "t0=add(i0,i1)",
        "t1=add(t0,i2)",
        "t2=add(t1,i0)",
        "t3=div(t2,#0x1.0000000000000p+1:f32)",
    ]


def test_regions_with_equal_bodies_share_a_function() -> None:
    proto = model(
        "g (float[N,4] x, float[4,4] w) => (float[N,4] y) { a = Exp(x) b = Neg(a) m = MatMul(b, w) c = Exp(m) y = Neg(c) }"
    )
    after = fuse(proto)
    assert ops(after) == {"FusedElementwise": 2, "MatMul": 1}
    assert len(after.functions) == 1


def test_regions_with_different_bodies_have_functions_of_their_own() -> None:
    """Equal expressions can have different bodies: one kernel, each with its own original ops."""
    proto = model(
        "g (float[N,4] x, float[4,4] w) => (float[N,4] y) { a = Exp(x) b = Neg(a) m = MatMul(b, w) c = Neg(m) y = Exp(c) }"
    )
    after = fuse(proto)
    overloads = {function.overload for function in after.functions}
    assert len(overloads) == 2
    assert {node.overload for node in after.graph.node if node.op_type == "FusedElementwise"} == overloads


def test_model_is_a_standard_one() -> None:
    after = fuse(model("g (float[N] x) => (float[N] y) { a = Exp(x) y = Neg(a) }", ir_version=8))
    onnx.checker.check_model(after, full_check=True)
    assert after.ir_version >= 10
    assert {entry.domain for entry in after.opset_import} >= {"", "ai.onnxopt"}
    (function,) = after.functions
    assert (function.domain, function.name) == ("ai.onnxopt", "FusedElementwise")
    assert [node.op_type for node in function.node] == ["Exp", "Neg"]


def test_result_does_not_depend_on_the_run() -> None:
    proto = model("g (float[N] x, float[N] z) => (float[N] y) { a = Exp(x) b = Neg(z) y = Add(a, b) }")
    assert fuse(proto).SerializeToString() == fuse(proto).SerializeToString()


# --- refusals ---
REFUSED = {
    "double": "g (double[N] x) => (double[N] y) { a = Exp(x) y = Neg(a) }",
    "integer division": "g (int64[N] x, int64[N] z) => (int64[N] y) { a = Div(x, z) y = Div(a, z) }",
    "half power": "g (float16[N] x, float16[N] z) => (float16[N] y) { a = Pow(x, z) y = Pow(a, z) }",
    "mixed power": "g (float[N] x, int64[N] z) => (float[N] y) { a = Pow(x, z) y = Pow(a, z) }",
    "one sign": "g (float[N] x) => (bool[N] y) { a = IsInf <detect_negative=0> (x) y = Cast<to=1>(x) }",
    "other type": "g (float[N] x) => (uint8[N] y) { a = Cast <to=2> (x) y = Cast <to=2> (a) }",
    "string": "g (float[N] x) => (string[N] y) { a = Cast <to=8> (x) y = Cast <to=8> (a) }",
    "custom domain": "g (float[N] x) => (float[N] y) { a = com.microsoft.QuickGelu(x) y = com.microsoft.QuickGelu(a) }",
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    proto = model(REFUSED[case])
    if case == "custom domain":
        proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    loaded = ir.load(proto)
    report = PassManager("cpu", ["fuse_elementwise"], strict=True, explain=True).run(loaded)
    assert not report.patches
    assert not loaded.functions
    if case != "custom domain":
        assert report.near_misses
        assert all(str(miss.refusal) for miss in report.near_misses)


# --- the two sides agree ---
def test_every_statement_is_known_to_the_library() -> None:
    known = {name: (operands, literals) for name, operands, literals, _, _ in native.elementwise_ops()}
    for op, dtype in computed():
        expression = fused.Expression()
        node = ir.Node("", op, [ir.Value(name=f"x{k}") for k in range(arity(op))])
        fused.LOWERINGS[op].emit(expression, node, [f"i{k}" for k in range(arity(op))], dtype)
        for name, operands in expression.calls:
            assert len(operands) == sum(known[name]), (op, name)


def test_limits_are_those_of_the_library() -> None:
    def expr(inputs: int, outputs: int, statements: int) -> str:
        lines = " ".join(f"t{k}=neg(i0)" for k in range(statements))
        return f"{' '.join(f'i{k}:f32' for k in range(inputs))} | {lines} | {' '.join(['t0:f32'] * outputs)}"

    x = np.ones(1, np.float32)
    largest = (fused.MAX_INPUTS, fused.MAX_OUTPUTS, fused.MAX_STATEMENTS)
    native.run("FusedElementwise", [x] * fused.MAX_INPUTS, {"expr": expr(*largest)})
    for inputs, outputs in ((fused.MAX_INPUTS + 1, 1), (1, fused.MAX_OUTPUTS + 1)):
        with pytest.raises(ValueError, match="more than"):
            native.run("FusedElementwise", [x] * inputs, {"expr": expr(inputs, outputs, 1)})


def test_domain_and_types_are_those_of_the_library() -> None:
    (described,) = [op for op in native.ops() if op["op"] == fused.SPEC.name]
    assert described["domain"] == fused.SPEC.domain
    assert tuple(described["attributes"]) == fused.SPEC.attributes
    for kind, name in fused.TYPE_NAMES.items():
        variant = None if kind in TYPES else "elementwise__cuda_emulated"  # of bfloat16
        expr = f"i0:{name} | t0=equal(i0,i0) | t0:bool"
        (y,) = native.run("FusedElementwise", [np.ones(3, kind.numpy())], {"expr": expr}, variant=variant)
        assert y.all()


# --- what onnxruntime says about a node that is wrong ---
@pytest.mark.parametrize(
    ("expr", "feed", "sentence"),
    [
        ("i0:f32 | t0=nega(i0) | t0:f32", np.ones(3, np.float32), "'nega'"),
        ("i0:i32 | t0=cast_f32(i0) | t0:f32", np.ones(3, np.float32), "should be i32"),
        ("i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32", np.ones(3, np.float32), "1 inputs"),
    ],
)
def test_wrong_node_is_an_error_with_a_sentence(expr: str, feed: Array, sentence: str) -> None:
    node = helper.make_node("FusedElementwise", ["x"], ["y"], domain="ai.onnxopt", expr=expr)
    shape = [None] * feed.ndim
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(feed.dtype), shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnxopt", 1)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=10)
    with pytest.raises(Exception, match=re.escape(sentence)):
        session(proto, library=True).run(None, {"x": feed})


def test_shapes_that_do_not_broadcast_are_an_error_with_a_sentence() -> None:
    proto = model("g (float[N] x, float[M] z) => (float[K] y) { a = Add(x, z) y = Neg(a) }")
    loaded = ir.load(proto)
    PassManager("cpu", ["fuse_elementwise"], strict=True).run(loaded)
    feeds = {"x": np.ones(3, np.float32), "z": np.ones(4, np.float32)}
    with pytest.raises(Exception, match="broadcast"):
        session(ir.to_proto(loaded), library=True).run(None, feeds)
