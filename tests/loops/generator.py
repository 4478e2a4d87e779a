"""Random programs with Loop, Scan and If, for comparing what the passes make of them with onnxruntime on the original.

A program has the inputs `x` [3], `m` [2, 3], `rows` [T, 3], `n` (a whole number) and `flag`. Names of values inside bodies are taken
again in sibling bodies, and sometimes hide a value of an outer graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MAX_DEPTH = 3
TYPES = {"row": (TensorProto.FLOAT, (3,)), "square": (TensorProto.FLOAT, (2, 3)), "grown": (TensorProto.FLOAT, (None, 3)), "number": (TensorProto.INT64, ()), "flag": (TensorProto.BOOL, ())}  # fmt: skip
"""What values may be: tensors by dtype and shape (None grows), and `list`, a sequence of rows."""


@dataclasses.dataclass(frozen=True)
class Value:
    """A value by name; a `list` or `grown` has at least `least` entries."""

    name: str
    kind: str
    least: int = 0


class Scope:
    """One graph while it is built, and the graphs around it."""

    def __init__(self, outer: Scope | None) -> None:
        self.outer = outer
        self.nodes: list[onnx.NodeProto] = []
        self.values: list[Value] = []
        self.depth = 0 if outer is None else outer.depth + 1
        self.count = 0

    def visible(self) -> list[Value]:
        own = {value.name for value in self.values}
        above = [] if self.outer is None else [one for one in self.outer.visible() if one.name not in own]
        return above + self.values


class Generator:
    """Builds one program from a seed: every node is valid, and no program runs for long."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.scope = Scope(None)

    def build(self) -> onnx.ModelProto:
        given = [Value("x", "row"), Value("m", "square"), Value("rows", "grown", 1), Value("n", "number"), Value("flag", "flag")]  # fmt: skip
        self.scope.values.extend(given)
        for _ in range(int(self.rng.integers(0, 3))):
            self.statement()
        for _ in range(int(self.rng.integers(1, 3))):
            self.choose([self.loop, self.loop, self.settle, self.scan, self.branch])()
            self.statement()
        used = {name for node in self.scope.nodes for name in node.input}
        results = [one for one in self.scope.values if one not in given and one.name not in used] or [self.neg()]
        graph = helper.make_graph(
            self.scope.nodes,
            "program",
            [info(Value(one.name, one.kind), "T") for one in given],
            [info(one) for one in results[-6:]],
            list(self.initializers.values()),
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)

    def feeds(self) -> list[dict[str, np.ndarray]]:
        """Inputs for three runs: no, one and several iterations of what depends on `n`; the flag either way."""
        return [
            {
                "x": self.rng.normal(0, 1, 3).astype(np.float32),
                "m": self.rng.normal(0, 1, (2, 3)).astype(np.float32),
                "rows": self.rng.normal(0, 1, (length, 3)).astype(np.float32),
                "n": np.array(number),
                "flag": np.array(flag),
            }
            for length, number, flag in ((1, 0, True), (2, 1, False), (4, 3, True), (3, -1, False))
        ]

    # --- parts
    def choose(self, options: list) -> object:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def fresh(self) -> str:
        """A new name: bodies count anew, so that those of siblings have the same names."""
        self.scope.count += 1
        return f"v{self.scope.depth}_{self.scope.count}"

    def constant(self, array: object) -> str:
        data = np.asarray(array)
        name = f"c{len(self.initializers)}"
        self.initializers[name] = numpy_helper.from_array(data, name)
        return name

    def op(self, op: str, inputs: list[str], kind: str, least: int = 0, **attributes: object) -> Value:
        value = Value(self.fresh(), kind, least)
        self.scope.nodes.append(helper.make_node(op, inputs, [value.name], name=f"n{value.name}", **attributes))
        self.scope.values.append(value)
        return value

    def pick(self, kind: str) -> Value:
        """A value of a kind, of this graph or one around it; made where there is none."""
        known = [one for one in self.scope.visible() if one.kind == kind]
        if known:
            # The latest ones more often, so that chains grow.
            return known[-1 - int(min(self.rng.geometric(0.4) - 1, len(known) - 1))]
        makers: dict[str, Callable[[], Value]] = {
            "grown": lambda: self.op("Unsqueeze", [self.pick("row").name, self.constant([0])], "grown", 1),
            "list": self.new_list,
            "flag": self.comparison,
        }
        return makers[kind]()

    def any_value(self, kinds: tuple[str, ...] = ("row", "row", "square", "grown", "number", "flag", "list")) -> Value:
        return self.pick(str(self.choose(list(kinds))))

    # --- statements without bodies
    def statement(self) -> None:
        options = [self.neg, self.neg, self.arithmetic, self.arithmetic, self.arithmetic, self.count_up, self.comparison, self.logic, self.scale, self.reduce, self.grow, self.length, self.list_step, self.list_step, self.optional, self.product, self.move, self.look_up, self.window, self.convolve]  # fmt: skip
        self.choose(options)()

    def neg(self) -> Value:
        value = self.pick(str(self.choose(["row", "square"])))
        return self.op(str(self.choose(["Neg", "Abs", "Tanh", "Relu", "Sigmoid"])), [value.name], value.kind)

    def arithmetic(self) -> Value:
        kind = str(self.choose(["row", "row", "square"]))
        first, second = self.pick(kind), self.pick("row" if self.chance(0.5) else kind)
        return self.op(str(self.choose(["Add", "Sub", "Max", "Min"])), [first.name, second.name], kind)

    def scale(self) -> Value:
        kind = str(self.choose(["row", "square"]))
        if self.chance(0.5):
            factor = self.op("Cast", [self.pick("number").name], "scalar", to=TensorProto.FLOAT).name
            return self.op(
                "Add",
                [self.pick(kind).name, self.op("Mul", [factor, self.constant(np.float32(0.125))], "scalar").name],
                kind,
            )
        return self.op("Mul", [self.pick(kind).name, self.constant(self.rng.uniform(-0.9, 0.9, 3).astype("f"))], kind)

    def product(self) -> Value:
        kind = str(self.choose(["row", "square"]))
        weights = self.constant(self.rng.uniform(-0.5, 0.5, (3, 3)).astype(np.float32))
        return self.op("MatMul", [self.pick(kind).name, weights], kind)

    def reduce(self) -> Value:
        kind = str(self.choose(["square", "grown"]))
        return self.op("ReduceSum", [self.pick(kind).name, self.constant([0])], "row", keepdims=0)

    def move(self) -> Value:
        """What computes a square by rows, by columns or as a matrix, or moves its elements."""
        square = self.pick("square").name
        kind = self.choose(["softmax", "norm", "matrix", "rolled", "centred", "reshaped", "parts"])
        if kind == "softmax":
            op = str(self.choose(["Softmax", "LogSoftmax"]))
            return self.op(op, [square], "square", axis=int(self.choose([0, 1, -1])))
        if kind == "norm":
            scale = self.constant(self.rng.normal(0, 1, 3).astype(np.float32))
            return self.op(
                "LayerNormalization", [square, scale, scale][: int(self.rng.integers(2, 4))], "square", epsilon=0.1
            )
        if kind == "matrix":
            turned = self.op("Transpose", [self.pick("square").name], "part").name
            return self.op("MatMul", [self.op("MatMul", [square, turned], "part").name, square], "square")
        if kind == "centred":
            op = str(self.choose(["ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceLogSumExp", "ReduceL2"]))
            axes = self.constant([int(self.choose([0, 1, -1, -2]))])
            return self.op("Sub", [square, self.op(op, [square, axes], "part", keepdims=1).name], "square")
        if kind == "reshaped":
            flat = self.op("Reshape", [square, self.constant([3, -1])], "part").name
            turned = self.op("Transpose", [flat], "part", perm=[1, 0]).name
            return self.op("Reshape", [turned, self.constant([2, 3])], "square")
        cut = int(self.rng.integers(1, 3))
        if kind == "parts":
            sizes = self.constant([cut, 3 - cut])
            parts = [Value(self.fresh(), "part") for _ in range(2)]
            names = [one.name for one in parts]
            self.scope.nodes.append(helper.make_node("Split", [square, sizes], names, name=f"n{names[0]}", axis=1))
            return self.op("Concat", names[::-1], "square", axis=-1)
        step = int(self.choose([1, -1]))
        bounds = [self.constant([one]) for one in ((cut, 3) if step > 0 else (-1, cut - 4))]
        last = self.op("Slice", [square, *bounds, self.constant([1]), self.constant([step])], "part").name
        rest = self.op("Slice", [square, self.constant([0]), self.constant([cut]), self.constant([1])], "part").name
        return self.op("Concat", [last, rest], "square", axis=1)

    def look_up(self) -> Value:
        """A row of a table, or of a square, by a number that is computed."""
        place = self.op("Clip", [self.pick("number").name, self.constant(-2), self.constant(1)], "number").name
        table = (
            self.pick("square").name if self.chance(0.5) else self.constant(self.rng.normal(0, 1, (3, 3)).astype("f"))
        )
        return self.op("Gather", [table, place], "row", axis=0)

    def window(self) -> Value:
        """The sums of some rows or columns, which numbers that are computed bound."""
        data = self.pick(str(self.choose(["square", "square", "grown"])))
        axis = int(self.rng.integers(0, 2))
        first = self.op("Clip", [self.pick("number").name, self.constant(-2), self.constant(3)], "number").name
        last = self.op("Add", [first, self.constant(int(self.rng.integers(-1, 3)))], "number").name
        bounds = [
            self.op("Unsqueeze", [one, self.constant([0])], "part").name
            if self.chance(0.8)
            else self.constant([int(self.choose([0, 1, 2**62]))])
            for one in (first, last)
        ]
        steps = [self.constant([axis])] + [self.constant([int(self.choose([1, 2, -1]))])] * self.chance(0.4)
        seen = self.op("Slice", [data.name, *bounds, *steps], "part").name
        kept = int(axis == 1)
        sums = self.op("ReduceSum", [seen, self.constant([axis])], "row" if axis == 0 else "part", keepdims=kept)
        return sums if axis == 0 or data.kind == "grown" else self.op("Add", [data.name, sums.name], "square")

    def convolve(self) -> Value:
        """A square as two channels of three, or as an image."""
        square, axes = self.pick("square").name, [0]
        if self.chance(0.5):
            kind = int(self.rng.integers(1, 3))
            shape, attributes = (2, 2 // kind, 3), {"group": kind, "pads": [2, 0] if self.chance(0.5) else [1, 1]}
        else:
            axes, shape, attributes = [0, 1], (1, 1, 1, 2), {"pads": [0, 1, 0, 1], "dilations": [1, 2]}
        image = self.op("Unsqueeze", [square, self.constant(axes)], "part").name
        weights = [self.constant(self.rng.uniform(-0.5, 0.5, shape).astype(np.float32))]
        if self.chance(0.5):
            weights.append(self.constant(self.rng.normal(0, 1, shape[0]).astype(np.float32)))
        made = self.op("Conv", [image, *weights], "part", **attributes).name
        return self.op("Squeeze", [made, self.constant(axes)], "square")

    def count_up(self) -> Value:
        op = str(self.choose(["Add", "Add", "Sub", "Min", "Max"]))
        other = self.constant(int(self.rng.integers(-2, 4))) if self.chance(0.8) else self.pick("number").name
        return self.op(op, [self.pick("number").name, other], "number")

    def comparison(self) -> Value:
        if self.chance(0.4):
            peak = self.op("ReduceMax", [self.pick("row").name], "scalar", keepdims=0)
            return self.op("Less", [peak.name, self.constant(np.float32(self.rng.normal(0.5, 1)))], "flag")
        op = str(self.choose(["Less", "Greater", "Equal", "LessOrEqual", "GreaterOrEqual"]))
        return self.op(op, [self.pick("number").name, self.constant(int(self.rng.integers(-1, 4)))], "flag")

    def logic(self) -> Value:
        op = str(self.choose(["Not", "And", "Or", "Xor", "Equal"]))
        inputs = [self.pick("flag").name]
        if op != "Not":
            inputs.append(self.constant(self.chance(0.5)) if self.chance(0.3) else self.pick("flag").name)
        return self.op(op, inputs, "flag")

    def grow(self) -> Value:
        base = self.pick("grown")
        row = self.op("Unsqueeze", [self.pick("row").name, self.constant([0])], "single")
        parts = [base.name, row.name] if self.chance(0.7) else [row.name, base.name]
        return self.op("Concat", parts, "grown", base.least + 1, axis=0)

    def length(self) -> Value:
        if self.chance(0.5):
            return self.op("SequenceLength", [self.pick("list").name], "number")
        shape = self.op("Shape", [self.pick("grown").name], "shape")
        return self.op("Gather", [shape.name, self.constant(0)], "number", axis=0)

    def new_list(self) -> Value:
        if self.chance(0.4):
            return self.op("SequenceEmpty", [], "list")
        if self.chance(0.4):
            return self.op("SplitToSequence", [self.pick("square").name], "list", 2, axis=0, keepdims=0)
        rows = [self.pick("row").name for _ in range(int(self.rng.integers(1, 3)))]
        return self.op("SequenceConstruct", rows, "list", len(rows))

    def list_step(self) -> Value:
        if self.chance(0.2):
            return self.new_list()
        base = self.pick("list")
        if base.least and self.chance(0.5):
            if self.chance(0.5):
                return self.op("ConcatFromSequence", [base.name], "grown", base.least, axis=0, new_axis=1)
            place = int(self.rng.integers(-base.least, base.least))
            return self.op("SequenceAt", [base.name, self.constant(place)], "row")
        if base.least and self.chance(0.2):
            return self.op("SequenceErase", [base.name, self.constant(0)], "list", base.least - 1)
        place = [self.constant(0)] if self.chance(0.3) else []
        return self.op("SequenceInsert", [base.name, self.pick("row").name, *place], "list", base.least + 1)

    def optional(self) -> Value:
        held = self.op("Optional", [self.pick("row").name], "optional")
        if self.chance(0.3):
            return self.op("OptionalHasElement", [held.name], "flag")
        return self.op("OptionalGetElement", [held.name], "row")

    # --- statements with bodies
    def body(
        self, kinds: list[Value], make_results: Callable[[list[Value]], list[Value]], name: str
    ) -> onnx.GraphProto:
        """A graph with inputs like these, some statements and what `make_results` picks, given its inputs."""
        scope = self.scope = Scope(self.scope)
        inputs = [Value(self.fresh(), one.kind, one.least) for one in kinds]
        scope.values.extend(inputs)
        for _ in range(int(self.rng.integers(1, 5))):
            self.statement()
        if scope.depth < MAX_DEPTH and self.chance(0.35):
            self.choose([self.loop, self.scan, self.branch, self.branch])()
            self.statement()
        results = [self.own(one) for one in make_results(inputs)]
        assert scope.outer is not None
        self.scope = scope.outer
        return helper.make_graph(scope.nodes, name, [info(one) for one in inputs], [info(one) for one in results])

    def own(self, value: Value) -> Value:
        """The value as a result of a node of this graph that is no other result."""
        return self.op("Identity", [value.name], value.kind, value.least)

    def after(self, inside: Value) -> Value:
        """What the next iteration gets for a carried value: another, the same (constant), or a copy of another carried one."""
        if inside.kind in ("grown", "list"):
            known = [one for one in self.scope.visible() if one.kind == inside.kind and one.least >= inside.least]
            known = known or [inside]
            return known[-1] if self.chance(0.7) else inside
        if inside.kind == "number" and self.chance(0.7):
            return self.op("Add", [inside.name, self.constant(1)], "number")
        return inside if self.chance(0.2) else self.pick(inside.kind)

    def loop(self) -> None:
        start = [self.any_value() for _ in range(int(self.rng.integers(1, 5)))]
        kind = self.choose(["true", "true", "true", "counter", "data", "false", "passed on"])
        limit = self.pick("number").name if self.chance(0.3) else self.constant(int(self.choose([0, 1, 2, 3, 5, -1])))
        if self.chance(0.15):
            limit = self.constant([int(self.rng.integers(0, 4))])  # a limit of shape [1]
        if self.chance(0.2) and kind in ("counter", "false"):
            limit = self.constant(2**62) if self.chance(0.5) else ""
        if limit.startswith("v") or limit == "n":  # a number that the program computed may be large
            limit = self.op("Min", [limit, self.constant(4)], "number").name
        condition = str(self.choose(["", self.constant(True), self.constant(True), self.pick("flag").name]))
        stacked = [str(self.choose(["row", "square", "number"])) for _ in range(int(self.rng.integers(0, 3)))]

        def results(inputs: list[Value]) -> list[Value]:
            number, flag, *inside = inputs
            last = self.op("Identity", [self.condition(str(kind), number, flag).name], "flag")
            return [last, *(self.after(one) for one in inside), *(self.pick(one) for one in stacked)]

        body = self.body([Value("", "number"), Value("", "flag"), *start], results, "body")
        self.make_loop("Loop", [limit, condition, *(one.name for one in start)], start, stacked, body=body)

    def settle(self) -> None:
        """A loop of what one kernel computes, until a number that each iteration computes passes a bound."""
        start = [self.pick(str(self.choose(["row", "square", "number"]))) for _ in range(int(self.rng.integers(1, 4)))]
        stacked = [str(self.choose(["row", "square", "number"])) for _ in range(int(self.rng.integers(0, 3)))]
        counted = self.chance(0.5)
        limit = self.constant(int(self.choose([0, 1, 3, 6, -1])))
        if counted and self.chance(0.5):
            limit = self.choose(["", self.constant(2**62)])
        scope = self.scope = Scope(self.scope)
        inputs = [Value(self.fresh(), one.kind) for one in (Value("", "number"), Value("", "flag"), *start)]
        scope.values.extend(one for one in inputs if one.kind != "flag")
        for _ in range(int(self.rng.integers(2, 6))):
            self.choose(
                [
                    self.neg,
                    self.arithmetic,
                    self.arithmetic,
                    self.product,
                    self.count_up,
                    self.move,
                    self.look_up,
                    self.window,
                    self.convolve,
                ]
            )()
        reduction = str(self.choose(["ReduceMax", "ReduceMin", "ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2"]))
        measured = self.op(reduction, [self.pick(str(self.choose(["row", "square"]))).name], "scalar", keepdims=0)
        bound = self.constant(np.float32(self.rng.uniform(-1, 2)))
        keep = self.op(str(self.choose(["Less", "Greater"])), [measured.name, bound], "flag")
        if counted:
            few = self.op("Less", [inputs[0].name, self.constant(int(self.rng.integers(0, 6)))], "flag")
            keep = self.op("And", [few.name, keep.name], "flag")
        results = [self.own(one) for one in (keep, *map(self.after, inputs[2:]), *map(self.pick, stacked))]
        assert scope.outer is not None
        self.scope = scope.outer
        body = helper.make_graph(scope.nodes, "body", [info(one) for one in inputs], [info(one) for one in results])
        self.make_loop("Loop", [limit, "", *(one.name for one in start)], start, stacked, body=body)

    def condition(self, kind: str, number: Value, flag: Value) -> Value:
        if kind == "counter":
            return self.op("Less", [number.name, self.constant(int(self.rng.integers(0, 4)))], "flag")
        if kind == "passed on":
            return flag
        if kind == "data":
            return self.comparison()
        return self.op("Identity", [self.constant(kind == "true")], "flag")

    def scan(self) -> None:
        start = [self.pick(str(self.choose(["row", "square", "number"]))) for _ in range(int(self.rng.integers(0, 3)))]
        stacked = [str(self.choose(["row", "square", "number"])) for _ in range(int(self.rng.integers(1, 3)))]
        sequences, elements, axes = [], [], []
        source = str(self.choose(["grown", "square", "square by columns"]))
        for _ in range(int(self.rng.integers(1, 3))):
            if source == "grown":
                grown = Value("rows", "grown", 1) if self.chance(0.7) and not sequences else None
                sequences.append(grown or (self.pick("grown") if not sequences else sequences[0]))
            else:
                sequences.append(self.pick("square"))
            if source == "square by columns":
                elements.append(Value("", "pair"))
                axes.append(int(self.choose([1, -1])))
            else:
                elements.append(Value("", "row"))
                axes.append(0)
        if any(one.kind == "grown" and one.least == 0 for one in sequences):
            return  # onnxruntime's Scan needs an element

        def results(inputs: list[Value]) -> list[Value]:
            for column in [one for one in inputs if one.kind == "pair"]:
                total = self.op("ReduceSum", [column.name], "scalar", keepdims=0)
                self.op("Add", [self.pick("row").name, total.name], "row")
            return [self.after(one) for one in inputs[: len(start)]] + [self.pick(one) for one in stacked]

        body = self.body([*start, *elements], results, "body")
        ranks = [len(TYPES[one][1]) for one in stacked]
        attributes = {
            "num_scan_inputs": len(elements),
            "scan_input_axes": axes,
            "scan_input_directions": [int(self.chance(0.3)) for _ in elements],
            "scan_output_axes": [int(self.rng.integers(-rank - 1, rank + 1)) for rank in ranks],
            "scan_output_directions": [int(self.chance(0.3)) for _ in stacked],
        }
        inputs = [one.name for one in start] + [one.name for one in sequences]
        self.make_loop("Scan", inputs, start, stacked, body=body, **attributes)

    def make_loop(
        self, op: str, inputs: list[str], start: list[Value], stacked: list[str], **attributes: object
    ) -> None:
        finals = [Value(self.fresh(), one.kind, one.least) for one in start]
        stacks = [Value(self.fresh(), "stack of " + one) for one in stacked]
        names = [one.name for one in finals + stacks]
        self.scope.nodes.append(helper.make_node(op, inputs, names, name=f"n{names[0]}", **attributes))
        self.scope.values.extend(finals + stacks)

    def branch(self) -> None:
        kinds = [str(self.choose(["row", "row", "square", "number", "flag", "grown", "list"])) for _ in range(int(self.rng.integers(1, 4)))]  # fmt: skip
        condition = self.pick("flag").name

        least: list[list[int]] = []

        def results(_: list[Value]) -> list[Value]:
            picked = [self.pick(kind) for kind in kinds]
            least.append([one.least for one in picked])
            return picked

        branches = {name: self.body([], results, name) for name in ("then_branch", "else_branch")}
        values = [Value(self.fresh(), kind, min(both)) for kind, *both in zip(kinds, *least, strict=True)]
        names = [one.name for one in values]
        self.scope.nodes.append(helper.make_node("If", [condition], names, name=f"n{names[0]}", **branches))
        self.scope.values.extend(values)


def info(value: Value, length: str | None = None) -> onnx.ValueInfoProto:
    """The declared type of a value."""
    if value.kind == "list":
        return helper.make_tensor_sequence_value_info(value.name, TensorProto.FLOAT, (3,))
    if value.kind in TYPES:
        dtype, shape = TYPES[value.kind]
        return helper.make_tensor_value_info(value.name, dtype, [length if dim is None else dim for dim in shape])
    if value.kind == "pair":
        return helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [2])
    if value.kind.startswith("stack of "):
        dtype, shape = TYPES[value.kind.removeprefix("stack of ")]
        return helper.make_tensor_value_info(value.name, dtype, [None] * (len(shape) + 1))
    dtypes = dict.fromkeys(("single", "scalar", "part"), TensorProto.FLOAT) | {"shape": TensorProto.INT64}
    if value.kind == "optional":
        inner = helper.make_tensor_type_proto(TensorProto.FLOAT, [3])
        return helper.make_value_info(value.name, helper.make_optional_type_proto(inner))
    return helper.make_tensor_value_info(value.name, dtypes[value.kind], None)
