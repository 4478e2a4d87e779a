"""Elements of two bytes: on a CUDA device products, attention, norms and Softmax of them are fused, on a processor they stay as they are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

pytest.importorskip("onnxopt._native", reason="the native module is not built")

import onnxopt
from helpers import ops, run_emulated

NORM = "y = LayerNormalization<epsilon=0.00001>(x, s, b)"
RMS = "n = LayerNormalization<axis=-1>(x, s)\n y = Add(n, x)"
SOFTMAX = "a = Add(x, m)\n y = Softmax<axis=-1>(a)"


def model(body: str, width: int) -> onnx.ModelProto:
    text = f'<ir_version: 10, opset_import: ["" : 21]> g (float16[N,16,{width}] x) => (float16[N,16,{width}] y) {{ {body} }}'
    made = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name in "sbm":
        if f", {name}" in body:
            array = rng.normal(size=width).astype(np.float16)
            made.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return made


def samples(*shape: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(1)
    values = rng.normal(0, 4, shape)
    values[0, 3, 5], values[0, 4, 1] = math.nan, math.inf
    return values.astype(np.float16)


@pytest.mark.parametrize("library", [True, False], ids=["kernel", "body"])
@pytest.mark.parametrize(
    ("body", "op"), [(NORM, "FusedNorm"), (RMS, "FusedNorm"), (SOFTMAX, "FusedSoftmax")], ids=["norm", "rms", "softmax"]
)
def test_target_cuda_has_casts_inside(body: str, op: str, library: bool) -> None:
    before = model(body, 768)
    after = onnxopt.optimize(before, target="cuda")
    assert [node.op_type for node in after.graph.node] == [op]
    prologue = next(one.s.decode() for one in after.graph.node[0].attribute if one.name == "prologue")
    assert prologue.startswith("i0:f16") and prologue.endswith(":f32")
    x = samples(2, 16, 768)
    (actual,) = onnxopt.session(after, library=library).run(None, {"x": x})
    (expected,) = onnxopt.session(before, library=False).run(None, {"x": x})
    assert actual.dtype == np.float16
    np.testing.assert_allclose(actual.astype(np.float64), expected.astype(np.float64), rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("body", [NORM, SOFTMAX], ids=["norm", "softmax"])
def test_target_cpu_leaves_them(body: str) -> None:
    ops = [node.op_type for node in onnxopt.optimize(model(body, 768), target="cpu").graph.node]
    assert not {"FusedNorm", "FusedSoftmax", "Cast"} & set(ops)


MIXED = {
    "norm": "a = Cast<to=1>(p)  n = LayerNormalization(a, s)  c = Cast<to=10>(n)",
    "Softmax": "a = Cast<to=1>(p)  n = Softmax<axis=-1>(a)  c = Cast<to=10>(n)",
    "longer": "h = Add(p, x)  a = Cast<to=1>(h)  n = Softmax<axis=-1>(a)  t = Cast<to=10>(n)  c = Mul(t, h)",
}


@pytest.mark.parametrize("form", MIXED)
def test_float32_between_products_of_two_bytes_runs_on_processors(form: str) -> None:
    made = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21]> g (float16[N,16,768] x) => (float16[N,16,768] y) {{
        p = MatMul(x, w)  {MIXED[form]}  y = MatMul(c, w) }}"""
    )
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(0, 0.03, (768, 768)).astype(np.float16), "s": np.full(768, 2, np.float32)}
    made.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    after = onnxopt.optimize(made, target="cpu")
    x = rng.normal(0, 1, (2, 16, 768)).astype(np.float16)
    (wanted,) = onnxopt.session(made, library=False).run(None, {"x": x})
    (found,) = onnxopt.session(after, library=True).run(None, {"x": x})
    np.testing.assert_allclose(found.astype(np.float64), wanted.astype(np.float64), rtol=2e-2, atol=2e-2)


def test_double_is_not_taken() -> None:
    before = model(NORM, 768)
    for value in (*before.graph.input, *before.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    for at, one in enumerate(before.graph.initializer):
        array = onnx.numpy_helper.to_array(one).astype(np.float64)
        before.graph.initializer[at].CopyFrom(onnx.numpy_helper.from_array(array, one.name))
    assert [node.op_type for node in onnxopt.optimize(before, target="cuda").graph.node] == ["LayerNormalization"]


# --- products and attention ---
TYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float": np.dtype(np.float32)}
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
PRODUCTS = {
    "MatMul": ("y = MatMul(x, w)", 1),
    "MatMul, Add": ("p = MatMul(x, w) y = Add(p, b)", 1),
    "Gemm, transB": ("y = Gemm<transB=1>(x, v, b)", 1),
    "projections": ("y = MatMul(x, w) z = MatMul(x, u)", 2),
}


def products(form: str, dtype: str, depth: int, columns: int) -> onnx.ModelProto:
    body, outputs = PRODUCTS[form]
    results = ", ".join(f"{dtype}[N,{columns}] {name}" for name in "yz"[:outputs])
    text = f'<ir_version: 10, opset_import: ["" : 21]> g ({dtype}[N,{depth}] x) => ({results}) {{ {body} }}'
    made = onnx.parser.parse_model(text)
    rng = np.random.default_rng(2)
    shapes = {"w": (depth, columns), "u": (depth, columns), "v": (columns, depth), "b": (columns,)}
    for name, shape in shapes.items():
        if f", {name}" in body:
            array = rng.normal(size=shape).astype(TYPES[dtype])
            made.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return made


def in_floats(proto: onnx.ModelProto, feeds: dict[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """The outputs in float32: of a model whose tensors all are."""
    wide = onnx.ModelProto.FromString(proto.SerializeToString())
    for value in (*wide.graph.input, *wide.graph.output):
        if value.type.tensor_type.elem_type != onnx.TensorProto.BOOL:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for node in wide.graph.node:
        for to in [one for one in node.attribute if node.op_type == "Cast"]:
            to.i = onnx.TensorProto.FLOAT
    for one in wide.graph.initializer:
        array = onnx.numpy_helper.to_array(one)
        if array.dtype in TYPES.values():
            one.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), one.name))
    given = {name: one if one.dtype == bool else one.astype(np.float32) for name, one in feeds.items()}
    return onnxopt.session(wide, library=False).run(None, given)


def assert_near(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any], unit: float) -> None:
    """Within some roundings of the largest number; what is not finite is the same."""
    largest = np.abs(wanted[np.isfinite(wanted)]).max(initial=1e-6)
    np.testing.assert_allclose(found.astype(np.float32), wanted, rtol=4 * unit, atol=4 * unit * largest)


@pytest.mark.usefixtures("fuse_small_products")
@pytest.mark.parametrize("rows", [0, 1, 13])
@pytest.mark.parametrize(("depth", "columns"), [(8, 8), (33, 21), (64, 48)])
@pytest.mark.parametrize("form", PRODUCTS)
@pytest.mark.parametrize("dtype", UNIT)
def test_products_on_target_cuda(dtype: str, form: str, depth: int, columns: int, rows: int) -> None:
    """The bodies, the kernel for a device and that of a processor; onnxruntime has no bfloat16 for the first and the last."""
    before = products(form, dtype, depth, columns)
    after = onnxopt.optimize(before, target="cuda", strict=True)
    assert ops(after) == {"FusedGemm": 1}
    x = np.random.default_rng(3).normal(size=(rows, depth))
    if rows > 1:
        x[1, 0], x[2, 0] = math.nan, math.inf
    feeds = {"x": x.astype(TYPES[dtype])}
    wanted = in_floats(before, feeds)
    results = [run_emulated(after, feeds)]
    if dtype == "float16":
        results += [onnxopt.session(after, library=library).run(None, feeds) for library in (True, False)]
    for found in results:
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == TYPES[dtype]
            assert_near(one, other, UNIT[dtype])


@pytest.mark.usefixtures("fuse_small_products")
@pytest.mark.parametrize("dtype", UNIT)
def test_weights_of_two_bytes_stay_in_their_file(dtype: str, tmp_path: Path) -> None:
    """They are packed while they are written."""
    before = products("MatMul", dtype, 40, 72)
    direct = onnxopt.optimize(before, target="cuda")
    onnx.save(before, tmp_path / "before.onnx", save_as_external_data=True, size_threshold=0)
    onnxopt.optimize(tmp_path / "before.onnx", tmp_path / "after.onnx", target="cuda", external_data="external")
    after = onnx.load(tmp_path / "after.onnx")
    assert [one.SerializeToString() for one in after.graph.node] == [
        one.SerializeToString() for one in direct.graph.node
    ]
    packed, expected = (onnx.numpy_helper.to_array(one.graph.initializer[0]) for one in (after, direct))
    assert packed.dtype == TYPES[dtype]
    np.testing.assert_array_equal(packed, expected)


@pytest.mark.usefixtures("fuse_small_products")
def test_parts_of_a_product_of_two_bytes_become_products() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float16[N,32] x) => (float16[N,16] y) {
        p = MatMul(x, w)  a, b, c = Split<axis=-1, num_outputs=3>(p)  s = Mul(a, b)  y = Mul(s, c) }"""
    before = onnx.parser.parse_model(text)
    array = np.random.default_rng(4).normal(0, 0.2, (32, 48)).astype(np.float16)
    before.graph.initializer.append(onnx.numpy_helper.from_array(array, "w"))
    after = onnxopt.optimize(before, target="cuda", strict=True)
    assert ops(after) == {"FusedGemm": 1}
    feeds = {"x": np.random.default_rng(5).normal(size=(7, 32)).astype(np.float16)}
    (wanted,) = in_floats(before, feeds)
    for found in (run_emulated(after, feeds), onnxopt.session(after, library=False).run(None, feeds)):
        assert_near(found[0], wanted, UNIT["float16"])


ATTENTION = {
    "scores of two bytes": "a = Mul(s, c)  m = Add(a, mask)  w = Softmax<axis=-1>(m)",
    "Softmax of floats": "a = Mul(s, c)  m = Add(a, mask)  f = Cast<to=1>(m)  p = Softmax<axis=-1>(f)  w = Cast<to={to}>(p)",
    "scores of floats": "f = Cast<to=1>(s)  a = Mul(f, cf)  m = Where(seen, a, low)  p = Softmax<axis=-1>(m)  w = Cast<to={to}>(p)",
    "rows that see nothing": """m = Where(seen, s, never)  p = Softmax<axis=-1>(m)  none = IsNaN(p)
        w = Where(none, nought, p)""",
    "soft cap": "f = Cast<to=1>(s)  d = Div(f, cf)  t = Tanh(d)  a = Mul(t, cf)  p = Softmax<axis=-1>(a)  w = Cast<to={to}>(p)",
}


def attention(form: str, dtype: str) -> onnx.ModelProto:
    body = ATTENTION[form].replace("{to}", str(onnx.TensorProto.DataType.Value(dtype.upper())))
    given = [f"{dtype}[B,2,S,16] q, {dtype}[B,2,T,16] k, {dtype}[B,2,T,24] v"]
    given += [f"{dtype}[S,T] mask"] * ("mask" in body) + ["bool[B,1,S,T] seen"] * ("seen" in body)
    made = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21]> g ({", ".join(given)}) => ({dtype}[B,2,S,24] y) {{
        kt = Transpose<perm=[0, 1, 3, 2]>(k)  s = MatMul(q, kt)  {body}  y = MatMul(w, v) }}"""
    )
    numbers = {"c": (0.25, dtype), "never": (-math.inf, dtype), "nought": (0.0, dtype)} | {
        "cf": (0.25, "float"),
        "low": (-1e4, "float"),
    }
    for name, (number, kind) in numbers.items():
        if f"{name})" in body or f"({name}," in body or f"{name}," in body:
            made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(number).astype(TYPES[kind]), name))
    return made


def attended(form: str, dtype: str, batch: int, rows: int, keys: int) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng([batch, rows, keys])
    shapes = {"q": (batch, 2, rows, 16), "k": (batch, 2, keys, 16), "v": (batch, 2, keys, 24), "mask": (rows, keys)}
    if "mask" not in ATTENTION[form]:
        del shapes["mask"]
    feeds = {name: rng.normal(size=shape).astype(TYPES[dtype]) for name, shape in shapes.items()}
    if "seen" in ATTENTION[form]:
        feeds["seen"] = rng.random((batch, 1, rows, keys)) < 0.7
        feeds["seen"][:, :, -1:] = False
    return feeds


@pytest.mark.parametrize(("batch", "rows", "keys"), [(1, 1, 1), (2, 5, 70), (0, 3, 4)], ids=str)
@pytest.mark.parametrize("form", ATTENTION)
@pytest.mark.parametrize("dtype", UNIT)
def test_attention_on_target_cuda(dtype: str, form: str, batch: int, rows: int, keys: int) -> None:
    before = attention(form, dtype)
    after = onnxopt.optimize(before, target="cuda", strict=True)
    assert ops(after) == {"FusedAttention": 1}
    feeds = attended(form, dtype, batch, rows, keys)
    (wanted,) = in_floats(before, feeds)
    results = [run_emulated(after, feeds)]
    if dtype == "float16":
        results += [onnxopt.session(after, library=library).run(None, feeds) for library in (True, False)]
    for (found,) in results:
        assert found.dtype == TYPES[dtype]
        assert_near(found, wanted, UNIT[dtype])


@pytest.mark.parametrize("sum_", ["Add(s, mask)", "Sub(s, mask)"])
def test_masks_that_are_scaled_with_the_scores(monkeypatch: pytest.MonkeyPatch, sum_: str) -> None:
    monkeypatch.setitem(ATTENTION, "scaled", f"m = {sum_}  a = Mul(m, c)  w = Softmax<axis=-1>(a)")
    before = attention("scaled", "float16")
    after = onnxopt.optimize(before, target="cuda", strict=True)
    assert ops(after) == {"Mul": 1, "FusedAttention": 1}
    feeds = attended("scaled", "float16", 2, 5, 7)
    (wanted,) = in_floats(before, feeds)
    (found,) = onnxopt.session(after, library=False).run(None, feeds)
    assert_near(found, wanted, UNIT["float16"])


@pytest.mark.parametrize("dtype", UNIT)
def test_standard_attention_on_target_cuda(dtype: str) -> None:
    before = onnx.parser.parse_model(
        f"""<ir_version: 11, opset_import: ["" : 23]> g ({dtype}[B,2,S,16] q, {dtype}[B,2,T,16] k, {dtype}[B,2,T,24] v,
        {dtype}[S,T] mask) => ({dtype}[B,2,S,24] y) {{ y = Attention(q, k, v, mask) }}"""
    )
    after = onnxopt.optimize(before, target="cuda", strict=True)
    assert ops(after) == {"FusedAttention": 1}
    feeds = attended("scores of two bytes", dtype, 2, 5, 7)
    (wanted,), (found,) = in_floats(before, feeds), run_emulated(after, feeds)
    assert_near(found, wanted, UNIT[dtype])


@pytest.mark.parametrize("dtype", UNIT)
def test_target_cpu_leaves_products_and_attention(dtype: str) -> None:
    for before in (attention("scores of two bytes", dtype), products("MatMul, Add", dtype, 64, 64)):
        assert not {"FusedAttention", "FusedGemm"} & set(ops(onnxopt.optimize(before, target="cpu")))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (
            "f = Cast<to=1>(s)  m = Add(f, wide)  p = Softmax<axis=-1>(m)  w = Cast<to=10>(p)",
            "of another type than the result",
        ),
        ("f = Cast<to=11>(s)  p = Softmax<axis=-1>(f)  w = Cast<to=10>(p)", "does not compute"),
        ("p = Softmax<axis=-1>(s)  i = Cast<to=7>(p)  w = Cast<to=10>(i)", ""),
    ],
    ids=["mask of floats", "Softmax of doubles", "weights of integers"],
)
def test_attention_that_is_left(body: str, why: str) -> None:
    before = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float16[2,3,8] q, float16[2,8,5] k, float16[2,5,8] v, float[3,5] wide) => (float16[2,3,8] y) {{
        s = MatMul(q, k)  {body}  y = MatMul(w, v) }}"""
    )
    reports: list[Any] = []
    after = onnxopt.optimize(before, target="cuda", explain=True, report=reports.append)
    assert "FusedAttention" not in ops(after)
    refusals = [str(one.refusal) for one in reports[0].near_misses if one.rule == "fuse_attention"]
    assert any(why in one for one in refusals) if why else not refusals


LAYERS = {
    "activation": ("p = MatMul(x, w)  y = Relu(p)", 1),
    "bias and Gelu": ("p = MatMul(x, w)  c = Add(p, b)  y = Gelu(c)", 1),
    "residual": ("p = MatMul(x, w)  y = Add(p, r)", 1),
    "gated pair": ("p = MatMul(x, w)  g = MatMul(x, u)  i = Sigmoid(g)  s = Mul(g, i)  y = Mul(s, p)", 1),
    "several layers": ("p = MatMul(x, w)  a = Tanh(p)  q = MatMul(a, u)  z = Exp(q)  y = MatMul(z, v)", 3),
}


@pytest.mark.usefixtures("fuse_small_products")
@pytest.mark.parametrize("library", [True, False], ids=["kernel", "body"])
@pytest.mark.parametrize("layer", LAYERS)
def test_epilogues_of_products_of_float16(layer: str, library: bool) -> None:
    body, nodes = LAYERS[layer]
    text = f'<ir_version: 10, opset_import: ["" : 21]> g (float16[N,24] x, float16[N,24] r) => (float16[N,24] y) {{ {body} }}'
    before = onnx.parser.parse_model(text)
    rng = np.random.default_rng(6)
    for name, shape in {"w": (24, 24), "u": (24, 24), "v": (24, 24), "b": (24,)}.items():
        array = rng.normal(0, 0.2, shape).astype(np.float16)
        before.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    after = onnxopt.optimize(before, target="cuda", strict=True)
    assert ops(after) == {"FusedGemm": nodes}
    feeds = {name: rng.normal(size=(11, 24)).astype(np.float16) for name in "xr"}
    (wanted,) = in_floats(before, feeds)
    (by_device,) = run_emulated(after, feeds)
    (found,) = onnxopt.session(after, library=library).run(None, feeds)
    for one in (by_device, found):
        assert_near(one, wanted, 2 * UNIT["float16"])


# --- expressions of bfloat16 ---
def brain_model(body: str, width: int = 24) -> onnx.ModelProto:
    text = f'<ir_version: 10, opset_import: ["" : 21]> g (bfloat16[N,{width}] x, bfloat16[N,{width}] r) => (bfloat16[N,{width}] y) {{ {body} }}'
    made = onnx.parser.parse_model(text)
    rng = np.random.default_rng(7)
    for name, shape in {"w": (width, width), "b": (width,), "s": (width,)}.items():
        if f", {name}" in body:
            array = rng.normal(0, 0.2, shape).astype(ml_dtypes.bfloat16)
            made.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return made


BRAINS = {
    "region": ("c = Add(x, r)  d = Sigmoid(c)  e = Mul(d, x)  y = Sub(e, r)", "FusedElementwise"),
    "sum of several": ("a = Sum(x, r, x)  m = Mean(a, r)  y = Max(m, x, r)", "FusedElementwise"),
    "clip": ("a = Neg(x)  c = Clip(a)  y = Mul(c, r)", "FusedElementwise"),
    "epilogue": ("p = MatMul(x, w)  c = Add(p, b)  g = Gelu(c)  y = Add(g, r)", "FusedGemm"),
    "norm": ("y = LayerNormalization(x, s, b)", "FusedNorm"),
    "residual before a norm": ("c = Add(x, r)  y = LayerNormalization<axis=-1>(c, s)", "FusedNorm"),
    "Softmax": ("c = Mul(x, r)  y = Softmax<axis=-1>(c)", "FusedSoftmax"),
}


@pytest.mark.usefixtures("fuse_small_products")
@pytest.mark.parametrize("case", BRAINS)
def test_expressions_of_bfloat16_on_target_cuda(case: str) -> None:
    body, op = BRAINS[case]
    width = 24 if op in ("FusedElementwise", "FusedGemm") else 768
    before = brain_model(body, width)
    after = onnxopt.optimize(before, target="cuda", strict=True)
    assert ops(after) == {op: 1}
    rng = np.random.default_rng(8)
    feeds = {name: rng.normal(size=(9, width)).astype(ml_dtypes.bfloat16) for name in "xr"}
    if case in ("region", "sum of several", "epilogue"):
        feeds["x"][3, 5], feeds["x"][4, 1] = math.nan, math.inf
    (wanted,) = in_floats(before, feeds)
    (found,) = run_emulated(after, feeds)
    assert found.dtype == ml_dtypes.bfloat16
    assert_near(found, wanted, 2 * UNIT["bfloat16"])


@pytest.mark.parametrize("case", BRAINS)
def test_target_cpu_leaves_expressions_of_bfloat16(case: str) -> None:
    after = onnxopt.optimize(brain_model(BRAINS[case][0]), target="cpu", strict=True)
    assert not [node for node in after.graph.node if node.domain]
