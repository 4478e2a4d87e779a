"""Slices that take a tensor apart."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASS = "split_instead_of_slices"
RNG = np.random.default_rng(0)


def sliced(
    *bounds: tuple[int, int], axis: int = -1, step: int = 1, shape: str = "2,3,8", opset: int = 17
) -> onnx.ModelProto:
    """y0, y1 ... are Slices of x."""
    names = [f"y{index}" for index in range(len(bounds))]
    weights = {"axis": np.array([axis]), "step": np.array([step])}
    for index, (start, stop) in enumerate(bounds):
        weights |= {f"s{index}": np.array([start]), f"e{index}": np.array([stop])}
    body = "\n".join(f"{name} = Slice(x, s{index}, e{index}, axis, step)" for index, name in enumerate(names))
    outputs = ", ".join(f"float[{name}_0, {name}_1, {name}_2] {name}" for name in names)
    return model(f"g (float[{shape}] x) => ({outputs}) {{ {body} }}", opset=opset, **weights)


def feeds() -> dict[str, np.ndarray]:
    return {"x": RNG.standard_normal((2, 3, 8)).astype(np.float32)}


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize(
    "bounds",
    [[(0, 4), (4, 8)], [(4, 2**63 - 1), (0, 4)], [(-3, 8), (2, 5), (0, -6)], [(0, -7), (1, 100)]],
    ids=["halves", "second first", "three with negatives", "open end"],
)
def test_split(bounds: list[tuple[int, int]], opset: int) -> None:
    before = sliced(*bounds, opset=opset)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Split"]
    assert [value.name for value in after.graph.output] == [value.name for value in before.graph.output]
    assert_same(before, after, feeds(), rtol=0, atol=0)


def test_slices_in_attributes() -> None:
    body = "y = Slice<starts=[0], ends=[2], axes=[1]>(x)\n z = Slice<starts=[2], ends=[3], axes=[1]>(x)"
    before = model(f"g (float[2,3,8] x) => (y, z) {{ {body} }}", opset=9)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Split"]
    assert_same(before, after, feeds(), rtol=0, atol=0)


def test_other_dims_may_be_symbolic() -> None:
    before = sliced((0, 4), (4, 8), shape="N,M,8")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Split"]
    assert_same(before, after, feeds(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "before",
    [
        sliced((0, 8)),
        sliced((0, 4), (5, 8)),
        sliced((0, 5), (4, 8)),
        sliced((0, 4), (4, 7)),
        sliced((0, 4), (4, 8), (4, 8)),
        sliced((0, 0), (0, 8)),
        sliced((0, 8), (1, 8), step=2),
        sliced((0, 4), (4, 8), shape="2,3,N"),
    ],
    ids=["one", "gap", "overlap", "end", "twice", "empty", "steps", "symbolic"],
)
def test_refuses(before: onnx.ModelProto) -> None:
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)


def test_refuses_slices_along_different_axes() -> None:
    text = "g (float[4,4] x) => (y, z) { y = Slice(x, a, b, a)\n z = Slice(x, b, c, d) }"
    before = model(text, a=np.array([0]), b=np.array([2]), c=np.array([4]), d=np.array([1]))
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Slice", "Slice"]


def test_parts_of_a_part() -> None:
    first, second = "p = Slice(x, z, a, k)\n t = Slice(x, a, b, k)", "q = Slice(t, z, a, k)\n r = Slice(t, a, b, k)"
    before = model(
        f"g (float[4,6] x) => (p, q, r) {{ {first}\n {second} }}",
        z=np.array([0]),
        a=np.array([2]),
        b=np.array([9]),
        k=np.array([1]),
    )
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Split", "Split"]
    assert_same(before, after, {"x": RNG.standard_normal((4, 6)).astype(np.float32)}, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.bool_, np.uint8])
def test_other_types(dtype: type) -> None:
    before = sliced((0, 4), (4, 8))
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for value in (*before.graph.input, *before.graph.output):
        value.type.tensor_type.elem_type = kind
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Split"]
    assert_same(before, after, {"x": RNG.integers(0, 2, (2, 3, 8)).astype(dtype)})


def test_slices_among_other_users() -> None:
    text = """g (float[2,6] x) => (y, u, z) {
        u = Relu(x)
        p = Slice(x, two, six, axis)
        y = Neg(p)
        q = Slice(x, zero, two, axis)
        z = Add(q, one)
    }"""
    weights = {name: np.array([number]) for name, number in {"zero": 0, "two": 2, "six": 6, "axis": 1}.items()}
    before = model(text, **weights, one=np.array(1, np.float32))
    after, _ = run_passes(before, PASS)
    assert sorted(op_list(after)) == ["Add", "Neg", "Relu", "Split"]
    assert_same(before, after, {"x": RNG.standard_normal((2, 6)).astype(np.float32)}, rtol=0, atol=0)


def test_slices_in_different_graphs_stay() -> None:
    branches = "then_branch = a () => (float[2,4] t) { t = Slice(x, two, six, axis) }"
    branches += ", else_branch = b () => (float[2,2] e) { e = Slice(x, zero, two, axis) }"
    weights = {name: np.array([number]) for name, number in {"zero": 0, "two": 2, "six": 6, "axis": 1}.items()}
    text = f"g (float[2,6] x, bool f) => (float[2,n] y, float[2,2] z) {{ y = If(f) <{branches}>\n z = Slice(x, zero, two, axis) }}"
    before = model(text, **weights)
    after, _ = run_passes(before, PASS)
    assert sorted(op_list(after)) == ["If", "Slice"]
    feed = {"x": RNG.standard_normal((2, 6)).astype(np.float32)}
    assert_same(before, after, [{**feed, "f": np.array(flag)} for flag in (True, False)])


def test_slices_of_a_value_of_the_outer_graph() -> None:
    branches = "then_branch = a () => (float[2,2] t, float[2,4] u) { t = Slice(x, zero, two, axis) u = Slice(x, two, six, axis) }"
    branches += ", else_branch = b () => (float[2,2] e, float[2,4] h) { e = Slice(x, zero, two, axis) h = Slice(x, two, six, axis) }"
    weights = {name: np.array([number]) for name, number in {"zero": 0, "two": 2, "six": 6, "axis": 1}.items()}
    before = model(
        f"g (float[2,6] x, bool f) => (float[2,2] y, float[2,4] z) {{ y, z = If(f) <{branches}> }}", **weights
    )
    after, _ = run_passes(before, PASS)
    assert [[node.op_type for node in one.g.node] for one in after.graph.node[0].attribute] == [["Split"], ["Split"]]
    feed = {"x": RNG.standard_normal((2, 6)).astype(np.float32)}
    assert_same(before, after, [{**feed, "f": np.array(flag)} for flag in (True, False)])
