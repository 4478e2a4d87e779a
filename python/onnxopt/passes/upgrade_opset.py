"""The model is converted to a newer opset, on request."""

from __future__ import annotations

import onnx
import onnx.defs
import onnx.version_converter

from onnxopt import ir
from onnxopt.errors import OptionError
from onnxopt.passes.base import Context, Pass, PassResult, register_pass


@register_pass
class UpgradeOpset(Pass):
    """Convert the model to the opset that `--opset` names, with onnx's own converter.

    Refused with a sentence: opsets below the model's, models with functions, and models that the converter cannot convert.
    """

    name = "upgrade_opset"
    phase = "canonicalize"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        wanted = ctx.options.opset
        if wanted is None or wanted == ctx.opset:
            return PassResult(False)
        if wanted < ctx.opset:
            raise OptionError(f"The model has opset {ctx.opset}; it cannot be converted down to {wanted}.")
        if wanted > onnx.defs.onnx_opset_version():
            raise OptionError(
                f"There is no opset {wanted}: the newest that onnx {onnx.__version__} knows is {onnx.defs.onnx_opset_version()}."
            )
        if model.functions:
            names = ", ".join(sorted({name for _, name, _ in model.functions}))
            raise OptionError(
                f"onnx's converter leaves out the functions of a model ({names}): choose --inline-functions as well."
            )
        ir.rebuild(model, lambda proto: onnx.version_converter.convert_version(proto, wanted))
        ctx.refresh()
        return PassResult(True)
