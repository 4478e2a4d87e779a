"""What a custom op is: its name, its types, its body in standard ops."""

from __future__ import annotations

import dataclasses
import hashlib

from onnxopt import ir

DOMAIN = "ai.onnxopt"
DOMAIN_VERSION = 1

FUNCTIONS_IR_VERSION = 10
"""The IR version from which a model may hold functions with overloads."""


@dataclasses.dataclass(frozen=True, slots=True)
class OpSpec:
    """One custom op. `tolerance` bounds the relative difference between kernel and body, by element type."""

    name: str
    attributes: tuple[str, ...]
    dtypes: tuple[ir.DataType, ...]
    tolerance: dict[ir.DataType, float]
    domain: str = DOMAIN


def overload_of(text: str) -> str:
    """A short stable name for one body of an op."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def prepare_model(model: ir.Model) -> None:
    """Let a model hold custom ops: import their domain and raise the IR version to one that has function overloads."""
    model.graph.opset_imports.setdefault(DOMAIN, DOMAIN_VERSION)
    if model.ir_version < FUNCTIONS_IR_VERSION:
        model.ir_version = FUNCTIONS_IR_VERSION
