"""FusedElementwise: a region of element-wise ops as one node.

The attribute `expr` is what the kernel runs (the language is described in kernels/cpu/elementwise/elementwise.h); the function body is the
original ops. Inputs and outputs are variadic; types are float32, float16, bfloat16 (of which only CUDA devices have a kernel), int32, int64
and bool; shapes broadcast as in ONNX.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from onnxopt import ir
from onnxopt.ir import DataType
from onnxopt.ops.base import BodyBuilder, OpSpec
from onnxopt.rewrite.rules import Refusal, attribute

SPEC = OpSpec(
    name="FusedElementwise",
    attributes=("expr",),
    dtypes=(DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16, DataType.INT32, DataType.INT64, DataType.BOOL),
    tolerance={DataType.FLOAT: 2e-6, DataType.FLOAT16: 2e-3, DataType.BFLOAT16: 2e-2},
)

MAX_INPUTS = 32
MAX_OUTPUTS = 16
MAX_STATEMENTS = 240
"""The kernel's limits (`Program` in elementwise.h); an ONNX op may need several statements, hence the margin below 256."""

TYPE_NAMES = {
    DataType.FLOAT: "f32",
    DataType.FLOAT16: "f16",
    DataType.BFLOAT16: "bf16",
    DataType.INT32: "i32",
    DataType.INT64: "i64",
    DataType.BOOL: "bool",
}
TWO_BYTES = frozenset({DataType.FLOAT16, DataType.BFLOAT16})
FLOATS = TWO_BYTES | {DataType.FLOAT}
INTEGERS = frozenset({DataType.INT32, DataType.INT64})
NUMBERS = FLOATS | INTEGERS
BOOLEANS = frozenset({DataType.BOOL})
ANY = frozenset(TYPE_NAMES)


Call = tuple[str, tuple[str, ...]]
"""One statement: its operation and operands."""


class Expression:
    """An expression under construction: equal statements are written once, and in the end only those that are needed."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._index: dict[Call, str] = {}

    def call(self, op: str, *operands: str) -> str:
        """The name of the statement that applies `op`."""
        key = (op, operands)
        name = self._index.get(key)
        if name is None:
            name = self._index[key] = f"t{len(self.calls)}"
            self.calls.append(key)
        return name

    def made_by(self, name: str) -> Call:
        """The statement of that name; an input or a literal is made by nothing."""
        return self.calls[int(name[1:])] if name.startswith("t") else ("", ())

    def write(self, results: Sequence[str]) -> tuple[list[str], list[str]]:
        """The statements that `results` need, and the names of the results among them."""
        needed = set(results)
        for index in reversed(range(len(self.calls))):
            if f"t{index}" in needed:
                needed.update(self.calls[index][1])
        names: dict[str, str] = {}
        statements = []
        for index, (op, operands) in enumerate(self.calls):
            if f"t{index}" in needed:
                name = names[f"t{index}"] = f"t{len(names)}"
                statements.append(f"{name}={op}({','.join(names.get(one, one) for one in operands)})")
        return statements, [names.get(one, one) for one in results]


def literal(number: float | int | bool, dtype: DataType) -> str:
    """A literal of the expression language; floats are exact."""
    if dtype is DataType.BOOL:
        text = "true" if number else "false"
    elif dtype in INTEGERS:
        text = str(int(number))
    else:
        # Kernels compute types of two bytes in float32; a float32 literal prints its own value, not a nearby double's.
        value = float(dtype.numpy().type(number))
        text = "nan" if math.isnan(value) else ("-inf" if value < 0 else "inf") if math.isinf(value) else value.hex()
    return f"#{text}:{TYPE_NAMES[dtype]}"


def parameter(number: float) -> str:
    """A literal parameter of an operation."""
    return literal(number, DataType.FLOAT)


# --- ONNX ops as statements ----------------------------------------------------------------------------------------
Emit = Callable[[Expression, ir.Node, list[str], DataType], str]


@dataclasses.dataclass(frozen=True, slots=True)
class Lowering:
    """How an ONNX op is written in the language: for which operand types, and from how many operands."""

    emit: Emit
    dtypes: frozenset[DataType]
    operands: range


def _plain(name: str) -> Emit:
    return lambda e, node, operands, dtype: e.call(name, *operands)


def _chain(name: str) -> Emit:
    def emit(e: Expression, node: ir.Node, operands: list[str], dtype: DataType) -> str:
        result = operands[0]
        for operand in operands[1:]:
            result = e.call(name, result, operand)
        return result

    return emit


def _sum(e: Expression, node: ir.Node, operands: list[str], dtype: DataType) -> str:
    """One rounding at the end, as onnxruntime's kernels of several operands of two bytes have."""
    if dtype not in TWO_BYTES:
        return _chain("add")(e, node, operands, dtype)
    return e.call(
        f"cast_{TYPE_NAMES[dtype]}", _sum(e, node, [e.call("cast_f32", one) for one in operands], DataType.FLOAT)
    )


def _mean(e: Expression, node: ir.Node, operands: list[str], dtype: DataType) -> str:
    if dtype not in TWO_BYTES:
        return e.call("div", _sum(e, node, operands, dtype), literal(len(operands), dtype))
    return e.call(
        f"cast_{TYPE_NAMES[dtype]}", _mean(e, node, [e.call("cast_f32", one) for one in operands], DataType.FLOAT)
    )


def _with(name: str, *defaults: tuple[str, float]) -> Emit:
    def emit(e: Expression, node: ir.Node, operands: list[str], dtype: DataType) -> str:
        values = [parameter(attribute(node, key, default)) for key, default in defaults]
        return e.call(name, operands[0], *values)

    return emit


def _gelu(e: Expression, node: ir.Node, operands: list[str], dtype: DataType) -> str:
    tanh = attribute(node, "approximate", "none") == "tanh"
    return e.call("gelu_tanh" if tanh else "gelu", operands[0])


def _swish(e: Expression, node: ir.Node, operands: list[str], dtype: DataType) -> str:
    alpha = attribute(node, "alpha", 1.0)
    if alpha == 1.0:
        return e.call("silu", operands[0])
    scaled = e.call("mul", operands[0], literal(alpha, dtype))
    return e.call("mul", operands[0], e.call("sigmoid", scaled))


def _mul(e: Expression, node: ir.Node, operands: list[str], dtype: DataType) -> str:
    """x * sigmoid(x) and x * (1 + erf(x / sqrt 2)) / 2 are one operation in the kernel."""
    if dtype is DataType.FLOAT:
        for x, gate in (operands, reversed(operands)):
            if e.made_by(gate) == ("sigmoid", (x,)):
                return e.call("silu", x)
        argument = _gelu_operand(e, operands)
        if argument is not None:
            return e.call("gelu", argument)
    return e.call("mul", *operands)


def _gelu_operand(e: Expression, operands: list[str]) -> str | None:
    """x, where the product of the operands is 0.5 * x * (1 + erf(x / sqrt 2)), in any order."""
    factors: list[str] = []
    for operand in operands:
        op, inner = e.made_by(operand)
        factors += inner if op == "mul" else (operand,)
    if len(factors) != 3 or not any(_is_literal(one, 0.5) for one in factors):
        return None
    for gate in factors:
        op, terms = e.made_by(gate)
        if op != "add" or not any(_is_literal(one, 1.0) for one in terms):
            continue
        for x in factors:
            if any(_is_erf_of(e, term, x) for term in terms):
                return x
    return None


def _is_erf_of(e: Expression, name: str, x: str) -> bool:
    """Whether `name` is erf(x / sqrt 2)."""
    op, operands = e.made_by(name)
    if op != "erf":
        return False
    op, (left, *right) = e.made_by(operands[0]) if operands[0].startswith("t") else ("", ("",))
    if op == "div":
        return left == x and _is_literal(right[0], math.sqrt(2))
    terms = (left, *right)
    return op == "mul" and x in terms and any(_is_literal(one, math.sqrt(0.5)) for one in terms)


def _is_literal(operand: str, number: float) -> bool:
    """Whether an operand is the float32 literal of a number, as far as exporters print it."""
    if not operand.startswith("#") or not operand.endswith(":f32"):
        return False
    return math.isclose(float.fromhex(operand[1:-4]), number, rel_tol=1e-6)


def _pow(e: Expression, node: ir.Node, operands: list[str], dtype: DataType) -> str:
    """Squares and cubes are products, as in onnxruntime's kernel."""
    x, exponent = operands
    if exponent == literal(2.0, dtype):
        return e.call("mul", x, x)
    if exponent == literal(3.0, dtype):
        return e.call("mul", e.call("mul", x, x), x)
    return e.call("pow", x, exponent)


def _mod(e: Expression, node: ir.Node, operands: list[str], dtype: DataType) -> str:
    """The rest of a division by a positive number has the sign of the divisor, with `fmod` that of what is divided."""
    x, divisor = operands
    rest = e.call("sub", x, e.call("mul", e.call("div", x, divisor), divisor))
    if attribute(node, "fmod", 0):
        return rest
    return e.call("where", e.call("less", rest, literal(0, dtype)), e.call("add", rest, divisor), rest)


def _prelu(e: Expression, node: ir.Node, operands: list[str], dtype: DataType) -> str:
    x, slope = operands
    return e.call("where", e.call("less", x, literal(0, dtype)), e.call("mul", x, slope), x)


def _limits(dtype: DataType) -> Any:
    of_type: Callable[[Any], Any] = np.iinfo if dtype in INTEGERS else ml_dtypes.finfo
    return of_type(dtype.numpy())


def _clip(e: Expression, node: ir.Node, operands: list[str], dtype: DataType) -> str:
    """An absent bound is the largest finite number of the type, so that infinities become finite."""
    limits = _limits(dtype)
    low, high = attribute(node, "min", limits.min), attribute(node, "max", limits.max)
    bounds = operands[1:] + [literal(bound, dtype) for bound in (low, high)[len(operands) - 1 :]]
    return e.call("clip", operands[0], *bounds)


def _cast(e: Expression, node: ir.Node, operands: list[str], dtype: DataType) -> str:
    return e.call(f"cast_{TYPE_NAMES[DataType(attribute(node, 'to'))]}", operands[0])


def _one(emit: Emit, dtypes: frozenset[DataType]) -> Lowering:
    return Lowering(emit, dtypes, range(1, 2))


def _two(emit: Emit, dtypes: frozenset[DataType]) -> Lowering:
    return Lowering(emit, dtypes, range(2, 3))


LOWERINGS: dict[str, Lowering] = {
    **{
        op: _one(_plain(name), FLOATS)
        for op, name in {
            "Ceil": "ceil", "Erf": "erf", "Exp": "exp", "Floor": "floor", "HardSwish": "hard_swish", "IsNaN": "isnan", "Log": "log",
            "Mish": "mish", "Reciprocal": "reciprocal", "Relu": "relu", "Round": "round", "Sigmoid": "sigmoid", "Softplus": "softplus",
            "Softsign": "softsign", "Sqrt": "sqrt", "Tanh": "tanh",
        }.items()
    },
    "Abs": _one(_plain("abs"), NUMBERS),
    "Neg": _one(_plain("neg"), NUMBERS),
    # onnxruntime's Sign of a NaN of two bytes is 0, unlike that of other types.
    "Sign": _one(_plain("sign"), NUMBERS - TWO_BYTES),
    "Not": _one(_plain("not"), BOOLEANS),
    "IsInf": _one(_plain("isinf"), FLOATS),
    "Gelu": _one(_gelu, FLOATS),
    "Swish": _one(_swish, FLOATS),
    "LeakyRelu": _one(_with("leaky_relu", ("alpha", 0.01)), FLOATS),
    "Elu": _one(_with("elu", ("alpha", 1.0)), FLOATS),
    "Celu": _one(_with("celu", ("alpha", 1.0)), frozenset({DataType.FLOAT})),
    "Selu": _one(_with("selu", ("alpha", 1.67326319217681884765625), ("gamma", 1.05070102214813232421875)), FLOATS),
    "HardSigmoid": _one(_with("hard_sigmoid", ("alpha", 0.2), ("beta", 0.5)), FLOATS),
    "ThresholdedRelu": _one(_with("thresholded_relu", ("alpha", 1.0)), FLOATS),
    "Cast": _one(_cast, ANY),
    "Add": _two(_plain("add"), NUMBERS),
    "Sub": _two(_plain("sub"), NUMBERS),
    "Mul": _two(_mul, NUMBERS),
    "Div": _two(_plain("div"), NUMBERS),
    "Mod": _two(_mod, INTEGERS),
    "Pow": _two(_pow, frozenset({DataType.FLOAT})),
    "PRelu": _two(_prelu, FLOATS),
    "Equal": _two(_plain("equal"), ANY),
    "Less": _two(_plain("less"), NUMBERS),
    "LessOrEqual": _two(_plain("less_equal"), NUMBERS),
    "Greater": _two(_plain("greater"), NUMBERS),
    "GreaterOrEqual": _two(_plain("greater_equal"), NUMBERS),
    "And": _two(_plain("and"), BOOLEANS),
    "Or": _two(_plain("or"), BOOLEANS),
    "Xor": _two(_plain("xor"), BOOLEANS),
    "Sum": Lowering(_sum, FLOATS, range(1, MAX_INPUTS)),
    "Mean": Lowering(_mean, FLOATS, range(1, MAX_INPUTS)),
    "Max": Lowering(_chain("max"), NUMBERS, range(1, MAX_INPUTS)),
    "Min": Lowering(_chain("min"), NUMBERS, range(1, MAX_INPUTS)),
    "Clip": Lowering(_clip, NUMBERS, range(1, 4)),
    "Where": Lowering(_plain("where"), ANY, range(3, 4)),
}  # fmt: skip
"""Every ONNX op that a region may hold."""


def refuse_node(node: ir.Node, shapes: ir.ShapeEnv, *, on_device: bool = False) -> Refusal | None:
    """Why the kernel cannot compute the node; None when it can. That for CUDA devices computes bfloat16 as well."""
    lowering = LOWERINGS.get(node.op_type)
    if lowering is None or node.domain:
        return Refusal("{} is not element-wise", node.op_type, culprit=node)
    inputs = [value for value in node.inputs if value is not None]
    absent = node.op_type != "Clip" and None in _given(node)
    if len(node.outputs) != 1 or len(inputs) not in lowering.operands or absent:
        return Refusal("{} has an unusual number of operands", node.op_type, culprit=node)
    if any(attr.is_ref() for attr in node.attributes.values()) or "broadcast" in node.attributes:
        return Refusal("{} has an attribute that is not known here", node.op_type, culprit=node)
    types = [shapes.dtype(value) for value in inputs]
    operand_types = types[1:] if node.op_type == "Where" else types
    if any(one is None for one in types):
        return Refusal("an element type is unknown", culprit=node)
    if not on_device and DataType.BFLOAT16 in (*types, shapes.dtype(node.outputs[0])):
        return Refusal("only CUDA devices have kernels for bfloat16", culprit=node)
    if any(one != operand_types[0] or one not in lowering.dtypes for one in operand_types):
        return Refusal("{} of {} is not computed by the kernel", node.op_type, operand_types, culprit=node)
    return _refuse_attributes(node, operand_types[0])


def _given(node: ir.Node) -> list[ir.Value | None]:
    """The inputs up to the last one that is there."""
    inputs = list(node.inputs)
    while inputs and inputs[-1] is None:
        inputs.pop()
    return inputs


def _refuse_attributes(node: ir.Node, dtype: DataType | None) -> Refusal | None:
    if node.op_type == "Cast":
        to = attribute(node, "to")
        if to not in [one.value for one in TYPE_NAMES] or not attribute(node, "saturate", 1):
            return Refusal("the Cast's type is not computed by the kernel", culprit=node)
        if dtype in FLOATS and DataType(to) in INTEGERS and attribute(node, "round_mode") not in (None, "up"):
            return Refusal("the Cast has an unusual rounding", culprit=node)
    if node.op_type == "IsInf" and not (
        attribute(node, "detect_negative", 1) and attribute(node, "detect_positive", 1)
    ):
        return Refusal("IsInf looks at one sign only", culprit=node)
    if node.op_type in ("Div", "Mod") and dtype in INTEGERS and not _is_positive(node.inputs[1]):
        return Refusal("integer division by zero is not defined", culprit=node)
    return None


def _is_positive(value: ir.Value | None) -> bool:
    number = ir.scalar(value)
    return number is not None and number > 0


@dataclasses.dataclass(frozen=True, slots=True)
class Compiled:
    """An expression, and the values that its inputs and outputs stand for."""

    text: str
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]


def compile_region(
    nodes: Sequence[ir.Node], outputs: Sequence[ir.Value], shapes: ir.ShapeEnv, first: Sequence[ir.Value] = ()
) -> Compiled | Refusal:
    """Write a region down as an expression.

    Args:
        nodes: the region in topological order; `refuse_node` is None for each.
        outputs: values of the region that others use.
        shapes: what is known of the values.
        first: values that are the first inputs.
    """
    expression = Expression()
    inputs: list[ir.Value] = list(first)
    names = {value: f"i{index}" for index, value in enumerate(inputs)}
    for node in nodes:
        typed = node.inputs[1] if node.op_type == "Where" else node.inputs[0]
        assert typed is not None
        dtype = shapes.dtype(typed)
        assert dtype is not None
        # The only operand that may be absent before others is the lower bound of a Clip.
        operands = [
            literal(_limits(dtype).min, dtype) if value is None else _operand(value, node, names, inputs, shapes)
            for value in _given(node)
        ]
        names[node.outputs[0]] = LOWERINGS[node.op_type].emit(expression, node, operands, dtype)
    if not inputs:
        return Refusal("the region reads constants only", culprit=nodes[0])
    if len(inputs) > MAX_INPUTS or len(outputs) > MAX_OUTPUTS or len(expression.calls) > MAX_STATEMENTS:
        return Refusal("the region is too large for one kernel", culprit=nodes[0])
    for value in outputs:
        if not names[value].startswith("t"):
            return Refusal("'{}' is a copy of an input", value.name, culprit=value)
        if shapes.dtype(value) is None:
            return Refusal("the element type of '{}' is unknown", value.name, culprit=value)
    statements, results = expression.write([names[value] for value in outputs])
    declared = [_typed(f"i{index}", value, shapes) for index, value in enumerate(inputs)]
    made = [_typed(name, value, shapes) for name, value in zip(results, outputs, strict=True)]
    text = " | ".join(" ".join(section) for section in (declared, statements, made))
    return Compiled(text, tuple(inputs), tuple(outputs))


def _typed(name: str, value: ir.Value, shapes: ir.ShapeEnv) -> str:
    dtype = shapes.dtype(value)
    assert dtype is not None
    return f"{name}:{TYPE_NAMES[dtype]}"


def _operand(
    value: ir.Value, node: ir.Node, names: dict[ir.Value, str], inputs: list[ir.Value], shapes: ir.ShapeEnv
) -> str:
    number = _number(value, node, shapes)
    if number is not None:
        return number
    if value not in names:
        names[value] = f"i{len(inputs)}"
        inputs.append(value)
    return names[value]


def _number(value: ir.Value, node: ir.Node, shapes: ir.ShapeEnv) -> str | None:
    """The literal that a constant of one element is written as, unless it gives the result dims that no other operand has."""
    array = ir.small_array(value)
    dtype = shapes.dtype(value)
    if array is None or array.size != 1 or dtype is None:
        return None
    ranks = [shapes.rank(other) for other in node.inputs if other is not None and ir.constant(other) is None]
    if array.ndim and not any(rank is not None and rank >= array.ndim for rank in ranks):
        return None
    return literal(array.reshape(-1)[0].item(), dtype)


def body(nodes: Iterable[ir.Node], compiled: Compiled, overload: str, opset: int) -> ir.Function:
    """The function that the op stands for: the original ops with constants inside, so that any runtime can run it."""
    builder = BodyBuilder(len(compiled.inputs), opset)
    known = dict(zip(compiled.inputs, builder.inputs, strict=True))
    builder.copy(nodes, known)
    return builder.function(SPEC, overload, [known[value] for value in compiled.outputs])
