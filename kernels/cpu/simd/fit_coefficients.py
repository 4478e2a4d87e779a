"""Fit the polynomials of `functions.h`: weighted least squares, reweighted towards the minimax solution (Lawson's algorithm).

Run it to print the coefficients, lowest degree first, and the relative error of each fit before rounding, and to write `tables.h`.
Source of the method: C. L. Lawson, "Contributions to the theory of linear least maximum approximation", 1961.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

NODES = 4000
ROUNDS = 200


def fit(x: np.ndarray, target: np.ndarray, weight: np.ndarray, degree: int) -> tuple[np.ndarray, float]:
    """Coefficients of the polynomial p that minimizes max |p(x) - target| * weight, and that maximum."""
    largest = np.abs(x).max()
    basis = np.vander(x / largest, degree + 1, increasing=True)
    lawson = np.ones_like(x)
    best, lowest = np.zeros(degree + 1), math.inf
    for _ in range(ROUNDS):
        scale = np.sqrt(lawson) * weight
        solution = np.linalg.lstsq(basis * scale[:, None], target * scale, rcond=None)[0]
        error = np.abs(basis @ solution - target) * weight
        if error.max() < lowest:
            best, lowest = solution, float(error.max())
        lawson = lawson * error
        if not lawson.any():  # as good as float64 is
            break
        lawson /= lawson.sum()
    return best / largest ** np.arange(degree + 1), lowest


def chebyshev(low: float, high: float) -> np.ndarray:
    return (low + high) / 2 + (high - low) / 2 * np.cos(np.pi * (np.arange(NODES) + 0.5) / NODES)


def main() -> None:
    f = chebyshev(-0.5005, 0.5005)
    f = f[np.abs(f) > 1e-6]
    for degree in (5, 4):
        power = np.expm1(f * math.log(2)) / f
        report("2^f = 1 + f q(f), |f| <= 1/2", *fit(f, power, np.abs(f) / np.exp2(f), degree))

    z = chebyshev(1e-3, 0.75)
    small = (np.tanh(z) / z - 1) / z**2
    report("tanh, x <= 0.75: x + x^3 p(x^2)", *fit(z * z, small, z**3 / np.tanh(z), 4))

    z = chebyshev(1e-3, 0.8)
    small = each(math.erf, z) / z - 1
    report("erf, x <= 0.8: x + x p(x^2)", *fit(z * z, small, 1 / (1 + small), 5))
    t = chebyshev(0.8, 3.95)
    erfc = each(math.erfc, t)
    report("erf, else: 1 - 2^p(x)", *fit(t, np.log2(erfc), erfc * math.log(2) / (1 - erfc), 5))

    # The error of a gelu is weighed between that relative to its operand and that relative to its result.
    t = chebyshev(1e-4, 5.6)
    tail = each(math.erfc, t / math.sqrt(2)) / 2
    weight = t * math.log(2) * (2 * tail) ** 0.7
    report("normal tail: 2^(-1 + t p(t))", *fit(t, (np.log2(tail) + 1) / t, weight, 7))

    t = chebyshev(1e-3, 4.2)
    middle = each(math.erf, t / math.sqrt(2)) / 2
    report("normal distribution, x <= 4.2: 1/2 + x p(x^2), error of it all", *fit(t * t, middle / t, t, 8))

    f = chebyshev(math.sqrt(0.5) - 1, math.sqrt(2) - 1)
    f = f[np.abs(f) > 1e-3]
    log_p = (np.log1p(f) - f + f * f / 2) / f**3
    report("log(1 + f) = f - f^2/2 + f^3 p(f)", *fit(f, log_p, np.abs(f**3 / np.log1p(f)), 7))

    Path(__file__).with_name("tables.h").write_text(tables())


# --- tables: a polynomial of the distance to the middle of an interval for each of them -----------------------------
HALF_OCTAVES = [2.0**octave * half for octave in range(-4, 4) for half in (1, 1.5)]
TANH_END = 9.25
ERF_SPACING = 33 / 256
TAIL_SPACING = 1 / 4
POINTS = 32


def tables() -> str:
    """The text of `tables.h`. Coefficients [degree, interval]."""
    middles, tanh = np.zeros(len(HALF_OCTAVES)), np.zeros((7, len(HALF_OCTAVES)))
    for low, high in zip(HALF_OCTAVES, [*HALF_OCTAVES[1:], 16.0], strict=True):
        entry = int(np.float32(low).view(np.uint32)) >> 22 & 15
        if low == HALF_OCTAVES[0]:  # this one begins at 0
            tanh[1:, entry] = _odd(np.tanh, 1.0, high, 6)
        elif low < TANH_END:
            middles[entry] = (low + min(high, TANH_END)) / 2
            tanh[:, entry] = _near(np.tanh, middles[entry], min(high, TANH_END) - middles[entry], 6)

    erf = np.zeros((6, POINTS))
    erf[1:, 0] = _odd(lambda t: each(math.erf, t), 2 / math.sqrt(math.pi), ERF_SPACING / 2, 5)
    tail = np.zeros((6, POINTS))
    tail[:, 0] = _near(_normal_tail, 0, TAIL_SPACING / 2, 5)
    for point in range(1, POINTS):
        erf[:, point] = _near(lambda t: each(math.erf, t), point * ERF_SPACING, ERF_SPACING / 2, 5)
        if point < POINTS - 1:
            tail[:, point] = _near(_normal_tail, point * TAIL_SPACING, TAIL_SPACING / 2, 5)
    erf[1] -= 1
    return "\n".join(
        [
            "// Polynomials of tanh, erf and the normal distribution's tail in intervals, [degree][interval]: made by fit_coefficients.py.",
            "#pragma once\n",
            "namespace onnxopt::simd {",
            "namespace {\n",
            "// clang-format off",
            f"constexpr float kTanhEnd = {TANH_END}f;  // from there on it is 1",
            _array("kTanhMiddles[16]", middles),
            _array("kTanhTable[7][16]", tanh),
            f"constexpr float kErfSpacing = {_literal(ERF_SPACING)};",
            f"constexpr float kErfEnd = {_literal((POINTS - 1) * ERF_SPACING)};",
            _array("kErfValues[32]", erf[0]),
            "// What is left of erf at a distance d from there is d + d p(d).",
            _array("kErfTable[5][32]", erf[1:]),
            f"constexpr float kTailSpacing = {_literal(TAIL_SPACING)};",
            f"constexpr float kTailEnd = {_literal((POINTS - 1) * TAIL_SPACING)};  // there it is 0",
            _array("kTailTable[6][32]", tail),
            "// clang-format on\n",
            "}  // namespace",
            "}  // namespace onnxopt::simd\n",
        ]
    )


def _near(function: Callable[[np.ndarray], np.ndarray], middle: float, radius: float, degree: int) -> np.ndarray:
    """Coefficients of function(middle + d) for |d| <= radius."""
    d = chebyshev(-radius, radius)
    exact = function(middle + d)
    return fit(d, exact, 1 / exact, degree)[0]


def _odd(function: Callable[[np.ndarray], np.ndarray], slope: float, end: float, degree: int) -> np.ndarray:
    """Coefficients of d, d^2, ... of an odd function up to `end`, the first of which is given."""
    d = chebyshev(1e-4, end)
    exact = function(d)
    coefficients = np.zeros(degree)
    coefficients[0] = slope
    coefficients[2::2] = fit(d * d, (exact / d - slope) / d**2, d**3 / exact, (degree - 1) // 2 - 1)[0]
    return coefficients


def _normal_tail(t: np.ndarray) -> np.ndarray:
    return each(math.erfc, t / math.sqrt(2)) / 2


def _literal(number: float) -> str:
    text = f"{np.float32(number):.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def _array(declaration: str, values: np.ndarray) -> str:
    """A table as C++."""
    if values.ndim == 1:
        lines = [", ".join(map(_literal, row)) for row in values.reshape(-1, 8)]
    else:
        lines = ["{" + ", ".join(map(_literal, row)) + "}" for row in values]
    return f"alignas(64) constexpr float {declaration} = {{\n    " + ",\n    ".join(lines) + "};"


def each(function: Callable[[float], float], x: np.ndarray) -> np.ndarray:
    return np.array([function(value) for value in x])


def report(name: str, coefficients: np.ndarray, error: float) -> None:
    print(f"{name}  relative error {error:.2e} = {error * 2**24:.2f} ulp")
    print("  {" + ", ".join(f"{np.float32(c):.9g}f" for c in coefficients) + "}")


if __name__ == "__main__":
    main()
