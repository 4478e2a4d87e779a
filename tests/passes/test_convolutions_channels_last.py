"""Regions of convolutions: where they are converted, what they become, and that they compute the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.helpers import model, op_list, run_passes, set_costs

import onnxopt
from onnxopt.fusions.channels_last import Finder

PASSES = ("convolutions_channels_last", "sink_transposes", "fuse_epilogues")


@pytest.fixture(autouse=True)
def convert_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regions are converted whether or not onnxruntime is as fast, so that all kinds of them are tested."""
    monkeypatch.setattr(Finder, "_is_slow_in_blocks", lambda self, node: True)


RNG = np.random.default_rng(0)


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def evaluate(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], *, library: bool) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 2
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if library:
        options.register_custom_ops_library(str(onnxopt.library_path()))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def convert(proto: onnx.ModelProto, *, passes: tuple[str, ...] = PASSES) -> onnx.ModelProto:
    return run_passes(proto, *passes, target="cpu")[0]


def assert_equal(before: onnx.ModelProto, after: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    expected = evaluate(before, feeds, library=False)
    for library in (True, False):
        for one, other in zip(expected, evaluate(after, feeds, library=library), strict=True):
            assert one.shape == other.shape
            scale = np.abs(one[np.isfinite(one)]).max(initial=1)
            np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5 * scale)


BLOCK = """
g (float[N,3,H,W] x) => (float[N,10,C,D] y) {
  a = Conv <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (x, w0, b0)
  b = HardSwish (a)
  c = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=20> (b, w1, b1)
  d = Relu (c)
  s = GlobalAveragePool (d)
  t = Conv <kernel_shape=[1,1]> (s, w2, b2)
  u = Relu (t)
  v = Conv <kernel_shape=[1,1]> (u, w3, b3)
  f = HardSigmoid (v)
  h = Mul (d, f)
  i = Conv <kernel_shape=[1,1]> (h, w4, b4)
  j = Conv <kernel_shape=[1,1]> (i, w5, b5)
  k = Add (i, j)
  l = MaxPool <kernel_shape=[2,2], strides=[2,2]> (k)
  y = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (l, w6)
}"""
BLOCK_WEIGHTS = weights(
    w0=(20, 3, 3, 3), b0=(20,), w1=(20, 1, 3, 3), b1=(20,), w2=(5, 20, 1, 1), b2=(5,), w3=(20, 5, 1, 1), b3=(20,),
    w4=(12, 20, 1, 1), b4=(12,), w5=(12, 12, 1, 1), b5=(12,), w6=(10, 12, 3, 3),
)  # fmt: skip


def block() -> onnx.ModelProto:
    return model(BLOCK, **BLOCK_WEIGHTS)


def test_a_region_has_transposes_at_its_border_alone() -> None:
    after = convert(block())
    assert op_list(after) == [
        "FusedConv", "FusedConv", "FusedPool", "FusedConv", "FusedConv", "Mul", "FusedConv", "FusedConv",
        "FusedPool", "FusedConv", "Transpose",
    ]  # fmt: skip


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 3), st.integers(1, 40), st.integers(1, 40))
def test_a_region_computes_the_same_for_any_size(batch: int, height: int, width: int) -> None:
    x = np.random.default_rng(height * width).standard_normal((batch, 3, height, width)).astype(np.float32)
    assert_equal(block(), CONVERTED, {"x": x})


CONVERTED = convert(block())


def test_one_convolution_is_not_worth_two_transposes() -> None:
    before = model(
        "g (float[1,3,8,8] x) => (float[1,4,8,8] y) { y = Conv <kernel_shape=[1,1]> (x, w) }", **weights(w=(4, 3, 1, 1))
    )
    assert op_list(convert(before)) == ["Conv"]


@pytest.mark.parametrize(("channels", "converted"), [(40, True), (24, False)])
@pytest.mark.parametrize(
    ("size", "kernel"), [((9, 9), (3, 3)), ((9, 9), (5, 5)), ((30,), (3,)), ((30,), (5,)), ((30, 1), (5, 1))], ids=str
)
def test_one_convolution_with_fewer_multiplications_is_worth_two_transposes(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, ...], kernel: tuple[int, ...], channels: int, converted: bool
) -> None:
    monkeypatch.undo()
    set_costs(monkeypatch, border_cost=1.0, image_channels=32, sequence_channels=32)
    w = np.random.default_rng(0).standard_normal((channels, channels, *kernel)).astype(np.float32)
    shape = ",".join(map(str, (1, channels, *size)))
    before = model(f"g (float[{shape}] x) => (y) {{ y = Conv (x, w) }}", w=w)
    after, _ = run_passes(before, *PASSES, target="cpu")
    assert ("FusedConv" in op_list(after)) is converted
    assert_equal(before, after, {"x": RNG.standard_normal((1, channels, *size)).astype(np.float32)})


def test_transposes_that_are_there_already_cost_nothing() -> None:
    before = model(
        """g (float[1,8,8,3] x) => (float[1,8,8,4] y) {
          a = Transpose <perm=[0,3,1,2]> (x)
          b = Conv <kernel_shape=[1,1]> (a, w)
          y = Transpose <perm=[0,2,3,1]> (b)
        }""",
        **weights(w=(4, 3, 1, 1)),
    )
    after = convert(before)
    assert op_list(after) == ["FusedConv"]
    assert_equal(before, after, {"x": RNG.standard_normal((1, 8, 8, 3)).astype(np.float32)})


def test_a_transposed_convolution_is_worth_it_where_transposes_are_there_already() -> None:
    before = model(
        """g (float[2,5,7,6] x) => (float[2,10,21,9] y) {
          a = Transpose <perm=[0,3,1,2]> (x)
          b = ConvTranspose <kernel_shape=[2,3], strides=[2,3]> (a, t1, t1b)
          y = Transpose <perm=[0,2,3,1]> (b)
        }""",
        **{name: BODY_WEIGHTS[name] for name in ("t1", "t1b")},
    )
    after = convert(before)
    assert op_list(after) == ["FusedConvTranspose"]
    assert_equal(before, after, {"x": RNG.standard_normal((2, 5, 7, 6)).astype(np.float32)})


CHAIN = "{ a = Conv (x, w)  b = Conv (a, w)  y = Conv (b, w) }"
REFUSED = {
    "filters that are no constant": model(f"g (float[1,4,8,8] x, float[4,4,1,1] w) => (float[1,4,8,8] y) {CHAIN}"),
    "float16": model(f"g (float16[1,4,8,8] x) => (float16[1,4,8,8] y) {CHAIN}", w=np.ones((4, 4, 1, 1), np.float16)),
    "three spatial dims": model(
        f"g (float[1,4,8,8,8] x) => (float[1,4,8,8,8] y) {CHAIN}", **weights(w=(4, 4, 1, 1, 1))
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    assert op_list(convert(REFUSED[name])) == ["Conv"] * 3


@pytest.mark.parametrize(
    "op",
    [
        'Resize <mode="linear", coordinate_transformation_mode="pytorch_half_pixel"> (b, , , sizes)',
        'MaxPool <kernel_shape=[3,3], dilations=[2,2], auto_pad="SAME_UPPER"> (b)',
    ],
    ids=["resized channels", "pools with gaps that pad by themselves"],
)
def test_leaves_what_runtimes_compute_in_one_layout_only(monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    set_costs(monkeypatch, border_cost=0)
    body = f"a = Conv (x, w5)  b = Conv (a, w8)  c = {op}  d = Transpose <perm=[0,2,3,1]> (c)  y = Neg (d)"
    before = model(
        f"g (float[1,6,9,9] x) => (float[1,H,W,C] y) {{ {body} }}",
        **weights(w5=(6, 6, 1, 1), w8=(6, 6, 3, 3)),
        sizes=np.array([1, 3, 14, 7]),
    )
    after = convert(before)
    assert "FusedConv" in op_list(after)
    assert_equal(before, after, {"x": RNG.standard_normal((1, 6, 9, 9)).astype(np.float32)})


def test_other_targets_have_no_custom_ops() -> None:
    after, _ = run_passes(block(), *PASSES, target="cuda")
    assert not any(node.domain for node in after.graph.node)


@pytest.mark.parametrize(("count", "converted"), [(1, True), (2, False), (15, False), (16, True)])
def test_a_few_filters_of_each_channel_are_left(monkeypatch: pytest.MonkeyPatch, count: int, converted: bool) -> None:
    set_costs(monkeypatch, border_cost=0.0)
    before = model(
        "g (float[1,6,9,8] x) => (y) { a = Conv (x, w) b = Conv <group=6> (a, v) y = Conv (b, u) }",
        **weights(w=(6, 6, 1, 1), v=(6 * count, 1, 3, 3), u=(5, 6 * count, 1, 1)),
    )
    after = convert(before)
    assert ("Conv" not in op_list(after)) is converted
    assert_equal(before, after, {"x": RNG.standard_normal((1, 6, 9, 8)).astype(np.float32)})


@pytest.mark.parametrize(
    ("mode", "after", "last"),
    [
        ("linear", "", ["Transpose", "Resize"]),
        ("linear", "Conv", ["Resize", "FusedConv", "Transpose"]),
        ("nearest", "", ["FusedResize", "Transpose"]),
    ],
    ids=["at the end", "before a convolution", "in a kernel of its own"],
)
def test_what_is_enlarged_last_is_transposed_before(mode: str, after: str, last: list[str]) -> None:
    resized = "y" if not after else "c"
    before = model(
        f"""g (float[1,6,9,9] x) => (float[1,6,18,18] y) {{
          a = Conv (x, w) d = Conv (a, w) b = Conv (d, w)
          {resized} = Resize <mode="{mode}", coordinate_transformation_mode="asymmetric", nearest_mode="floor"> (b, , scales)
          {"y = Conv (c, w)" if after else ""}
        }}""",
        w=BODY_WEIGHTS["w5"],
        scales=BODY_WEIGHTS["scales"],
    )
    found = convert(before, passes=("convolutions_channels_last",))
    assert op_list(found)[-len(last) :] == last
    assert_equal(before, found, {"x": RNG.standard_normal((1, 6, 9, 9)).astype(np.float32)})


BODIES = {
    "one spatial dim": """g (float[2,6,30] x) => (float[2,5,L] y) {
      a = Conv <kernel_shape=[3], pads=[1,1]> (x, w1)
      b = Relu (a)
      c = Conv <kernel_shape=[5], strides=[2], group=6> (b, w2)
      d = AveragePool <kernel_shape=[3], pads=[1,0]> (c)
      y = Conv <kernel_shape=[1]> (d, w3)
    }""",
    "branches, concat and resize": """g (float[1,6,10,12] x) => (float[1,N,H,W] y) {
      a = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]> (x, w4)
      b = Conv <kernel_shape=[1,1]> (a, w5)
      c = Sigmoid (b)
      d = Mul (b, c)
      e = Concat <axis=1> (a, d)
      f = Resize <mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"> (e, , scales)
      g1 = Resize <mode="linear"> (e, , scales)
      h = Add (f, g1)
      i = BatchNormalization <epsilon=0.001> (h, bn, bn2, bn2, bn)
      j = LeakyRelu <alpha=0.1> (i)
      y = Conv <kernel_shape=[2,2], dilations=[2,1], group=2> (j, w6)
    }""",
    "groups that are lanes of a vector": """g (float[2,24,7,9] x) => (float[2,24,H,W] y) {
      a = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=6> (x, g4)
      b = Relu (a)
      c = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=12> (b, g2)
      d = Add (c, a)
      y = Conv <kernel_shape=[1,1], group=3> (d, g8)
    }""",
    "a constant beside channels": """g (float[1,18,1,1] x) => (float[1,4,2,2] y) {
      a = Conv <kernel_shape=[1,1]> (x, deep)
      b = Concat <axis=1> (a, shift)
      c = Resize <mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"> (b, , scales)
      y = Conv <kernel_shape=[1,1]> (c, joined)
    }""",
    "a head of transposed convolutions": """g (float[2,6,5,7] x) => (float[2,1,20,42] y) {
      a = Conv <kernel_shape=[1,1]> (x, w5)
      b = ConvTranspose <kernel_shape=[2,3], strides=[2,3]> (a, t1, t1b)
      c = Relu (b)
      d = ConvTranspose <kernel_shape=[2,2], strides=[2,2]> (c, t2)
      y = Sigmoid (d)
    }""",
    "a pyramid": """g (float[1,6,8,12] x) => (float[1,6,8,12] y) {
      a = Conv <kernel_shape=[1,1]> (x, w5)
      b = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]> (a, w8)
      c = Resize <mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"> (b, , scales)
      d = Add (a, c)
      e = Resize <mode="nearest"> (b, , scales)
      f = Add (d, e)
      y = Conv <kernel_shape=[1,1]> (f, w5)
    }""",
    "constants per channel and scalars": """g (float[1,6,9,9] x) => (float[1,6,9,9] y) {
      a = Conv <kernel_shape=[1,1]> (x, w5)
      b = Mul (a, scale)
      c = Add (shift, b)
      d = Mul (c, half)
      e = Conv <kernel_shape=[1,1]> (d, w5)
      f = Sub (e, c)
      y = Conv <auto_pad="SAME_UPPER", kernel_shape=[4,4]> (f, w7)
    }""",
    "mean of all pixels": """g (float[2,6,9,9] x) => (float[2,6] y) {
      a = Conv <kernel_shape=[1,1]> (x, w5)
      b = Relu (a)
      c = Conv <kernel_shape=[1,1]> (b, w5)
      y = ReduceMean <axes=[2,3], keepdims=0> (c)
    }""",
    "a gate of a single element": """g (float[1,6,9,9] x) => (float[1,6,9,9] y) {
      a = Conv <kernel_shape=[1,1]> (x, w5)
      b = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (a, w8)
      c = GlobalAveragePool (b)
      d = Conv <kernel_shape=[1,1]> (c, narrow)
      e = Relu (d)
      f = Conv <kernel_shape=[1,1]> (e, widen)
      y = Mul (b, f)
    }""",
    "a residual that is an output too": """g (float[1,6,9,9] x) => (float[1,6,9,9] y, float[1,6,9,9] b) {
      a = Conv <kernel_shape=[1,1]> (x, w5)
      b = Relu (a)
      c = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (b, w8)
      d = Add (c, b)
      e = Relu (d)
      f = Conv <kernel_shape=[1,1]> (e, w5)
      h = Conv <kernel_shape=[1,1]> (f, w5)
      y = Add (h, e)
    }""",
}
BODY_WEIGHTS = weights(
    w1=(6, 6, 3), w2=(6, 1, 5), w3=(5, 6, 1), w4=(6, 6, 3, 3), w5=(6, 6, 1, 1), w6=(4, 6, 2, 2), w7=(6, 6, 4, 4), w8=(6, 6, 3, 3), joined=(4, 12, 1, 1), deep=(6, 18, 1, 1), t1=(6, 9, 2, 3), t1b=(9,),
    t2=(9, 1, 2, 2), g2=(24, 2, 3, 3), g4=(24, 4, 3, 3), g8=(24, 8, 1, 1),
    narrow=(1, 6, 1, 1), widen=(6, 1, 1, 1), bn2=(12,), scale=(6, 1, 1), shift=(1, 6, 1, 1),
) | {"bn": RNG.uniform(0.5, 2, 12).astype(np.float32), "half": np.array(0.5, np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_computes_the_same(name: str) -> None:
    before = model(BODIES[name], **{key: value for key, value in BODY_WEIGHTS.items() if key in BODIES[name]})
    after = convert(before)
    assert "FusedConv" in op_list(after) and "Conv" not in op_list(after)
    shape = [dim.dim_value for dim in before.graph.input[0].type.tensor_type.shape.dim]
    x = RNG.standard_normal(shape).astype(np.float32)
    assert_equal(before, after, {"x": x})
    x.flat[[3, 17]] = np.nan, np.inf
    with np.errstate(all="ignore"):
        assert_equal(before, after, {"x": x})


@pytest.mark.parametrize(
    ("kernel", "group", "activation", "converted"),
    [
        ("1,1", 1, "Relu", False),
        ("1,1", 1, "HardSwish", True),
        ("3,3", 1, "Relu", True),
        ("1,1", 2, "Relu", False),
        ("1,1", 4, "Relu", True),
    ],
    ids=["all in blocks", "an activation outside", "fewer multiplications", "groups of blocks", "groups inside blocks"],
)
def test_leaves_what_onnxruntime_computes_in_blocks(
    monkeypatch: pytest.MonkeyPatch, kernel: str, group: int, activation: str, converted: bool
) -> None:
    monkeypatch.undo()
    size = int(kernel[0])
    w = np.random.default_rng(0).standard_normal((32, 32 // group, size, size)).astype(np.float32)
    conv = f"Conv<group={group}>"
    body = f"a = {conv}(x, w)\n b = {activation}(a)\n c = {conv}(b, w)\n d = {activation}(c)\n y = {conv}(d, w)"
    before = model(f"g (float[1,32,40,40] x) => (y) {{ {body} }}", opset=18, w=w)
    after, _ = run_passes(before, *PASSES, target="cpu")
    assert ("FusedConv" in op_list(after)) is converted


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax"])
def test_what_leaves_the_blocks_at_the_end_of_a_region_is_no_reason(monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    monkeypatch.undo()
    body = f"a = Conv(x, w) b = Relu(a) c = Conv(b, w) y = {op}<axes=[2,3], keepdims=0>(c)"
    before = model(f"g (float[1,32,40,40] x) => (y) {{ {body} }}", opset=17, **weights(w=(32, 32, 1, 1)))
    assert "FusedConv" not in op_list(run_passes(before, *PASSES, target="cpu")[0])


@pytest.mark.parametrize("condition", [True, False])
def test_converts_inside_branches(condition: bool) -> None:
    square = RNG.standard_normal((6, 6, 3, 3)).astype(np.float32)
    before = model(
        """g (float[1,6,9,9] x, bool c) => (float[1,6,9,9] y) {
          p = HardSwish (x)
          y = If (c) <
            then_branch = t () => (float[1,6,9,9] d) {
              a = Conv <pads=[1,1,1,1]> (p, w)
              b = Relu (a)
              e = Conv <pads=[1,1,1,1]> (b, w)
              f = Add (e, b)
              d = Conv <pads=[1,1,1,1]> (f, w) },
            else_branch = u () => (float[1,6,9,9] h) { h = Neg (p) } >
        }""",
        w=square,
    )
    after = convert(before)
    branches = [attribute.g for attribute in after.graph.node[-1].attribute]
    inside = [[node.op_type for node in graph.node] for graph in branches]
    assert sorted(inside) == [["FusedConv", "FusedConv", "FusedConv", "Transpose"], ["Neg"]]
    x = RNG.standard_normal((1, 6, 9, 9)).astype(np.float32)
    assert_equal(before, after, {"x": x, "c": np.array(condition)})


def test_body_reads_what_a_region_around_it_made_once() -> None:
    square = RNG.standard_normal((6, 6, 3, 3)).astype(np.float32)
    before = model(
        """g (float[1,6,9,9] x, int64 n) => (float[1,6,9,9] y) {
          p = Conv <pads=[1,1,1,1]> (x, w)
          q = Conv <pads=[1,1,1,1]> (p, w)
          r = Conv <pads=[1,1,1,1]> (q, w)
          y = Loop (n, , x) < body = l (int64 i, bool c, float[1,6,9,9] h) => (bool d, float[1,6,9,9] k) {
            d = Identity (c)
            a = Add (h, r)
            b = Conv <pads=[1,1,1,1]> (a, v)
            e = Conv <pads=[1,1,1,1]> (b, v)
            k = Conv <pads=[1,1,1,1]> (e, v) } >
        }""",
        w=square,
        v=square / 40,
    )
    after = convert(before)
    assert op_list(after) == ["FusedConv"] * 3 + ["Loop"]
    x = RNG.standard_normal((1, 6, 9, 9)).astype(np.float32)
    for trips in (0, 3):
        assert_equal(before, after, {"x": x, "n": np.array(trips)})


def test_convolution_of_unknown_rank_is_left() -> None:
    """Also between others that are converted."""
    text = """g (float[1,32,8,8] x, int64[R] shape) => (float[A,32,B,C] y) {
        a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w)
        b = Reshape(a, shape)
        c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(b, w)
        y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(c, w)
    }"""
    before = model(text, **weights(w=(32, 32, 3, 3)))
    after = convert(before)
    feeds = {"x": np.ones((1, 32, 8, 8), np.float32), "shape": np.array([1, 32, 4, 16])}
    assert_equal(before, after, feeds)
