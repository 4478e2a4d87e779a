"""Products of any size and rank become FusedGemm nodes that give the same answers, with the library and without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import assert_same, model, ops, run_passes, set_costs
from onnxopt import ir
from onnxopt.fusions import fused_gemm as fusion
from onnxopt.pipeline import PassManager

pytest.importorskip("onnxopt._native", reason="the native library is not built")
pytestmark = pytest.mark.usefixtures("fuse_small_products")

Array = np.ndarray[Any, Any]
FORMS = {
    "MatMul": "y = MatMul(x, w)",
    "MatMul, Add": "p = MatMul(x, w) y = Add(p, b)",
    "Add of MatMul": "p = MatMul(x, w) y = Add(b, p)",
    "Gemm": "y = Gemm(x, w, b)",
    "Gemm without C": "y = Gemm(x, w)",
    "Gemm, transB": "y = Gemm<transB=1>(x, w, b)",
}


@pytest.fixture(autouse=True)
def fuse_narrow_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests use small matrices."""
    for name in ("MIN_DEPTH", "MIN_COLUMNS"):
        monkeypatch.setattr(fusion, name, 1)


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def product(form: str, leading: tuple[int, ...], depth: int, columns: int, *, named: bool) -> onnx.ModelProto:
    """A product of X [*leading, depth], whose leading dims have names instead of sizes where `named`."""
    dims = ",".join("ABCDE"[i] if named else str(dim) for i, dim in enumerate(leading))
    graph = f"g (float[{dims},{depth}] x) => (float[{dims},{columns}] y) {{ {FORMS[form]} }}"
    weights = {"w": normal(1, columns, depth) if "transB" in form else normal(1, depth, columns)}
    if "b)" in FORMS[form] or "(b" in FORMS[form]:
        weights["b"] = normal(2, columns)
    return model(graph, **weights)


def assert_same_three_ways(before: onnx.ModelProto, after: onnx.ModelProto, feeds: dict[str, Array]) -> None:
    for library in (True, False):
        assert_same(before, after, feeds, rtol=2e-5, atol=4e-6, library=library)


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(sorted(FORMS)),
    leading=st.lists(st.integers(0, 4) | st.just(13), min_size=1, max_size=4).map(tuple),
    depth=st.integers(1, 40),
    columns=st.integers(1, 40),
    named=st.booleans(),
)
def test_any_size(form: str, leading: tuple[int, ...], depth: int, columns: int, named: bool) -> None:
    leading = leading[:1] if form.startswith("Gemm") else leading
    before = product(form, leading, depth, columns, named=named)
    with pytest.MonkeyPatch.context() as patch:
        set_costs(patch, product_work=0)
        for name in ("MIN_DEPTH", "MIN_COLUMNS"):
            patch.setattr(fusion, name, 0)
        after, _ = run_passes(before, "fuse_gemms", target="cpu")
    assert ops(after) == {"FusedGemm": 1}
    assert_same_three_ways(before, after, {"x": normal(3, *leading, depth)})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("depth", [1, 100, 2500])
def test_deep_products(form: str, depth: int) -> None:
    before = product(form, (30,), depth, 50, named=True)
    after, _ = run_passes(before, "fuse_gemms", target="cpu")
    assert ops(after) == {"FusedGemm": 1}
    assert_same_three_ways(before, after, {"x": normal(4, 30, depth)})


@pytest.mark.parametrize(("rows", "fused"), [(128, True), (127, False)])
def test_least_work_is_that_of_the_costs(rows: int, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    set_costs(monkeypatch, product_work=128 * 16 * 16)
    after, _ = run_passes(product("MatMul", (rows,), 16, 16, named=False), "fuse_gemms", target="cpu")
    assert ("FusedGemm" in ops(after)) is fused


@pytest.mark.parametrize(("depth", "columns", "fused"), [(8, 8, True), (7, 8, False), (8, 7, False)])
def test_least_matrix_is_that_of_the_constants(
    depth: int, columns: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusion, "MIN_DEPTH", 8)
    monkeypatch.setattr(fusion, "MIN_COLUMNS", 8)
    after, _ = run_passes(product("MatMul", (5,), depth, columns, named=True), "fuse_gemms", target="cpu")
    assert ("FusedGemm" in ops(after)) is fused


def test_bias_of_another_length_is_no_bias() -> None:
    """It broadcasts the only column."""
    before = model(
        "g (float[N,12] x) => (float[N,20] y) { p = MatMul(x, w) y = Add(p, b) }", w=normal(1, 12, 1), b=normal(2, 20)
    )
    after, _ = run_passes(before, "fuse_gemms", "fuse_epilogues", target="cpu")
    assert ops(after) == {"FusedGemm": 1, "Add": 1}
    assert_same_three_ways(before, after, {"x": normal(3, 5, 12)})


@pytest.mark.parametrize("heads", [2, 3, 4, 5])
def test_layer_of_a_transformer(heads: int) -> None:
    """Projections, an activation and residuals of dynamic batches and lengths, through the whole pipeline and back."""
    names = [f"p{k}" for k in range(heads)]
    text = " ".join(f"m{k} = MatMul(x, w{k}) {name} = Add(m{k}, b{k})" for k, name in enumerate(names))
    sums = " ".join(f"s{k} = Mul({'p0' if k == 1 else f's{k - 1}'}, p{k})" for k in range(1, heads))
    before = model(
        f"""g (float[B,S,24] x) => (float[B,S,24] y) {{ {text} {sums}
            o = MatMul(s{heads - 1}, wo) r = Add(o, x) h = MatMul(r, wh) hb = Add(bh, h) a = Relu(hb) d = MatMul(a, wd) db = Add(d, bd) y = Add(r, db) }}""",
        **{f"w{k}": normal(k, 24, 24) for k in range(heads)},
        **{f"b{k}": normal(k + 9, 24) for k in range(heads)},
        wo=normal(20, 24, 24), wh=normal(21, 24, 96), bh=normal(22, 96), wd=normal(23, 96, 24), bd=normal(24, 24),
    )  # fmt: skip
    loaded = ir.load(before)
    PassManager("cpu", strict=True).run(loaded)
    after = ir.to_proto(loaded)
    assert set(ops(after)) <= {"FusedGemm", "FusedElementwise"}
    for batch, rows in ((2, 7), (1, 1), (3, 0)):
        assert_same_three_ways(before, after, {"x": normal(5, batch, rows, 24)})
    again = ir.load(after)
    PassManager("generic", strict=True).run(again)
    back = ir.to_proto(again)
    assert {node.domain for node in back.graph.node} == {""}
    assert_same(before, back, {"x": normal(5, 2, 7, 24)}, rtol=2e-5, atol=4e-6)
