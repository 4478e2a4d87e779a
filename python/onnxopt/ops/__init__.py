"""The custom ops: schema, standard body and cost of each, one file per op."""

from __future__ import annotations

from typing import Any


def describe_ops() -> list[dict[str, Any]]:
    """Every custom op with its kernel variants, and which of them this machine runs.

    Raises:
        RuntimeMissingError: the native library is missing.
    """
    from onnxopt.runtime.library import native

    found: list[dict[str, Any]] = native().ops()
    return found
