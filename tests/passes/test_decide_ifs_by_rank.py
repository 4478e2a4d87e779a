"""Ifs of which only one branch fits what follows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, evaluate, model, op_list, ops, run_passes

PASSES = ("decide_ifs_by_rank", "inline_ifs", "eliminate_dead_code")
RNG = np.random.default_rng(0)
CHOICE = """t = Shape<start=-1>(x)
    is_one = Equal(t, one)
    u = If (is_one) <
        then_branch = yes () => (float[a, b] s) { s = Squeeze(x, last) },
        else_branch = no () => (float[c, d, e] i) { i = Identity(x) }
    >"""
ENDINGS = {
    "convolution": "v = Unsqueeze(u, first)\n w = Relu(v)\n y = Conv(w, weights)",
    "transpose": "v = Unsqueeze(u, first)\n y = Transpose<perm=[2, 0, 1]>(v)",
    "recurrence": "v = Unsqueeze(u, first)\n y, h = RNN<hidden_size=2>(v, weights, weights)",
}


def chosen(ending: str, *, choice: str = CHOICE, shape: str = "N,3,T") -> onnx.ModelProto:
    return model(
        f"g (float[{shape}] x) => (float[p, q, r] y) {{ {choice}\n {ending} }}",
        opset=17,
        one=np.array([1]),
        first=np.array([0]),
        last=np.array([-1]),
        weights=RNG.standard_normal((2, 4, 1)).astype(np.float32),
    )


def test_branch_of_another_rank_goes() -> None:
    before = chosen(ENDINGS["convolution"])
    after, _ = run_passes(before, *PASSES)
    assert op_list(after) == ["Squeeze", "Unsqueeze", "Relu", "Conv"]
    assert_same(before, after, {"x": RNG.standard_normal((4, 3, 1)).astype(np.float32)})


def test_both_fail_on_the_other_branch() -> None:
    before = chosen(ENDINGS["convolution"])
    after, _ = run_passes(before, *PASSES)
    for proto in (before, after):
        with pytest.raises(Exception, match=r"(?i)rank|dim"):
            evaluate(proto, {"x": np.zeros((4, 3, 2), np.float32)})


@pytest.mark.parametrize("name", ["transpose", "recurrence"])
def test_other_requirements(name: str) -> None:
    after, _ = run_passes(chosen(ENDINGS[name]), *PASSES)
    assert "If" not in ops(after)


def test_chain_of_choices() -> None:
    choice = (
        CHOICE
        + """
    k = Shape(u)
    n = Size(k)
    is_two = Equal(n, two)
    z = If (is_two) <
        then_branch = yes2 () => (float[f, g] i2) { i2 = Identity(u) },
        else_branch = no2 () => (float[h, i, j] e) { e = Unsqueeze(u, first) }
    >"""
    )
    before = chosen("v = Unsqueeze(z, first)\n y = Conv(v, weights)", choice=choice)
    before.graph.initializer.append(onnx.numpy_helper.from_array(np.array(2), "two"))
    after, _ = run_passes(before, *PASSES, *PASSES)
    assert "If" not in ops(after)
    assert_same(before, after, {"x": RNG.standard_normal((4, 3, 1)).astype(np.float32)})


@pytest.mark.parametrize(
    ("ending", "choice", "shape"),
    [
        ("y = Relu(u)", CHOICE, "N,3,T"),
        ("v = Unsqueeze(u, axes)\n y = Conv(v, weights)", CHOICE, "N,3,T"),
        (
            "y = Conv(u, weights)",
            CHOICE.replace("Identity(x)", "Relu(x)").replace("Squeeze(x, last)", "Abs(x)"),
            "N,4,T",
        ),
        (
            "y = Conv(u, weights)",
            CHOICE.replace("Identity(x)", "Reshape(x, t)").replace("Squeeze(x, last)", "Expand(x, t)"),
            "N,4,T",
        ),
    ],
    ids=["no requirement", "axes unknown", "both fit", "rank unknown"],
)
def test_refuses(ending: str, choice: str, shape: str) -> None:
    before = chosen(ending, choice=choice, shape=shape)
    if "axes" in ending:
        before.graph.input.append(onnx.helper.make_tensor_value_info("axes", onnx.TensorProto.INT64, [1]))
    after, _ = run_passes(before, "decide_ifs_by_rank")
    assert ops(after)["If"] == 1
    assert after.graph.node[2].input[0] == "is_one"
