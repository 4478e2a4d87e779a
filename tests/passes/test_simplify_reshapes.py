"""Reshape, Squeeze, Unsqueeze and Flatten: what changes nothing goes, chains become one."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASS = "simplify_reshapes"
RNG = np.random.default_rng(0)


def graph(
    body: str, *, shape: str = "2,3,4", outputs: str = "y", opset: int = 17, dtype: str = "float", **axes: list[int]
) -> onnx.ModelProto:
    weights = {name: np.array(numbers, np.int64) for name, numbers in axes.items()}
    return model(f"g ({dtype}[{shape}] x) => ({outputs}) {{ {body} }}", opset=opset, **weights)


def feed(*shape: int, dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {"x": RNG.integers(-9, 9, shape).astype(dtype)}


def targets(proto: onnx.ModelProto) -> list[list[int]]:
    constants = {one.name: onnx.numpy_helper.to_array(one).tolist() for one in proto.graph.initializer}
    return [constants[node.input[1]] for node in proto.graph.node if node.op_type == "Reshape"]


@pytest.mark.parametrize("dtype", ["float", "float16", "int64", "bool"])
@pytest.mark.parametrize(
    "body",
    [
        "y = Reshape(x, s)",
        "y = Reshape(x, z)",
        "y = Reshape(x, m)",
        "a = Unsqueeze(x, o)\n y = Squeeze(a, o)",
        "a = Unsqueeze(x, n)\n y = Squeeze(a)",
        "a = Reshape(x, f)\n y = Reshape(a, s)",
        "a = Flatten(x)\n b = Unsqueeze(a, o)\n y = Reshape(b, s)",
    ],
)
def test_what_changes_nothing_goes(body: str, dtype: str) -> None:
    names = {"s": [2, 3, 4], "z": [0, 0, 0], "m": [2, -1, 4], "f": [4, 6], "o": [1], "n": [-1]}
    before = graph(body, dtype=dtype, **{name: axes for name, axes in names.items() if f" {name})" in body})
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert op_list(after) == ["Identity"]
    kind = {"float": np.float32, "float16": np.float16, "int64": np.int64, "bool": np.bool_}[dtype]
    assert_same(before, after, feed(2, 3, 4, dtype=kind), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("body", "axes", "target"),
    [
        ("a = Reshape(x, s)\n y = Reshape(a, t)", {"s": [6, 4], "t": [3, 8]}, [3, 8]),
        ("a = Unsqueeze(x, s)\n y = Unsqueeze(a, t)", {"s": [0], "t": [-1]}, [1, 2, 3, 4, 1]),
        ("a = Unsqueeze(x, s)\n y = Flatten<axis=2>(a)", {"s": [0]}, [2, 12]),
        ("a = Flatten<axis=-1>(x)\n y = Unsqueeze(a, s)", {"s": [1]}, [6, 1, 4]),
        ("a = Reshape(x, s)\n y = Squeeze(a)", {"s": [1, 24, 1]}, [24]),
        ("a = Reshape(x, s)\n b = Reshape(a, t)\n y = Reshape(b, u)", {"s": [24], "t": [0], "u": [4, 6]}, [4, 6]),
    ],
)
def test_chains_become_one(body: str, axes: dict[str, list[int]], target: list[int]) -> None:
    before = graph(body, **axes)
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert (op_list(after), targets(after)) == (["Reshape"], [target])
    assert_same(before, after, feed(2, 3, 4), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("body", "axes", "target"),
    [
        ("a = Unsqueeze(x, s)\n y = Flatten<axis=2>(a)", {"s": [0]}, [0, 12]),
        ("a = Unsqueeze(x, s)\n y = Unsqueeze(a, t)", {"s": [1], "t": [4]}, [0, 1, 3, 4, 1]),
        ("a = Flatten(x)\n y = Reshape(a, s)", {"s": [0, 4, 3]}, [0, 4, 3]),
    ],
)
@pytest.mark.parametrize("batch", [1, 5])
def test_chains_over_a_symbolic_dim(body: str, axes: dict[str, list[int]], target: list[int], batch: int) -> None:
    before = graph(body, shape="N,3,4", **axes)
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert (op_list(after), targets(after)) == (["Reshape"], [target])
    assert_same(before, after, feed(batch, 3, 4), rtol=0, atol=0)


@pytest.mark.parametrize("opset", [11, 12])
def test_axes_as_attributes(opset: int) -> None:
    before = graph("a = Unsqueeze<axes=[0, 2]>(x)\n y = Squeeze<axes=[2]>(a)", opset=opset)
    after, _ = run_passes(before, PASS)
    assert (op_list(after), targets(after)) == (["Reshape"], [[1, 2, 3, 4]])
    assert_same(before, after, feed(2, 3, 4), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("body", "shape", "axes"),
    [
        ("a = Squeeze(x, s)\n y = Unsqueeze(a, t)", "N,1,M", {"s": [1], "t": [0]}),
        ("a = Reshape(x, s)\n y = Unsqueeze(a, t)", "N,M,4", {"s": [-1, 2], "t": [0]}),
        ("a = Unsqueeze(x, s)\n y = Reshape(a, t)", "N,M,K", {"s": [0], "t": [0, 0, -1]}),
        ("a = Reshape(x, s)\n y = Reshape(a, t)", "N,M,4", {"s": [-1, 4], "t": [-1, 2, 1]}),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 6])
def test_several_symbolic_dims(body: str, shape: str, axes: dict[str, list[int]], size: int) -> None:
    before = graph(body, shape=shape, outputs="float[a,b,c] y", **axes)
    after, _ = run_passes(before, PASS)
    dims = [size if dim.isalpha() else int(dim) for dim in shape.split(",")]
    assert_same(before, after, feed(*dims), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("body", "axes"),
    [
        ("a = Unsqueeze(x, s)\n y = Flatten(a)", {"s": [0]}),
        ("a = Flatten(x)\n y = Unsqueeze(a, s)", {"s": [0]}),
        ("y = Reshape<allowzero=1>(x, s)", {"s": [0, 2]}),
        ("y = Reshape<allowzero=1>(x, s)", {"s": [0, 4]}),
        ("a = Unsqueeze(x, s)\n y = Squeeze(a, s)", {"s": [0]}),
    ],
)
def test_empty_tensors(body: str, axes: dict[str, list[int]]) -> None:
    before = graph(body, shape="0,4", **axes)
    after, _ = run_passes(before, PASS)
    assert_same(before, after, feed(0, 4))


def test_refuses_a_dim_of_zero() -> None:
    before = graph("a = Unsqueeze(x, s)\n y = Flatten<axis=4>(a)", shape="2,0", s=[0, 1])
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Unsqueeze", "Flatten"]


@pytest.mark.parametrize("allowzero", [0, 1])
def test_allowzero_without_a_zero_goes(allowzero: int) -> None:
    before = graph(f"y = Reshape<allowzero={allowzero}>(x, s)", s=[6, -1])
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Reshape"]
    assert not any(one.name == "allowzero" and one.i for one in after.graph.node[0].attribute)
    assert_same(before, after, feed(2, 3, 4), rtol=0, atol=0)


def test_allowzero_with_a_zero_stays() -> None:
    before = graph("y = Reshape<allowzero=1>(x, s)", shape="0,3,4", s=[2, 0])
    after, _ = run_passes(before, PASS)
    assert [one.i for one in after.graph.node[0].attribute if one.name == "allowzero"] == [1]
    assert_same(before, after, feed(0, 3, 4))


def test_a_scalar_and_back() -> None:
    before = graph("a = Unsqueeze(x, s)\n b = Unsqueeze(a, s)\n y = Neg(b)", shape="", s=[0])
    before.graph.input[0].type.tensor_type.shape.SetInParent()
    after, _ = run_passes(before, PASS)
    assert_same(before, after, {"x": np.array(3, np.float32)})
    before = graph("y = Squeeze(x)", shape="1,1")
    after, _ = run_passes(before, PASS)
    assert_same(before, after, feed(1, 1))


def test_an_inner_view_that_is_an_output_stays() -> None:
    before = graph("a = Reshape(x, s)\n y = Reshape(a, t)", outputs="y, a", s=[6, 4], t=[3, 8])
    after, _ = run_passes(before, PASS)
    assert [node.input[0] for node in after.graph.node] == ["x", "x"]
    assert_same(before, after, feed(2, 3, 4), rtol=0, atol=0)


def test_an_inner_view_that_a_branch_captures() -> None:
    branch = "If(flag) <then_branch = t () => (float[6, 4] p) { p = Neg(a) }, else_branch = e () => (float[6, 4] q) { q = Abs(a) }>"
    before = model(
        f"g (float[2,3,4] x, bool flag) => (y, float[6,4] z) {{ a = Reshape(x, s)\n y = Reshape(a, t)\n z = {branch} }}",
        s=np.array([6, 4]),
        t=np.array([3, 8]),
    )
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Reshape", "Reshape", "If"]
    assert_same(before, after, {**feed(2, 3, 4), "flag": np.array(True)}, rtol=0, atol=0)


@pytest.mark.parametrize("names", ["y, z", "z, y"])
def test_both_ends_of_a_chain_are_outputs(names: str) -> None:
    before = graph("z = Identity(x)\n a = Flatten(x)\n y = Reshape(a, s)", outputs=names, s=[2, 3, 4])
    after, _ = run_passes(before, PASS)
    assert [one.name for one in after.graph.output] == names.split(", ")
    assert_same(before, after, feed(2, 3, 4), rtol=0, atol=0)


def test_refuses_a_target_of_the_caller() -> None:
    before = model("g (float[2,3,4] x, int64[2] s) => (float[a,b] y) { y = Reshape(x, s) }")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Reshape"]
    assert_same(before, after, {**feed(2, 3, 4), "s": np.array([4, 6])})


def test_inside_a_loop_body() -> None:
    body = """y = Loop (n, , x) <body = b (int64 i, bool k, float[2, 3] c) => (bool ko, float[2, 3] co) {
        ko = Identity(k)
        f = Flatten<axis=0>(x)
        r = Reshape(f, s)
        co = Add(r, c)
    }>"""
    before = graph(body, shape="2,3", outputs="float[2,3] y", n=[4], s=[2, 3])
    after, _ = run_passes(before, PASS)
    assert [node.op_type for node in after.graph.node[0].attribute[0].g.node] == ["Identity", "Add"]
    assert_same(before, after, feed(2, 3), rtol=0, atol=0)


def stack(
    axis: int,
    *,
    last: str = "c",
    before: str = "",
    more: str = "",
    shape: str = "N, 3, 4",
    outputs: str = "float[A, B, C, D] y",
) -> onnx.ModelProto:
    body = f"a = Neg(x) b = Abs(x) c = Exp(x) {before} u = Unsqueeze(a, k) v = Unsqueeze(b, k) w = Unsqueeze({last}, k)"
    body += f" y = Concat<axis={axis}>(u, v, w) {more}"
    return graph(body, shape=shape, outputs=outputs, k=[axis])


@pytest.mark.parametrize("shape", ["2, 3, 4", "N, 3, 4", "2, N, 4", "1, N, 1"])
@pytest.mark.parametrize("axis", [0, 1, 2, -2])
@pytest.mark.parametrize("size", [0, 1, 5])
def test_tensors_are_joined_along_an_axis_that_there_is(shape: str, axis: int, size: int) -> None:
    before = stack(axis, shape=shape)
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert op_list(after) == ["Neg", "Abs", "Exp", "Concat", "Reshape"]
    sizes = [size if dim == "N" else int(dim) for dim in shape.split(", ")]
    assert_same(before, after, feed(*sizes), rtol=0, atol=0)
    _, again = run_passes(after, PASS)
    assert not again.patches


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(stack(3), id="behind the last axis"),
        pytest.param(stack(1, more="z = Neg(v) q = Neg(w)", outputs="y, z, q"), id="the views are read elsewhere"),
        pytest.param(stack(0, shape="N, M, 4"), id="two open dims"),
        pytest.param(
            stack(
                0,
                last="If_c",
                more="",
                before="t = Size(x) i = Cast<to=9>(t) If_c = If(i) <then_branch = t1 () => (float[N, 3, 4] d) { d = Neg(c) }, else_branch = t2 () => (float[N, 3, 4] e) { e = Exp(c) }>",
            ),
            id="an If, which may give views",
        ),
        pytest.param(graph("a = Neg(x) y = Concat<axis=1>(x, a)"), id="no views"),
    ],
)
def test_other_stacks_stay(before: onnx.ModelProto) -> None:
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)


@pytest.mark.parametrize(
    ("reduced", "gone", "left"),
    [
        ([1], [1], ["ReduceMax"]),
        ([-1, 0], [0, 2], ["ReduceMax"]),
        ([1], [], ["ReduceMax", "Squeeze"]),
        ([1, 2], [1], ["ReduceMax", "Squeeze"]),
    ],
    ids=["one", "two", "all of size 1", "others"],
)
def test_squeezed_reductions(reduced: list[int], gone: list[int], left: list[str]) -> None:
    squeeze = "Squeeze(a, gone)" if gone else "Squeeze(a)"
    axes = {"axes": reduced, **({"gone": gone} if gone else {})}
    before = graph(f"a = ReduceMax(x, axes)\n y = {squeeze}", shape="2,3,4", opset=18, **axes)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == left
    assert_same(before, after, feed(2, 3, 4), rtol=0, atol=0)
