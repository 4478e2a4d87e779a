"""Biases, scales, normalizations, transposes and reshapes around matrix products."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes
from onnxopt import ir
from onnxopt.pipeline import PassManager

PASS = "fuse_into_gemms"
RNG = np.random.default_rng(0)


def randoms(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def matrices(
    body: str, *, x: str = "float[5,7]", y: str = "float[a,b]", opset: int = 17, **weights: np.ndarray
) -> onnx.ModelProto:
    """A graph of x [5,7] with weights w [7,3]."""
    return model(f"g ({x} x) => ({y} y) {{ {body} }}", opset=opset, **{"w": randoms(7, 3), **weights})


def feeds() -> dict[str, np.ndarray]:
    return {"x": randoms(5, 7)}


def non_finite() -> dict[str, np.ndarray]:
    values = feeds()
    values["x"][0, 0], values["x"][1, 2], values["x"][3, 6] = np.inf, -np.inf, np.nan
    return values


def norm(channels: int) -> dict[str, np.ndarray]:
    return {
        "scale": randoms(channels),
        "shift": randoms(channels),
        "mean": randoms(channels),
        "var": np.abs(randoms(channels)) + np.float32(0.1),
    }


def expect(
    before: onnx.ModelProto, ops: list[str], *inputs: dict[str, np.ndarray], target: str = "generic"
) -> onnx.ModelProto:
    after, _ = run_passes(before, PASS, target=target)
    assert op_list(after) == ops
    assert_same(before, after, list(inputs) or [feeds(), non_finite()])
    return after


# --- a bias
@pytest.mark.parametrize("shape", [(3,), (1, 3), (5, 1), (5, 3), (1,), ()], ids=str)
@pytest.mark.parametrize("order", ["p, c", "c, p"])
def test_matmul_and_bias(shape: tuple[int, ...], order: str) -> None:
    expect(matrices(f"p = MatMul(x, w)\n y = Add({order})", c=randoms(*shape)), ["Gemm"])


def test_bias_that_varies() -> None:
    before = model(
        "g (float[N,7] x, float[7,3] w, float[N,3] c) => (float[a,b] y) { p = MatMul(x, w)\n y = Add(p, c) }"
    )
    expect(before, ["Gemm"], {"x": randoms(5, 7), "w": randoms(7, 3), "c": randoms(5, 3)})


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 1, 1)], ids=str)
def test_refuses_bias_of_higher_rank(shape: tuple[int, ...]) -> None:
    before = matrices("p = MatMul(x, w)\n y = Add(p, c)", y="float[a,b,c]", c=randoms(*shape))
    expect(before, ["MatMul", "Add"])


def test_refuses_bias_that_widens_the_product() -> None:
    before = matrices("p = MatMul(x, w)\n y = Add(p, c)", x="float[1,7]", c=randoms(4, 3))
    expect(before, ["MatMul", "Add"], {"x": randoms(1, 7)})


def test_refuses_bias_of_unknown_rows() -> None:
    before = model(
        "g (float[N,7] x, float[M,3] c, float[7,3] w) => (float[a,b] y) { p = MatMul(x, w)\n y = Add(p, c) }"
    )
    expect(before, ["MatMul", "Add"], {"x": randoms(1, 7), "w": randoms(7, 3), "c": randoms(4, 3)})


def test_refuses_batches() -> None:
    before = matrices("p = MatMul(x, w)\n y = Add(p, c)", x="float[2,5,7]", y="float[a,b,c]", c=randoms(3))
    expect(before, ["MatMul", "Add"], {"x": randoms(2, 5, 7)})


def test_refuses_integers() -> None:
    before = model("g (int32[5,7] x, int32[7,3] w, int32[3] c) => (int32[a,b] y) { p = MatMul(x, w)\n y = Add(p, c) }")
    assert op_list(run_passes(before, PASS)[0]) == ["MatMul", "Add"]


def test_refuses_product_that_others_use() -> None:
    before = matrices("p = MatMul(x, w)\n q = Add(p, c)\n y = Mul(p, q)", c=randoms(3))
    expect(before, ["MatMul", "Add", "Mul"])


def test_gemm_without_c_takes_it() -> None:
    expect(matrices("p = Gemm<beta=3.0, alpha=0.5>(x, w)\n y = Add(p, c)", c=randoms(5, 3)), ["Gemm"])


def test_constants_of_gemm_are_added() -> None:
    before = matrices(
        "p = Gemm<beta=3.0>(x, w, c)\n q = Add(p, d)\n y = Sub(q, e)", c=randoms(3), d=randoms(1, 3), e=randoms(1)
    )
    expect(before, ["Gemm"])


def test_refuses_bias_that_would_become_a_matrix() -> None:
    before = matrices("p = Gemm(x, w, c)\n y = Add(p, d)", c=randoms(5, 1), d=randoms(3))
    expect(before, ["Gemm", "Add"])


# --- scales
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (3,), (1, 3)], ids=str)
@pytest.mark.parametrize("product", ["Gemm(x, w)", "Gemm<alpha=0.5, beta=2.0>(x, w, b)", "MatMul(x, w)"])
@pytest.mark.parametrize("after", ["Mul(p, c)", "Mul(c, p)", "Div(p, c)"])
def test_scale_after_product(shape: tuple[int, ...], product: str, after: str) -> None:
    constants = {"b": randoms(3)} if "b)" in product else {}
    before = matrices(f"p = {product}\n y = {after}", c=randoms(*shape), **constants)
    expect(before, [product[: product.index("<" if "<" in product else "(")]])


def test_number_goes_into_alpha_and_beta() -> None:
    before = model(
        "g (float[5,7] x, float[7,3] w, float[3] b) => (float[a,b] y) { p = Gemm<alpha=2.0>(x, w, b)\n y = Mul(p, c) }",
        c=np.float32(0.25),
    )
    after = expect(before, ["Gemm"], {"x": randoms(5, 7), "w": randoms(7, 3), "b": randoms(3)})
    assert {one.name: one.f for one in after.graph.node[0].attribute} == {"alpha": 0.5, "beta": 0.25}


def test_transposed_weights_are_scaled_by_row() -> None:
    before = matrices("p = Gemm<transB=1>(x, v, b)\n y = Mul(p, c)", v=randoms(3, 7), b=randoms(3), c=randoms(3))
    expect(before, ["Gemm"])


def test_scale_after_batched_matmul() -> None:
    before = matrices("p = MatMul(x, w)\n y = Mul(p, c)", x="float[2,N,7]", y="float[a,b,c]", c=randoms(3))
    expect(before, ["MatMul"], {"x": randoms(2, 5, 7)}, {"x": randoms(2, 1, 7)})


@pytest.mark.parametrize("product", ["MatMul(x, w)", "Gemm(x, w, b)", "Gemm(x, w)"])
def test_norm_after_product(product: str) -> None:
    constants = {"b": randoms(3)} if "b)" in product else {}
    before = matrices(f"p = {product}\n y = BatchNormalization(p, scale, shift, mean, var)", **norm(3), **constants)
    expect(before, ["Gemm"])


def test_refuses_norm_of_another_axis() -> None:
    before = matrices(
        "p = MatMul(x, w)\n y = BatchNormalization(p, scale, shift, mean, var)",
        x="float[2,5,7]",
        y="float[a,b,c]",
        **norm(5),
    )
    expect(before, ["MatMul", "BatchNormalization"], {"x": randoms(2, 5, 7)})


@pytest.mark.parametrize("product", ["MatMul(s, w)", "Gemm(s, w, b)", "Gemm<transB=1>(s, v)"])
@pytest.mark.parametrize("shape", [(), (7,), (1, 7)], ids=str)
def test_scale_before_product(product: str, shape: tuple[int, ...]) -> None:
    constants = {name: array for name, array in {"b": randoms(3), "v": randoms(3, 7)}.items() if f"{name})" in product}
    before = matrices(f"s = Mul(x, c)\n y = {product}", c=randoms(*shape), **constants)
    expect(before, [product[: product.index("<" if "<" in product else "(")]])


@pytest.mark.parametrize("product", ["Gemm<alpha=0.5>(s, w, b)", "Gemm<transB=1>(s, v)"])
def test_norm_before_gemm(product: str) -> None:
    constants = {name: array for name, array in {"b": randoms(3), "v": randoms(3, 7)}.items() if f"{name})" in product}
    before = matrices(f"s = BatchNormalization(x, scale, shift, mean, var)\n y = {product}", **norm(7), **constants)
    expect(before, ["Gemm"])


def test_refuses_scale_of_rows() -> None:
    expect(matrices("p = MatMul(x, w)\n y = Mul(p, c)", c=randoms(5, 1)), ["MatMul", "Mul"])
    expect(matrices("s = Mul(x, c)\n y = MatMul(s, w)", c=randoms(5, 1)), ["Mul", "MatMul"])


def test_refuses_scaled_left_operand_that_is_transposed() -> None:
    before = matrices("s = Mul(x, c)\n y = Gemm<transA=1>(s, v)", c=randoms(7), v=randoms(5, 3))
    expect(before, ["Mul", "Gemm"])


def test_refuses_scale_of_the_right_operand() -> None:
    before = matrices("s = Mul(x, c)\n y = MatMul(v, s)", c=randoms(7), v=randoms(3, 5))
    expect(before, ["Mul", "MatMul"])


def test_refuses_last_factor_of_gelu() -> None:
    before = matrices(
        "d = Div(x, r)\n e = Erf(d)\n o = Add(e, one)\n p = Mul(x, o)\n q = Mul(p, half)\n y = MatMul(q, w)",
        r=np.float32(2**0.5),
        one=np.float32(1),
        half=np.float32(0.5),
    )
    expect(before, ["Div", "Erf", "Add", "Mul", "Mul", "MatMul"])


def test_refuses_gamma_of_a_norm() -> None:
    before = matrices(
        "q = Mul(x, x)\n v = ReduceMean<axes=[-1]>(q)\n r = Sqrt(v)\n n = Div(x, r)\n g = Mul(n, gamma)\n y = MatMul(g, w)",
        gamma=randoms(7),
    )
    assert op_list(run_passes(before, PASS)[0])[-2:] == ["Mul", "MatMul"]


@pytest.mark.parametrize("number", [np.inf, np.nan])
def test_refuses_scale_that_is_not_finite(number: float) -> None:
    expect(matrices("p = MatMul(x, w)\n y = Mul(p, c)", c=np.float32(number)), ["MatMul", "Mul"])


@pytest.mark.parametrize("number", [0.0, 1e-42])
def test_gemm_keeps_numbers_that_alpha_cannot_hold(number: float) -> None:
    """Zero times infinity is NaN, and products of subnormal alphas would lose their precision."""
    after, _ = run_passes(matrices("p = Gemm(x, v)\n y = Mul(p, c)", v=randoms(7, 3), c=np.float32(number)), PASS)
    assert all(one.name != "alpha" for node in after.graph.node for one in node.attribute)


@pytest.mark.parametrize("shape", [(64, 512), (4, 8)], ids=["large", "small"])
def test_shared_weights_are_copied_only_when_small(shape: tuple[int, int]) -> None:
    before = model(
        f"g (float[2,{shape[0]}] x) => (float[a,b] y, float[a,b] z) {{ p = MatMul(x, w)\n y = Mul(p, c)\n q = Relu(x)\n z = MatMul(q, w) }}",
        w=randoms(*shape),
        c=randoms(shape[1]),
    )
    after, _ = run_passes(before, PASS)
    assert ("Mul" in op_list(after)) == (shape == (64, 512))
    assert_same(before, after, {"x": randoms(2, shape[0])})


# --- a scale behind views
def test_scale_behind_bias_reshape_and_transpose() -> None:
    before = matrices(
        "p = MatMul(x, v)\n q = Add(b, p)\n r = Reshape(q, shape)\n t = Transpose<perm=[0,2,1,3]>(r)\n y = Mul(t, c)",
        x="float[2,5,7]",
        y="float[a,b,c,d]",
        v=randoms(7, 6),
        b=randoms(6),
        c=np.float32(0.125),
        shape=np.array([2, 5, 2, 3]),
    )
    expect(before, ["MatMul", "Add", "Reshape", "Transpose"], {"x": randoms(2, 5, 7)})


def test_scale_behind_bias() -> None:
    before = matrices(
        "p = MatMul(x, w)\n q = Add(p, b)\n y = Div(q, c)",
        x="float[2,5,7]",
        y="float[a,b,c]",
        b=randoms(3),
        c=np.float32(8),
    )
    expect(before, ["MatMul", "Add"], {"x": randoms(2, 5, 7)})


def test_refuses_vector_behind_views() -> None:
    before = matrices("p = MatMul(x, w)\n r = Transpose(p)\n y = Mul(r, c)", c=randoms(5))
    expect(before, ["MatMul", "Transpose", "Mul"])


def test_refuses_view_that_others_use() -> None:
    before = matrices("p = MatMul(x, w)\n r = Transpose(p)\n s = Mul(r, c)\n y = Add(s, r)", c=np.float32(2))
    expect(before, ["MatMul", "Transpose", "Mul", "Add"])


# --- transposes
@pytest.mark.parametrize("flags", ["", "<transA=1>", "<transB=1>", "<transA=1, transB=1>"])
def test_transposes_into_gemm(flags: str) -> None:
    a = "float[7,5]" if "transA" not in flags else "float[5,7]"
    w = "float[3,7]" if "transB" not in flags else "float[7,3]"
    before = model(
        f"g ({a} x, {w} w) => (float[a,b] y) {{ p = Transpose(x)\n q = Transpose<perm=[1,0]>(w)\n y = Gemm{flags}(p, q) }}"
    )
    values = {
        "x": randoms(7, 5) if "A" not in flags else randoms(5, 7),
        "w": randoms(3, 7) if "B" not in flags else randoms(7, 3),
    }
    expect(before, ["Gemm"], values)


def test_transpose_into_matmul() -> None:
    before = model("g (float[7,5] x, float[7,3] w) => (float[a,b] y) { p = Transpose(x)\n y = MatMul(p, w) }")
    expect(before, ["Gemm"], {"x": randoms(7, 5), "w": randoms(7, 3)})


def test_transpose_matmul_and_bias() -> None:
    before = model(
        "g (float[5,7] x, float[3,7] w, float[3] c) => (float[a,b] y) { q = Transpose(w)\n p = MatMul(x, q)\n y = Add(p, c) }"
    )
    expect(before, ["Gemm"], {"x": randoms(5, 7), "w": randoms(3, 7), "c": randoms(3)})


def test_refuses_transpose_into_matmul_before_opset_11() -> None:
    before = model("g (float[7,5] x, float[7,3] w) => (float[a,b] y) { p = Transpose(x)\n y = MatMul(p, w) }", opset=9)
    expect(before, ["Transpose", "MatMul"], {"x": randoms(7, 5), "w": randoms(7, 3)})


def test_refuses_transpose_that_others_use() -> None:
    before = model(
        "g (float[7,5] x, float[7,3] w) => (float[a,b] y, float[c,d] z) { z = Transpose(x)\n y = MatMul(z, w) }"
    )
    expect(before, ["Transpose", "MatMul"], {"x": randoms(7, 5), "w": randoms(7, 3)})


def test_refuses_transpose_of_batches() -> None:
    before = model(
        "g (float[2,7,5] x, float[7,3] w) => (float[a,b,c] y) { p = Transpose<perm=[0,2,1]>(x)\n y = MatMul(p, w) }"
    )
    expect(before, ["Transpose", "MatMul"], {"x": randoms(2, 7, 5), "w": randoms(7, 3)})


# --- reshapes
REAL = {"rows": np.array([-1, 7]), "shape": np.array([2, 5, 3])}


def test_gemm_between_reshapes() -> None:
    before = matrices(
        "r = Reshape(x, rows)\n p = Gemm(r, w)\n y = Reshape(p, shape)", x="float[2,5,7]", y="float[a,b,c]", **REAL
    )
    expect(before, ["MatMul"], {"x": randoms(2, 5, 7)})


@pytest.mark.parametrize("target", ["cpu", "generic"])
def test_bias_leaves_gemm_only_where_the_next_op_takes_it(target: str) -> None:
    before = matrices(
        "r = Reshape(x, rows)\n p = Gemm(r, w, b)\n q = Reshape(p, shape)\n y = Tanh(q)",
        x="float[2,5,7]",
        y="float[a,b,c]",
        b=randoms(3),
        **REAL,
    )
    ops = ["MatMul", "Add", "Tanh"] if target == "cpu" else ["Reshape", "Gemm", "Reshape", "Tanh"]
    expect(before, ops, {"x": randoms(2, 5, 7)}, target=target)


def test_refuses_reshape_to_other_dims() -> None:
    before = matrices(
        "r = Reshape(x, rows)\n p = Gemm(r, w)\n y = Reshape(p, shape)",
        x="float[2,5,7]",
        y="float[a,b,c]",
        rows=np.array([-1, 7]),
        shape=np.array([5, 2, 3]),
    )
    expect(before, ["Reshape", "Gemm", "Reshape"], {"x": randoms(2, 5, 7)})


# --- element types, files, branches
def test_float16() -> None:
    before = model(
        "g (float16[5,7] x) => (float16[a,b] y) { p = MatMul(x, w)\n q = Add(p, b)\n y = Mul(q, c) }",
        w=randoms(7, 3, dtype=np.float16),
        b=randoms(3, dtype=np.float16),
        c=randoms(3, dtype=np.float16),
    )
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Gemm"]
    assert_same(before, after, {"x": randoms(5, 7, dtype=np.float16)}, rtol=0, atol=4e-3)


def test_refuses_float16_weights_out_of_range() -> None:
    before = model(
        "g (float16[2,5,7] x) => (float16[a,b,c] y) { p = MatMul(x, w)\n y = Mul(p, c) }",
        w=randoms(7, 3, dtype=np.float16),
        c=np.float16(1e-6),
    )
    assert op_list(run_passes(before, PASS)[0]) == ["MatMul", "Mul"]


def test_double_keeps_its_precision() -> None:
    before = model(
        "g (double[5,7] x) => (double[a,b] y) { p = Gemm(x, w, b)\n y = Mul(p, c) }",
        w=randoms(7, 3, dtype=np.float64),
        b=randoms(3, dtype=np.float64),
        c=np.float64(1 / 3),
    )
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Gemm"]
    assert_same(before, after, {"x": randoms(5, 7, dtype=np.float64)}, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("transposed", [False, True])
def test_large_weights_of_a_file_are_scaled_while_writing(tmp_path: Path, transposed: bool) -> None:
    weights = randoms(640, 512)
    before = model(
        f"""g (float[2,3,{640 if not transposed else 512}] x) => (float[a,b,c] y) {{
            v = {"Transpose<perm=[1,0]>" if transposed else "Identity"}(w)
            p = MatMul(x, v)
            q = Mul(p, c)
            y = Mul(q, d)
        }}""",
        w=weights,
        c=np.float32(0.3),
        d=RNG.uniform(0.1, 1, 640 if transposed else 512).astype(np.float32),
    )
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(before, source)
    loaded = ir.load(source)
    PassManager("generic", ["eliminate_noops", "fold_constants", PASS, "eliminate_dead_code"], strict=True).run(loaded)
    assert [type(value.const_value) for value in loaded.graph.initializers.values()] == [ir.ScaledTensor]
    ir.save(loaded, target)
    after = onnx.load(target)
    assert op_list(after) == ["MatMul"]
    assert_same(before, after, {"x": randoms(2, 3, weights.shape[transposed])})


def test_inside_a_branch() -> None:
    before = model(
        """g (float[5,7] x, bool c) => (float[5,3] y) {
            y = If(c) <
                then_branch = t () => (float[5,3] p) { r = MatMul(x, w)
                    p = Add(r, k) },
                else_branch = e () => (float[5,3] q) { q = MatMul(x, w) }
            >
        }""",
        w=randoms(7, 3),
        k=randoms(3),
    )
    after, _ = run_passes(before, PASS)
    assert_same(before, after, [{"x": randoms(5, 7), "c": np.array(flag)} for flag in (True, False)])
    branch = next(attr.g for attr in after.graph.node[0].attribute if attr.name == "then_branch")
    assert [node.op_type for node in branch.node] == ["Gemm"]


@pytest.mark.parametrize("rows", [1, 4])
def test_refuses_a_number_behind_a_view_that_may_broadcast(rows: int) -> None:
    before = model(
        "g (float[N,3] x) => (float[M,5] y) { a = MatMul(x, w)\n b = Reshape(a, s)\n y = Mul(b, c) }",
        w=RNG.standard_normal((3, 5)).astype(np.float32),
        s=np.array([-1, 5]),
        c=np.full((4, 1), 2, np.float32),
    )
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["MatMul", "Reshape", "Mul"]
    assert_same(before, after, {"x": RNG.standard_normal((rows, 3)).astype(np.float32)})
