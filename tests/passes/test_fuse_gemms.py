"""Which products become FusedGemm, which do not and why, and what they are for other targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from helpers import assert_same, model, op_list, ops, run_passes
from onnxopt import ir
from onnxopt.fusions.sizes import UNKNOWN_ROWS
from onnxopt.pipeline import PassManager

pytest.importorskip("onnxopt._native", reason="the native library is not built")
pytestmark = pytest.mark.usefixtures("fuse_small_products")

Array = np.ndarray[Any, Any]
PASS = "fuse_gemms"
RNG = np.random.default_rng(0)
LARGE = (1100, 1000)
"""A matrix beyond the folding budget."""


def normal(*shape: int) -> Array:
    return RNG.normal(0, 1, shape).astype(np.float32)


def fuse(proto: onnx.ModelProto) -> onnx.ModelProto:
    after, _ = run_passes(proto, PASS, target="cpu")
    return after


def initializers(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {one.name: tuple(one.dims) for one in proto.graph.initializer}


def assert_same_three_ways(before: onnx.ModelProto, after: onnx.ModelProto, feeds: dict[str, Array]) -> None:
    """The kernel and the body compute what the model computed."""
    for library in (True, False):
        assert_same(before, after, feeds, rtol=2e-5, atol=2e-6, library=library)


# --- what is fused ---
FUSED: dict[str, tuple[str, list[str]]] = {
    "product": ("g (float[N,12] x) => (float[N,20] y) { y = MatMul(x, w) }", ["FusedGemm"]),
    "bias": ("g (float[N,12] x) => (float[N,20] y) { p = MatMul(x, w) y = Add(p, b) }", ["FusedGemm"]),
    "bias first": ("g (float[N,12] x) => (float[N,20] y) { p = MatMul(x, w) y = Add(b, p) }", ["FusedGemm"]),
    "gemm": ("g (float[N,12] x) => (float[N,20] y) { y = Gemm(x, w, b) }", ["FusedGemm"]),
    "gemm without bias": ("g (float[N,12] x) => (float[N,20] y) { y = Gemm(x, w) }", ["FusedGemm"]),
    "transposed": ("g (float[N,12] x) => (float[N,20] y) { y = Gemm<transB=1>(x, t, b) }", ["FusedGemm"]),
    "transposed without bias": ("g (float[N,12] x) => (float[N,20] y) { y = Gemm<transB=1>(x, t) }", ["FusedGemm"]),
    "neutral scales": ("g (float[N,12] x) => (float[N,20] y) { y = Gemm<alpha=1.0, beta=1.0>(x, w, b) }", ["FusedGemm"]),
    "batches": ("g (float[A,B,C,12] x) => (float[A,B,C,20] y) { p = MatMul(x, w) y = Add(p, b) }", ["FusedGemm"]),
    "fixed shape": ("g (float[2,5,12] x) => (float[2,5,20] y) { p = MatMul(x, w) y = Add(p, b) }", ["FusedGemm"]),
    "product that others read too": (
        "g (float[N,12] x) => (float[N,20] y, float[N,20] p) { p = MatMul(x, w) y = Add(p, b) }",
        ["FusedGemm", "Add"],
    ),
    "bias of a matrix": (
        "g (float[3,12] x) => (float[3,20] y) { p = MatMul(x, w) y = Add(p, rows) }",
        ["FusedGemm", "Add"],
    ),
    "bias with a leading dim": (
        "g (float[N,12] x) => (float[N,20] y) { p = MatMul(x, w) y = Add(p, row) }",
        ["FusedGemm", "Add"],
    ),
    "scalar bias": ("g (float[N,12] x) => (float[N,20] y) { p = MatMul(x, w) y = Add(p, one) }", ["FusedGemm", "Add"]),
    "bias that varies": (
        "g (float[N,12] x, float[20] c) => (float[N,20] y) { p = MatMul(x, w) y = Add(p, c) }",
        ["FusedGemm", "Add"],
    ),
    "chain": (
        "g (float[N,12] x) => (float[N,20] y) { p = MatMul(x, w) q = Add(p, b) r = Relu(q) s = MatMul(r, v) y = Add(s, b) }",
        ["FusedGemm", "Relu", "FusedGemm"],
    ),
}  # fmt: skip
WEIGHTS = {
    "w": normal(12, 20), "t": normal(20, 12), "v": normal(20, 20), "b": normal(20), "rows": normal(3, 20), "row": normal(1, 20),
    "one": normal(1)[0],
}  # fmt: skip


def make(text: str, **options: Any) -> onnx.ModelProto:
    """The model with those of the weights that it names."""
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return model(text, **options, **{name: array for name, array in WEIGHTS.items() if name in words})


@pytest.mark.parametrize("case", FUSED)
def test_fuses(case: str) -> None:
    text, expected = FUSED[case]
    before = make(text)
    after = fuse(before)
    assert op_list(after) == expected
    dims = before.graph.input[0].type.tensor_type.shape.dim
    feeds = {"x": normal(*(dim.dim_value or 3 for dim in dims))}
    if len(before.graph.input) > 1:
        feeds["c"] = normal(20)
    assert_same_three_ways(before, after, feeds)


@pytest.mark.parametrize("shape", [(3, 20), (3, 1), (1,)])
def test_what_is_no_vector_of_columns_is_added_after_it(shape: tuple[int, ...]) -> None:
    before = model("g (float[3,12] x) => (float[3,20] y) { y = Gemm(x, w, c) }", w=WEIGHTS["w"], c=normal(*shape))
    after = fuse(before)
    assert op_list(after) == ["FusedGemm", "Add"]
    assert_same_three_ways(before, after, {"x": normal(3, 12)})


@pytest.mark.parametrize("text", ["p = MatMul(x, w) y = Add(p, b)", "y = Gemm(x, w, b)", "y = Gemm<transB=1>(x, t, b)"])
@pytest.mark.parametrize("opset", range(7, 25))
def test_every_opset(opset: int, text: str) -> None:
    before = make(f"g (float[N,12] x) => (float[N,20] y) {{ {text} }}", opset=opset, ir_version=3 if opset < 9 else 8)
    if opset < 9:  # IR version 3 wants initializers among the inputs; without a default they would be no constants
        before.ir_version = 4
    after = fuse(before)
    assert op_list(after) == ["FusedGemm"]
    assert {entry.domain: entry.version for entry in after.opset_import} == {"": opset, "ai.onnxopt": 1}
    assert_same_three_ways(before, after, {"x": normal(5, 12)})


def test_packed_weights_stand_for_the_old_ones() -> None:
    before = make("g (float[N,12] x) => (float[N,20] y) { p = MatMul(x, w) y = Add(p, b) }")
    after, _ = run_passes(before, PASS, "eliminate_dead_code", target="cpu")
    assert sorted(initializers(after).values()) == [(2, 12, 16), (20,)]
    (packed,) = (one for one in after.graph.initializer if len(one.dims) == 3)
    np.testing.assert_array_equal(numpy_helper.to_array(packed), ir.pack(WEIGHTS["w"]))


def test_products_of_equal_sizes_share_a_body() -> None:
    before = make("g (float[N,20] x) => (float[N,20] y) { p = MatMul(x, v) q = Relu(p) y = MatMul(q, v2) }")
    before.graph.initializer.append(numpy_helper.from_array(normal(20, 20), "v2"))
    after = fuse(before)
    assert ops(after) == {"FusedGemm": 2, "Relu": 1}
    assert len(after.functions) == 1
    assert_same_three_ways(before, after, {"x": normal(5, 20)})


def test_names_are_kept() -> None:
    before = make("g (float[N,12] x) => (float[N,20] y) { p = MatMul(x, w) y = Add(p, b) }")
    before.graph.node[0].name = "/encoder/MatMul"
    (node,) = fuse(before).graph.node
    assert node.name.startswith("/encoder/MatMul") and list(node.output) == ["y"]


@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
def test_values_that_are_not_finite(special: float) -> None:
    before = make("g (float[N,12] x) => (float[N,20] y) { p = MatMul(x, w) y = Add(p, b) }")
    x = normal(5, 12)
    x[2, 3] = special
    assert_same_three_ways(before, fuse(before), {"x": x})


def test_no_rows() -> None:
    before = make("g (float[N,12] x) => (float[N,20] y) { p = MatMul(x, w) y = Add(p, b) }")
    assert_same_three_ways(before, fuse(before), {"x": normal(0, 12)})


# --- what is not, and why ---
REFUSED: dict[str, tuple[str, dict[str, Array], str]] = {
    "weights that vary": ("g (float[N,12] x, float[12,20] w) => (float[N,20] y) { y = MatMul(x, w) }", {}, ""),
    "constant on the left": ("g (float[20,N] x) => (float[12,N] y) { y = MatMul(w, x) }", {"w": WEIGHTS["w"]}, ""),
    "double": (
        "g (double[N,12] x) => (double[N,20] y) { y = MatMul(x, w) }",
        {"w": WEIGHTS["w"].astype(np.float64)},
        "the kernel does not multiply",
    ),
    "half": (
        "g (float16[N,12] x) => (float16[N,20] y) { y = MatMul(x, w) }",
        {"w": WEIGHTS["w"].astype(np.float16)},
        "the kernel does not multiply",
    ),
    "vector of rows": (
        "g (float[12] x) => (float[20] y) { y = MatMul(x, w) }",
        {"w": WEIGHTS["w"]},
        "it is no product of rows with a matrix",
    ),
    "vector of weights": (
        "g (float[N,12] x) => (float[N] y) { y = MatMul(x, w) }",
        {"w": normal(12)},
        "it is no product of rows with a matrix",
    ),
    "batch of weights": (
        "g (float[2,N,12] x) => (float[2,N,20] y) { y = MatMul(x, w) }",
        {"w": normal(2, 12, 20)},
        "it is no product of rows with a matrix",
    ),
    "unknown rank": (
        "g (float[N,12] x, int64[R] s) => (float y) { r = Reshape(x, s) p = MatMul(r, w) y = ReduceSum<keepdims=0>(p) }",
        {"w": WEIGHTS["w"]},
        "it is no product of rows with a matrix",
    ),
    "transposed rows": (
        "g (float[12,N] x) => (float[N,20] y) { y = Gemm<transA=1>(x, w) }",
        {"w": WEIGHTS["w"]},
        "its left operand is transposed, or it is scaled",
    ),
    "alpha": (
        "g (float[N,12] x) => (float[N,20] y) { y = Gemm<alpha=0.5>(x, w) }",
        {"w": WEIGHTS["w"]},
        "its left operand is transposed, or it is scaled",
    ),
    "beta": (
        "g (float[N,12] x) => (float[N,20] y) { y = Gemm<beta=2.0>(x, w, b) }",
        {"w": WEIGHTS["w"], "b": WEIGHTS["b"]},
        "its left operand is transposed, or it is scaled",
    ),
    "few columns": (
        "g (float[N,12] x) => (float[N,7] y) { y = MatMul(x, w) }",
        {"w": normal(12, 7)},
        "a matrix of [12, 7] is too narrow",
    ),
    "little depth": (
        "g (float[N,7] x) => (float[N,20] y) { y = MatMul(x, w) }",
        {"w": normal(7, 20)},
        "a matrix of [7, 20] is too narrow",
    ),
    "little depth, transposed": (
        "g (float[N,7] x) => (float[N,20] y) { y = Gemm<transB=1>(x, w) }",
        {"w": normal(20, 7)},
        "a matrix of [20, 7] is too narrow",
    ),
    "weights that others use": (
        "g (float[N,12] x) => (float[N,20] y, float[12,20] z) { y = MatMul(x, w) z = Neg(w) }",
        {"w": WEIGHTS["w"]},
        "others use the weights 'w' as they are",
    ),
    "loop": (
        """g (int64 n, bool c, float[3,12] x) => (float[3,12] y) {
            y = Loop(n, c, x) < body = b (int64 i, bool k, float[3,12] h) => (bool l, float[3,12] p) {
                l = Identity(k)  p = MatMul(h, w) } > }""",
        {"w": normal(12, 12)},
        "it is in a loop's body, where rows are few",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    text, weights, sentence = REFUSED[case]
    before = model(text, **weights)
    after, report = run_passes(before, PASS, target="cpu", explain=True)
    assert not report.patches
    assert op_list(after) == op_list(before)
    assert not sentence or any(sentence in str(miss.refusal) for miss in report.near_misses)


@pytest.mark.parametrize("taken", [True, False])
def test_branches_that_share_a_matrix_share_its_panels(taken: bool) -> None:
    before = make(
        """g (bool c, float[N,12] x) => (float[N,20] y) {
            y = If(c) < then_branch = t () => (float[N,20] p) { p = MatMul(x, w) },
                        else_branch = e () => (float[N,20] q) { a = MatMul(x, w)  q = Add(a, b) } > }"""
    )
    after, report = run_passes(before, PASS, target="cpu")
    assert len(report.patches) == 2
    assert (
        len({node.input[1] for graph in inner_graphs(after) for node in graph.node if node.op_type == "FusedGemm"}) == 1
    )
    feeds = {"c": np.array(taken), "x": normal(5, 12)}
    assert_same_three_ways(before, after, feeds)


def inner_graphs(proto: onnx.ModelProto) -> list[onnx.GraphProto]:
    return [attr.g for node in proto.graph.node for attr in node.attribute if attr.type == onnx.AttributeProto.GRAPH]


def test_refuses_weights_that_a_caller_may_replace() -> None:
    before = make("g (float[N,12] x, float[12,20] w) => (float[N,20] y) { y = MatMul(x, w) }")
    assert op_list(fuse(before)) == ["MatMul"]


@pytest.mark.parametrize(("rows", "taken_for"), [("1", 1), ("N", UNKNOWN_ROWS)])
def test_refuses_few_rows_of_a_small_matrix(rows: str, taken_for: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    before = make(f"g (float[{rows},12] x) => (float[{rows},20] y) {{ y = MatMul(x, w) }}")
    after, report = run_passes(before, PASS, target="cpu", explain=True)
    assert op_list(after) == ["MatMul"]
    assert f"{taken_for} rows are too few" in str(report.near_misses[0].refusal)


# --- other targets, and once more ---
@pytest.mark.parametrize("case", [case for case in FUSED if "varies" not in case])
def test_standard_ops_come_back(case: str) -> None:
    text, _ = FUSED[case]
    before = make(text)
    after, _ = run_passes(fuse(before), "inline_custom_ops", "fold_constants")
    assert not after.functions and "ai.onnxopt" not in {entry.domain for entry in after.opset_import}
    assert set(ops(after)) <= {"MatMul", "Add", "Relu"}
    dims = before.graph.input[0].type.tensor_type.shape.dim
    assert_same(before, after, {"x": normal(*(dim.dim_value or 3 for dim in dims))})


def save_and_optimize(proto: onnx.ModelProto, folder: Path, *targets: str) -> onnx.ModelProto:
    """The model after it was optimized for one target after the other, through files."""
    path = folder / "before.onnx"
    onnx.save(proto, path)
    for number, target in enumerate(targets):
        loaded = ir.load(path)
        PassManager(target, strict=True).run(loaded)
        path = folder / f"{number}.onnx"
        ir.save(loaded, path)
    return onnx.load(path)


@pytest.mark.parametrize("columns", [LARGE[1], LARGE[1] + 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_large_weights_come_back_as_a_plain_matrix(tmp_path: Path, columns: int, transposed: bool) -> None:
    w = normal(columns, LARGE[0]) if transposed else normal(LARGE[0], columns)
    call = "Gemm<transB=1>(x, w, b)" if transposed else "Gemm(x, w, b)"
    before = model(f"g (float[N,{LARGE[0]}] x) => (float[N,{columns}] y) {{ y = {call} }}", w=w, b=normal(columns))
    assert ops(save_and_optimize(before, tmp_path, "cpu")) == {"FusedGemm": 1}
    after = save_and_optimize(before, tmp_path, "cpu", "generic")
    assert set(ops(after)) <= {"Gemm", "MatMul", "Add"}
    matrix = next(one for one in after.graph.initializer if len(one.dims) == 2)
    np.testing.assert_array_equal(numpy_helper.to_array(matrix), w.T if transposed else w)
    assert_same(before, after, {"x": normal(3, LARGE[0])})


def test_large_weights_that_are_equal_come_back_as_one_plain_matrix(tmp_path: Path) -> None:
    w = normal(*LARGE)
    before = model(
        f"""g (float[N,{LARGE[0]}] x, float[N,{LARGE[0]}] z) => (float[N,{LARGE[1]}] y) {{
            p = MatMul(x, w) q = MatMul(z, v) r = Softmax(q) y = Add(p, r) }}""",
        w=w,
        v=w.copy(),
    )
    after = save_and_optimize(before, tmp_path, "cpu", "generic")
    assert "Transpose" not in ops(after)
    assert_same(before, after, {"x": normal(3, LARGE[0]), "z": normal(3, LARGE[0])})


def test_optimizing_again_gives_the_same_model(tmp_path: Path) -> None:
    before = make(FUSED["chain"][0])
    once, twice = (save_and_optimize(before, tmp_path, *["cpu"] * count) for count in (1, 2))
    assert ops(once) == ops(twice)
    assert sorted(initializers(once).values()) == sorted(initializers(twice).values())
    assert sorted(one.overload for one in once.functions) == sorted(one.overload for one in twice.functions)
