"""QGemm nodes make the bytes that the ops after them read."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions import requantization as fusion
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.rules import Refusal


@register_pass
class RequantizeQGemms(Pass):
    """Let a QGemm, and what is computed of it, end in 8-bit integers where all that reads its result quantizes it alike: QuantizeLinear
    goes, and a QGemm reads the bytes.

    Refused: results of the model, readers of floats, and readers with different scales or zero points.
    """

    name = "requantize_qgemms"
    phase = "fuse"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        fused = [self._fuse(node, ctx) for node in list(model.graph) if fusion.is_host(node, ctx)]
        return PassResult(any(fused), sum(fused))

    def _fuse(self, node: ir.Node, ctx: Context) -> int:
        """The number of patches that were made."""
        ctx.log.attempted(fusion.RULE)
        quantization = fusion.agreed(node, ctx)
        if isinstance(quantization, Refusal):
            ctx.log.refused(fusion.RULE, node, quantization, 2)
            return 0
        patch = fusion.build(node, quantization, ctx)
        if not ctx.editor.apply(patch):
            return 0
        (floats,) = patch.replacements.values()
        dequantize = floats.producer()
        assert dequantize is not None and dequantize.inputs[0] is not None
        readers = list(dict.fromkeys(reader for reader, _ in floats.uses()))
        read = sum(ctx.editor.apply(fusion.read_bytes(reader, dequantize.inputs[0], ctx)) for reader in readers)
        ctx.editor.remove_unused([*readers, dequantize, node])
        return 1 + read

    def rule_names(self) -> list[str]:
        return [fusion.RULE, fusion.RULE_OF_READERS]
