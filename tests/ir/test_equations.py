"""Equations of Einsum."""

from __future__ import annotations

import pytest

from onnxopt import ir


@pytest.mark.parametrize(
    ("equation", "ranks", "letters", "output"),
    [
        ("ij,jk->ik", [2, 2], ["ij", "jk"], "ik"),
        (" b i , b j -> b i j ", [2, 2], ["bi", "bj"], "bij"),
        ("ba,ca", [2, 2], ["ba", "ca"], "bc"),
        ("i,i->", [1, 1], ["i", "i"], ""),
        ("...i,i->...i", [3, 1], ["\u0391\u0392i", "i"], "\u0391\u0392i"),
        ("...i,...i->...", [3, 2], ["\u0391\u0392i", "\u0392i"], "\u0391\u0392"),
        ("...ij", [3], ["\u0391ij"], "\u0391ij"),
    ],
)
def test_letters(equation: str, ranks: list[int | None], letters: list[str], output: str) -> None:
    assert ir.read_equation(equation, ranks) == (letters, output)


@pytest.mark.parametrize(
    ("equation", "ranks"),
    [
        ("ii->i", [2]),
        ("ij->ii", [2]),
        ("ij->ik", [2]),
        ("ij->ji", [3]),
        ("ij->ji", [1]),
        ("i,j->ij", [1]),
        ("ij->ji", [None]),
    ],
)
def test_refuses(equation: str, ranks: list[int | None]) -> None:
    assert ir.read_equation(equation, ranks) is None
