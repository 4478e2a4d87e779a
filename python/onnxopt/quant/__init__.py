"""INT8 quantization: calibration, ranges, and where the integers go."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxopt.quant.quantization import quantize
    from onnxopt.quant.result import Quantization

__all__ = ["Quantization", "quantize"]


def __getattr__(name: str) -> Any:
    """Passes need a few modules of this package; what quantizes whole models needs the passes, and is imported when it is used."""
    module = {"Quantization": "result", "quantize": "quantization"}.get(name)
    if module is None:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
