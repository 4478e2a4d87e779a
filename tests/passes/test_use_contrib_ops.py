"""Contrib ops of onnxruntime: only where they are allowed, only what no kernel of ours took, and with the same outputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import helpers
import onnxopt

RNG = np.random.default_rng(0)
HEADS = """
    qr = Reshape (q, split) qt = Transpose <perm = [0, 2, 1, 3]> (qr)
    kr = Reshape (k, split) kt = Transpose <perm = [0, 2, 3, 1]> (kr)
    vr = Reshape (v, split) vt = Transpose <perm = [0, 2, 1, 3]> (vr)
    p = MatMul (qt, kt) s = Mul (p, scale)
"""
MERGE = (
    "w = Softmax <axis = -1> (m) o = MatMul (w, vt) ot = Transpose <perm = [0, 2, 1, 3]> (o) y = Reshape (ot, merge)"
)


def attention(mask: str = "", masked: str = "m = Identity (s)", *, kind: str = "float") -> onnx.ModelProto:
    inputs = ", ".join(f"{kind}[N, S, 24] {name}" for name in "qkv") + mask
    constants = {"split": np.array([0, 0, 3, 8]), "merge": np.array([0, 0, 24])}
    scale = np.array(0.125, np.float32 if kind == "float" else np.float16)
    return helpers.model(
        f"g ({inputs}) => ({kind}[N, S, 24] y) {{ {HEADS} {masked} {MERGE} }}", scale=scale, **constants
    )


def ops(proto: onnx.ModelProto, **options: object) -> dict[str, int]:
    return helpers.ops(onnxopt.optimize(proto, **options))


@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize(
    ("shape", "given"),
    [
        (None, ()),
        ("N, 1, S, S", (2, 1, None, None)),
        ("1, 3, S, S", (1, 3, None, None)),
        ("N, 3, S, S", (2, 3, None, None)),
    ],
)
def test_attention_gives_the_same(rows: int, shape: str | None, given: tuple[int | None, ...]) -> None:
    before = attention() if shape is None else attention(f", float[{shape}] bias", "m = Add (s, bias)")
    after = onnxopt.optimize(before, target="generic", allow_contrib=True)
    assert helpers.ops(after) == {"MultiHeadAttention": 1}
    assert {one.domain for one in after.opset_import} == {"", "com.microsoft"}
    feeds = {name: RNG.normal(0, 1, (2, rows, 24)).astype(np.float32) for name in "qkv"}
    if shape is not None:
        feeds["bias"] = RNG.normal(0, 1, [size or rows for size in given]).astype(np.float32)
    helpers.assert_same(before, after, feeds, rtol=1e-4, atol=1e-5)


def test_without_leave_models_stay_standard() -> None:
    after = onnxopt.optimize(attention(), target="generic")
    assert {one.domain for one in after.opset_import} == {""}
    assert "MultiHeadAttention" not in helpers.ops(after)


def test_kernels_of_ours_come_first() -> None:
    assert ops(attention(), allow_contrib=True) == {"FusedAttention": 1}


def test_takes_what_is_left_out_of_our_fusions() -> None:
    options = onnxopt.Options(without=frozenset(["fuse_attention"]))
    assert ops(attention(), allow_contrib=True, options=options) == {"MultiHeadAttention": 1}


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (attention(", float[S] bias", "m = Add (s, bias)"), "its mask is not one number for every score"),
        (attention(", float[N, 1, 1, S] bias", "m = Add (s, bias)"), "its mask is not one number for every score"),
        (attention(", bool[N, 1, S, S] keep", "m = Where (keep, s, scale)"), "has masks that are not added"),
        (attention("", "c = Tanh (s) m = Mul (c, scale)"), "capped"),
        (attention(kind="float16"), "does not compute"),
    ],
)
def test_says_why_not(before: onnx.ModelProto, reason: str) -> None:
    options = onnxopt.Options(allow_contrib=True)
    manager = onnxopt.PassManager("generic", options=options, explain=True, strict=True)
    from onnxopt import ir

    report = manager.run(ir.load(before))
    reasons = [str(miss.refusal) for miss in report.near_misses if miss.rule == "use_multi_head_attention"]
    assert len(reasons) == 1
    assert reason in reasons[0]
