"""The ops that compute element by element."""

from __future__ import annotations

_NAMES = (
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil Celu Clip Cos Cosh Div Elu "
    "Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min "
    "Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan "
    "Tanh ThresholdedRelu Where Xor"
)

ELEMENTWISE = frozenset(_NAMES.split())
"""Ops whose result at an index depends on the inputs at that index alone, broadcast as NumPy does (of the standard's domain)."""

UNIDIRECTIONAL = frozenset({"Clip", "PRelu"})
"""Element-wise ops whose result has the shape of their first input, whatever the others have."""
