"""Kernels measured one by one: correct first, then beside the ceilings of the machine."""

from __future__ import annotations

from onnxopt.kernelbench.bench import KernelBench, Measurement, bench_kernel, measure, variants_of
from onnxopt.kernelbench.case import Case, Problem, load_problems
from onnxopt.kernelbench.ceilings import Ceilings
from onnxopt.kernelbench.problems import PROBLEMS

__all__ = [
    "PROBLEMS",
    "Case",
    "Ceilings",
    "KernelBench",
    "Measurement",
    "Problem",
    "bench_kernel",
    "load_problems",
    "measure",
    "variants_of",
]
