"""Fit the polynomials of `functions.h`: weighted least squares, reweighted towards the minimax solution (Lawson's algorithm).

Run it to print the coefficients, lowest degree first, and the relative error of each fit before rounding.
Source of the method: C. L. Lawson, "Contributions to the theory of linear least maximum approximation", 1961.
"""

from __future__ import annotations

import math
from collections.abc import Callable

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


def each(function: Callable[[float], float], x: np.ndarray) -> np.ndarray:
    return np.array([function(value) for value in x])


def report(name: str, coefficients: np.ndarray, error: float) -> None:
    print(f"{name}  relative error {error:.2e} = {error * 2**24:.2f} ulp")
    print("  {" + ", ".join(f"{np.float32(c):.9g}f" for c in coefficients) + "}")


if __name__ == "__main__":
    main()
