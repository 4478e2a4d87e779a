"""Layer and RMS normalization written out."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASS = "recognize_norms"
RNG = np.random.default_rng(0)
TYPES = {"float": np.float32, "float16": np.float16, "double": np.float64}

SQUARES = {"pow": "s = Pow(v, two)", "product": "s = Mul(v, v)"}
ROOTS = {
    "quotient": "n = Div(v, r)",
    "reciprocal": "q = Reciprocal(r)\n n = Mul(v, q)",
    "one over root": "q = Div(one, r)\n n = Mul(v, q)",
}


def mean(source: str, result: str, axes: str, opset: int) -> str:
    """A kept mean: the axes are an attribute before opset 18."""
    if opset < 18:
        return f"{result} = ReduceMean<axes=[{axes}]>({source})"
    return f"{result}_axes = Constant<value_ints=[{axes}]>()\n {result} = ReduceMean({source}, {result}_axes)"


def layer_norm(
    *, square: str = "pow", root: str = "quotient", axes: str = "-1", variance_axes: str | None = None, opset: int = 17
) -> str:
    return f"""{mean("x", "m", axes, opset)}
        v = Sub(x, m)
        {SQUARES[square]}
        {mean("s", "w", axes if variance_axes is None else variance_axes, opset)}
        e = Add(w, epsilon)
        r = Sqrt(e)
        {ROOTS[root]}
        z = Mul(n, scale)
        y = Add(z, bias)"""


def rms_norm(*, square: str = "pow", root: str = "quotient", axes: str = "-1") -> str:
    body = f"""{SQUARES[square]}
        {mean("s", "w", axes, 23)}
        e = Add(w, epsilon)
        r = Sqrt(e)
        {ROOTS[root]}
        y = Mul(n, scale)"""
    return re.sub(r"\bv\b", "x", body)


def graph(
    body: str,
    *,
    opset: int = 17,
    outputs: str = "y",
    shape: str = "2,3,5",
    dtype: str = "float",
    normalized: tuple[int, ...] = (5,),
    epsilon: float | np.ndarray = 1e-5,
    number_shape: tuple[int, ...] = (),
) -> onnx.ModelProto:
    kind = TYPES[dtype]
    weights = {
        "epsilon": np.array(epsilon, kind),
        "one": np.ones(number_shape, kind),
        "two": np.full(number_shape, 2, kind),
        "scale": RNG.standard_normal(normalized).astype(kind),
        "bias": RNG.standard_normal(normalized).astype(kind),
    }
    weights = {name: array for name, array in weights.items() if re.search(rf"\b{name}\b", body)}
    return model(f"g ({dtype}[{shape}] x, bool flag) => ({outputs}) {{ {body} }}", opset=opset, **weights)


def feeds(shape: tuple[int, ...] = (2, 3, 5), dtype: str = "float") -> list[dict[str, np.ndarray]]:
    x = (RNG.standard_normal(shape) * 3 + 1).astype(TYPES[dtype])
    wild = x.copy()
    if wild.size > 20:
        wild.reshape(-1)[[0, 6, 11]] = np.nan, np.inf, -np.inf
    return [{"x": one, "flag": np.array(True)} for one in (x, wild)]


def swapped(body: str) -> str:
    return re.sub(r"(Add|Mul)\((\w+), (\w+)\)", r"\1(\3, \2)", body)


def attributes(proto: onnx.ModelProto) -> dict[str, float]:
    return {one.name: onnx.helper.get_attribute_value(one) for one in proto.graph.node[0].attribute}


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("opset", [17, 18, 21])
@pytest.mark.parametrize("order", ["written", "swapped"])
def test_layer_norm(square: str, root: str, opset: int, order: str) -> None:
    body = layer_norm(square=square, root=root, opset=opset)
    before = graph(swapped(body) if order == "swapped" else body, opset=opset)
    after, _ = run_passes(before, "lift_constants", PASS, "eliminate_dead_code")
    assert op_list(after) == ["LayerNormalization"]
    assert_same(before, after, feeds(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("order", ["written", "swapped"])
def test_rms_norm(square: str, root: str, order: str) -> None:
    body = rms_norm(square=square, root=root)
    before = graph(swapped(body) if order == "swapped" else body, opset=23)
    after, _ = run_passes(before, "lift_constants", PASS, "eliminate_dead_code")
    assert op_list(after) == ["RMSNormalization"]
    assert_same(before, after, feeds(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("axes", "normalized", "axis"),
    [("-1", (5,), 2), ("2", (5,), 2), ("1, 2", (3, 5), 1), ("-1, -2", (3, 5), 1), ("0, 1, 2", (2, 3, 5), 0)],
)
def test_trailing_axes(axes: str, normalized: tuple[int, ...], axis: int) -> None:
    before = graph(layer_norm(axes=axes), normalized=normalized, epsilon=1e-3)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["LayerNormalization"]
    assert attributes(after) == {"axis": axis, "epsilon": pytest.approx(1e-3)}
    assert_same(before, after, feeds(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", TYPES)
def test_types(dtype: str) -> None:
    before = graph(layer_norm(), dtype=dtype)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["LayerNormalization"]
    tolerance = 2e-2 if dtype == "float16" else 1e-4
    assert_same(before, after, feeds(dtype=dtype)[0], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("number_shape", [(), (1,)])
@pytest.mark.parametrize(("declared", "shape"), [("N,T,5", (3, 4, 5)), ("N,T,5", (0, 4, 5)), ("5", (5,))])
def test_dynamic_dims(number_shape: tuple[int, ...], declared: str, shape: tuple[int, ...]) -> None:
    before = graph(layer_norm(), shape=declared, number_shape=number_shape, epsilon=np.full(number_shape, 1e-5))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["LayerNormalization"]
    assert_same(before, after, feeds(shape), rtol=1e-4, atol=1e-5)


def test_inside_a_loop() -> None:
    loop = f"""o = Loop (trips, , x) <body = b (int64 i, bool k, float[2, 3, 5] c) => (bool ko, float[2, 3, 5] co) {{
        ko = Identity(k)
        {layer_norm()}
        co = Add(c, y)
    }}>"""
    before = graph(loop, outputs="float[2,3,5] o")
    before.graph.initializer.append(onnx.numpy_helper.from_array(np.array(3), "trips"))
    after, _ = run_passes(before, PASS)
    assert "LayerNormalization" in [node.op_type for node in after.graph.node[0].attribute[0].g.node]
    assert_same(before, after, feeds(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "before",
    [
        graph(layer_norm(), opset=16),
        graph(layer_norm(axes="1"), normalized=(1, 3, 1)),
        graph(layer_norm(axes="0, 2")),
        graph(layer_norm(axes="1, 2", variance_axes="2")),
        graph(layer_norm(), epsilon=np.full(5, 1e-5) * np.arange(1, 6)),
        graph(layer_norm().replace("two", "three").replace("Pow(v, three)", "Pow(v, one)")),
        graph(layer_norm().replace("Sub(x, m)", "Sub(m, x)")),
        graph(layer_norm().replace("Div(v, r)", "Div(r, v)")),
        graph(layer_norm().replace("Div(v, r)", "Div(x, r)")),
        graph(layer_norm().replace("axes", "keepdims=1, axes").replace("keepdims=1", "keepdims=0", 1), shape="5"),
        graph(layer_norm(), outputs="y, r"),
        graph(layer_norm() + "\n u = Neg(w)", outputs="y, u"),
        graph(rms_norm(), opset=22),
    ],
    ids=[
        "old opset",
        "middle axis",
        "axes apart",
        "different axes",
        "epsilons",
        "another power",
        "negated",
        "upside down",
        "not centred",
        "dropped dims",
        "root is an output",
        "variance is used elsewhere",
        "old opset for RMS",
    ],
)  # fmt: skip
def test_refuses(before: onnx.ModelProto) -> None:
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)
    assert_same(before, after, feeds((5,) if len(before.graph.input[0].type.tensor_type.shape.dim) == 1 else (2, 3, 5)))


@pytest.mark.parametrize("normalized", [(1,), (3, 1), (2, 3, 5)])
def test_leaves_scale_and_bias_of_other_shapes_apart(normalized: tuple[int, ...]) -> None:
    before = graph(layer_norm(), normalized=normalized)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["LayerNormalization", "Mul", "Add"]
    assert_same(before, after, feeds(), rtol=1e-4, atol=1e-5)


def test_scale_and_bias_with_leading_dims_of_one() -> None:
    before = graph(layer_norm(), normalized=(1, 1, 5))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["LayerNormalization"]
    assert_same(before, after, feeds(), rtol=1e-4, atol=1e-5)


def test_result_before_the_scale_is_an_output() -> None:
    before = graph(layer_norm(), outputs="y, n")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["LayerNormalization", "Mul", "Add"]
    assert_same(before, after, feeds(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("cut", "expected"),
    [(r"\n\s*y = Add.*", "z"), (r"\n\s*z = Mul(.|\n)*", "n")],
    ids=["without bias", "without scale and bias"],
)
@pytest.mark.parametrize("root", ROOTS)
def test_fewer_weights(cut: str, expected: str, root: str) -> None:
    before = graph(re.sub(cut, "", layer_norm(root=root)), outputs=expected)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["LayerNormalization"]
    assert_same(before, after, feeds(), rtol=1e-4, atol=1e-5)


def test_bias_without_scale() -> None:
    before = graph(re.sub(r"z = Mul.*", "", layer_norm()).replace("Add(z, bias)", "Add(n, bias)"))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["LayerNormalization"]
    assert_same(before, after, feeds(), rtol=1e-4, atol=1e-5)


def test_leaves_a_second_scale_apart() -> None:
    before = graph(layer_norm().replace("Add(z, bias)", "Mul(z, bias)"))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["LayerNormalization", "Mul"]
    assert_same(before, after, feeds(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inverse", ["q = Reciprocal(r)", "q = Div(one, r)"])
@pytest.mark.parametrize("square", SQUARES)
def test_factor_multiplied_with_tensor_and_mean(inverse: str, square: str) -> None:
    body = f"""{mean("x", "m", "-1", 17)}
        v = Sub(x, m)
        {SQUARES[square]}
        {mean("s", "w", "-1", 17)}
        e = Add(w, epsilon)
        r = Sqrt(e)
        {inverse}
        f = Mul(q, scale)
        a = Mul(x, f)
        c = Mul(m, f)
        d = Sub(bias, c)
        y = Add(a, d)"""
    before = graph(body)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["LayerNormalization"]
    assert_same(before, after, feeds(), rtol=1e-4, atol=1e-5)


def test_keeps_the_centred_value_that_others_use() -> None:
    before = graph(layer_norm() + "\n u = Neg(v)", outputs="y, u")
    after, _ = run_passes(before, PASS)
    assert sorted(op_list(after)) == ["LayerNormalization", "Neg", "ReduceMean", "Sub"]
    assert_same(before, after, feeds(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["scale", "bias"])
def test_leaves_weights_that_the_caller_gives_apart(name: str) -> None:
    before = graph(layer_norm())
    before.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [5]))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["LayerNormalization", *(["Mul"] if name == "scale" else []), "Add"]


def test_refuses_a_mean_without_axes() -> None:
    before = graph(re.sub("<axes=[^>]*>", "", layer_norm()), normalized=(2, 3, 5))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)
    assert_same(before, after, feeds())


@pytest.mark.parametrize("name", ["epsilon", "two", "one"])
@pytest.mark.parametrize(
    ("body", "opset"), [(layer_norm(root="one over root"), 17), (rms_norm(root="one over root"), 23)]
)
def test_refuses_a_number_that_may_broadcast(name: str, body: str, opset: int) -> None:
    before = graph(body, opset=opset, shape="N,5", outputs="float[M,5] y")
    for one in before.graph.initializer:
        if one.name == name:
            array = np.broadcast_to(onnx.numpy_helper.to_array(one), (4, 1))
            one.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)
    assert_same(before, after, [*feeds((1, 5)), *feeds((4, 5))], rtol=1e-4, atol=1e-5)
