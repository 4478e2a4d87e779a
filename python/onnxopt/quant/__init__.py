"""INT8 quantization: calibration, ranges, and where the integers go."""

from __future__ import annotations

from onnxopt.quant.quantization import Quantization, quantize

__all__ = ["Quantization", "quantize"]
