"""Whole programs of FusedElementwise, random and malformed ones, in every variant."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expressions import (
    BINARY,
    DTYPES,
    EMULATED,
    F32,
    LONG,
    OP,
    SUPPORTED,
    UNARY,
    Array,
    assert_same_bits,
    cast,
    f32,
    native,
    run,
    samples,
)
from variants import variant_fixture

variant = variant_fixture(OP, EMULATED)


Statement = tuple[str, Callable[..., Array], tuple[str, ...], str]


def statements() -> list[Statement]:
    """Exact operations with the types of their operands and result."""
    found: list[Statement] = []
    for op, (binary, names, result) in BINARY.items():
        found += [(op, binary, (name, name), result or name) for name in names]
    for op, (unary, names, result) in UNARY.items():
        found += [(op, unary, (name,), result or name) for name in names]
    found += [("where", np.where, ("bool", name, name), name) for name in DTYPES]
    found += [
        (f"cast_{target}", lambda x, target=target: cast(x, target), (source,), target)
        for source, target in itertools.product(DTYPES, DTYPES)
    ]
    return found


STATEMENTS = statements()


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[str], list[tuple[int, list[int]]], list[int]]:
    """Types of the inputs; statements as indices into `STATEMENTS` and into the values so far; outputs."""
    inputs = draw(st.lists(st.sampled_from(list(DTYPES)), min_size=1, max_size=6))
    types, body = list(inputs), []
    for _ in range(draw(st.integers(1, 24))):
        possible = [k for k, (_, _, operands, _) in enumerate(STATEMENTS) if set(operands) <= set(types)]
        chosen = draw(st.sampled_from(possible))
        _, _, operands, result = STATEMENTS[chosen]
        picks = [draw(st.sampled_from([k for k, name in enumerate(types) if name == wanted])) for wanted in operands]
        body.append((chosen, picks))
        types.append(result)
    made = list(range(len(inputs), len(types)))
    return inputs, body, [made[-1], *draw(st.lists(st.sampled_from(made), max_size=4))]


@settings(max_examples=200, deadline=None)
@given(programs(), st.integers(0, 1 << 20), st.sampled_from([1, 5, 16, 64, 513, 1100]), st.sampled_from(SUPPORTED))
def test_random_programs(
    program: tuple[list[str], list[tuple[int, list[int]]], list[int]], seed: int, length: int, chosen: str
) -> None:
    inputs, body, outputs = program
    rng = np.random.default_rng(seed)
    values = [samples(name, rng, length) if k % 3 else samples(name, rng, 1) for k, name in enumerate(inputs)]
    arguments = list(values)
    types = list(inputs)

    def operand(index: int) -> str:
        return f"i{index}" if index < len(inputs) else f"t{index - len(inputs)}"

    lines = []
    with np.errstate(all="ignore"):
        for number, (which, picks) in enumerate(body):
            op, reference, _, result = STATEMENTS[which]
            lines.append(f"t{number}={op}({','.join(operand(k) for k in picks)})")
            values.append(np.asarray(reference(*(values[k] for k in picks))).astype(DTYPES[result]))
            types.append(result)
    declared = " ".join(f"i{k}:{name}" for k, name in enumerate(inputs))
    expr = f"{declared} | {' '.join(lines)} | {' '.join(f'{operand(k)}:{types[k]}' for k in outputs)}"
    for actual, index in zip(run(expr, *arguments, variant=chosen), outputs, strict=True):
        assert_same_bits(actual, values[index])


def test_literals(variant: str) -> None:
    expr = (
        "i0:f32 i1:i64 i2:bool | t0=add(i0,#0x1.99999ap-4:f32) t1=mul(i1,#-9223372036854775808:i64) "
        "t2=and(i2,#true:bool) t3=max(i0,#-inf:f32) t4=less(i0,#nan:f32) t5=cast_f16(i0) t6=add(t5,#0x1p-1:f16) "
        "| t0:f32 t1:i64 t2:bool t3:f32 t4:bool t6:f16"
    )
    x, n, b = f32(1, 2, 3), np.array([1, 2, 3]), np.array([True, False, True])
    actual = run(expr, x, n, b, variant=variant)
    expected = [x + F32(0.1), n * np.iinfo(np.int64).min, b, x, np.zeros(3, bool), (x + F32(0.5)).astype(np.float16)]
    for one, wanted in zip(actual, expected, strict=True):
        assert_same_bits(one, wanted)


def test_as_many_statements_inputs_and_outputs_as_allowed(variant: str) -> None:
    inputs = [np.full(33, k, F32) for k in range(32)]
    lines = ["t0=add(i0,i1)"] + [f"t{k}=add(t{k - 1},i{k % 32})" for k in range(1, 256)]
    declared = " ".join(f"i{k}:f32" for k in range(32))
    expr = f"{declared} | {' '.join(lines)} | {' '.join(f't{k}:f32' for k in range(240, 256))}"
    results = run(expr, *inputs, variant=variant)
    expected = 1 + sum(k % 32 for k in range(1, 256))
    assert len(results) == 16
    assert_same_bits(results[-1], np.full(33, expected, F32))


MALFORMED = {
    "": "section",
    "i0:f32": "section",
    "i0:f32 | t0=neg(i0)": "section",
    "i0:f32 | | t0:f32": "no statement",
    "i0:f32 | t0=neg(i0) |": "no output",
    "i0:f64 | t0=neg(i0) | t0:f32": "'i0:f64'",
    "i1:f32 | t0=neg(i0) | t0:f32": "'i1:f32'",
    "i0:f32 | t1=neg(i0) | t1:f32": "'t1=neg(i0)'",
    "i0:f32 | t0=nega(i0) | t0:f32": "'nega'",
    "i0:f32 | t0=neg(i1) | t0:f32": "'i1'",
    "i0:f32 | t0=neg(t0) | t0:f32": "'t0'",
    "i0:f32 | t0=neg(i0,i0) | t0:f32": "2 operands",
    "i0:f32 | t0=add(i0) | t0:f32": "1 operands",
    "i0:f32 i1:i32 | t0=add(i0,i1) | t0:f32": "different types",
    "i0:bool | t0=neg(i0) | t0:bool": "not defined for bool",
    "i0:i32 | t0=exp(i0) | t0:i32": "not defined for i32",
    "i0:f32 | t0=where(i0,i0,i0) | t0:f32": "condition",
    "i0:f32 | t0=leaky_relu(i0,i0) | t0:f32": "literal",
    "i0:f32 | t0=leaky_relu(i0,#1:i32) | t0:f32": "float",
    "i0:f32 | t0=add(i0,#x:f32) | t0:f32": "'#x:f32'",
    "i0:f32 | t0=add(i0,#1:f64) | t0:f32": "'#1:f64'",
    "i0:i64 | t0=add(i0,#99999999999999999999:i64) | t0:i64": "not a number",
    "i0:i32 | t0=add(i0,#2147483648:i32) | t0:i32": "not a number",
    "i0:f32 | t0=neg(i0) | t1:f32": "'t1:f32'",
    "i0:f32 | t0=neg(i0) | t0:f16": "'t0:f16'",
    "i0:f32 | t0=neg(i0) | i0:f32": "'i0:f32'",
    "i0:f32 | t0=neg(i0) | t0:f32 | x": "follows",
}


@pytest.mark.parametrize(("expr", "sentence"), MALFORMED.items())
def test_malformed_expression(expr: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        run(expr, f32(1))


@settings(max_examples=400, deadline=None)
@given(
    st.text(alphabet="it01239=(),#:|. -xpfbandegmulsrt", max_size=80), st.integers(0, len(LONG) - 1), st.integers(0, 12)
)
def test_damaged_expressions_never_crash(text: str, position: int, length: int) -> None:
    for expr in (text, LONG[:position] + text[:length] + LONG[position + length :]):
        inputs = [np.ones(5, F32)] * expr.split("|", 1)[0].count(":f32")
        try:
            run(expr, *inputs)
        except ValueError as error:
            assert str(error).endswith((".", "'")), error


def test_refuses_inputs_of_another_type_or_number() -> None:
    expr = "i0:f32 | t0=neg(i0) | t0:f32"
    with pytest.raises(ValueError, match="Input 0 is of type double and should be f32"):
        run(expr, np.zeros(3, np.float64))
    with pytest.raises(ValueError, match="got 2 inputs and its expression has 1"):
        run(expr, f32(1), f32(1))
    with pytest.raises(ValueError, match="no variant 'fast'"):
        run(expr, f32(1), variant="fast")


def test_highest_isa_can_be_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXOPT_MAX_ISA", "scalar")
    chosen = [v["isa"] for op in native.ops() for v in op["variants"] if v["chosen"]]
    assert chosen == ["scalar"] * len(native.ops())
    monkeypatch.setenv("ONNXOPT_MAX_ISA", "sse9")
    with pytest.raises(ValueError, match="'sse9'"):
        native.ops()
