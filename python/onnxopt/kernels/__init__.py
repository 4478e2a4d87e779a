"""Kernels measured one by one: correct first, then beside the ceilings of the machine."""

from __future__ import annotations

from onnxopt.kernels.bench import KernelBench, Measurement, bench_kernel, measure, variants_of
from onnxopt.kernels.ceilings import Ceilings
from onnxopt.kernels.problems import PROBLEMS, Problem

__all__ = [
    "PROBLEMS",
    "Ceilings",
    "KernelBench",
    "Measurement",
    "Problem",
    "bench_kernel",
    "measure",
    "variants_of",
]
