"""Equations of Einsum."""

from __future__ import annotations

from collections.abc import Sequence

FIRST_HIDDEN = 0x391
"""The code of the first letter for dims that an ellipsis stands for: a Greek one, which no equation has."""


def read_equation(equation: str, ranks: Sequence[int | None]) -> tuple[list[str], str] | None:
    """The letters of an Einsum's operands and of its result; None where a letter stands twice in one of them, or ranks are not known.

    What an ellipsis stands for gets letters of its own, from the end, as those dims are broadcast.
    """
    left, arrow, output = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    if len(operands) != len(ranks) or None in ranks:
        return None
    names = [part.replace("...", "") for part in operands]
    hidden = [rank - len(name) for rank, name in zip(ranks, names, strict=True) if rank is not None]
    if any(count < 0 or (count and "..." not in part) for count, part in zip(hidden, operands, strict=True)):
        return None
    digits = "".join(map(chr, range(FIRST_HIDDEN, FIRST_HIDDEN + max(hidden, default=0))))
    letters = [part.replace("...", digits[len(digits) - count :]) for part, count in zip(operands, hidden, strict=True)]
    if not arrow:
        flat = "".join(names)
        output = "..." + "".join(sorted(letter for letter in set(flat) if flat.count(letter) == 1))
    output = output.replace("...", digits)
    if any(len(set(one)) != len(one) for one in (*letters, output)) or set(output) - set("".join(letters)):
        return None
    return letters, output
