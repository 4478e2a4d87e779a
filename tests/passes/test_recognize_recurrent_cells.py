"""Scans that become RNN, GRU and LSTM."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from helpers import assert_same, evaluate, model, op_list, run_passes
from onnxopt.pipeline import optimize

PASS = "recognize_recurrent_cells"
STEPS, BATCH, WIDTH, HIDDEN = 5, 2, 3, 4

GATES = {"RNN": "n", "GRU": "zrn", "LSTM": "iofg"}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(0, 0.7, shape).astype(np.float32)


class Body:
    """Writes the body of a Scan node by node, and the weights beside it."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        return self.ops(kind, *inputs, outputs=1, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int, **attributes: object) -> list[str]:
        names = [f"v{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names

    def weight(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(array)
        return name

    def matrix(self, rows: int, columns: int) -> str:
        return self.weight(normal(rows, columns, seed=len(self.weights)))

    def bias(self, width: int) -> str:
        return self.weight(normal(width, seed=len(self.weights)))


# How the sums under the gates are written: of each gate, x W + h R + b.
Sums = Callable[[Body, str, Sequence[str], str], dict[str, str]]


def fused(body: Body, gates: str, xs: Sequence[str], h: str) -> dict[str, str]:
    """One product of x and one of h, added, with the gates in an order of their own."""
    order = gates[::-1]
    x = body.op("Gemm", xs[0], body.matrix(WIDTH, len(order) * HIDDEN), body.bias(len(order) * HIDDEN))
    r = body.op("MatMul", h, body.matrix(HIDDEN, len(order) * HIDDEN))
    parts = (
        body.ops("Split", body.op("Add", x, r), outputs=len(order), axis=-1)
        if len(order) > 1
        else [body.op("Add", x, r)]
    )
    return dict(zip(order, parts, strict=True))


def separate(body: Body, gates: str, xs: Sequence[str], h: str) -> dict[str, str]:
    """A product of each for each gate, transposed matrices, and two biases."""
    made = {}
    for gate in gates:
        x = body.op("Gemm", xs[0], body.matrix(HIDDEN, WIDTH), body.bias(HIDDEN), transB=1)
        r = body.op("Gemm", h, body.matrix(HIDDEN, HIDDEN), body.bias(HIDDEN), transB=1)
        made[gate] = body.op("Add", r, x)
    return made


def joined(body: Body, gates: str, xs: Sequence[str], h: str) -> dict[str, str]:
    """One product of x and h side by side, as TensorFlow's cells have it; a part of the bias is one number."""
    order = gates[1:] + gates[:1]
    both = body.op("Concat", xs[0], h, axis=1)
    wide = body.op("MatMul", both, body.matrix(WIDTH + HIDDEN, len(order) * HIDDEN))
    wide = body.op("Add", wide, body.bias(len(order) * HIDDEN))
    cuts = [body.weight(np.array([one])) for one in range(0, (len(order) + 1) * HIDDEN, HIDDEN)]
    made = {}
    for gate, begin, end in zip(order, cuts, cuts[1:], strict=False):
        made[gate] = body.op("Slice", wide, begin, end, body.weight(np.array([1])))
    made[order[0]] = body.op("Add", made[order[0]], body.weight(np.array(1, np.float32)))
    return made


def plain(body: Body, gates: str, xs: Sequence[str], h: str) -> dict[str, str]:
    """No biases; the element is first."""
    return {
        gate: body.op(
            "Add",
            body.op("MatMul", xs[0], body.matrix(WIDTH, HIDDEN)),
            body.op("MatMul", h, body.matrix(HIDDEN, HIDDEN)),
        )
        for gate in gates
    }


SUMS: Mapping[str, Sums] = {one.__name__: one for one in (fused, separate, joined, plain)}


def rnn(body: Body, sums: Sums, x: str, states: Sequence[str]) -> list[str]:
    return [body.op("Tanh", sums(body, "n", [x], states[0])["n"])]


def relu(body: Body, sums: Sums, x: str, states: Sequence[str]) -> list[str]:
    return [body.op("Relu", sums(body, "n", [x], states[0])["n"])]


def lstm(body: Body, sums: Sums, x: str, states: Sequence[str]) -> list[str]:
    h, c = states
    gate = sums(body, "iofg", [x], h)
    i, o, f = (body.op("Sigmoid", gate[name]) for name in "iof")
    after = body.op("Add", body.op("Mul", f, c), body.op("Mul", body.op("Tanh", gate["g"]), i))
    return [body.op("Mul", o, body.op("Tanh", after)), after]


def coupled(body: Body, sums: Sums, x: str, states: Sequence[str]) -> list[str]:
    """An LSTM that takes in as much as it forgets."""
    h, c = states
    gate = sums(body, "iog", [x], h)
    i, o = (body.op("Sigmoid", gate[name]) for name in "io")
    f = body.op("Sub", body.weight(np.array(1, np.float32)), i)
    after = body.op("Add", body.op("Mul", body.op("Relu", gate["g"]), i), body.op("Mul", c, f))
    return [body.op("Mul", body.op("Sigmoid", after), o), after]


def peephole(body: Body, sums: Sums, x: str, states: Sequence[str]) -> list[str]:
    h, c = states
    gate = sums(body, "iofg", [x], h)
    i, f = (body.op("Sigmoid", body.op("Add", gate[name], body.op("Mul", body.bias(HIDDEN), c))) for name in "if")
    after = body.op("Add", body.op("Mul", f, c), body.op("Mul", i, body.op("Tanh", gate["g"])))
    o = body.op("Sigmoid", body.op("Add", body.op("Mul", after, body.bias(HIDDEN)), gate["o"]))
    return [body.op("Mul", o, body.op("Tanh", after)), after]


def _mix(body: Body, z: str, n: str, h: str, form: int) -> str:
    """z h + (1 - z) n in the forms that people write; in the last one z says how much is new."""
    one = body.weight(np.array([1], np.float32))
    if form == 0:
        return body.op("Add", body.op("Mul", body.op("Sub", one, z), n), body.op("Mul", z, h))
    if form == 1:
        return body.op("Add", n, body.op("Mul", z, body.op("Sub", h, n)))
    if form == 2:
        return body.op("Add", body.op("Mul", body.op("Sub", n, h), z), h)
    return body.op("Add", body.op("Mul", n, z), body.op("Mul", body.op("Sub", one, z), h))


def gru_after(form: int) -> Callable[[Body, Sums, str, Sequence[str]], list[str]]:
    """Resets behind the product."""

    def step(body: Body, sums: Sums, x: str, states: Sequence[str]) -> list[str]:
        (h,) = states
        gate = sums(body, "zr", [x], h)
        z, r = (body.op("Sigmoid", gate[name]) for name in "zr")
        inner = body.op("Gemm", h, body.matrix(HIDDEN, HIDDEN), body.bias(HIDDEN))
        outer = body.op("Gemm", x, body.matrix(WIDTH, HIDDEN), body.bias(HIDDEN))
        n = body.op("Tanh", body.op("Add", outer, body.op("Mul", r, inner)))
        return [_mix(body, z, n, h, form)]

    return step


def gru_before(form: int) -> Callable[[Body, Sums, str, Sequence[str]], list[str]]:
    """Resets before the product."""

    def step(body: Body, sums: Sums, x: str, states: Sequence[str]) -> list[str]:
        (h,) = states
        gate = sums(body, "zr", [x], h)
        z, r = (body.op("Sigmoid", gate[name]) for name in "zr")
        n = body.op("Tanh", sums(body, "n", [x], body.op("Mul", h, r))["n"])
        return [_mix(body, z, n, h, form)]

    return step


def gru_of_two_products(body: Body, _: Sums, x: str, states: Sequence[str]) -> list[str]:
    """As PyTorch computes it: one product of x and one of h for all gates."""
    (h,) = states
    wide = body.op("Gemm", x, body.matrix(WIDTH, 3 * HIDDEN), body.bias(3 * HIDDEN))
    inner = body.op("Gemm", h, body.matrix(3 * HIDDEN, HIDDEN), body.bias(3 * HIDDEN), transB=1)
    (xr, xz, xn), (hr, hz, hn) = (body.ops("Split", one, outputs=3, axis=1) for one in (wide, inner))
    r, z = body.op("Sigmoid", body.op("Add", xr, hr)), body.op("Sigmoid", body.op("Add", xz, hz))
    n = body.op("Tanh", body.op("Add", xn, body.op("Mul", r, hn)))
    return [_mix(body, z, n, h, 1)]


CELLS = {
    "rnn": ("RNN", rnn),
    "relu": ("RNN", relu),
    "lstm": ("LSTM", lstm),
    "coupled": ("LSTM", coupled),
    "peephole": ("LSTM", peephole),
    "gru of two products": ("GRU", gru_of_two_products),
    **{f"gru that resets after {form}": ("GRU", gru_after(form)) for form in range(4)},
    **{f"gru that resets before {form}": ("GRU", gru_before(form)) for form in range(4)},
}


def scan(
    cell: str,
    sums: str = "separate",
    *,
    steps: int | str = "T",
    batch: int | str = "N",
    change: Callable[[Body, list[str]], tuple[list[str], list[str]]] | None = None,
    **attributes: object,
) -> onnx.ModelProto:
    """A Scan over x with one cell. `change` makes states and stacked values of what the cell computes."""
    op_type, write = CELLS[cell]
    states = ["h", "c"][: 2 if op_type == "LSTM" else 1]
    body = Body()
    after = write(body, SUMS[sums], "e", states)
    stacked = after[:1]
    if change is not None:
        after, stacked = change(body, after)
    return _model(body, [(name, HIDDEN) for name in states], after, stacked, steps, batch, attributes)


def _model(
    body: Body,
    states: Sequence[tuple[str, int]],
    after: Sequence[str],
    stacked: Sequence[str],
    steps: int | str,
    batch: int | str,
    attributes: Mapping[str, object],
) -> onnx.ModelProto:
    results = [body.op("Identity", name) for name in [*after, *stacked]]
    info = helper.make_tensor_value_info
    inputs = [info(name, TensorProto.FLOAT, [batch, size]) for name, size in states]
    inputs.append(info("e", TensorProto.FLOAT, [batch, WIDTH]))
    outputs = [info(name, TensorProto.FLOAT, None) for name in results]
    inner = helper.make_graph(body.nodes, "step", inputs, outputs)
    given = [f"{name}0" for name, _ in states]
    made = [f"y{index}" for index in range(len(results))]
    node = helper.make_node("Scan", [*given, "x"], made, body=inner, num_scan_inputs=1, **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [info("x", TensorProto.FLOAT, [steps, batch, WIDTH])]
        + [info(name, TensorProto.FLOAT, [batch, size]) for name, (_, size) in zip(given, states, strict=True)],
        [info(name, TensorProto.FLOAT, None) for name in made],
        [numpy_helper.from_array(array, name) for name, array in body.weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def feeds(proto: onnx.ModelProto, steps: int = STEPS, batch: int = BATCH) -> dict[str, np.ndarray]:
    return {
        one.name: normal(steps, batch, WIDTH) if one.name == "x" else normal(batch, HIDDEN, seed=index)
        for index, one in enumerate(proto.graph.input)
    }


def check(
    before: onnx.ModelProto, *expected: str, sizes: Sequence[tuple[int, int]] = ((STEPS, BATCH), (1, 1), (7, 3))
) -> onnx.ModelProto:
    after, report = run_passes(before, PASS, "eliminate_dead_code", explain=True)
    found = [one for one in op_list(after) if one in ("Scan", *GATES)]
    assert found == list(expected), [str(miss.refusal) for miss in report.near_misses]
    for steps, batch in sizes:
        assert_same(before, after, feeds(before, steps, batch), rtol=1e-4, atol=1e-5)
    return after


@pytest.mark.parametrize(("cell", "sums"), list(itertools.product(CELLS, SUMS)))
def test_forms(cell: str, sums: str) -> None:
    check(scan(cell, sums), CELLS[cell][0])


DIRECTIONS = [
    {"scan_input_directions": [inwards], "scan_output_directions": [outwards]}
    for inwards in (0, 1)
    for outwards in (0, 1)
]


@pytest.mark.parametrize("attributes", DIRECTIONS)
@pytest.mark.parametrize("cell", ["rnn", "gru that resets before 0", "lstm"])
def test_directions(cell: str, attributes: dict[str, list[int]]) -> None:
    check(scan(cell, **attributes), CELLS[cell][0])


@pytest.mark.parametrize("cell", CELLS)
def test_products_before_the_loop(cell: str) -> None:
    before = scan(cell, "fused", steps=STEPS, batch=BATCH)
    apart, _ = run_passes(before, "batch_loop_inputs")
    assert "MatMul" in op_list(apart)
    check(apart, CELLS[cell][0], sizes=[(STEPS, BATCH)])


OUTSIDE = {
    "batch first": "t = Transpose<perm = [1, 0, 2]>(x) p = MatMul(t, w) s = Add(p, b)",
    "moved behind the product": "p = MatMul(x, w) t = Add(p, b) s = Transpose<perm = [1, 0, 2]>(t)",
    "flat product": "f = Reshape(x, flat) p = Gemm(f, w, b) t = Reshape(p, back) s = Transpose<perm = [1, 0, 2]>(t)",
}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [*((name, "2, 5") for name in OUTSIDE), ("batch first", "N, T"), ("moved behind the product", "N, T")],
)
def test_sequences_that_are_moved(name: str, sizes: str) -> None:
    batch = sizes[0]
    text = (
        f"{OUTSIDE[name]} y, z = Scan <num_scan_inputs = 1, body = g1 (float[{batch},4] h, float[{batch},4] e) => "
        f"(float[{batch},4] a, float[{batch},4] o) {{ q = MatMul(h, r) v = Add(q, e) a = Tanh(v) o = Identity(a) }}> (h0, s)"
    )
    before = model(
        f"g (float[{sizes},3] x, float[{batch},4] h0) => (float[{batch},4] y, float[t,{batch},4] z) {{ {text} }}",
        w=normal(3, 4),
        b=normal(4),
        r=normal(4, 4),
        flat=np.array([-1, 3]),
        back=np.array([2, 5, 4]),
    )
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert [one for one in op_list(after) if one in ("RNN", "Scan")] == ["RNN"]
    assert_same(before, after, {"x": normal(2, 5, 3), "h0": normal(2, 4)}, rtol=1e-4, atol=1e-5)


def _two_layers(kinds: tuple[str, str], *, seen: bool) -> onnx.ModelProto:
    body = Body()
    states: list[list[str]] = []
    after: list[list[str]] = []
    x = "e"
    for number, kind in enumerate(kinds):
        op_type, write = CELLS[kind]
        states.append([f"{name}{number}" for name in "hc"[: 2 if op_type == "LSTM" else 1]])
        after.append(write(body, _square if number else separate, x, states[-1]))
        x = after[-1][0]
    stacked = [after[1][0]] + ([after[0][0]] if seen else [])
    # The cell that reads the other one is named first.
    names = [(name, HIDDEN) for name in [*states[1], *states[0]]]
    return _model(body, names, [*after[1], *after[0]], stacked, "T", "N", {})


def _square(body: Body, gates: str, xs: Sequence[str], h: str) -> dict[str, str]:
    return {
        gate: body.op(
            "Add",
            body.op("Gemm", xs[0], body.matrix(HIDDEN, HIDDEN), body.bias(HIDDEN)),
            body.op("MatMul", h, body.matrix(HIDDEN, HIDDEN)),
        )
        for gate in gates
    }


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("kinds", [("lstm", "lstm"), ("rnn", "lstm"), ("lstm", "rnn"), ("relu", "rnn")])
def test_cells_that_read_each_other(kinds: tuple[str, str], seen: bool) -> None:
    check(_two_layers(kinds, seen=seen), *(CELLS[kind][0] for kind in kinds))


@pytest.mark.parametrize("reset", [0, 1])
@pytest.mark.parametrize("op_type", GATES)
def test_ops_over_one_step(op_type: str, reset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporters write a cell as the op over a sequence of one element."""

    def step(body: Body, _: Sums, x: str, states: Sequence[str]) -> list[str]:
        axis, gates = body.weight(np.array([0])), len(GATES[op_type])
        x, *given = (body.op("Unsqueeze", name, axis) for name in [x, *states])
        weights = [body.weight(normal(1, gates * HIDDEN, size)) for size in (WIDTH, HIDDEN)]
        weights.append(body.weight(normal(1, 2 * gates * HIDDEN)))
        attributes = {"linear_before_reset": reset} if op_type == "GRU" else {}
        made = body.ops(op_type, x, *weights, "", *given, outputs=1 + len(states), hidden_size=HIDDEN, **attributes)
        return [body.op("Squeeze", name, axis) for name in made[1:]]

    monkeypatch.setitem(CELLS, "op", (op_type, step))
    check(scan("op"), op_type)


FINITE_CELLS = ("rnn", "gru that resets after 0", "gru that resets before 0", "lstm")


@pytest.mark.parametrize("number", [np.inf, -np.inf])
@pytest.mark.parametrize("cell", FINITE_CELLS)
def test_infinite_values(cell: str, number: float) -> None:
    before = scan(cell, "plain")
    after, _ = run_passes(before, PASS)
    given = feeds(before)
    given["x"][2, 0, 1] = number
    assert_same(before, after, given, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", FINITE_CELLS)
def test_what_is_not_a_number_stays_so(cell: str) -> None:
    """As the standard says; onnxruntime's own LSTM and GRU make numbers of it, in whatever model they are."""
    before = scan(cell, batch=1)
    after, _ = run_passes(before, PASS)
    given = feeds(before, batch=1)
    given["x"][2, 0, 1] = np.nan
    reference = ReferenceEvaluator(after)
    for one, other in zip(evaluate(before, given), reference.run(None, given), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("used", ["y0", "y1", "y2"])
def test_outputs_that_are_left_out(used: str) -> None:
    before = scan("lstm")
    kept = [one for one in before.graph.output if one.name == used]
    del before.graph.output[:]
    before.graph.output.extend(kept)
    check(before, "LSTM")


def test_initial_states_of_zeros_are_left_out() -> None:
    before = scan("lstm", batch=BATCH)
    states = [one for one in before.graph.input if one.name != "x"]
    for one in states:
        before.graph.input.remove(one)
        before.graph.initializer.append(numpy_helper.from_array(np.zeros((BATCH, HIDDEN), np.float32), one.name))
    after = check(before, "LSTM", sizes=[(STEPS, BATCH)])
    assert len(next(node for node in after.graph.node if node.op_type == "LSTM").input) == 4


def _extra(body: Body, after: list[str]) -> tuple[list[str], list[str]]:
    return [body.op("Mul", after[0], body.weight(np.array(0.9, np.float32))), *after[1:]], after[:1]


def _other(body: Body, after: list[str]) -> tuple[list[str], list[str]]:
    return after, [body.op("Exp", after[0])]


def _inner(_: Body, after: list[str]) -> tuple[list[str], list[str]]:
    return after, after[-1:]


def _residual(body: Body, after: list[str]) -> tuple[list[str], list[str]]:
    total = body.op("Add", after[0], "h")
    return [total, *after[1:]], [total]


def _swapped(_: Body, after: list[str]) -> tuple[list[str], list[str]]:
    return after[::-1], after[:1]


REFUSED = {
    "extra op": ("lstm", _extra, "no RNN, GRU or LSTM cell"),
    "extra op of a gru": ("gru that resets after 0", _extra, "no RNN, GRU or LSTM cell"),
    "residual": ("rnn", _residual, "no RNN, GRU or LSTM cell"),
    "other output": ("rnn", _other, "stacks other values"),
    "stacked cell state": ("lstm", _inner, "stacks other values"),
    "swapped states": ("lstm", _swapped, "no RNN, GRU or LSTM cell"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_stays(name: str) -> None:
    cell, change, sentence = REFUSED[name]
    before = scan(cell, change=change)
    after, report = run_passes(before, PASS, explain=True)
    assert "Scan" in op_list(after)
    assert sentence in str(report.near_misses[0].refusal)
    assert_same(before, after, feeds(before), rtol=0, atol=0)


def _gate(body: Body, sums: dict[str, str], name: str) -> str:
    return body.op("Sigmoid", sums[name])


def _other_activation(body: Body, sums: Sums, x: str, states: Sequence[str]) -> list[str]:
    return [body.op("Softsign", sums(body, "n", [x], states[0])["n"])]


def _mixed_activations(body: Body, sums: Sums, x: str, states: Sequence[str]) -> list[str]:
    """The forget gate has another function than the others."""
    h, c = states
    gate = sums(body, "iofg", [x], h)
    i, o, f = _gate(body, gate, "i"), _gate(body, gate, "o"), body.op("Relu", gate["f"])
    after = body.op("Add", body.op("Mul", f, c), body.op("Mul", body.op("Tanh", gate["g"]), i))
    return [body.op("Mul", o, body.op("Tanh", after)), after]


def _late_peephole(body: Body, sums: Sums, x: str, states: Sequence[str]) -> list[str]:
    """The output gate sees the state before the step, the standard's the one behind it."""
    h, c = states
    gate = sums(body, "iofg", [x], h)
    i, f = _gate(body, gate, "i"), _gate(body, gate, "f")
    o = body.op("Sigmoid", body.op("Add", gate["o"], body.op("Mul", c, body.bias(HIDDEN))))
    after = body.op("Add", body.op("Mul", f, c), body.op("Mul", body.op("Tanh", gate["g"]), i))
    return [body.op("Mul", o, body.op("Tanh", after)), after]


def _other_complement(body: Body, sums: Sums, x: str, states: Sequence[str]) -> list[str]:
    """What is new counts one minus another gate."""
    (h,) = states
    gate = sums(body, "zr", [x], h)
    z, r = _gate(body, gate, "z"), _gate(body, gate, "r")
    n = body.op("Tanh", sums(body, "n", [x], body.op("Mul", h, r))["n"])
    rest = body.op("Sub", body.weight(np.array(1, np.float32)), r)
    return [body.op("Add", body.op("Mul", rest, n), body.op("Mul", z, h))]


def _two_resets(body: Body, sums: Sums, x: str, states: Sequence[str]) -> list[str]:
    """The state is reset twice, before the product and behind it."""
    (h,) = states
    gate = sums(body, "zr", [x], h)
    z, r = _gate(body, gate, "z"), _gate(body, gate, "r")
    inner = body.op("MatMul", body.op("Mul", r, h), body.matrix(HIDDEN, HIDDEN))
    outer = body.op("MatMul", x, body.matrix(WIDTH, HIDDEN))
    return [_mix(body, z, body.op("Tanh", body.op("Add", outer, body.op("Mul", r, inner))), h, 0)]


def _element_alone(body: Body, _: Sums, x: str, states: Sequence[str]) -> list[str]:
    wide = body.op("Concat", x, body.op("Slice", x, *(body.weight(np.array([one])) for one in (0, 1, 1))), axis=1)
    return [body.op("Tanh", body.op("Add", wide, body.op("MatMul", states[0], body.matrix(HIDDEN, HIDDEN))))]


def _matrix_from_outside(body: Body, _: Sums, x: str, states: Sequence[str]) -> list[str]:
    product = body.op("MatMul", x, body.op("MatMul", body.matrix(WIDTH, 2), "h"))
    return [body.op("Tanh", body.op("Add", product, body.op("MatMul", states[0], body.matrix(HIDDEN, HIDDEN))))]


@pytest.mark.parametrize(
    ("op_type", "write"),
    [
        ("RNN", _other_activation),
        ("LSTM", _mixed_activations),
        ("LSTM", _late_peephole),
        ("GRU", _other_complement),
        ("GRU", _two_resets),
        ("RNN", _element_alone),
        ("RNN", _matrix_from_outside),
    ],
)
def test_cells_that_are_none_of_the_standard(
    op_type: str, write: Callable[[Body, Sums, str, Sequence[str]], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CELLS, "own", (op_type, write))
    before = scan("own", batch=BATCH)
    after, report = run_passes(before, PASS, explain=True)
    assert "Scan" in op_list(after)
    assert report.near_misses
    assert_same(before, after, feeds(before), rtol=0, atol=0)


@pytest.mark.parametrize("target", ["generic", "cpu"])
@pytest.mark.parametrize("cell", CELLS)
def test_in_the_pipeline(cell: str, target: str) -> None:
    before = scan(cell, "joined", steps=11)
    after = optimize(before, target=target, strict=True)
    assert "Scan" not in op_list(after)
    if target == "generic":
        assert CELLS[cell][0] in op_list(after)
    assert_same(before, after, feeds(before, 11), rtol=1e-4, atol=1e-5, library=True)
