"""Activations in the forms that exporters write."""

from __future__ import annotations

import math
import re

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASS = "recognize_activations"
RNG = np.random.default_rng(0)

NUMBERS = {
    "half": 0.5,
    "one": 1.0,
    "two": 2.0,
    "three": 3.0,
    "six": 6.0,
    "zero": 0.0,
    "sixth": 1 / 6,
    "root": math.sqrt(2),
    "inverse_root": math.sqrt(0.5),
    "small": 0.044715,
    "low": 0.0,
    "high": 6.0,
    "top": 1.0,
    "fifth": 0.2,
    "slope": math.sqrt(2 / math.pi),
}
ERF = "d = Div(x, root)\n e = Erf(d)\n f = Add(e, one)"
TANH = "s = Mul(p, small)\n a = Add(x, s)\n i = Mul(a, slope)\n t = Tanh(i)\n f = Add(t, one)"
CUBE = "p = Pow(x, three)"
PRODUCTS = "q = Mul(x, x)\n p = Mul(q, x)"
LINE = "m = Mul(x, fifth)\n a = Add(m, half)"
CLIP = "a = Add(x, three)\n c = Clip(a, low, high)"
GELU = {
    "torch": f"{ERF}\n m = Mul(x, f)\n y = Mul(m, half)",
    "paddle": f"{ERF}\n m = Mul(f, half)\n y = Mul(x, m)",
    "keras": f"h = Mul(x, half)\n {ERF}\n y = Mul(h, f)",
    "torch dynamo": f"{ERF}\n m = Mul(x, f)\n y = Mul(m, half)".replace("Div(x, root)", "Mul(x, inverse_root)"),
}
GELU_TANH = {
    "transformers": f"h = Mul(x, half)\n {CUBE}\n {TANH}\n y = Mul(h, f)",
    "torch": f"{PRODUCTS}\n {TANH}\n h = Mul(x, half)\n y = Mul(h, f)",
    "product first": f"{CUBE}\n {TANH}\n m = Mul(x, f)\n y = Mul(m, half)",
    "half of the factor": f"{PRODUCTS}\n {TANH}\n m = Mul(f, half)\n y = Mul(x, m)",
}
HARD_SWISH = {
    "torch": f"{CLIP}\n m = Mul(x, c)\n y = Div(m, six)",
    "paddle": f"{CLIP}\n m = Mul(x, c)\n y = Mul(m, sixth)",
    "torch of quotient": f"{CLIP}\n d = Div(c, six)\n y = Mul(x, d)",
    "keras": "a = Add(x, three)\n r = Relu(a)\n c = Min(r, six)\n d = Mul(c, sixth)\n y = Mul(x, d)",
    "tensorflow": "a = Add(x, three)\n r = Max(a, zero)\n c = Min(r, six)\n d = Mul(c, sixth)\n y = Mul(x, d)",
    "hard sigmoid": "h = HardSigmoid<alpha=0.16666667>(x)\n y = Mul(x, h)",
}
HARD_SIGMOID = {
    "torch": f"{CLIP}\n y = Div(c, six)",
    "product": f"{CLIP}\n y = Mul(c, sixth)",
    "tensorflow": "a = Add(x, three)\n r = Relu(a)\n c = Min(r, six)\n y = Mul(c, sixth)",
    "clipped line": f"{LINE}\n y = Clip(a, low, top)",
    "clipped line of Relu": f"{LINE}\n r = Relu(a)\n y = Min(r, one)",
    "clipped line of Max": f"{LINE}\n r = Max(a, zero)\n y = Min(r, one)",
}
SIGMOID = {
    "reciprocal": "n = Neg(x)\n e = Exp(n)\n a = Add(e, one)\n y = Reciprocal(a)",
    "quotient": "n = Neg(x)\n e = Exp(n)\n a = Add(e, one)\n y = Div(one, a)",
}
SOFTPLUS = {"logarithm": "e = Exp(x)\n a = Add(e, one)\n y = Log(a)"}
MISH = {
    "softplus": "s = Softplus(x)\n t = Tanh(s)\n y = Mul(x, t)",
    "logarithm": "e = Exp(x)\n a = Add(e, one)\n s = Log(a)\n t = Tanh(s)\n y = Mul(x, t)",
}
RELU6 = {
    "max": "m = Max(x, zero)\n y = Min(m, six)",
    "relu": "m = Relu(x)\n y = Min(m, six)",
}
FAMILIES = {
    "Gelu": (GELU, 20),
    "Gelu tanh": (GELU_TANH, 20),
    "HardSwish": (HARD_SWISH, 14),
    "HardSigmoid": (HARD_SIGMOID, 11),
    "Sigmoid": (SIGMOID, 9),
    "Softplus": (SOFTPLUS, 9),
    "Mish": (MISH, 18),
    "Clip": (RELU6, 12),
}
FORMS = [
    pytest.param(name.split()[0], body, opset, id=f"{name}-{form}")
    for name, (bodies, opset) in FAMILIES.items()
    for form, body in bodies.items()
]
TYPES = {"float": np.float32, "float16": np.float16, "double": np.float64, "int64": np.int64}


def swapped(body: str) -> str:
    """The operands of commutative ops in the other order."""
    return re.sub(r"(Add|Mul|Min|Max)\((\w+), (\w+)\)", r"\1(\3, \2)", body)


def graph(
    body: str,
    *,
    opset: int = 20,
    outputs: str = "y",
    shape: str = "3,7",
    dtype: str = "float",
    constant_shape: tuple[int, ...] = (),
    **numbers: float,
) -> onnx.ModelProto:
    used = {name: number for name, number in {**NUMBERS, **numbers}.items() if re.search(rf"\b{name}\b", body)}
    weights = {
        name: np.full(() if name in ("low", "high", "top") else constant_shape, number, TYPES[dtype])
        for name, number in used.items()
    }
    return model(f"g ({dtype}[{shape}] x, bool flag) => ({outputs}) {{ {body} }}", opset=opset, **weights)


def feeds(dtype: str = "float", *, shape: tuple[int, ...] = (3, 7), largest: float = 20) -> dict[str, np.ndarray]:
    x = RNG.uniform(-largest, largest, shape)
    if np.dtype(TYPES[dtype]).kind == "f" and x.size >= 6:
        x.reshape(-1)[:6] = np.nan, np.inf, -np.inf, -0.0, 3, -3
    return {"x": x.astype(TYPES[dtype]), "flag": np.array(True)}


@pytest.mark.parametrize(("op", "body", "opset"), FORMS)
@pytest.mark.parametrize("order", ["written", "swapped"])
@pytest.mark.parametrize("constant_shape", [(), (1,), (1, 1)])
def test_becomes(op: str, body: str, opset: int, order: str, constant_shape: tuple[int, ...]) -> None:
    before = graph(swapped(body) if order == "swapped" else body, opset=opset, constant_shape=constant_shape)
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert op_list(after) == [op]
    assert_same(before, after, feeds())


@pytest.mark.parametrize(("op", "body", "opset"), FORMS)
def test_float16(op: str, body: str, opset: int) -> None:
    before = graph(body, opset=max(opset, 13), dtype="float16")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == [op]
    if "Erf" not in body:  # onnxruntime has no kernel of this type
        assert_same(before, after, feeds("float16", largest=4), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("op", "body", "opset"), FORMS)
def test_constant_nodes(op: str, body: str, opset: int) -> None:
    numbers = {name: number for name, number in NUMBERS.items() if re.search(rf"\b{name}\b", body)}
    nodes = "\n".join(f"{name} = Constant<value_float={number:.9f}>()" for name, number in numbers.items())
    before = model(f"g (float[3,7] x) => (y) {{ {nodes}\n {body} }}", opset=max(opset, 12))
    after, _ = run_passes(before, "lift_constants", PASS, "eliminate_dead_code")
    assert op_list(after) == [op]
    assert_same(before, after, {"x": feeds()["x"]})


@pytest.mark.parametrize(("op", "body", "opset"), FORMS)
@pytest.mark.parametrize(("declared", "shape"), [("N,M", (5, 9)), ("N,M", (0, 4)), ("", ())])
def test_shapes(op: str, body: str, opset: int, declared: str, shape: tuple[int, ...]) -> None:
    before = graph(body, opset=opset, shape=declared)
    if not declared:
        before.graph.input[0].type.tensor_type.shape.SetInParent()
    after, _ = run_passes(before, PASS)
    assert op_list(after) == [op]
    assert_same(before, after, feeds(shape=shape, largest=2))


@pytest.mark.parametrize(("op", "body", "opset"), FORMS)
def test_inside_a_branch(op: str, body: str, opset: int) -> None:
    branch = (
        f"then_branch = yes () => (float[3,7] y) {{ {body} }}, else_branch = no () => (float[3,7] z) {{ z = Abs(x) }}"
    )
    before = graph(f"o = If(flag) <{branch}>", opset=max(opset, 11), outputs="float[3,7] o")
    after, _ = run_passes(before, PASS)
    assert [node.op_type for node in after.graph.node[0].attribute[0].g.node] == [op]
    assert_same(before, after, feeds())


@pytest.mark.parametrize(
    ("op", "body", "opset"), [form for form in FORMS if form.values[0] in ("Gelu", "HardSwish", "Mish")]
)
def test_refuses_opsets_that_lack_the_op(op: str, body: str, opset: int) -> None:
    after, _ = run_passes(graph(body, opset=opset - 1), PASS)
    assert op not in op_list(after)


@pytest.mark.parametrize(("op", "body", "opset"), [form for form in FORMS if form.values[0] != "Clip"])
def test_refuses_double(op: str, body: str, opset: int) -> None:
    after, _ = run_passes(graph(body, opset=opset, dtype="double"), PASS)
    assert op not in op_list(after)


@pytest.mark.parametrize("body", [HARD_SIGMOID["torch"], HARD_SWISH["torch"]])
def test_refuses_integers(body: str) -> None:
    before = graph(body, dtype="int64")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)
    assert_same(before, after, feeds("int64"))


def test_refuses_a_slope_of_each_column() -> None:
    before = graph(HARD_SIGMOID["clipped line"])
    before.graph.initializer.extend(
        [onnx.numpy_helper.from_array(np.linspace(0.1, 0.3, 7, dtype=np.float32), "slopes")]
    )
    before.graph.node[0].input[1] = "slopes"
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("form", RELU6)
def test_clip_of_other_types(dtype: str, form: str) -> None:
    before = graph(RELU6[form], dtype=dtype)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Clip"]
    if not (dtype == "int64" and form == "relu"):  # onnxruntime's Relu has no kernel of this type
        assert_same(before, after, feeds(dtype), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("body", "numbers"),
    [
        (GELU["torch"], {"root": 1.5}),
        (GELU["torch"], {"one": 2}),
        (GELU["torch"], {"half": 0.25}),
        (GELU["torch"].replace("Mul(x, f)", "Mul(d, f)"), {}),
        (GELU["torch"].replace("Div(x, root)", "Div(root, x)"), {}),
        (GELU_TANH["transformers"], {"three": 2}),
        (GELU_TANH["transformers"], {"small": 0.05}),
        (GELU_TANH["transformers"].replace("Pow(x, three)", "Pow(three, x)"), {}),
        (GELU_TANH["torch"].replace("q = Mul(x, x)", "q = Add(x, x)"), {}),
        (HARD_SWISH["torch"], {"three": 2}),
        (HARD_SWISH["torch"], {"low": 1}),
        (HARD_SWISH["torch"], {"high": 5}),
        (HARD_SWISH["torch"].replace("Div(m, six)", "Div(six, m)"), {}),
        (HARD_SWISH["hard sigmoid"].replace("0.16666667", "0.2"), {}),
        (HARD_SWISH["hard sigmoid"].replace("alpha", "beta=0.25, alpha"), {}),
        (HARD_SIGMOID["torch"].replace("Clip(a, low, high)", "Clip(a, , high)"), {}),
        (SIGMOID["reciprocal"], {"one": 2}),
        (SIGMOID["quotient"].replace("Div(one, a)", "Div(a, one)"), {}),
        (SIGMOID["quotient"].replace("Neg(x)", "Abs(x)"), {}),
        (SOFTPLUS["logarithm"], {"one": 2}),
        (MISH["softplus"].replace("Softplus", "Softsign"), {}),
        (RELU6["max"], {"zero": 7}),
        (RELU6["max"].replace("Max(x, zero)", "Max(x, zero, one)"), {}),
    ],
)
def test_refuses_other_formulas(body: str, numbers: dict[str, float]) -> None:
    before = graph(body, **numbers)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)


@pytest.mark.parametrize(
    ("op", "body", "opset"), [form for form in FORMS if "Soft" not in form.values[1] and "HardS" not in form.values[1]]
)
def test_refuses_constants_that_broadcast(op: str, body: str, opset: int) -> None:
    before = graph(body, opset=opset, constant_shape=(2, 1, 1))
    after, _ = run_passes(before, PASS)
    assert op not in op_list(after)
    assert_same(before, after, feeds())


@pytest.mark.parametrize(
    ("op", "body", "opset"), [form for form in FORMS if "Soft" not in form.values[1] and "HardS" not in form.values[1]]
)
def test_refuses_constants_that_may_broadcast(op: str, body: str, opset: int) -> None:
    before = graph(body, opset=opset, shape="N", constant_shape=(4,))
    after, _ = run_passes(before, PASS)
    assert op not in op_list(after)
    assert_same(before, after, [feeds(shape=(1,)), feeds(shape=(4,))])


@pytest.mark.parametrize(("op", "body", "opset"), FORMS)
def test_refuses_inner_values_that_are_outputs(op: str, body: str, opset: int) -> None:
    inner = re.findall(r"(\w+) = ", body)[-2]
    before = graph(body, opset=opset, outputs=f"y, {inner}")
    after, _ = run_passes(before, PASS)
    assert op_list(after)[-1] == op_list(before)[-1]
    assert_same(before, after, feeds())


@pytest.mark.parametrize(("op", "body", "opset"), [form for form in FORMS if "one" in form.values[1]])
def test_refuses_a_number_that_the_caller_gives(op: str, body: str, opset: int) -> None:
    before = graph(body, opset=opset)
    before.graph.input.append(onnx.helper.make_tensor_value_info("one", onnx.TensorProto.FLOAT, []))
    after, _ = run_passes(before, PASS)
    assert op not in op_list(after)
    assert_same(before, after, {**feeds(), "one": np.array(5, np.float32)})


def test_clip_with_unordered_bounds_stays() -> None:
    before = graph(RELU6["max"], zero=8)
    assert op_list(run_passes(before, PASS)[0]) == ["Max", "Min"]


def test_softplus_does_not_overflow() -> None:
    after, _ = run_passes(graph(SOFTPLUS["logarithm"]), PASS)
    x = np.full((3, 7), 100, np.float32)
    assert_same(graph("y = Identity(x)"), after, {"x": x, "flag": np.array(True)})


def test_numbers_of_few_digits() -> None:
    before = graph(GELU_TANH["transformers"], slope=0.7979, small=0.0447)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before), "0.0447 is another formula"
    after, _ = run_passes(graph(GELU_TANH["transformers"], slope=0.79788), PASS)
    assert op_list(after) == ["Gelu"]


def test_exponent_of_another_type() -> None:
    body = GELU_TANH["transformers"].replace("three", "cube")
    numbers = {name: np.float32([number])[0] for name, number in NUMBERS.items() if re.search(rf"\b{name}\b", body)}
    before = model(f"g (float[3,7] x) => (y) {{ {body} }}", opset=20, cube=np.array(3), **numbers)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Gelu"]
    assert_same(before, after, {"x": feeds()["x"]})
