"""Quantizing the weights of products alone: what a product of few rows waits for is memory, and integers are less of it.

Tables that Gather reads stay as they are: of them, a run reads a few rows.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from onnxopt import ir
from onnxopt.ops.fused_gemm import BLOCKS_OPSET
from onnxopt.passes.base import Context
from onnxopt.pipeline import PassManager
from onnxopt.quant import layers
from onnxopt.quant.blocks import BlockedMatrix, WeightFormat, quantize_blocks
from onnxopt.quant.job import Job, Task
from onnxopt.quant.placement import PRODUCTS, place
from onnxopt.quant.result import LayerResult

WRITE = ("write_weights", "eliminate_common_subexpressions", "eliminate_dead_code")


class WeightJob(Job):
    """A run that leaves activations in float: there is nothing to observe, and samples only measure the result."""

    def __init__(self, model: ir.Model, task: Task, form: WeightFormat) -> None:
        self.form, self.precision = form, form.dtype
        if form != WeightFormat("int8", None):
            self.min_opset = BLOCKS_OPSET  # before, DequantizeLinear knows neither blocks nor int4
        super().__init__(model, task, smooth=False, bias_correction=False)
        self.options = dataclasses.replace(self.options, quantize_products=False)
        self.result.weights = form.dtype

    def place(self, ctx: Context) -> list[ir.Node]:
        """The products with constant weights."""
        self.static, self.observed, self.fresh = set(), (), ()
        return [node for node in place(self.model, ctx.shapes).nodes if node.op_type in PRODUCTS]

    def round_weights(self) -> None:
        """Round the weights of all layers once; those that are not finite stay as they are."""
        assert self.form is not None
        matrices: dict[str, BlockedMatrix] = {}
        broken = set()
        for node in self.model.graph:
            name = ir.node_name(node)
            if node.op_type not in layers.OPS or name not in self.layers or name in matrices:
                continue
            matrix = layers.matrix_of(node)
            if not np.isfinite(matrix).all():
                broken.add(name)
                continue
            self.tick(f"weights of {name}")
            matrices[name] = quantize_blocks(matrix, self.form)
            self.weight_sqnr[name] = matrices[name].signal_to_noise(matrix)
        self.broken = frozenset(broken)
        self.options = dataclasses.replace(self.options, blocked=matrices)
        self.rounded = True

    def write(self, model: ir.Model, keep: frozenset[str], *, fuse: bool = True) -> dict[str, int]:
        """Write the integers of all other layers into the model, and fuse what is around them. Returns the nodes after, by op."""
        options = dataclasses.replace(self.options, keep_float=keep | self.broken)
        written = PassManager("generic", WRITE, options=options).run(model)
        if self.format == "qdq":
            return written.ops_after
        return PassManager(self.target, None if fuse else ["fuse_gemms"], options=options).run(model).ops_after

    def is_counted(self, layer: LayerResult) -> bool:
        """All layers stay what they were."""
        return True
