"""Equal initializers are stored once."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

from onnxopt import ir
from onnxopt.passes.base import Context, Pass, PassResult, register_pass

SAMPLE_BYTES = 4096
"""Bytes that are compared first, from the middle of the tensor: weights that differ, differ there, and one page is cheap to map."""


@register_pass
class DeduplicateInitializers(Pass):
    """Let initializers with the same type, shape and bytes share one tensor.

    Large tensors are read only when another one has the same type, shape and sample. Graph inputs with a default and graph outputs
    are left alone.
    """

    name = "deduplicate_initializers"
    phase = "lower"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        groups: dict[Hashable, list[ir.Value]] = {}
        for value in model.graph.initializers.values():
            tensor = ir.constant(value)
            if tensor is None or value.is_graph_output() or tensor.dtype == ir.DataType.STRING:
                continue
            if ir.is_streamed(tensor):
                continue
            groups.setdefault((tensor.dtype, tuple(tensor.shape)), []).append(value)
        patches = sum(self._merge_equal(group, ctx) for group in groups.values() if len(group) > 1)
        return PassResult(patches > 0, patches)

    def _merge_equal(self, group: list[ir.Value], ctx: Context) -> int:
        tensor = group[0].const_value
        assert tensor is not None
        size = tensor.nbytes
        by_sample: dict[bytes, list[ir.Value]] = {}
        for value in group:
            by_sample.setdefault(_sample(value), []).append(value)
        patches = 0
        for alike in by_sample.values():
            first: dict[bytes, ir.Value] = {}
            for value in alike if len(alike) > 1 else ():
                kept = first.setdefault(_digest(value) if size > SAMPLE_BYTES else b"", value)
                if kept is not value and ctx.budget.take():
                    ctx.log.replaced(value)
                    ctx.editor.replace(value, kept)
                    ctx.model.graph.initializers.pop(value.name or "")
                    patches += 1
        return patches


def _bytes(value: ir.Value) -> memoryview:
    tensor = value.const_value
    assert tensor is not None
    if type(tensor) is ir.MappedTensor or type(tensor) is ir.ArrayTensor:
        return tensor.view()
    return memoryview(tensor.tobytes())


def _sample(value: ir.Value) -> bytes:
    data = _bytes(value)
    start = max(len(data) - SAMPLE_BYTES, 0) // 2
    return bytes(data[start : start + SAMPLE_BYTES])


def _digest(value: ir.Value) -> bytes:
    digest = hashlib.blake2b(_bytes(value)).digest()
    tensor = value.const_value
    if type(tensor) is ir.MappedTensor:
        tensor.release()
    return digest
