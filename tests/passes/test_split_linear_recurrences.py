"""Linear recurrences in chunks."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list
from onnxopt import ir
from onnxopt.passes.base import Options
from onnxopt.pipeline import PassManager, Report, optimize

PASS = "split_linear_recurrences"
STEPS = 2048
RNG = np.random.default_rng(0)
X = RNG.normal(0, 1, (STEPS, 3)).astype(np.float32)
A = RNG.uniform(0.2, 0.99, (STEPS, 3)).astype(np.float32)
H = np.array([0.5, -1, 2], np.float32)
WEIGHTS = {
    "k": np.array(0.9, np.float32),
    "v": np.array([0.9, 0.5, 0.99], np.float32),
    "m1": np.array([-1]),
}


def scan(
    body: str, *, steps: int | str = STEPS, outputs: str = "z", attributes: str = "", width: int = 3
) -> onnx.ModelProto:
    """A Scan over x and a that carries s from h."""
    size = f"float[{width}]"
    text = (
        f"y, z = Scan <num_scan_inputs = 2{attributes}, body = g1 ({size} s, {size} e, {size} f) => ({size} s2, {size} o) "
        f"{{ {body} }}> (h, x, a)"
    )
    return model(
        f"g (float[{steps},{width}] x, float[{steps},{width}] a, {size} h) => ({size} y, float[t,{width}] z) {{ {text} }}",
        **WEIGHTS,
    )


def split(before: onnx.ModelProto, *, fast_math: bool = True, target: str = "cpu") -> tuple[onnx.ModelProto, Report]:
    loaded = ir.load(onnx.ModelProto.FromString(before.SerializeToString()))
    options = Options(fast_math=fast_math)
    report = PassManager(target, [PASS], options=options, strict=True, explain=True).run(loaded)
    again = PassManager(target, [PASS], options=options, strict=True).run(loaded)
    assert not again.patches
    after = ir.to_proto(loaded)
    onnx.checker.check_model(after)
    return after, report


LINEAR = {
    "one factor": "p = Mul(s, k) s2 = Add(p, e) o = Identity(s2)",
    "a factor of each element": "p = Mul(v, s) s2 = Add(e, p) o = Identity(s2)",
    "a factor of each step": "p = Mul(f, s) s2 = Add(e, p) o = Identity(s2)",
    "a computed factor": "g = Sigmoid(f) p = Mul(g, s) q = Mul(e, f) s2 = Sub(q, p) o = Identity(s2)",
    "a sum": "s2 = Add(s, e) o = Identity(s2)",
    "a difference": "d = Sub(e, s) p = Mul(d, f) s2 = Add(s, p) o = Identity(s2)",
    "a quotient": "p = Div(s, f) q = Mul(p, k) r = Mul(q, f) n = Neg(r) s2 = Add(n, e) o = Identity(s2)",
    "both at once": "p = Mul(s, k) q = Mul(s, f) r = Sub(p, q) s2 = Add(r, e) o = Identity(s2)",
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", LINEAR)
def test_linear(name: str, reverse: bool) -> None:
    attributes = ", scan_input_directions = [1, 1], scan_output_directions = [1]" if reverse else ""
    before = scan(LINEAR[name], attributes=attributes)
    after, _ = split(before)
    assert op_list(after).count("Scan") == 2
    assert_same(before, after, {"x": X, "a": A, "h": H}, rtol=1e-4, atol=1e-5)
    assert_same(before, after, {"x": X, "a": A, "h": 0 * H}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LINEAR)
def test_in_the_pipeline(name: str) -> None:
    before = scan(LINEAR[name])
    after = optimize(before, options=Options(fast_math=True), strict=True)
    assert op_list(after).count("FusedRecurrence") == 2
    for library in (False, True):
        assert_same(before, after, {"x": X, "a": A, "h": H}, rtol=1e-4, atol=1e-5, library=library)


def test_elements_of_lower_rank() -> None:
    text = (
        "y, z = Scan <num_scan_inputs = 2, body = g1 (float[2,3] s, float[3] e, float f) => (float[2,3] s2, float[2,3] o) "
        "{ p = Mul(s, f) s2 = Add(p, e) o = Identity(s2) }> (h, x, b)"
    )
    before = model(
        f"g (float[{STEPS},3] x, float[{STEPS}] b, float[2,3] h) => (float[2,3] y, float[t,2,3] z) {{ {text} }}"
    )
    after, _ = split(before)
    assert op_list(after).count("Scan") == 2
    given = {"x": X, "b": A[:, 0].copy(), "h": np.stack([H, -H])}
    assert_same(before, after, given, rtol=1e-4, atol=1e-5)


def test_values_that_are_not_finite() -> None:
    before = scan(LINEAR["a factor of each step"])
    after, _ = split(before)
    for number in (np.nan, np.inf, -np.inf):
        x = X.copy()
        x[STEPS // 2, 1] = number
        assert_same(before, after, {"x": x, "a": A, "h": H}, rtol=1e-4, atol=1e-5)


def test_growth_without_bound_from_zero() -> None:
    """The product of a chunk overflows, which nothing is to be multiplied with while the state is 0."""
    x = np.zeros_like(X)
    x[-1] = 1
    before = scan(LINEAR["a factor of each step"])
    after, _ = split(before)
    assert_same(before, after, {"x": x, "a": np.full_like(A, 1e6), "h": 0 * H})


REFUSED = {
    "not linear": (scan("p = Mul(s, s) s2 = Add(p, e) o = Identity(s2)"), "is not linear"),
    "function of it": (scan("p = Tanh(s) s2 = Add(p, e) o = Identity(s2)"), "is not linear"),
    "divides by it": (scan("p = Div(e, s) s2 = Add(p, e) o = Identity(s2)"), "is not linear"),
    "other output": (scan("p = Mul(s, k) s2 = Add(p, e) o = Exp(s2)"), "stacks other values"),
    "open steps": (scan(LINEAR["a sum"], steps="T"), "steps"),
    "few steps": (scan(LINEAR["a sum"], steps=256), "256 steps"),
    "prime steps": (scan(LINEAR["a sum"], steps=2053), "no multiple"),
    "many elements": (scan(LINEAR["a sum"], width=64), "enough"),
    "directions": (scan(LINEAR["a sum"], attributes=", scan_output_directions = [1]"), "different directions"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_stays(name: str) -> None:
    before, sentence = REFUSED[name]
    after, report = split(before)
    assert op_list(after) == ["Scan"]
    assert sentence in str(report.near_misses[0].refusal)


@pytest.mark.parametrize(("fast_math", "target"), [(False, "cpu"), (True, "generic")])
def test_is_asked_for(fast_math: bool, target: str) -> None:
    after, _ = split(scan(LINEAR["a sum"]), fast_math=fast_math, target=target)
    assert op_list(after) == ["Scan"]
