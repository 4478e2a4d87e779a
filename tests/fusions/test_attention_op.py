"""The standard op Attention becomes FusedAttention: operands of three and four dims, masks, causality, caches; and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from helpers import evaluate, model, ops, run_passes
from onnxopt import ir
from onnxopt.pipeline import PassManager

pytest.importorskip("onnxopt._native", reason="the native library is not built")

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(5)
FOUR = "float[B,4,S,8] q, float[B,4,T,8] k, float[B,4,T,6] v"
SHARED = "float[B,4,S,8] q, float[B,2,T,8] k, float[B,2,T,6] v"
THREE = "float[B,S,32] q, float[B,T,16] k, float[B,T,12] v"
CACHE = "float[B,2,P,8] pk, float[B,2,P,6] pv"
HEADS = "q_num_heads = 4, kv_num_heads = 2"
SAME = "float[B,4,S,8] q, float[B,4,S,8] k, float[B,4,S,6] v"
PRESENT = "float[B,2,R,8] nk, float[B,2,R,6] nv"

GRAPHS = {
    "four dims": f"g ({FOUR}) => (float[B,4,S,6] y) {{ y = Attention(q, k, v) }}",
    "shared keys": f"g ({SHARED}) => (float[B,4,S,6] y) {{ y = Attention(q, k, v) }}",
    "three dims": f"g ({THREE}) => (float[B,S,24] y) {{ y = Attention<{HEADS}>(q, k, v) }}",
    "scale and soft-cap": f"g ({FOUR}) => (float[B,4,S,6] y) {{ y = Attention<scale = 0.7, softcap = 2.0>(q, k, v) }}",
    "numbers added": f"g ({FOUR}, float[B,1,S,T] m) => (float[B,4,S,6] y) {{ y = Attention(q, k, v, m) }}",
    "numbers of heads": f"g ({FOUR}, float[4,S,T] m) => (float[B,4,S,6] y) {{ y = Attention(q, k, v, m) }}",
    "hidden keys": f"g ({SHARED}, bool[S,T] m) => (float[B,4,S,6] y) {{ y = Attention(q, k, v, m) }}",
    "causal": f"g ({SAME}) => (float[B,4,S,6] y) {{ y = Attention<is_causal = 1>(q, k, v) }}",
    "causal, other keys": f"g ({FOUR}) => (float[B,4,S,6] y) {{ y = Attention<is_causal = 1>(q, k, v) }}",
    "causal and hidden": f"""g ({FOUR}, bool[B,1,S,T] m) => (float[B,4,S,6] y) {{
        y = Attention<is_causal = 1>(q, k, v, m) }}""",
    "cache": f"""g ({SHARED}, {CACHE}) => (float[B,4,S,6] y, {PRESENT}) {{
        y, nk, nv = Attention(q, k, v, "", pk, pv) }}""",
    "cache, three dims, causal": f"""g ({THREE}, {CACHE}) => (float[B,S,24] y, {PRESENT}) {{
        y, nk, nv = Attention<{HEADS}, is_causal = 1>(q, k, v, "", pk, pv) }}""",
    "cache and mask": f"""g ({SHARED}, {CACHE}, float[B,1,S,R] m) => (float[B,4,S,6] y, {PRESENT}) {{
        y, nk, nv = Attention(q, k, v, m, pk, pv) }}""",
    "heads split and merged": """g (float[B,S,32] x) => (float[B,S,32] y) {
        s = Constant<value = int64[4] {0, 0, 4, 8}>()  m = Constant<value = int64[3] {0, 0, 32}>()
        r = Reshape(x, s)  t = Transpose<perm = [0, 2, 1, 3]>(r)  a = Attention<is_causal = 1>(t, t, t)
        u = Transpose<perm = [0, 2, 1, 3]>(a)  y = Reshape(u, m) }""",
    "static": """g (float[2,4,5,8] q, float[2,4,5,8] k, float[2,4,5,6] v) => (float[2,4,5,6] y) {
        y = Attention<is_causal = 1>(q, k, v) }""",
}

SIZES = ({"B": 2, "S": 5, "T": 7, "P": 3}, {"B": 1, "S": 1, "T": 1, "P": 0}, {"B": 3, "S": 4, "T": 2, "P": 9})


def make(graph: str, opset: int = 23) -> onnx.ModelProto:
    return model(graph, opset=opset, ir_version=10)


def draw(proto: onnx.ModelProto, sizes: dict[str, int]) -> dict[str, Array]:
    """Inputs for some sizes; R, the rows of the joined cache, follows."""
    sizes = {**sizes, "R": sizes["P"] + sizes["T"]}
    feeds: dict[str, Array] = {}
    for value in proto.graph.input:
        kind = value.type.tensor_type
        shape = [sizes[dim.dim_param] if dim.dim_param else dim.dim_value for dim in kind.shape.dim]
        array = RNG.standard_normal(shape).astype(np.float32)
        feeds[value.name] = array > -0.5 if kind.elem_type == onnx.TensorProto.BOOL else array
    return feeds


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("case", GRAPHS)
def test_is_fused(case: str, opset: int) -> None:
    if (opset, case) == (24, "cache and mask"):
        pytest.skip("from opset 24 on, that mask may have fewer keys")
    before = make(GRAPHS[case], opset)
    after, _ = run_passes(before, "fuse_attention", target="cpu")
    assert ops(after)["FusedAttention"] == 1 and "Attention" not in ops(after)
    for sizes in SIZES:
        feeds = draw(before, sizes)
        wanted = evaluate(before, feeds)
        for library in (True, False):
            for one, other in zip(wanted, evaluate(after, feeds, library=library), strict=True):
                np.testing.assert_allclose(other, one, rtol=2e-4, atol=2e-5)


def test_rows_without_keys_are_zero() -> None:
    before = make(GRAPHS["hidden keys"])
    feeds = draw(before, SIZES[0])
    feeds["m"][1] = False
    after, _ = run_passes(before, "fuse_attention", target="cpu")
    assert not evaluate(before, feeds)[0][:, :, 1].any()
    for library in (True, False):
        np.testing.assert_allclose(
            evaluate(after, feeds, library=library)[0], evaluate(before, feeds)[0], rtol=2e-4, atol=2e-5
        )


def test_takes_heads_into_layouts() -> None:
    after, _ = run_passes(make(GRAPHS["heads split and merged"]), "fuse_attention", "eliminate_dead_code", target="cpu")
    assert not {"Transpose", "Reshape"} & set(ops(after))


def test_layers_share_a_causal_mask() -> None:
    before = make(f"""g ({SAME}) => (float[B,4,S,6] y) {{
        a = Attention<is_causal = 1>(q, k, k)  b = Relu(a)  y = Attention<is_causal = 1>(b, a, v) }}""")
    after, _ = run_passes(before, "fuse_attention", target="cpu")
    assert ops(after)["FusedAttention"] == 2 and ops(after)["GreaterOrEqual"] == 1


def test_one_row_needs_no_causal_mask() -> None:
    before = make("""g (float[B,4,1,8] q, float[B,4,1,8] k, float[B,4,1,6] v, float[B,4,P,8] pk, float[B,4,P,6] pv)
        => (float[B,4,1,6] y) { y = Attention<is_causal = 1>(q, k, v, "", pk, pv) }""")
    after, _ = run_passes(before, "fuse_attention", target="cpu")
    assert ops(after) == {"Concat": 2, "FusedAttention": 1}


REFUSED = {
    "float16": (
        "g (float16[B,4,S,8] q, float16[B,4,T,8] k, float16[B,4,T,8] v) => (float16[B,4,S,8] y) { y = Attention(q, k, v) }",
        "the kernel does not compute FLOAT16",
    ),
    "precision": (
        f"g ({FOUR}) => (float[B,4,S,6] y) {{ y = Attention<softmax_precision = 11>(q, k, v) }}",
        "its Softmax is of another type",
    ),
    "scores": (
        f"g ({FOUR}) => (float[B,4,S,6] y, float[B,4,S,T] z) {{ y, k2, v2, z = Attention(q, k, v) }}",
        "others use its scores",
    ),
    "sizes of samples": (
        f'g ({FOUR}, int64[B] n) => (float[B,4,S,6] y) {{ y = Attention(q, k, v, "", "", "", n) }}',
        "its samples have keys of their own number",
    ),
    "short mask": (
        f"g ({FOUR}, float[S,M] m) => (float[B,4,S,6] y) {{ y = Attention(q, k, v, m) }}",
        "the mask 'm' may have fewer keys",
    ),
    "rank": ("g (float[B,S,D] q) => (float[B,S,D] y) { y = Attention(q, q, q) }", "has no batches and heads"),
    "unknown columns": (
        "g (float[B,4,S,D] q) => (float[B,4,S,D] y) { y = Attention(q, q, q) }",
        "the size of its heads is not known",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    graph, sentence = REFUSED[case]
    loaded = ir.load(make(graph, 24))
    report = PassManager("cpu", ["fuse_attention"], explain=True).run(loaded)
    assert not report.patches
    assert any(sentence in str(miss.refusal) for miss in report.near_misses)
