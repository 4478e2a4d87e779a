"""onnxopt: a graph-optimization compiler for ONNX.

    import onnxopt

    onnxopt.optimize("model.onnx", "model.opt.onnx", verify=True)
    session = onnxopt.session("model.opt.onnx")

Names load when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from onnxopt.errors import (
        CalibrationError,
        ModelError,
        OnnxOptError,
        OptionError,
        PassError,
        RuntimeMissingError,
        VerificationError,
    )
    from onnxopt.explanation import explain
    from onnxopt.inspection import diff, inspect
    from onnxopt.passes.base import Context, Options, Pass, PassResult, RulePass, register_pass
    from onnxopt.pipeline import PassManager, Report, graphsurgeon_pass, optimize
    from onnxopt.quant import Quantization, quantize
    from onnxopt.rewrite.pattern import pattern
    from onnxopt.rewrite.rules import Match, Refusal, Rule, RuleSet, rule
    from onnxopt.runtime.library import cmake_dir, library_path, load_kernels, register, session
    from onnxopt.runtime.target import Target
    from onnxopt.runtime.verify import verify
    from onnxopt.tuning import tune

_HOME = {
    "onnxopt.errors": (
        "CalibrationError", "ModelError", "OnnxOptError", "OptionError", "PassError", "RuntimeMissingError", "VerificationError",
    ),
    "onnxopt.explanation": ("explain",),
    "onnxopt.inspection": ("diff", "inspect"),
    "onnxopt.passes.base": ("Context", "Options", "Pass", "PassResult", "RulePass", "register_pass"),
    "onnxopt.pipeline": ("PassManager", "Report", "graphsurgeon_pass", "optimize"),
    "onnxopt.quant": ("Quantization", "quantize"),
    "onnxopt.rewrite.pattern": ("pattern",),
    "onnxopt.rewrite.rules": ("Match", "Refusal", "Rule", "RuleSet", "rule"),
    "onnxopt.runtime.library": ("cmake_dir", "library_path", "load_kernels", "register", "session"),
    "onnxopt.runtime.target": ("Target",),
    "onnxopt.runtime.verify": ("verify",),
    "onnxopt.tuning": ("tune",),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "CalibrationError",
    "Context",
    "Match",
    "ModelError",
    "OnnxOptError",
    "OptionError",
    "Options",
    "Pass",
    "PassError",
    "PassManager",
    "PassResult",
    "Quantization",
    "Refusal",
    "Report",
    "Rule",
    "RulePass",
    "RuleSet",
    "RuntimeMissingError",
    "Target",
    "VerificationError",
    "__version__",
    "cmake_dir",
    "diff",
    "explain",
    "graphsurgeon_pass",
    "inspect",
    "library_path",
    "load_kernels",
    "optimize",
    "pattern",
    "quantize",
    "register",
    "register_pass",
    "rule",
    "session",
    "tune",
    "verify",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'onnxopt' has no attribute '{name}'")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
