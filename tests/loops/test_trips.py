"""How often loops run."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from helpers import model
from onnxopt import ir
from onnxopt.loops import loops_of, runs_at_least_once, trip_count
from onnxopt.passes.base import Context, Options
from onnxopt.runtime.target import Target


def count(proto: onnx.ModelProto, **dims: int | tuple[int, int]) -> tuple[str, bool]:
    """The trip count of the model's loop as text, and whether it certainly runs."""
    ctx = Context(ir.load(proto), target=Target.named("generic"), options=Options(dims=dims))
    (loop,) = loops_of(ctx)
    return str(trip_count(loop, ctx)), runs_at_least_once(loop, ctx)


def actual(proto: onnx.ModelProto) -> int:
    """How often the body runs, by the reference: the loop's last output counts."""
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return int(session.run(["t"], {"x": np.zeros((4, 2), np.float32)})[0])


def loop(
    test: str, *, limit: int | None = None, condition: bool | None = True, start: int = 0, **weights: np.ndarray
) -> onnx.ModelProto:
    """A Loop that carries a counter c from `start`, and t, the number of trips."""
    weights |= {"c0": np.array(start), "t0": np.array(0), "uno": np.array(1)}
    names = "limit" if limit is not None else "", "go" if condition is not None else ""
    if limit is not None:
        weights["limit"] = np.array(limit)
    if condition is not None:
        weights["go"] = np.array(condition)
    text = (
        f"c, t = Loop ({names[0]}, {names[1]}, c0, t0) <body = g1 (int64 i, bool k, int64 c1, int64 t1) => (bool k2, int64 c2, int64 t2) "
        f"{{ {test} t2 = Add(t1, uno) }}>"
    )
    return model(f"g (float[4,2] x) => (int64 t) {{ {text} }}", **weights)


def numbers(**values: int) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in values.items()}


COUNTED = {
    "below": ("c2 = Add(c1, s) k2 = Less(c2, e)", 0, numbers(s=1, e=7)),
    "below in steps": ("c2 = Add(c1, s) k2 = Less(c2, e)", 1, numbers(s=3, e=11)),
    "up to": ("c2 = Add(s, c1) k2 = LessOrEqual(c2, e)", 2, numbers(s=3, e=11)),
    "before the step": ("c2 = Add(c1, s) k2 = Less(c1, e)", 0, numbers(s=2, e=9)),
    "bound on the left": ("c2 = Add(c1, s) k2 = Greater(e, c2)", 0, numbers(s=1, e=4)),
    "falling": ("c2 = Sub(c1, s) k2 = Greater(c2, e)", 10, numbers(s=3, e=0)),
    "falling to": ("c2 = Sub(c1, s) k2 = GreaterOrEqual(c2, e)", 9, numbers(s=3, e=0)),
    "by the iteration": ("c2 = Add(c1, s) k2 = Less(i, e)", 0, numbers(s=1, e=5)),
    "by the next iteration": ("c2 = Add(c1, s) n = Add(i, s) k2 = Less(n, e)", 0, numbers(s=1, e=5)),
    "at once over": ("c2 = Add(c1, s) k2 = Less(c2, e)", 50, numbers(s=1, e=7)),
    "through identities": (
        "d = Identity(c1) a = Add(d, s) c2 = Identity(a) f = Less(c2, e) k2 = Identity(f)",
        0,
        numbers(s=1, e=6),
    ),
}


@pytest.mark.parametrize("limit", [None, 0, 2, 100, (1 << 63) - 1])
@pytest.mark.parametrize("name", COUNTED)
def test_counted(name: str, limit: int | None) -> None:
    test, start, weights = COUNTED[name]
    proto = loop(test, limit=limit, start=start, **weights)
    expected = actual(proto)
    assert count(proto) == (str(expected), expected > 0)


@pytest.mark.parametrize("condition", [None, True, False])
@pytest.mark.parametrize("test", ["k2 = Identity(k)", "k2 = Constant<value = bool {1}>()"])
@pytest.mark.parametrize("limit", [-1, 0, 1, 9])
def test_limit(limit: int, test: str, condition: bool | None) -> None:
    proto = loop(f"c2 = Identity(c1) {test}", limit=limit, condition=condition)
    assert count(proto) == (str(actual(proto)), actual(proto) > 0)


UNKNOWN = {
    "a condition of data": "m = ReduceMax<keepdims = 0>(x) z = Constant<value = float {0.0}>() k2 = Greater(m, z) c2 = Identity(c1)",
    "a step that changes": "c2 = Add(c1, c1) k2 = Less(c2, e)",
    "a bound that changes": "c2 = Add(c1, uno) f = Add(t1, e) k2 = Less(c2, f)",
    "a counter that goes away from the bound": "c2 = Sub(c1, uno) k2 = Less(c2, e)",
    "a comparison for equality": "c2 = Add(c1, uno) q = Equal(c2, e) k2 = Not(q)",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown(name: str) -> None:
    proto = loop(UNKNOWN[name], limit=10, **numbers(e=20))
    assert count(proto) == ("None", False)


def test_dims() -> None:
    text = (
        "d = Shape(x) n = Gather(d, z) y = Loop (n, , h) <body = g1 (int64 i, bool k, float[2] s) => (bool k2, float[2] s2) "
        "{ k2 = Identity(k) s2 = Neg(s) }>"
    )
    proto = model(f"g (float[N,2] x, float[2] h) => (float[2] y) {{ {text} }}", z=np.array(0))
    assert count(proto) == ("N", True)
    assert count(proto, N=6) == ("6", True)
    assert count(proto, N=(0, 5)) == ("N", False)


@pytest.mark.parametrize(("axis", "expected"), [(0, "5"), (1, "3"), (-1, "3")])
def test_scan(axis: int, expected: str) -> None:
    text = f"y = Scan <num_scan_inputs = 1, scan_input_axes = [{axis}], body = g1 (float[a] e) => (float[a] r) {{ r = Neg(e) }}> (x)"
    proto = model(f"g (float[5,3] x) => (float[t,a] y) {{ {text} }}")
    assert count(proto) == (expected, True)
