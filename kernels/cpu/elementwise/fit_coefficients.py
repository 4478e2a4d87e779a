"""Fit the polynomials of `generic.h`: weighted least squares, reweighted towards the minimax solution (Lawson's algorithm).

Run it to print the coefficients, lowest degree first, and the relative error of each fit before rounding.
Source of the method: C. L. Lawson, "Contributions to the theory of linear least maximum approximation", 1961.
"""

from __future__ import annotations

import math

import numpy as np

NODES = 4000
ROUNDS = 200


def fit(x: np.ndarray, target: np.ndarray, weight: np.ndarray, degree: int) -> tuple[np.ndarray, float]:
    """Coefficients of the polynomial p that minimizes max |p(x) - target| * weight, and that maximum."""
    basis = np.vander(x, degree + 1, increasing=True).astype(np.longdouble)
    lawson = np.ones_like(x)
    best, lowest = np.zeros(degree + 1), math.inf
    for _ in range(ROUNDS):
        scale = np.sqrt(lawson) * weight
        solution = np.linalg.lstsq((basis * scale[:, None]).astype(float), (target * scale).astype(float), rcond=None)[
            0
        ]
        error = np.abs(basis @ solution - target) * weight
        if error.max() < lowest:
            best, lowest = solution, float(error.max())
        lawson = lawson * error.astype(float)
        lawson /= lawson.sum()
    return best, lowest


def chebyshev(low: float, high: float) -> np.ndarray:
    return (low + high) / 2 + (high - low) / 2 * np.cos(np.pi * (np.arange(NODES) + 0.5) / NODES)


def main() -> None:
    half = math.log(2) / 2 * 1.002
    r = chebyshev(-half, half)
    r = r[np.abs(r) > 1e-4]
    exp_q = (np.expm1(r) - r) / r**2
    report("exp: e^r = 1 + r + r^2 q(r)", *fit(r, exp_q, r**2 / np.exp(r), 4))

    z = chebyshev(1e-3, 0.93)
    small = np.array([math.erf(v) for v in z]) / z - 1
    report("erf, |x| < 0.92: x + x p(x^2)", *fit(z * z, small, 1 / (1 + small), 5))
    t = chebyshev(0.90, 4.0)
    erfc = np.array([math.erfc(v) for v in t])
    report("erf, else: 1 - exp(p(t)), t = |x|", *fit(t, np.log(erfc), erfc / (1 - erfc), 6))

    f = chebyshev(math.sqrt(0.5) - 1, math.sqrt(2) - 1)
    f = f[np.abs(f) > 1e-3]
    log_p = (np.log1p(f) - f + f * f / 2) / f**3
    report("log: log(1+f) = f - f^2/2 + f^3 p(f)", *fit(f, log_p, np.abs(f**3 / np.log1p(f)), 7))


def report(name: str, coefficients: np.ndarray, error: float) -> None:
    print(f"{name}  relative error {error:.2e} = {error * 2**24:.2f} ulp")
    print("  {" + ", ".join(f"{np.float32(c):.9g}f" for c in coefficients) + "}")


if __name__ == "__main__":
    main()
