"""Import onnx-ir without paying for SymPy.

onnx-ir imports SymPy for arithmetic on its own symbolic dimensions, which onnxopt does with `onnxopt.ir.dims`; SymPy is more than
half of the import time of the whole tool. While onnx-ir is being imported, a stand-in takes SymPy's place that loads the real one
at the first call or attribute that needs it.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any


def _call_later(name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module("sympy"), name)(*args, **kwargs)

    return call


class _StandIn(types.ModuleType):
    importing = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _call_later(name) if self.importing else getattr(importlib.import_module("sympy"), name)


def import_onnx_ir() -> types.ModuleType:
    """Return the `onnx_ir` module; SymPy is left unloaded when nobody has loaded it yet."""
    if "onnx_ir" in sys.modules or "sympy" in sys.modules:
        return importlib.import_module("onnx_ir")
    stand_in = _StandIn("sympy")
    sys.modules["sympy"] = stand_in
    try:
        return importlib.import_module("onnx_ir")
    finally:
        stand_in.importing = False
        del sys.modules["sympy"]
