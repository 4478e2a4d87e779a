"""Chains that move rows become one Gather; others stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes
from onnxopt import ir
from onnxopt.pipeline import PassManager

PASS = "gather_moved_rows"
RNG = np.random.default_rng(4)

SHIFT = "s = Constant<value_ints = [1, 5]>() a, b = Split<axis = 1>(g, s) c = Concat<axis = 1>(b, a)"
PARTITION = """six = Constant<value_ints = [2, 2, 3, 3, 2, 8]>() t = Constant<value_ints = [12, 6, 8]>()
    d = Reshape(c, six) e = Transpose<perm = [0, 1, 3, 2, 4, 5]>(d) w = Reshape(e, t)"""


def chain(moves: str, result: str, source: str = "float[2,6,6,8]", name: str = "w") -> onnx.ModelProto:
    return model(f"main ({source} x) => ({result} y) {{ g = Relu(x) {moves} y = Relu({name}) }}")


def swin() -> onnx.ModelProto:
    """A cyclic shift and the partition into windows."""
    return chain(f"{SHIFT} {PARTITION}", "float[12,6,8]")


def after(proto: onnx.ModelProto) -> onnx.ModelProto:
    return run_passes(proto, PASS, target="cpu")[0]


def test_shift_and_partition_become_one_gather() -> None:
    found = after(swin())
    assert op_list(found) == ["Relu", "Reshape", "Gather", "Reshape", "Relu"]
    assert_same(swin(), found, {"x": RNG.standard_normal((2, 6, 6, 8)).astype(np.float32)})


def test_slices_joined_along_columns() -> None:
    corners = "".join(
        f"""a{i} = Constant<value_ints = [{i // 2}, {i % 2}]>() p{i} = Slice(g, a{i}, ends, axes, steps) """
        for i in range(4)
    )
    moves = f"""ends = Constant<value_ints = [6, 6]>() axes = Constant<value_ints = [1, 2]>() steps = Constant<value_ints = [2, 2]>()
        {corners} w = Concat<axis = -1>(p0, p1, p2, p3)"""
    proto = chain(moves, "float[2,3,3,32]")
    found = after(proto)
    assert "Gather" in op_list(found) and "Slice" not in op_list(found)
    assert_same(proto, found, {"x": RNG.standard_normal((2, 6, 6, 8)).astype(np.float32)})


REFUSED = {
    "one copy": (chain("w = Transpose<perm = [0, 2, 1, 3]>(g)", "float[2,6,6,8]"), None),
    "less than rows": (
        chain("a = Transpose<perm = [0, 3, 1, 2]>(g) w = Transpose<perm = [0, 1, 3, 2]>(a)", "float[2,8,6,6]"),
        "less than rows",
    ),
    "unknown sizes": (
        chain(
            f"{SHIFT} a2, b2 = Split<axis = 1>(c, s) w = Concat<axis = 1>(b2, a2)", "float[N,6,6,8]", "float[N,6,6,8]"
        ),
        "not known",
    ),
    "short rows": (
        chain(f"{SHIFT} w = Transpose<perm = [0, 2, 1, 3]>(c)", "float[2,6,6,4]", "float[2,6,6,4]"),
        "rows of 4 elements",
    ),
    "read elsewhere": (
        model(f"""main (float[2,6,6,8] x) => (float[12,6,8] y, float[2,1,6,8] z) {{
            g = Relu(x) {SHIFT} {PARTITION} y = Relu(w) z = Relu(a) }}"""),
        "others read",
    ),
    "several tensors": (
        model(f"""main (float[2,6,6,8] g, float[2,6,6,8] h) => (float[2,6,6,8] y) {{
            {SHIFT} w = Concat<axis = 1>(c, h) s2 = Constant<value_ints = [6, 6]>() y0, y1 = Split<axis = 1>(w, s2) y = Relu(y1) }}"""),
        None,
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    proto, sentence = REFUSED[case]
    loaded = ir.load(proto)
    report = PassManager("cpu", [PASS], explain=True).run(loaded)
    assert not any(node.op_type == "Gather" for node in loaded.graph)
    if sentence is not None:
        assert any(sentence in str(near.refusal) for near in report.near_misses)


def test_a_second_run_changes_nothing() -> None:
    once = after(swin())
    assert op_list(after(once)) == op_list(once)
