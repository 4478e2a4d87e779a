"""Arithmetic of symbolic dims."""

from __future__ import annotations

import pytest

from onnxopt.ir import dims
from onnxopt.ir.dims import Dim

N, S, P = map(dims.symbol, "NSP")
HALF = dims.floordiv(S, 2)

QUOTIENTS: list[tuple[Dim, Dim, Dim]] = [
    (12, 4, 3),
    (N * S * 768, N * 768, S),
    (N * (S + 197) * 768, N * (S + 197) * 64, 12),
    (N * (S + 197) * 768, (S + 197) * 64, N * 12),
    ((N + 1) * (S + P) * 12, (S + P) * 4, N * 3 + 3),
    ((HALF + 1) * 768, (HALF + 1) * 64, 12),
    (N * N - 1, N - 1, N + 1),
]


@pytest.mark.parametrize(("a", "b", "expected"), QUOTIENTS)
def test_exact_quotient(a: Dim, b: Dim, expected: Dim) -> None:
    assert dims.exact_quotient(a, b) == expected == dims.floordiv(a, b)
    assert dims.mod(a, b) == 0


@pytest.mark.parametrize(
    ("a", "b"),
    [(12, 5), (12, 0), (N * S, 0), (N * (S + 1), N * (S + 2)), (N * S + 1, N), (N * (S + 7) * 3, (S + 7) * 2)],
)
def test_no_exact_quotient(a: Dim, b: Dim) -> None:
    assert dims.exact_quotient(a, b) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("N + S", N + S),
        ("2*N - 1", 2 * N - 1),
        ("(((S//80)) - 3)//2 + 1", dims.floordiv(dims.floordiv(S, 80) - 3, 2) + 1),
        (" S % 4 ", dims.mod(S, 4)),
        ("7", 7),
    ],
)
def test_parse(text: str, expected: Dim) -> None:
    assert dims.parse(text, {"N": N, "S": S}) == expected


@pytest.mark.parametrize(
    "text", ["batch-size", "N/2", "N +", "N S", "f(N)", "N if S else 1", "N**2", "'N'", "1.5", "N" + "+1" * 600]
)
def test_parse_refuses(text: str) -> None:
    assert dims.parse(text, {"N": N, "S": S}) is None


def test_assumed_bounds() -> None:
    bounds = dims.Bounds()
    assert not bounds.prove_at_least(HALF, 1)
    bounds.assume_at_least(HALF - 3, 1)
    bounds.assume_at_least(HALF, 2)
    assert bounds.prove_at_least(HALF, 4) and not bounds.prove_at_least(HALF, 5)
    assert bounds.prove_at_least(HALF * 2 + P, 8)


@pytest.mark.parametrize("dim", [N * S, N + S, 2 * S, 7])
def test_assumes_nothing_of_several_atoms(dim: Dim) -> None:
    bounds = dims.Bounds()
    bounds.assume_at_least(dim, 5)
    assert not bounds.prove_at_least(S, 1) and not bounds.prove_at_least(N, 1)
