"""Rotary embeddings of queries and keys that become part of attention."""

from __future__ import annotations

import numpy as np
import pytest

from attention import RNG, assert_same, fuse, fused, normal
from helpers import model, run_passes

pytest.importorskip("onnxopt._native", reason="the native library is not built")


@pytest.mark.parametrize("signed", [False, True])
def test_rotary_embedding_of_shared_heads(signed: bool) -> None:
    crossed = "{x}x = Concat<axis = 3>({x}hi, {x}lo)"
    if not signed:
        crossed = "{x}n = Neg({x}hi)  {x}x = Concat<axis = 3>({x}n, {x}lo)"
    turn = "\n".join(
        f"""{x}lo, {x}hi = Split<axis = 3>({x}, halves)  {crossed.format(x=x)}
        {x}c = Mul({x}, cos)  {x}s = Mul({x}x, sin)  {x}r = Add({x}c, {x}s)"""
        for x in "qk"
    )
    text = f"""g (float[B,4,S,8] q, float[B,2,S,8] k, float[B,2,S,8] v, float[1,1,S,8] cos, float[1,1,S,8] sin) => (float[B,4,S,8] y) {{
        halves = Constant<value_ints = [4, 4]>()
        {turn}
        wide = Constant<value_ints = [1, 1, 2, 1, 1]>()
        k5 = Unsqueeze(kr, two)  k6 = Expand(k5, wide)  k7 = Reshape(k6, joined)
        v5 = Unsqueeze(v, two)  v6 = Expand(v5, wide)  v7 = Reshape(v6, joined)
        kt = Transpose<perm = [0, 1, 3, 2]>(k7)
        s = MatMul(qr, kt)  p = Softmax<axis = -1>(s)  y = MatMul(p, v7)
    }}""".replace("[B,", "[2,").replace(",S,", ",5,")
    proto = model(text, two=np.array([2]), joined=np.array([2, 4, 5, 8]))
    found = fused(proto)
    assert (found["heads"], found["kv_heads"], found["rotary"]) == (4, 2, "qk")
    tables = {"cos": normal(1, 1, 5, 8), "sin": normal(1, 1, 5, 8)}
    assert_same(proto, {"q": normal(2, 4, 5, 8), "k": normal(2, 2, 5, 8), "v": normal(2, 2, 5, 8)} | tables)


HALVES = "{x}lo, {x}hi = Split<axis = 3>({x}p, halves)  {x}n = Neg({x}hi)  {x}x = Concat<axis = 3>({x}n, {x}lo)"
NEIGHBOURS = """{x}hi = Slice({x}p, one, end, last, two)  {x}lo = Slice({x}p, zero, end, last, two)
    {x}n = Neg({x}hi)  {x}nu = Unsqueeze({x}n, minus)  {x}lu = Unsqueeze({x}lo, minus)
    {x}st = Concat<axis = -1>({x}nu, {x}lu)  {x}x = Reshape({x}st, flat)"""


TURN = "{x}c = Mul({x}p, cos)  {x}s = Mul({x}x, sin)  {x}a = Add({x}c, {x}s)"
PARTS = {
    "whole": ("{x}p = Identity({x})", "{x}r = Identity({x}a)", 8),
    "split": ("{x}p, {x}o = Split<axis = 3>({x}, parts)", "{x}r = Concat<axis = -1>({x}a, {x}o)", 4),
    "sliced": (
        "{x}p = Slice({x}, zero, four, last)  {x}o = Slice({x}, four, end, last)",
        "{x}r = Concat<axis = 3>({x}a, {x}o)",
        4,
    ),
}


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("alike", [False, True])
def test_rotary_embedding_of_keys_that_have_rows_before_heads(alike: bool, constant: bool) -> None:
    tables = {"cos": normal(3, 5, 8), "sin": normal(3, 5, 8)}
    other = tables if alike else {"cos": tables["sin"], "sin": tables["cos"]}
    placed = {f"{name}q": table[:, None] for name, table in tables.items()}
    placed |= {f"{name}k": table[:, :, None] for name, table in other.items()}
    views = "" if constant else "cosq = Unsqueeze(cos, one)  sinq = Unsqueeze(sin, one)"
    if not constant:
        first, second = ("cos", "sin") if alike else ("sin", "cos")
        views += (
            f" cosk = Unsqueeze({first}, two)  sk = Unsqueeze({second}, one)  sink = Transpose<perm = [0, 2, 1, 3]>(sk)"
        )
    turned = "\n".join(
        f"{x}p = Identity({x}) {HALVES} {TURN}".format(x=x).replace("cos)", f"cos{x})").replace("sin)", f"sin{x})")
        for x in "qk"
    )
    given = "" if constant else ", float[3,5,8] cos, float[3,5,8] sin"
    text = f"""g (float[3,2,5,8] q, float[3,5,2,8] k, float[3,2,5,8] v{given}) => (float[3,2,5,8] y) {{ {views} {turned}
        kt = Transpose<perm = [0, 2, 3, 1]>(ka)
        s = MatMul(qa, kt)  p = Softmax<axis = -1>(s)  y = MatMul(p, v) }}"""
    numbers = {"halves": [4, 4], "one": [1], "two": [2]}
    proto = model(text, **{name: np.array(array) for name, array in numbers.items()}, **(placed if constant else {}))
    proto = run_passes(proto, "eliminate_noops")[0]
    assert fused(proto)["rotary"] == ("qk" if alike else "q")
    feeds = {"q": normal(3, 2, 5, 8), "k": normal(3, 5, 2, 8), "v": normal(3, 2, 5, 8)}
    assert_same(proto, feeds if constant else feeds | tables)


@pytest.mark.parametrize("rows_first", [False, True])
@pytest.mark.parametrize("crossed", [HALVES, NEIGHBOURS], ids=["halves", "neighbours"])
@pytest.mark.parametrize("part", PARTS)
def test_rotary_embedding(part: str, crossed: str, rows_first: bool) -> None:
    before, after, width = PARTS[part]
    dims, table, perms = (
        ("3,5,2", "3,5,1", ("0, 2, 1, 3", "0, 2, 3, 1"))
        if rows_first
        else ("3,2,5", "3,1,5", ("0, 1, 2, 3", "0, 1, 3, 2"))
    )
    turned = "\n".join(f"{before} {crossed} {TURN} {after}".format(x=x) for x in "qk")
    text = f"""g (float[{dims},8] q, float[{dims},8] k, float[3,2,5,8] v, float[{table},{width}] cos, float[{table},{width}] sin)
        => (float[3,2,5,8] y) {{ {turned}
        qt = Transpose<perm = [{perms[0]}]>(qr)  kt = Transpose<perm = [{perms[1]}]>(kr)
        s = MatMul(qt, kt)  p = Softmax<axis = -1>(s)  y = MatMul(p, v) }}"""
    sizes = {"halves": [width // 2] * 2, "parts": [4, 4], "flat": [*map(int, dims.split(",")), width], "end": [1 << 60]}
    numbers = {"zero": [0], "one": [1], "two": [2], "four": [4], "last": [3], "minus": [-1]}
    proto = model(text, **{name: np.array(array) for name, array in (sizes | numbers).items()})
    proto = run_passes(proto, "eliminate_noops")[0]
    found = fused(proto)
    assert (found["rotary"], found.get("interleaved", 0)) == ("qk", int(crossed is NEIGHBOURS))
    shape = tuple(map(int, dims.split(",")))
    tables = {name: normal(*map(int, table.split(",")), width) for name in ("cos", "sin")}
    assert_same(proto, {"q": normal(*shape, 8), "k": normal(*shape, 8), "v": normal(3, 2, 5, 8)} | tables)
    standard, _ = run_passes(fuse(proto)[0], "inline_custom_ops", "lift_constants")
    again = fused(standard)
    assert all(again.get(name) == found.get(name) for name in ("rotary", "interleaved", "heads", "masks"))


@pytest.mark.parametrize(
    ("columns", "axis", "rotary"),
    [
        ([4, 5, 6, 7, 0, 1, 2, 3], -1, "q"),
        ([1, 0, 3, 2, 5, 4, 7, 6], 3, "q"),
        ([4, 5, 6, 7, 0, 1, 3, 2], 3, ""),
        ([0, 1, 2, 3, 4, 5, 6, 7], 3, ""),
        ([4, 5, 6, 7, 0, 1, 2, 3], 2, ""),
    ],
)
def test_rotary_embedding_whose_partners_are_gathered(columns: list[int], axis: int, rotary: str) -> None:
    proto = model(
        f"""g (float[3,2,8,8] q, float[3,2,8,5] k, float[3,2,5,8] v, float[8,8] cos, float[8,8] sin) => (float[3,2,8,8] y) {{
        x = Gather<axis = {axis}>(q, columns)  a = Mul(q, cos)  b = Mul(x, sin)  r = Add(a, b)
        s = MatMul(r, k)  p = Softmax<axis = -1>(s)  y = MatMul(p, v) }}""",
        columns=np.array(columns),
    )
    assert fused(proto).get("rotary", "") == rotary
    shapes = {"q": (3, 2, 8, 8), "k": (3, 2, 8, 5), "v": (3, 2, 5, 8), "cos": (8, 8), "sin": (8, 8)}
    assert_same(proto, {name: normal(*shape) for name, shape in shapes.items()})


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("positions", [False, True])
def test_op_for_rotary_embeddings(width: int, interleaved: int, positions: bool) -> None:
    table, at, declared = (
        (f"20,{width // 2}", ", at", ", int64[3,5] at") if positions else (f"3,5,{width // 2}", "", "")
    )
    kind = f"interleaved = {interleaved}, rotary_embedding_dim = {width if width < 8 else 0}"
    text = f"""g (float[3,2,5,8] q, float[3,2,5,8] k, float[{table}] cos, float[{table}] sin{declared}) => (float[3,2,5,8] y) {{
        qr = RotaryEmbedding<{kind}>(q, cos, sin{at})  kr = RotaryEmbedding<{kind}>(k, cos, sin{at})
        kt = Transpose<perm = [0, 1, 3, 2]>(kr)  s = MatMul(qr, kt)  p = Softmax<axis = -1>(s)  y = MatMul(p, k) }}"""
    proto = model(text, opset=23, ir_version=10)
    assert (fused(proto)["rotary"], fused(proto).get("interleaved", 0)) == ("qk", interleaved)
    feeds = {name: normal(*map(int, table.split(","))) for name in ("cos", "sin")}
    feeds |= {"at": RNG.integers(0, 20, (3, 5))} if positions else {}
    assert_same(proto, feeds | {"q": normal(3, 2, 5, 8), "k": normal(3, 2, 5, 8)})


def test_layers_share_tables() -> None:
    turn = "{x}lo, {x}hi = Split<axis = 3>({x}, halves)  {x}n = Neg({x}hi)  {x}x = Concat<axis = 3>({x}n, {x}lo)"
    layers = "".join(
        f"""{turn.format(x=x)}  {x}c = Mul({x}, cos)  {x}s = Mul({x}x, sin)  {x}r = Add({x}c, {x}s)
        {x}t = Transpose<perm = [0, 1, 3, 2]>(k)  {x}w = MatMul({x}r, {x}t)  {x}p = Softmax<axis = -1>({x}w)
        {y} = MatMul({x}p, k) """
        for x, y in (("q", "m"), ("m", "y"))
    )
    text = (
        f"g (float[3,2,5,8] q, float[3,2,5,8] k, float[5,8] cos, float[5,8] sin) => (float[3,2,5,8] y) {{ {layers} }}"
    )
    after, nodes = fuse(model(text, halves=np.array([4, 4])))
    assert len(nodes) == 2 and nodes[0].input[-2:] == nodes[1].input[-2:]
    assert [node.op_type for node in after.graph.node] == ["Mul", "FusedAttention", "FusedAttention"]


def test_rotation_of_other_columns_stays() -> None:
    """What is joined behind the rotated columns is not the rest of the same tensor."""
    text = """g (float[3,2,5,8] q, float[3,2,5,4] o, float[3,2,5,8] k, float[5,4] cos, float[5,4] sin) => (float[3,2,5,8] y) {
        qp = Slice(q, zero, four, last)  qlo, qhi = Split<axis = 3>(qp, halves)  qn = Neg(qhi)  qx = Concat<axis = 3>(qn, qlo)
        qc = Mul(qp, cos)  qs = Mul(qx, sin)  qa = Add(qc, qs)  qr = Concat<axis = 3>(qa, o)
        kt = Transpose<perm = [0, 1, 3, 2]>(k)  s = MatMul(qr, kt)  p = Softmax<axis = -1>(s)  y = MatMul(p, k) }"""
    arrays = {"zero": [0], "four": [4], "last": [3], "halves": [2, 2]}
    assert "rotary" not in fused(model(text, **{name: np.array(array) for name, array in arrays.items()}))
