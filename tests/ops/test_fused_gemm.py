"""FusedGemm: its kernel against its body, what onnxruntime infers of it, and nodes that nobody should write."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxopt
from helpers import evaluate, model, node_model
from onnxopt import ir
from onnxopt.ops import fused_gemm as op
from onnxopt.ops.base import DOMAIN, prepare_model

native = pytest.importorskip("onnxopt._native", reason="the native library is not built")

Array = np.ndarray[Any, Any]
OPSETS = range(7, 25)
RELU = "i0:f32 | t0=relu(i0) | t0:f32"
ADD = "i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32"


def ones(*shape: int) -> Array:
    return np.ones(shape, np.float32)


def with_body(depth: int, columns: int, opset: int, *, biased: bool, rank: int = 2) -> onnx.ModelProto:
    """One node over X and its weights, and the function that it stands for."""
    dims = ",".join("ABCDE"[: rank - 1])
    panels = -(-columns // ir.PANEL)
    bias = f", float[{columns}] b" if biased else ""
    graph = f"g (float[{dims},{depth}] x, float[{panels},{depth},16] w{bias}) => (float[{dims},{columns}] y)"
    loaded = ir.load(model(f"{graph} {{ y = Sum(x, w{', b' if biased else ''}) }}", opset=opset, ir_version=10))
    (node,) = loaded.graph
    node.domain, node.op_type = DOMAIN, op.SPEC.name
    variety = op.Variety(depth, columns, biased)
    node.overload = variety.overload(opset)
    attributes = {"columns": columns, **({"biased": 1} if biased else {})}
    for name, value in attributes.items():
        node.attributes[name] = ir.make_attribute(name, value)
    body = variety.body(opset)
    loaded.functions[body.identifier()] = body
    prepare_model(loaded)
    return ir.to_proto(loaded)


# --- kernel and body ---
def compare(proto: onnx.ModelProto, x: Array, matrix: Array, bias: Array | None) -> None:
    feeds = {"x": x, "w": ir.pack(matrix)} | ({} if bias is None else {"b": bias})
    expected = x.astype(np.float64) @ matrix + (0 if bias is None else bias)
    for library in (False, True):
        (actual,) = evaluate(proto, feeds, library=library)
        assert (actual.shape, actual.dtype) == (expected.shape, np.float32)
        largest = np.abs(expected).max(initial=1e-30)
        tolerance = op.SPEC.tolerance[ir.DataType.FLOAT]
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("columns", [1, 15, 16, 33, 48])
@pytest.mark.parametrize("depth", [1, 8, 1500])
@pytest.mark.parametrize("rows", [(1,), (13,), (0,), (2, 5), (2, 1, 3)])
def test_kernel_computes_what_the_body_computes(rows: tuple[int, ...], depth: int, columns: int, biased: bool) -> None:
    rng = np.random.default_rng(columns)
    x, matrix = (rng.normal(0, 1, shape).astype(np.float32) for shape in ((*rows, depth), (depth, columns)))
    bias = rng.normal(0, 1, columns).astype(np.float32) if biased else None
    compare(with_body(depth, columns, 17, biased=biased, rank=len(rows) + 1), x, matrix, bias)


@pytest.mark.parametrize("columns", [16, 21])
@pytest.mark.parametrize("opset", OPSETS)
def test_body_of_every_opset(opset: int, columns: int) -> None:
    rng = np.random.default_rng(opset)
    x, matrix, bias = (rng.normal(0, 1, shape).astype(np.float32) for shape in ((5, 9), (9, columns), (columns,)))
    compare(with_body(9, columns, opset, biased=True), x, matrix, bias)


def with_integers(variety: op.Variety, opset: int) -> onnx.ModelProto:
    """One node over X, integers and their scales, and the function that it stands for."""
    assert variety.block is not None
    panels, blocks = -(-variety.columns // ir.PANEL), -(-variety.depth // variety.block)
    inputs = [
        f"float[A,{variety.depth}] x",
        f"{variety.weights.name.lower()}[{panels},{variety.depth},16] w",
        f"float[{panels},{blocks},16] s",
        *([f"float[{variety.columns}] b"] if variety.biased else []),
    ]
    names = ", ".join(one.split()[-1] for one in inputs)
    text = f"g ({', '.join(inputs)}) => (float[A,{variety.columns}] y) {{ y = Sum({names}) }}"
    loaded = ir.load(model(text, opset=opset, ir_version=10))
    (node,) = loaded.graph
    node.domain, node.op_type, node.overload = DOMAIN, op.SPEC.name, variety.overload(opset)
    for name, value in {"columns": variety.columns, "block": variety.block, "biased": int(variety.biased)}.items():
        node.attributes[name] = ir.make_attribute(name, value)
    body = variety.body(opset)
    loaded.functions[body.identifier()] = body
    prepare_model(loaded)
    proto = ir.to_proto(loaded)
    # onnxruntime's Python side takes no int4, so the weights are a constant.
    proto.graph.input.remove(proto.graph.input[1])
    return proto


SIZES = ((1, 1, 16), (40, 21, 16), (64, 48, 32), (100, 33, 100))
INTEGERS = [
    (opset, op.Variety(depth, columns, biased, dtype, block))
    for opset in (9, 13, 18, 20, 21, 23)
    for dtype in (ir.DataType.INT8, ir.DataType.INT4)
    for depth, columns, block in SIZES
    for biased in (False, True)
    if op.is_supported(dtype, depth, block, opset)
]


@pytest.mark.parametrize("rows", [1, 4, 20])
@pytest.mark.parametrize(("opset", "variety"), INTEGERS)
def test_integers_are_what_the_body_says(opset: int, variety: op.Variety, rows: int) -> None:
    depth, columns, dtype, block = variety.depth, variety.columns, variety.weights, variety.block
    assert block is not None
    rng = np.random.default_rng(rows)
    proto = with_integers(variety, opset)
    low, high = (-128, 128) if dtype is ir.DataType.INT8 else (-8, 8)
    packed = ir.pack(rng.integers(low, high, (depth, columns)).astype(np.int8)).astype(dtype.numpy())
    proto.graph.initializer.append(onnx.numpy_helper.from_array(packed, "w"))
    feeds = {
        "x": rng.standard_normal((rows, depth)).astype(np.float32),
        "s": ir.pack(rng.uniform(0.1, 1, (-(-depth // block), columns)).astype(np.float32)),
    }
    if variety.biased:
        feeds["b"] = rng.standard_normal(columns).astype(np.float32)
    kernel, body = (evaluate(proto, feeds, library=library)[0] for library in (True, False))
    assert kernel.shape == (rows, columns)
    assert np.abs(kernel - body).max() <= op.SPEC.tolerance[ir.DataType.FLOAT] * np.abs(body).max()


def test_limit_of_products_is_that_of_the_library() -> None:
    x, w = ones(3, 8), ones(1, 8, 16)
    attributes = {"columns": 16, "products": op.MAX_PRODUCTS}
    assert len(native.run("FusedGemm", [x, *[w] * op.MAX_PRODUCTS], attributes)) == op.MAX_PRODUCTS
    with pytest.raises(ValueError, match=f"should be 1 to {op.MAX_PRODUCTS}"):
        native.run("FusedGemm", [x, *[w] * 5], attributes | {"products": op.MAX_PRODUCTS + 1})


# --- shapes before the run ---
def shapes_of(graph: str, **weights: Array) -> list[list[int | str | None]]:
    """What a session says of the shapes of the outputs, of which the model says nothing but the rank."""
    proto = model(graph, ir_version=10, **weights)
    proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    return [value.shape for value in onnxopt.session(proto).get_outputs()]


def gemm(arguments: str, columns: int, **attributes: Any) -> str:
    """The call of a FusedGemm in onnx's text syntax."""
    texts = [f"columns: int = {columns}", *(f'{k}: string = "{v}"' for k, v in attributes.items())]
    return f"{DOMAIN}.FusedGemm <{', '.join(texts)}> ({arguments})"


def test_named_dims_go_through() -> None:
    text = f"g (float[A,B,8] x) => (float[A,B,20] y, float[A,B,20] z) {{ y = {gemm('x, w', 20)} z = Neg(y) }}"
    assert shapes_of(text, w=ones(2, 8, 16)) == [["A", "B", 20]] * 2


def test_fixed_dims_go_through() -> None:
    text = f"g (float[2,3,8] x) => (float[2,3,20] y, bool[2,3,20] m) {{ y, m = {gemm('x, w', 20, epilogue='i0:f32 | t0=neg(i0) t1=less(t0,i0) | t0:f32 t1:bool')} }}"
    assert shapes_of(text, w=ones(2, 8, 16)) == [[2, 3, 20]] * 2


def test_unknown_dims_are_not_taken_to_be_equal() -> None:
    """Two results of the same inferred shape would be given the same memory, though they differ in size."""
    body = " ".join(
        f"r{k} = Reshape(x{k}, shape{k}) g{k} = {gemm(f'r{k}, w', 16)} a{k} = Neg(g{k}) y{k} = ReduceMax<keepdims=0>(a{k})"
        for k in (0, 1, 2)
    )
    inputs = ", ".join(f"float[N{k},16] x{k}, int64[3] shape{k}" for k in (0, 1, 2))
    proto = model(f"g ({inputs}) => (float y0, float y1, float y2) {{ {body} }}", ir_version=10, w=ones(1, 16, 16))
    proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    feeds: dict[str, Array] = {}
    for k, (first, second) in enumerate([(2, 3), (5, 7), (1, 2)]):
        feeds |= {f"x{k}": ones(first * second, 16), f"shape{k}": np.array([first, second, 16])}
    session = onnxopt.session(proto)
    for _ in range(2):
        assert [float(y) for y in session.run(None, feeds)] == [-16.0] * 3


# --- nodes that nobody should write ---
BASE: dict[str, Any] = {"columns": 20}
X, W, B = ones(3, 8), ones(2, 8, 16), ones(20)

MISUSES: dict[str, tuple[dict[str, Any], list[Array], str]] = {
    "no columns": ({}, [X, W], "It needs a positive attribute 'columns'."),
    "no column": ({"columns": 0}, [X, W], "It needs a positive attribute 'columns'."),
    "negative columns": ({"columns": -16}, [X, W], "It needs a positive attribute 'columns'."),
    "fewer columns than weights": ({"columns": 16}, [X, W], "Input 1 has the shape [2,8,16] and should have [1,8,16]."),
    "more columns than weights": ({"columns": 33}, [X, W], "Input 1 has the shape [2,8,16] and should have [3,8,16]."),
    "columns beyond all memory": (
        {"columns": 2**63 - 1},
        [X, W],
        "Input 1 has the shape [2,8,16] and should have [576460752303423488,8,16].",
    ),
    "no product": (BASE | {"products": 0}, [X, W], "Its attribute 'products' is 0 and should be 1 to 4."),
    "too many products": (BASE | {"products": 5}, [X, *[W] * 5], "Its attribute 'products' is 5 and should be 1 to 4."),
    "negative products": (BASE | {"products": -1}, [X, W], "Its attribute 'products' is -1 and should be 1 to 4."),
    "negative blocks": (BASE | {"block": -1}, [X, W], "Its attribute 'block' is -1 and should be positive and less than 2^31."),
    "blocks that wrap around": (
        BASE | {"block": 2**63 - 1},
        [X, W.astype(np.int8), ones(2, 0, 16)],
        "Its attribute 'block' is 9223372036854775807 and should be positive and less than 2^31.",
    ),
    "rows alone": (BASE, [X], "It got 1 inputs and needs at least 2."),
    "no bias": (BASE | {"biased": 1}, [X, W], "It got 2 inputs and needs at least 3."),
    "too few weights": (BASE | {"products": 3}, [X, W, W], "It got 3 inputs and needs at least 4."),
    "too few biases": (BASE | {"products": 2, "biased": 1}, [X, W, W, B], "It got 4 inputs and needs at least 5."),
    "bias that is not declared": (BASE, [X, W, B], "It has 1 inputs for its epilogue, which takes 0."),
    "double rows": (BASE, [X.astype(np.float64), W], "Input 0 is of type double and should be float."),
    "half weights": (BASE, [X, W.astype(np.float16)], "Input 1 is of type float16 and should be float."),
    "bias of integers": (BASE | {"biased": 1}, [X, W, B.astype(np.int64)], "Input 2 is of type int64 and should be float."),
    "strings": (BASE, [np.array(["a"], object), W], "Input 0 is of type string and should be float."),
    "scalar": (BASE, [ones(), W], "Input 0 is a scalar and should have rows."),
    "other depth": (BASE, [ones(3, 9), W], "Input 1 has the shape [2,8,16] and should have [2,9,16]."),
    "plain matrix": (BASE, [X, ones(8, 20)], "Input 1 has the shape [8,20] and should have [2,8,16]."),
    "second matrix": (BASE | {"products": 2}, [X, W, ones(2, 7, 16)], "Input 2 has the shape [2,7,16] and should have [2,8,16]."),
    "long bias": (BASE | {"biased": 1}, [X, W, ones(32)], "Input 2 has the shape [32] and should have [20]."),
    "bias of a row": (BASE | {"biased": 1}, [X, W, ones(1, 20)], "Input 2 has the shape [1,20] and should have [20]."),
    "scalar bias": (BASE | {"biased": 1}, [X, W, ones()], "Input 2 has the shape [] and should have [20]."),
    "malformed epilogue": (BASE | {"epilogue": "relu"}, [X, W], "Its epilogue: The expression is malformed: "),
    "epilogue of too few results": (
        BASE | {"products": 2, "epilogue": RELU},
        [X, W, W],
        "Its epilogue has 1 inputs and should begin with 2 results.",
    ),
    "epilogue of another type": (
        BASE | {"epilogue": "i0:f16 | t0=relu(i0) | t0:f16"},
        [X, W],
        "Its results are float, and input 0 of its epilogue is f16.",
    ),
    "missing operand": (BASE | {"epilogue": ADD}, [X, W], "It has 0 inputs for its epilogue, which takes 1."),
    "surplus operand": (BASE | {"epilogue": RELU}, [X, W, B], "It has 1 inputs for its epilogue, which takes 0."),
    "operand of another type": (
        BASE | {"epilogue": ADD},
        [X, W, B.astype(np.float64)],
        "Input 1 of its epilogue is of type double and should be f32.",
    ),
    "operand that does not broadcast": (BASE | {"epilogue": ADD}, [X, W, ones(4, 20)], "Its epilogue: "),
    "operand that broadcasts the result": (
        BASE | {"epilogue": ADD},
        [X, W, ones(2, 1, 20)],
        "Its epilogue makes the shape [2,3,20] of results of shape [3,20].",
    ),
    "rows that are broadcast": (
        BASE | {"epilogue": ADD},
        [ones(1, 8), W, ones(5, 20)],
        "Its epilogue makes the shape [5,20] of results of shape [1,20].",
    ),
    "output that does not read the result": (
        BASE | {"epilogue": "i0:f32 i1:f32 | t0=neg(i1) | t0:f32"},
        [X, W, B],
        "Its epilogue makes the shape [20] of results of shape [3,20].",
    ),
}  # fmt: skip


def run_in_session(attributes: dict[str, Any], feeds: list[Array], **node: Any) -> list[Array]:
    session = onnxopt.session(node_model("FusedGemm", attributes, feeds, **node))
    return session.run(None, {f"x{index}": feed for index, feed in enumerate(feeds)})


@pytest.mark.parametrize("shapes_known", [False, True], ids=["open", "declared"])
@pytest.mark.parametrize("case", MISUSES)
def test_misuse_is_refused_in_a_session(case: str, shapes_known: bool) -> None:
    attributes, feeds, sentence = MISUSES[case]
    outputs = [f"y{index}" for index in range(max(attributes.get("products", 1), 1))]
    outputs = outputs[:1] if "epilogue" in attributes else outputs
    with pytest.raises(Exception, match=re.escape(f"onnxopt FusedGemm: {sentence}")):
        run_in_session(attributes, feeds, outputs=outputs, shapes_known=shapes_known)


@pytest.mark.parametrize("case", [case for case in MISUSES if case != "strings"])
def test_misuse_is_refused_in_a_direct_call(case: str) -> None:
    attributes, feeds, sentence = MISUSES[case]
    with pytest.raises(ValueError, match=re.escape(sentence)):
        native.run("FusedGemm", feeds, attributes)


def test_no_input_at_all() -> None:
    with pytest.raises(ValueError, match="It got 0 inputs and needs at least 2"):
        native.run("FusedGemm", [], BASE)


@pytest.mark.parametrize("left_out", [0, 1, 2])
def test_input_that_is_left_out(left_out: int) -> None:
    feeds: list[Array | None] = [X, W, B]
    feeds[left_out] = None
    with pytest.raises(ValueError, match=f"Input {left_out} is of type undefined and should be float"):
        native.run("FusedGemm", feeds, BASE | {"biased": 1})


def test_operand_of_the_epilogue_that_is_left_out() -> None:
    with pytest.raises(ValueError, match="Input 1 of its epilogue is of type undefined and should be f32"):
        native.run("FusedGemm", [X, W, None], BASE | {"epilogue": ADD})


@pytest.mark.parametrize("attributes", [{"columns": 20.0}, {"columns": "20"}, {"columns": [20]}, {"column": 20}])
def test_attribute_of_another_kind_or_name(attributes: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="It needs a positive attribute 'columns'"):
        run_in_session(attributes, [X, W])


@pytest.mark.parametrize(
    ("attributes", "made", "count"),
    [({}, 1, 2), ({"epilogue": RELU}, 1, 2), ({"products": 2}, 2, 1), ({"products": 2}, 2, 3)],
)
def test_wrong_number_of_outputs(attributes: dict[str, Any], made: int, count: int) -> None:
    outputs = [f"y{index}" for index in range(count)]
    with pytest.raises(Exception, match=f"The node has {count} outputs and its kernel makes {made}"):
        run_in_session(BASE | attributes, [X, *[W] * attributes.get("products", 1)], outputs=outputs)


def test_output_declared_with_another_type() -> None:
    with pytest.raises(onnxopt.ModelError, match=r"node \(culprit\) does not match expected type"):
        run_in_session(BASE, [X, W], made=TensorProto.INT64)


def test_result_that_no_memory_holds() -> None:
    feeds = [ones(1 << 40, 0), ones(1 << 26, 0, 16)]
    with pytest.raises(Exception, match=re.escape("Output 0 of shape [1099511627776,1073741824] cannot be made: ")):
        run_in_session({"columns": 1 << 30}, feeds)


def test_session_goes_on_after_an_error() -> None:
    session = onnxopt.session(node_model("FusedGemm", BASE, [X, W]))
    for _ in range(3):
        with pytest.raises(Exception, match="should have"):
            session.run(None, {"x0": ones(3, 9), "x1": W})
        np.testing.assert_array_equal(session.run(None, {"x0": X, "x1": W})[0], np.full((3, 20), 8, np.float32))


# --- fuzzing, in a process of its own: a crash would end it ---
CALLS = 3000
FUZZER = f"""
import random, sys
import numpy as np
from onnxopt import _native as native

random.seed(int(sys.argv[1]))
sizes = [0, 1, 2, 3, 7, 8, 16, 17]
programs = [None, None, {RELU!r}, {ADD!r}, "i0:f32 i1:bool | t0=where(i1,i0,#0x0p+0:f32) | t0:f32 t0:f32", "?"]
types = [np.float32] * 12 + [np.bool_, np.int64, np.float64]
outcomes = {{True: 0, False: 0}}

def draw():
    shape = [random.choice(sizes) for _ in range(random.randint(0, 4))]
    return np.ones(shape, random.choice(types))

for _ in range(int(sys.argv[2])):
    depth, columns, products, biased = random.choice(sizes), random.choice(sizes[1:]), random.randint(1, 4), random.random() < 0.5
    lead = [random.choice(sizes) for _ in range(random.randint(0, 3))]
    inputs = [np.ones([*lead, depth], np.float32)]
    inputs += [np.ones([-(-columns // 16), depth, 16], np.float32)] * products
    inputs += [np.ones([columns], np.float32)] * (products if biased else 0)
    attributes = {{"columns": columns, "products": products, "biased": int(biased)}}
    if (program := random.choice(programs)) is not None:
        attributes["epilogue"] = program
        inputs += [np.ones(lead[random.randint(0, len(lead)):] + [columns], np.bool_ if "i1:bool" in program else np.float32)] * program.count("i1:")
    for _ in range(random.choice([0, 0, 0, 1, 2])):
        change = random.randrange(4)
        if change == 0:
            inputs[random.randrange(len(inputs))] = draw()
        elif change == 1:
            inputs.insert(random.randrange(len(inputs) + 1), draw())
        elif change == 2 and len(inputs) > 1:
            inputs.pop(random.randrange(len(inputs)))
        else:
            attributes[random.choice(["columns", "products", "biased"])] = random.choice([*sizes, -1, 1 << 40, -(1 << 63), (1 << 63) - 1])
    print(attributes, [(one.shape, one.dtype) for one in inputs], file=sys.stderr, flush=True)
    try:
        native.run("FusedGemm", inputs, attributes, threads=random.choice([1, 1, 1, 2]))
        outcomes[True] += 1
    except ValueError as error:
        assert str(error)
        outcomes[False] += 1
print(outcomes[True], outcomes[False])
"""


def test_random_calls_never_crash() -> None:
    done = subprocess.run([sys.executable, "-c", FUZZER, "1", str(CALLS)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"exit code {done.returncode} at {done.stderr.splitlines()[-3:]}"
    computed, refused = map(int, done.stdout.split())
    assert computed + refused == CALLS and min(computed, refused) > CALLS // 5
