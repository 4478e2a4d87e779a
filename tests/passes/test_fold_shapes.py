"""Shape arithmetic."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, ops, run_passes

PASS = "fold_shapes"
RNG = np.random.default_rng(0)


def graph(
    body: str, *, shape: str = "2,3,4", outputs: str = "y", dtype: str = "float", opset: int = 17, **weights: object
) -> onnx.ModelProto:
    arrays = {name: value if isinstance(value, np.ndarray) else np.array(value) for name, value in weights.items()}
    return model(f"g ({dtype}[{shape}] x) => ({outputs}) {{ {body} }}", opset=opset, **arrays)


def feed(*shape: int) -> dict[str, np.ndarray]:
    return {"x": RNG.standard_normal(shape).astype(np.float32)}


def integers(*shape: int, dtype: type = np.int64) -> dict[str, np.ndarray]:
    return {"x": RNG.integers(-9, 9, shape).astype(dtype)}


def targets(proto: onnx.ModelProto) -> list[list[int]]:
    constants = {one.name: onnx.numpy_helper.to_array(one).tolist() for one in proto.graph.initializer}
    return [constants[node.input[1]] for node in proto.graph.node if node.op_type == "Reshape"]


# --- known elements ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("a = Shape(x)\n y = Add(a, a)", "2,3,4"),
        ("a = Shape<start=-1>(x)\n y = Neg(a)", "N,3,4"),
        ("a = Shape<start=1, end=-1>(x)\n y = Neg(a)", "N,3,4"),
        ("y = Size(x)", "2,3,4"),
        ("s = Shape(x)\n a = Gather(s, last)\n y = Mul(a, a)", "N,3,4"),
        ("s = Shape(x)\n a = Slice(s, one, far)\n y = ReduceProd<keepdims=0>(a)", "N,3,4"),
        ("s = Shape(x)\n z = Shape(s)\n y = Neg(z)", "N,M,K"),
        ("s = Shape(x)\n a, b, c = Split(s)\n d = Concat<axis=0>(b, c)\n y = Neg(d)", "N,3,4"),
        ("s = Shape(x)\n a = Gather(s, last)\n b = Unsqueeze(a, zero)\n c = Squeeze(b)\n y = Neg(c)", "N,3,4"),
        ("s = Shape(x)\n a = Gather(s, last)\n b = Greater(a, last)\n y = Not(b)", "N,3,4"),
        ("s = Shape(x)\n a = Gather(s, last)\n b = Cast<to=6>(a)\n y = Neg(b)", "N,3,4"),
        ("s = Shape(x)\n a = Gather(s, zero)\n b = Sub(a, a)\n y = Neg(b)", "N,3,4"),
        ("s = Shape(x)\n a = Gather(s, zero)\n b = Div(a, a)\n y = Neg(b)", "N,3,4"),
        ("s = Shape(x)\n a = Gather(s, zero)\n b = GreaterOrEqual(a, one)\n y = Not(b)", "N,3,4"),
        ("a = EyeLike(x)\n s = Shape(x)\n t = Shape(a)\n b = Sub(s, t)\n y = Neg(b)", "N,M"),
        (
            "s = Shape(x)\n a = Gather(s, last)\n b = Neg(a)\n r = Range(a, b, last)\n c = Size(r)\n d = Sub(c, a)\n e = Sub(d, a)\n y = Neg(e)",
            "3,N",
        ),
    ],
)
@pytest.mark.parametrize("batch", [1, 5])
def test_known_elements_become_a_constant(body: str, shape: str, batch: int) -> None:
    weights = {"last": -1, "zero": [0], "one": [1], "far": [2**63 - 1]}
    used = {name: value for name, value in weights.items() if name in body}
    before = graph(body, shape=shape, **used)
    after, _ = run_passes(before, PASS, "eliminate_dead_code", "fold_constants")
    assert set(op_list(after)) <= {"Identity", "Neg", "Not"} and len(after.graph.node) == 1
    assert_same(before, after, feed(*(batch if dim.isalpha() else int(dim) for dim in shape.split(","))))


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
@pytest.mark.parametrize(
    ("op", "left", "right"),
    [
        ("Add", [7, -7], [3]),
        ("Sub", [7, -7], [3, 4]),
        ("Mul", [7, -7], [-3]),
        ("Div", [7, -7], [3]),
        ("Div", [7, -7], [-3]),
        ("Mod", [7, -7], [3]),
        ("Mod", [7, -7], [-3]),
        ("Mod<fmod=1>", [7, -7], [3]),
        ("Max", [7, -7], [3]),
        ("Min", [7, -7], [3]),
        ("Pow", [7, -7], [3]),
    ],
)
def test_arithmetic_is_that_of_the_runtime(op: str, left: list[int], right: list[int], dtype: type) -> None:
    name, brackets = op.partition("<")[0], op.partition("<")[1] + op.partition("<")[2]
    body = f"p = Identity(left)\n a = {name}{brackets}(p, right)\n y = Add(x, a)"
    kind = "int64" if dtype is np.int64 else "int32"
    before = graph(body, shape="2", dtype=kind, left=np.array(left, dtype), right=np.array(right, dtype))
    after, _ = run_passes(before, PASS)
    assert_same(before, after, integers(2, dtype=dtype))


@pytest.mark.parametrize(
    ("body", "dtype"),
    [
        ("a = Mul(c, c)\n y = Add(x, a)", np.int32),
        ("a = Add(c, c)\n y = Add(x, a)", np.int32),
        ("a = Sub(zero, c)\n b = Sub(a, c)\n d = Sub(b, c)\n y = Add(x, d)", np.int32),
        ("a = Mul(c, c)\n y = Add(x, a)", np.int64),
        ("a = ReduceProd(c)\n y = Add(x, a)", np.int64),
        ("a = ReduceSum(c)\n y = Add(x, a)", np.int64),
        ("a = Mul(c, c)\n b = Greater(a, zero)\n d = Cast<to=7>(b)\n y = Add(x, d)", np.int64),
    ],
)
def test_overflow_is_left_to_the_runtime(body: str, dtype: type) -> None:
    large = np.array([2**31 - 1 if dtype is np.int32 else 2**62 + 5] * 2, dtype)
    weights = {"c": large, "zero": np.zeros(1, dtype)} if "zero" in body else {"c": large}
    before = graph(body, shape="2", dtype="int32" if dtype is np.int32 else "int64", **weights)
    after, _ = run_passes(before, PASS, "fold_constants")
    assert_same(before, after, integers(2, dtype=dtype))


@pytest.mark.parametrize("smallest", [np.iinfo(np.int32).min, np.iinfo(np.int64).min])
@pytest.mark.parametrize("op", ["Neg", "Abs"])
def test_smallest_integer(op: str, smallest: int) -> None:
    dtype = np.int32 if smallest == np.iinfo(np.int32).min else np.int64
    before = graph(
        f"a = {op}(c)\n y = Add(x, a)",
        shape="2",
        dtype="int32" if dtype is np.int32 else "int64",
        c=np.array([smallest], dtype),
    )
    after, _ = run_passes(before, PASS)
    assert_same(before, after, integers(2, dtype=dtype))


def test_a_cast_that_wraps() -> None:
    before = graph("a = Add(c, c)\n b = Cast<to=6>(a)\n y = Add(x, b)", shape="2", dtype="int32", c=[2**40 + 3])
    after, _ = run_passes(before, PASS)
    assert_same(before, after, integers(2, dtype=np.int32))


def test_an_output_of_the_graph_keeps_its_name() -> None:
    before = graph("y = Shape(x)\n z = Neg(x)", outputs="y, z")
    after, _ = run_passes(before, PASS)
    assert [one.name for one in after.graph.output] == ["y", "z"]
    assert_same(before, after, feed(2, 3, 4))


# --- Reshape targets -----------------------------------------------------------------------------------------------
SHAPE = "s = Shape(x)\n n = Gather(s, zero)\n m = Gather(s, one)\n"


@pytest.mark.parametrize(
    ("body", "shape", "target"),
    [
        (f"{SHAPE} t = Concat<axis=0>(n, twelve)\n y = Reshape(x, t)", "N,3,4", [0, 12]),
        (f"{SHAPE} t = Concat<axis=0>(twelve, n)\n y = Reshape(x, t)", "N,3,4", [12, -1]),
        (f"{SHAPE} t = Concat<axis=0>(n, m, minus)\n y = Reshape(x, t)", "N,M,4", [0, 0, 4]),
        (f"{SHAPE} t = Concat<axis=0>(four, m, n)\n y = Reshape(x, t)", "N,M,4", [4, 0, -1]),
        (f"{SHAPE} p = Mul(n, m)\n t = Concat<axis=0>(p, minus)\n y = Reshape(x, t)", "N,3,4", [-1, 4]),
        (f"{SHAPE} p = Mul(n, m)\n t = Concat<axis=0>(p, four)\n y = Reshape(x, t)", "N,M,4", [-1, 4]),
        (f"{SHAPE} p = Div(twelve, two)\n t = Concat<axis=0>(n, p, two)\n y = Reshape(x, t)", "N,3,4", [0, 6, 2]),
    ],
)
@pytest.mark.parametrize("batch", [1, 5])
def test_reshape_targets(body: str, shape: str, target: list[int], batch: int) -> None:
    weights = {"zero": [0], "one": [1], "two": [2], "four": [4], "twelve": [12], "minus": [-1]}
    used = {name: value for name, value in weights.items() if name in body}
    before = graph(body, shape=shape, outputs=f"float[{','.join('pqr'[: len(target)])}] y", **used)
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert op_list(after) == ["Reshape"]
    assert targets(after) == [target]
    assert_same(before, after, feed(*(batch if dim.isalpha() else int(dim) for dim in shape.split(","))))


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        (f"{SHAPE} t = Concat<axis=0>(m, n, four)\n y = Reshape(x, t)", "N,M,4"),
        (f"{SHAPE} t = Concat<axis=0>(m, four, n)\n y = Reshape(x, t)", "N,M,4"),
    ],
)
@pytest.mark.parametrize(("first", "second"), [(1, 1), (2, 5), (5, 2)])
def test_refuses_several_dims_that_change_places(body: str, shape: str, first: int, second: int) -> None:
    before = graph(body, shape=shape, zero=[0], one=[1], four=[4])
    after, _ = run_passes(before, PASS)
    assert "Concat" in ops(after)
    assert_same(before, after, feed(first, second, 4))


@pytest.mark.parametrize("length", [1, 4])
def test_targets_that_spell_a_dim_of_unknown_size(length: int) -> None:
    """The positions of a sequence are a Slice of a table, so that the sums have a dim that nothing names."""
    body = """n = Shape<end=1>(x)
        t = Shape<start=1, end=2>(x)
        p = Slice(table, zero, t, zero)
        h = Add(x, p)
        u = Shape<start=1, end=2>(h)
        s = Concat<axis=0>(n, u, two, two)
        a = Reshape(h, s)
        b = Transpose<perm=[0, 2, 1, 3]>(a)
        c = Transpose<perm=[0, 2, 1, 3]>(b)
        r = Concat<axis=0>(n, u, minus)
        d = Reshape(c, r)
        y = Add(h, d)"""
    weights = {"zero": [0], "two": [2], "minus": [-1], "table": RNG.standard_normal((4, 4)).astype(np.float32)}
    before = graph(body, shape="N,T,4", outputs="float[N,U,4] y", **weights)
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert op_list(after) == ["Shape", "Slice", "Add", "Reshape", "Transpose", "Transpose", "Reshape", "Add"]
    assert_same(before, after, feed(3, length, 4))


@pytest.mark.parametrize("allowzero", [0, 1])
def test_a_target_with_a_zero(allowzero: int) -> None:
    body = f"s = Shape(x)\n n = Gather(s, i)\n t = Concat<axis=0>(z, n)\n y = Reshape<allowzero={allowzero}>(x, t)"
    before = graph(body, shape="0,N", i=[1], z=[0])
    after, _ = run_passes(before, PASS)
    assert_same(before, after, feed(0, 5))


@pytest.mark.parametrize("size", [1, 3])
def test_a_target_from_the_data_stays(size: int) -> None:
    before = model(
        "g (float[N,4] x, int64[1] t) => (float[p,q] y) { s = Concat<axis=0>(t, m)\n y = Reshape(x, s) }", m=np.array([-1])
    )  # fmt: skip
    after, _ = run_passes(before, PASS)
    assert "Concat" in ops(after)
    assert_same(before, after, {**feed(size, 4), "t": np.array([2 * size])})


# --- symbolic elements ---------------------------------------------------------------------------------------------
def test_equal_symbolic_values_are_computed_once() -> None:
    body = """s = Shape(x)
        n = Gather(s, zero)
        a = Mul(n, three)
        r = Relu(x)
        t = Shape(r)
        m = Gather(t, zero)
        b = Mul(m, three)
        y = Add(a, b)"""
    before = graph(body, shape="N,M,4", zero=[0], three=[3])
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert ops(after)["Mul"] == 1
    assert "Relu" not in ops(after)
    for batch in (1, 5):
        assert_same(before, after, feed(batch, 2, 4))


@pytest.mark.parametrize(("opset", "left"), [(17, ["Shape"]), (13, ["Shape", "Gather"])])
def test_one_dim_is_read_at_once(opset: int, left: list[str]) -> None:
    before = graph("s = Shape(x)\n y = Gather(s, one)", shape="N,M,4", opset=opset, one=[1])
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert op_list(after) == left
    assert_same(before, after, feed(5, 2, 4))


def test_a_dim_of_no_input_is_read_of_the_tensor_that_the_model_reads() -> None:
    before = graph(
        "k = NonZero(x)\n b = Neg(k)\n c = Abs(b)\n s = Shape(c)\n y = Slice(s, one, far)", one=[1], far=[2**63 - 1]
    )
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert [(node.op_type, node.input[0]) for node in after.graph.node][-1] == ("Shape", "c")
    assert_same(before, after, feed(2, 3, 4))
    _, again = run_passes(after, PASS)
    assert not again.patches


def test_what_has_the_same_name_is_the_same_dim() -> None:
    before = model(
        "g (float[N,3] x, float[N,4] z) => (y) { s = Shape<end=1>(x)\n t = Shape<end=1>(z)\n y = Sub(s, t) }", opset=17
    )
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert ops(after).keys() <= {"Identity"}
    assert_same(before, after, {"x": np.zeros((5, 3), np.float32), "z": np.zeros((5, 4), np.float32)})


@pytest.mark.parametrize("shape", ["?,3", "N,3"])
def test_dims_that_may_differ_are_kept_apart(shape: str) -> None:
    before = model(
        f"g (float[{shape}] x, float[{shape.replace('N', 'M')}] z) => (y) {{ s = Shape<end=1>(x)\n t = Shape<end=1>(z)\n y = Sub(s, t) }}"
    )
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert "Sub" in ops(after)
    assert_same(before, after, {"x": np.zeros((5, 3), np.float32), "z": np.zeros((2, 3), np.float32)})


@pytest.mark.parametrize("size", [1, 3])
def test_a_broadcast_dim_is_not_the_dim_of_an_operand(size: int) -> None:
    before = model("g (float[N] x, float[M] z) => (y) { a = Add(x, z)\n s = Shape(a)\n t = Shape(x)\n y = Sub(s, t) }")
    after, _ = run_passes(before, PASS)
    assert_same(before, after, {"x": np.zeros(size, np.float32), "z": np.zeros(3, np.float32)})


@pytest.mark.parametrize("op", ["NonZero(x)", "Compress(x, c)", "Unique(x)"])
def test_shapes_that_depend_on_data(op: str) -> None:
    c = {"c": np.array([True, False, True])} if "c)" in op else {}
    before = graph(
        f"a = {op}\n b = {op.replace('x', 'n', 1)}\n s = Shape(a)\n t = Shape(b)\n y = Sub(s, t)".replace(
            "b =", "n = Relu(x)\n b ="
        ),
        **c,
    )
    after, _ = run_passes(before, PASS)
    assert ops(after).get("Shape") == 2
    assert_same(before, after, feed(2, 3, 4))


@pytest.mark.parametrize("flag", [True, False])
def test_shapes_after_an_if_are_those_of_either_branch(flag: bool) -> None:
    branches = (
        "then_branch = a () => (float[p,q] t) { t = Transpose(x) }, else_branch = b () => (float[p,q] e) { e = Neg(x) }"
    )
    body = f"v = If(flag) <{branches}>\n s = Shape(v)\n n = Gather(s, zero)\n y = Neg(n)"
    before = model(f"g (float[2,3] x, bool flag) => (int64[1] y) {{ {body} }}", zero=np.array([0]))
    after, _ = run_passes(before, PASS)
    assert "Neg" in ops(after)
    assert_same(before, after, {**feed(2, 3), "flag": np.array(flag)})


def test_shapes_inside_a_loop_that_grows() -> None:
    body = """v = Loop (n, , x) <body = b (int64 i, bool k, float[r,3] s) => (bool k2, float[r2,3] s2) {
            k2 = Identity(k)
            h = Shape(s)
            g = Cast<to=1>(h)
            m = ReduceSum(g)
            p = Add(s, m)
            s2 = Concat<axis=0>(p, x)
        }>
        t = Shape(v)
        u = Cast<to=1>(t)
        w = ReduceSum(u)
        y = Add(v, w)"""
    before = graph(body, shape="2,3", outputs="float[a,3] y", n=3)
    after, _ = run_passes(before, PASS, "fold_constants", "eliminate_dead_code")
    assert_same(before, after, feed(2, 3))


def test_inside_a_branch() -> None:
    branches = "then_branch = a () => (float[p,q] t) { s = Shape(x) n = Gather(s, zero) u = Concat<axis=0>(n, minus) t = Reshape(x, u) }"
    branches += ", else_branch = b () => (float[p,q] e) { e = Flatten(x) }"
    before = model(
        f"g (float[N,3,4] x, bool flag) => (float[p,q] y) {{ y = If(flag) <{branches}> }}",
        zero=np.array([0]),
        minus=np.array([-1]),
    )
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert [[node.op_type for node in one.g.node] for one in after.graph.node[0].attribute] == [
        ["Reshape"],
        ["Flatten"],
    ]
    assert_same(before, after, [{**feed(5, 3, 4), "flag": np.array(flag)} for flag in (True, False)])


def test_a_gather_out_of_bounds_is_left_to_the_runtime() -> None:
    before = graph("s = Shape(x)\n a = Gather(s, far)\n y = Neg(a)", far=[7])
    assert "Gather" in ops(run_passes(before, PASS)[0])
