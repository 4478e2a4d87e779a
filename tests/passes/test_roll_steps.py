"""Steps that are written out become a Scan."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes
from onnxopt import ir
from onnxopt.passes.base import Options
from onnxopt.pipeline import PassManager

PASS = "roll_steps"
STEPS = 12
RNG = np.random.default_rng(0)

NUMBERS = {f"n{step}": np.array(step) for step in range(STEPS + 2)}
LISTS = {f"l{step}": np.array([step]) for step in range(STEPS + 2)}
MORE = {
    "half": np.float32(0.5),
    "zero": np.zeros((2, 4), np.float32),
    "full": np.full((2, 4), 0.7, np.float32),
    "one": np.array([1]),
}


def written_out(
    step: Callable[[int], str],
    *,
    stack: str = "y",
    inputs: str = "float[2,12,4] x",
    outputs: str = "float[2,S,4] y",
    before: str = "",
    after: str = "",
    reverse: bool = False,
    constants: Mapping[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    """A model of as many steps; `step` gives the nodes of one, which leave what is stacked in `e0`, `e1` ..., the last one first with `reverse`."""
    body = "\n".join(step(number) + f"\n u{number} = Unsqueeze(e{number}, one)" for number in range(STEPS))
    joined = ", ".join(f"u{number}" for number in range(STEPS)[:: -1 if reverse else 1])
    text = f"g ({inputs}) => ({outputs}) {{ {before} {body} {stack} = Concat<axis = 1>({joined}) {after} }}"
    return model(text, **_used_in(text), **(constants or {}))


def _used_in(text: str) -> dict[str, np.ndarray]:
    named = {**NUMBERS, **LISTS, **MORE}
    return {name: array for name, array in named.items() if f"{name})" in text or f"{name}," in text}


def average(number: int) -> str:
    last = f"h{number - 1}" if number else "zero"
    return f"""x{number} = Gather<axis = 1>(x, n{number})  k{number} = Mul({last}, half)
        h{number} = Add(k{number}, x{number})  e{number} = Tanh(h{number})"""


def from_the_back(number: int) -> str:
    return average(number).replace(f"(x, n{number})", f"(x, n{STEPS - 1 - number})")


def started_without_a_state(number: int) -> str:
    return average(number) if number else "x0 = Gather<axis = 1>(x, n0)  h0 = Identity(x0)  e0 = Tanh(x0)"


def sliced(number: int) -> str:
    return average(number).replace(
        f"x{number} = Gather<axis = 1>(x, n{number})",
        f"s{number} = Slice(x, l{number}, l{number + 1}, one)  x{number} = Squeeze(s{number}, one)",
    )


def looked_up_as_a_list(number: int) -> str:
    return average(number).replace(
        f"x{number} = Gather<axis = 1>(x, n{number})",
        f"s{number} = Gather<axis = 1>(x, l{number})  x{number} = Squeeze(s{number}, one)",
    )


def read_before_the_update(number: int) -> str:
    last = f"h{number - 1}" if number else "zero"
    update = f"k{number} = Mul({last}, half)  h{number} = Add(k{number}, x{number})" if number < STEPS - 1 else ""
    return f"x{number} = Gather<axis = 1>(x, n{number})  e{number} = Add({last}, x{number})  {update}"


def two_states(number: int) -> str:
    h, c = (f"h{number - 1}", f"c{number - 1}") if number else ("zero", "zero")
    return f"""x{number} = Gather<axis = 1>(x, n{number})  k{number} = Mul({h}, {c})  h{number} = Add(k{number}, x{number})
        a{number} = Sub({h}, x{number})  c{number} = Tanh(a{number})  e{number} = Add(h{number}, c{number})"""


CASES = {
    "elements": average,
    "from the back": from_the_back,
    "a first step without a state": started_without_a_state,
    "slices": sliced,
    "lookups of one": looked_up_as_a_list,
    "a state that is read before it is updated": read_before_the_update,
    "two states that start alike": two_states,
}


@pytest.mark.parametrize("reverse", [False, True], ids=["in order", "last one first"])
@pytest.mark.parametrize("step", CASES.values(), ids=CASES)
def test_rolls(step: Callable[[int], str], reverse: bool) -> None:
    before = run_passes(written_out(step, reverse=reverse), "eliminate_noops", target="cpu")[0]
    after, report = run_passes(before, PASS, target="cpu")
    assert op_list(after).count("Scan") == 1 and op_list(after).count("Mul") <= 1, report.near_misses
    assert_same(before, after, {"x": RNG.standard_normal((2, 12, 4)).astype(np.float32)})


@pytest.mark.parametrize("step", CASES.values(), ids=CASES)
def test_becomes_one_kernel(step: Callable[[int], str]) -> None:
    before = written_out(step)
    loaded = ir.load(onnx.ModelProto.FromString(before.SerializeToString()))
    PassManager("cpu", strict=True).run(loaded)
    after = ir.to_proto(loaded)
    assert {"FusedRecurrence", "FusedLoop"} & set(op_list(after)) and "Scan" not in op_list(after)
    feeds = {"x": RNG.standard_normal((2, 12, 4)).astype(np.float32)}
    for library in (True, False):
        assert_same(before, after, feeds, library=library)


def test_steps_that_no_kernel_takes_are_written_out_again() -> None:
    doubles = "x = Cast<to = 11>(z)  zero = Cast<to = 11>(zeros)  half = Cast<to = 11>(halves)"
    before = written_out(
        average, inputs="float[2,12,4] z, float[2,4] zeros, float halves", before=doubles, outputs="double[2,S,4] y"
    )
    del before.graph.initializer[:]
    proto = onnx.ModelProto.FromString(before.SerializeToString())
    used = {name: array for name, array in NUMBERS.items() if array < STEPS} | {"one": MORE["one"]}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in used.items())
    assert "Scan" in op_list(run_passes(proto, PASS, target="cpu")[0])
    loaded = ir.load(proto)
    PassManager("cpu", strict=True).run(loaded)
    after = ir.to_proto(loaded)
    assert "Scan" not in op_list(after) and op_list(after).count("Tanh") == STEPS
    feeds = {"z": RNG.standard_normal((2, 12, 4)), "zeros": RNG.standard_normal((2, 4)), "halves": np.array(0.5)}
    assert_same(proto, after, {name: np.asarray(array, np.float32) for name, array in feeds.items()}, library=True)


def test_last_state_is_read() -> None:
    before = written_out(average, outputs="float[2,S,4] y, float[2,4] z", after="z = Neg(h11)")
    after, _ = run_passes(before, PASS, target="cpu")
    assert sorted(op_list(after)) == ["Neg", "Scan"]
    assert_same(before, after, {"x": RNG.standard_normal((2, 12, 4)).astype(np.float32)})


def last_alone(
    step: Callable[[int], str],
    *,
    last: str = "y = Neg(h11)",
    inputs: str = "float[2,12,4] x",
    outputs: str = "float[2,4] y",
    constants: Mapping[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    """A model of as many steps, of which what the last one leaves in `h11` is read."""
    nodes = "\n".join(map(step, range(STEPS)))
    text = f"g ({inputs}) => ({outputs}) {{ {nodes} {last} }}"
    return run_passes(
        model(text, **_used_in(text), **(constants or {})), "eliminate_noops", "eliminate_dead_code", target="cpu"
    )[0]


def gated(number: int) -> str:
    """Two states, of which `c` is not the last result of a step."""
    h, c = (f"h{number - 1}", f"c{number - 1}") if number else ("full", "full")
    return f"""x{number} = Gather<axis = 1>(x, n{number})  a{number} = Add({h}, x{number})  g{number} = Sigmoid(a{number})
        k{number} = Mul(g{number}, {c})  c{number} = Add(k{number}, x{number})  t{number} = Tanh(c{number})
        o{number} = Sub(a{number}, half)  h{number} = Mul(o{number}, t{number})"""


LAST_CASES = {
    **{
        name: CASES[name]
        for name in ("elements", "from the back", "a first step without a state", "slices", "lookups of one")
    },
    "two states": gated,
}


@pytest.mark.parametrize("step", LAST_CASES.values(), ids=LAST_CASES)
def test_rolls_steps_of_which_the_last_state_alone_is_read(step: Callable[[int], str]) -> None:
    before = last_alone(step)
    after, report = run_passes(before, PASS, target="cpu")
    assert op_list(after).count("Scan") == 1 and op_list(after).count("Mul") == 0, report.near_misses
    assert_same(before, after, {"x": RNG.standard_normal((2, 12, 4)).astype(np.float32)})


def test_both_last_states_are_read() -> None:
    before = last_alone(gated, last="y = Neg(h11)  z = Neg(c11)", outputs="float[2,4] y, float[2,4] z")
    after, _ = run_passes(before, PASS, target="cpu")
    assert sorted(op_list(after)) == ["Neg", "Neg", "Scan"]
    assert_same(before, after, {"x": RNG.standard_normal((2, 12, 4)).astype(np.float32)})


def test_last_state_is_the_output() -> None:
    before = last_alone(gated, last="", outputs="float[2,4] h11")
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after) == ["Scan"]
    assert_same(before, after, {"x": RNG.standard_normal((2, 12, 4)).astype(np.float32)})


def test_cells_one_above_the_other_are_one_scan() -> None:
    """The second one reads what the first one makes, and its last state alone is read."""

    def both(number: int) -> str:
        second = f"i{number - 1}" if number else "zero"
        return f"{gated(number)}  d{number} = Mul({second}, half)  i{number} = Add(d{number}, h{number})"

    before = last_alone(both, last="y = Neg(i11)")
    after, _ = run_passes(before, PASS, target="cpu")
    assert sorted(op_list(after)) == ["Neg", "Scan"]
    assert_same(before, after, {"x": RNG.standard_normal((2, 12, 4)).astype(np.float32)})


def test_last_states_of_two_loops_over_one_sequence() -> None:
    def both(number: int) -> str:
        last = f"i{number - 1}" if number else "full"
        back = f"r{number} = Gather<axis = 1>(x, n{STEPS - 1 - number})  d{number} = Mul({last}, half)  i{number} = Sub(d{number}, r{number})"
        return f"{gated(number)}  {back}"

    before = last_alone(both, last="y = Sub(h11, i11)")
    before, _ = run_passes(before, "eliminate_common_subexpressions", target="cpu")
    after, _ = run_passes(before, PASS, target="cpu")
    assert sorted(op_list(after)) == ["Scan", "Scan", "Sub"]
    assert_same(before, after, {"x": RNG.standard_normal((2, 12, 4)).astype(np.float32)})


def test_two_stacks_of_the_same_steps() -> None:
    joined = ", ".join(f"w{number}" for number in range(STEPS))
    before = written_out(
        lambda number: f"{average(number)}  w{number} = Unsqueeze(h{number}, one)",
        outputs="float[2,S,4] y, float[2,S,4] z",
        after=f"z = Concat<axis = 1>({joined})",
    )
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after) == ["Scan"]
    assert_same(before, after, {"x": RNG.standard_normal((2, 12, 4)).astype(np.float32)})


def test_two_stacks_of_which_none_needs_the_other() -> None:
    joined = ", ".join(f"w{number}" for number in range(STEPS))
    before = written_out(
        lambda number: f"{average(number)}  s{number} = Sigmoid(h{number})  w{number} = Unsqueeze(s{number}, one)",
        outputs="float[2,S,4] y, float[2,S,4] z",
        after=f"z = Concat<axis = 1>({joined})",
    )
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after) == ["Scan"]
    assert_same(before, after, {"x": RNG.standard_normal((2, 12, 4)).astype(np.float32)})


def test_reshapes_that_add_the_dim_are_no_part_of_a_step() -> None:
    before = written_out(average)
    before.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 1, 4]), "row"))
    for node in before.graph.node:
        if node.op_type == "Unsqueeze":
            node.op_type, node.input[1] = "Reshape", "row"
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after) == ["Scan"]
    assert_same(before, after, {"x": RNG.standard_normal((2, 12, 4)).astype(np.float32)})


def folded(number: int) -> str:
    """Of the first step's products, the exporter has left what a state of zeros makes of them."""
    h, c = (f"h{number - 1}", f"c{number - 1}") if number else ("zero", "zero")
    product = f"p{number} = Gemm({h}, square, row)" if number else ""
    return f"""x{number} = Gather<axis = 1>(x, n{number})  {product}  a{number} = Add({f"p{number}" if number else "rows"}, x{number})
        g{number} = Sigmoid(a{number})  k{number} = Mul(g{number}, {c})  c{number} = Add(k{number}, x{number})
        h{number} = Mul(g{number}, c{number})  e{number} = Tanh(h{number})"""


@pytest.mark.parametrize("row", [[1, 2, 3, 4], [1, 2, 3, 5]], ids=["zeros", "another state"])
@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "last alone"])
def test_first_step_whose_state_was_folded(stacked: bool, row: list[float]) -> None:
    values = {"square": RNG.standard_normal((4, 4)), "row": np.array([1, 2, 3, 4]), "rows": np.tile(row, (2, 1))}
    arrays = {name: array.astype(np.float32) for name, array in values.items()}
    before = written_out(folded, constants=arrays) if stacked else last_alone(folded, constants=arrays)
    after, _ = run_passes(before, PASS, "eliminate_dead_code", target="cpu")
    assert op_list(after).count("Scan") == 1 and op_list(after).count("Gather") == (row[-1] == 5), op_list(after)
    assert_same(before, after, {"x": RNG.standard_normal((2, 12, 4)).astype(np.float32)})


def test_part_of_a_longer_sequence() -> None:
    before = written_out(average, inputs="float[2,14,4] x")
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after) == ["Slice", "Scan"]
    assert_same(before, after, {"x": RNG.standard_normal((2, 14, 4)).astype(np.float32)})


def mixed_up(number: int) -> str:
    other = {3: 4, 4: 3}.get(number, number)
    return average(number).replace(f"(x, n{number})", f"(x, n{other})")


def unlike(number: int) -> str:
    return average(number).replace("Tanh", "Sigmoid") if number == 7 else average(number)


def sorted_update(number: int) -> str:
    return (
        average(number)
        .replace(f"h{number} = Add", f"s{number} = Hardmax(x{number})  h{number} = Add")
        .replace(f"k{number}, x{number})", f"k{number}, s{number})")
    )


def other_factor(number: int) -> str:
    return average(number).replace("half", "twice") if number == 7 else average(number)


def sorted_each_step(number: int) -> str:
    return average(number).replace(f"e{number} = Tanh(h{number})", f"e{number} = Hardmax(h{number})")


def without_a_state(number: int) -> str:
    return f"x{number} = Gather<axis = 1>(x, n{number})  e{number} = Tanh(x{number})"


def test_results_that_need_the_last_state_stay() -> None:
    """y_i = h_i h_last: what all steps read is made by the last one."""
    proto = written_out(lambda number: average(number).replace("Tanh", "Neg"), outputs="float[2,S,4] y")
    for node in proto.graph.node:
        if node.op_type == "Neg":
            node.op_type = "Mul"
            node.input.append("h11")
    proto.graph.node.sort(
        key=lambda node: {"Unsqueeze": 2, "Concat": 3}.get(node.op_type, int(node.output[0].startswith("e")))
    )
    found, report = run_passes(proto, PASS, target="cpu", explain=True)
    assert "Scan" not in op_list(found)
    assert any("computed from a step" in str(near.refusal) for near in report.near_misses)


def without_a_sequence(number: int) -> str:
    return average(number).replace(f"x{number} = Gather<axis = 1>(x, n{number})", f"x{number} = Identity(half)")


def test_leaves_steps_that_make_the_last_state_in_different_ways() -> None:
    before = last_alone(lambda number: average(number).replace("Add", "Sub" if number == 7 else "Add"))
    assert "Scan" not in op_list(run_passes(before, PASS, target="cpu")[0])


@pytest.mark.parametrize(
    ("step", "last", "reason"),
    [
        (sorted_update, "y = Neg(h11)", "Hardmax does not run inside of a kernel"),
        (average, "y = Sub(h11, h5)", "'h5' is read elsewhere"),
    ],
    ids=["op without a kernel", "result read elsewhere"],
)
def test_leaves_steps_of_which_the_last_state_alone_is_read(step: Callable[[int], str], last: str, reason: str) -> None:
    found, report = run_passes(last_alone(step, last=last), PASS, target="cpu", explain=True)
    assert "Scan" not in op_list(found)
    assert any(any(part in str(near.refusal) for part in reason.split("|")) for near in report.near_misses), [
        str(near.refusal) for near in report.near_misses
    ]


@pytest.mark.parametrize(
    ("step", "after", "reason"),
    [
        (mixed_up, "", "different steps are mixed|come from elsewhere|carry no state"),
        (unlike, "", "nodes of different steps differ"),
        (other_factor, "", "come from elsewhere"),
        (sorted_each_step, "", "Hardmax does not run inside of a kernel"),
        (without_a_state, "", "carry no state"),
        (without_a_sequence, "", "read no sequence"),
        (average, "z = Neg(h5)", "'h5' is read elsewhere"),
    ],
    ids=["order", "op", "constant", "op without a kernel", "no state", "no sequence", "result read elsewhere"],
)
def test_leaves(step: Callable[[int], str], after: str, reason: str) -> None:
    outputs = "float[2,S,4] y" + (", float[2,4] z" if after else "")
    inputs = "float[2,12,4] x" + (", float twice" if step is other_factor else "")
    proto = written_out(step, outputs=outputs, after=after, inputs=inputs)
    proto = run_passes(proto, "eliminate_noops", target="cpu")[0]
    found, report = run_passes(proto, PASS, target="cpu", explain=True)
    assert "Scan" not in op_list(found)
    assert any(any(part in str(near.refusal) for part in reason.split("|")) for near in report.near_misses), [
        str(near.refusal) for near in report.near_misses
    ]


def test_targets_without_kernels_and_wanted_copies_stay() -> None:
    proto = written_out(average)
    assert "Scan" not in op_list(run_passes(proto, PASS, target="generic")[0])
    loaded = ir.load(proto)
    PassManager("cpu", [PASS], options=Options(unroll_nodes=1000), strict=True).run(loaded)
    assert "Scan" not in op_list(ir.to_proto(loaded))


class RandomSteps:
    """Steps of random element-wise ops and products on [2, 4], with one to three states and two sequences that are read both ways."""

    def __init__(self, seed: int, stacks: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.states = [f"s{index}_" for index in range(self.rng.integers(1, 4))]
        self.axis = {"x": int(self.rng.integers(0, 3)), "z": 1}
        self.plan: list[tuple[str, str, str]] = []
        for _ in range(self.rng.integers(2, 8)):
            self.plan.append(self._choice())
        self.plan.append(("Add", self.states[0], f"t{len(self.plan) - 1}_"))
        self.updated = self.rng.choice(len(self.plan), len(self.states))
        self.stacked = sorted({len(self.plan) - 1, int(self.rng.integers(0, len(self.plan)))}) if stacks else []
        self.order = self.rng.choice([1, -1], 2)
        self.starts = self.rng.choice(["input", "zeros", "numbers"], len(self.states))
        self.read = self.states[: self.rng.integers(0 if stacks else 1, 2 if stacks else len(self.states) + 1)]

    def _choice(self) -> tuple[str, str, str]:
        op_type = str(self.rng.choice(["Add", "Sub", "Mul", "Tanh", "Sigmoid", "MatMul"]))
        sources = ["x", "z", "back", *self.states, *(f"t{index}_" for index in range(len(self.plan)))]
        return op_type, str(self.rng.choice(sources)), str(self.rng.choice(sources))

    def _operand(self, name: str, step: int, made: int) -> str:
        if name in self.states:
            return f"{name}{step}"
        return f"{name}{step}" if not name.startswith("t") or int(name[1:-1]) < made else f"x{step}"

    def step(self, step: int) -> str:
        sizes = [f"x{step} = Gather<axis = {self.axis['x']}>(x, n{step})", f"z{step} = Gather<axis = 1>(z, n{step})"]
        lines = [*sizes, f"back{step} = Gather<axis = 1>(z, n{STEPS - 1 - step})"]
        for index, (op_type, first, second) in enumerate(self.plan):
            a, b = (self._operand(name, step, index) for name in (first, second))
            operands = f"{a}, matrix" if op_type == "MatMul" else a if op_type in ("Tanh", "Sigmoid") else f"{a}, {b}"
            lines.append(f"t{index}_{step} = {op_type}({operands})")
        lines += [
            f"{state}{step + 1} = {f'Tanh(t{source}_{step})' if self.stacked else f'Sub({state}{step}, t{source}_{step})'}"
            for state, source in zip(self.states, self.updated, strict=True)
        ]
        lines += [f"u{index}_{step} = Unsqueeze(t{index}_{step}, one)" for index in self.stacked]
        return "\n".join(lines)

    def model(self) -> onnx.ModelProto:
        shape = [2, 4]
        shape.insert(self.axis["x"], STEPS)
        made = {"zeros": np.zeros((2, 4)), "numbers": self.rng.standard_normal((2, 4))}
        named = dict(zip(self.states, self.starts, strict=True))
        starts = "".join(f", float[2,4] {state}0" for state, start in named.items() if start == "input")
        begun = {f"{state}0": made[start].astype(np.float32) for state, start in named.items() if start != "input"}
        joined = [
            f"y{index} = Concat<axis = 1>({', '.join(f'u{index}_{step}' for step in range(STEPS)[:: self.order[index % 2]])})"
            for index in self.stacked
        ]
        outputs = [f"float[2,{STEPS},4] y{index}" for index in self.stacked]
        outputs += [f"float[2,4] w{state}" for state in self.read]
        joined += [f"w{state} = Neg({state}{STEPS})" for state in self.read]
        nodes = "\n".join([*map(self.step, range(STEPS)), *joined])
        text = f"g (float[{','.join(map(str, shape))}] x, float[2,{STEPS},4] z{starts}) => ({', '.join(outputs)}) {{ {nodes} }}"
        matrix = self.rng.standard_normal((4, 4)).astype(np.float32)
        used = {name: array for name, array in NUMBERS.items() if array < STEPS} | {"one": MORE["one"]}
        return model(text, matrix=matrix, **used, **begun)

    def feeds(self, proto: onnx.ModelProto) -> dict[str, np.ndarray]:
        shapes = {one.name: [dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in proto.graph.input}
        return {name: self.rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.slow
@pytest.mark.parametrize("stacks", [True, False], ids=["stacked", "last alone"])
@pytest.mark.parametrize("batch", range(4))
def test_random_steps(batch: int, stacks: bool) -> None:
    rolled = 0
    for seed in range(batch, 80, 4):
        steps = RandomSteps(seed, stacks)
        before = steps.model()
        loaded = ir.load(onnx.ModelProto.FromString(before.SerializeToString()))
        report = PassManager("cpu", strict=True).run(loaded)
        rolled += sum(stats.applied for (_, rule), stats in report.rules.items() if rule == PASS)
        after, feeds = ir.to_proto(loaded), steps.feeds(before)
        for library in (True, False):
            try:
                assert_same(before, after, feeds, rtol=1e-4, atol=1e-5, library=library)
            except Exception as error:
                raise AssertionError(f"seed {seed}: {error}") from error
    assert rolled >= 8
