"""Measure where fusions pay on this machine, and write it to the cost data of the target.

    python bench/measure_costs.py [--write] [COST...]

For each cost there is a row of models of growing size. Each is optimized twice, with the fusion and without, by the two extremes of the cost,
and both are compared in turn. The cost is where the winner changes. It stays as it is where the machine cannot tell: where no size is won
or all are, or where wins and losses alternate.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import re
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import parser as onnx_parser

import onnxopt
from onnxopt.runtime import bench
from onnxopt.runtime.costs import FOLDER, describe
from onnxopt.runtime.target import Target
from onnxopt.runtime.verify import random_inputs

NEVER = 1 << 40
"""A cost that no size reaches."""

Make = Callable[[int], onnx.ModelProto]


@dataclasses.dataclass(frozen=True, slots=True)
class Probe:
    """How one cost is measured.

    Attributes:
        sizes: growing sizes to try.
        make: the model of a size.
        fused: the costs with which the fusion is applied at every size.
        plain: the costs with which it never is.
        cost: the cost at which the fusion is applied from this size on, and not at the size before it.
        pays_below: the fusion pays up to a size, not from a size on.
        fast_math: the fusion changes the order of sums.
        quantized: what is measured are bytes instead of floats, not a fusion.
    """

    sizes: Sequence[int]
    make: Make
    fused: Mapping[str, float]
    plain: Mapping[str, float]
    cost: Callable[[int, int], float]
    pays_below: bool = False
    fast_math: bool = False
    quantized: bool = False


def model(text: str, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    """A model of opset 17 whose weights are random."""
    rng = np.random.default_rng(0)
    made = onnx_parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}')
    weights = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    made.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return made


def chain(elements: int, nodes: int) -> onnx.ModelProto:
    lines = " ".join(f"v{k + 1} = Sigmoid (v{k})" for k in range(nodes))
    return model(f"(float[{elements}] v0) => (float[{elements}] v{nodes}) {{ {lines} }}")


def product(rows: int) -> onnx.ModelProto:
    return model(
        f"(float[{rows}, 32] x) => (float[{rows}, 32] y) {{ a = MatMul (x, w) b = Add (a, c) y = Relu (b) }}",
        w=(32, 32),
        c=(32,),
    )


def norm(elements: int) -> onnx.ModelProto:
    rows = max(elements // 64, 1)
    return model(
        f"(float[{rows}, 64] x) => (float[{rows}, 64] y) {{ a = Add (x, x) y = LayerNormalization (a, s) }}", s=(64,)
    )


def softmax(width: int) -> onnx.ModelProto:
    return model(
        f"(float[1024, {width}] x) => (float[1024, {width}] y) {{ a = Mul (x, x) y = Softmax <axis = -1> (a) }}"
    )


def convolutions(count: int, channels: int = 32, side: int = 28) -> onnx.ModelProto:
    """So many convolutions in a row between two tensors that are not channels-last."""
    lines = " ".join(f"v{k + 1} = Conv <pads = [1, 1, 1, 1]> (v{k}, w{k})" for k in range(count))
    shapes = {f"w{k}": (channels, channels, 3, 3) for k in range(count)}
    tensor = f"float[1, {channels}, {side}, {side}]"
    return model(f"({tensor} v0) => ({tensor} v{count}) {{ {lines} }}", **shapes)


def sequence(channels: int, length: int = 2000) -> onnx.ModelProto:
    tensor = f"float[1, {channels}, {length}]"
    return model(f"({tensor} x) => ({tensor} y) {{ y = Conv <pads = [1, 1]> (x, w) }}", w=(channels, channels, 3))


def separable(pixels: int, channels: int = 96) -> onnx.ModelProto:
    tensor = f"float[1, {channels}, {pixels}, 1]"
    text = f"""({tensor} x) => ({tensor} y) {{
        a = Conv <pads = [1, 1, 1, 1], group = {channels}> (x, w, b) c = Relu (a) d = Conv (c, v, b) y = Conv <pads = [1, 1, 1, 1]> (d, u, b) }}"""
    square = (channels, channels)
    return model(text, w=(channels, 1, 3, 3), v=(*square, 1, 1), u=(*square, 3, 3), b=(channels,))


def inverted_residuals(blocks: int, most: int = 6, channels: int = 32, side: int = 28) -> onnx.ModelProto:
    """So many inverted residuals behind a convolution of an image, and pointwise convolutions instead of the others."""
    wide = 6 * channels
    line = f"e{{0}} = Conv (v{{0}}, u, c) f{{0}} = Relu (e{{0}}) d{{0}} = Conv <group = {wide}, pads = [1, 1, 1, 1]> (f{{0}}, w, c) "
    between = ("g{0} = Relu (d{0}) v{1} = Conv (g{0}, t, b)", "v{1} = Conv (v{0}, s, b)")
    lines = [(line + between[0] if k < blocks else between[1]).format(k, k + 1) for k in range(most)]
    tensor = f"float[1, {channels}, {side}, {side}] v{most}"
    text = f"(float[1, 3, {side}, {side}] x) => ({tensor}) {{ v0 = Conv (x, r, b) {' '.join(lines)} }}"
    filters = {
        "r": (channels, 3, 1, 1),
        "s": (channels, channels, 1, 1),
        "t": (channels, wide, 1, 1),
        "u": (wide, channels, 1, 1),
    }
    return model(text, w=(wide, 1, 3, 3), b=(channels,), c=(wide,), **filters)


def leaving_blocks(count: int, most: int = 16, channels: int = 64, side: int = 28) -> onnx.ModelProto:
    """Pointwise convolutions, and so many nodes between them that onnxruntime does not compute in blocks."""
    lines = " ".join(f"e{k} = {'Elu' if k < count else 'Relu'} (v{k}) v{k + 1} = Conv (e{k}, w)" for k in range(most))
    tensor = f"float[1, {channels}, {side}, {side}]"
    return model(f"({tensor} x) => ({tensor} v{most}) {{ v0 = Conv (x, w) {lines} }}", w=(channels, channels, 1, 1))


def minimal_filtering(count: int, most: int = 6, channels: int = 48, side: int = 28) -> onnx.ModelProto:
    """So many of the convolutions are computed by minimal filtering; the others are dilated."""
    dilations = [1 if k < count else 2 for k in range(most)]
    lines = " ".join(
        f"v{k + 1} = Conv <pads = [{d}, {d}, {d}, {d}], dilations = [{d}, {d}]> (v{k}, w{k})"
        for k, d in enumerate(dilations)
    )
    tensor = f"float[1, {channels}, {side}, {side}]"
    return model(
        f"({tensor} v0) => ({tensor} v{most}) {{ {lines} }}",
        **{f"w{k}": (channels, channels, 3, 3) for k in range(most)},
    )


def image(channels: int, side: int = 112) -> onnx.ModelProto:
    text = f"""(float[1, {channels}, {side}, {side}] x) => (float[1, 32, {side}, {side}] y) {{
        a = Conv <pads = [1, 1, 1, 1]> (x, w) y = Conv <pads = [1, 1, 1, 1]> (a, v) }}"""
    return model(text, w=(32, channels, 3, 3), v=(32, 32, 3, 3))


def recurrent(op: str, gates: int, hidden: int, steps: int = 64) -> onnx.ModelProto:
    text = f"(float[{steps}, 1, 64] x) => (float[{steps}, 1, 1, {hidden}] y) {{ y = {op} <hidden_size = {hidden}> (x, w, r, b) }}"
    rows = gates * hidden
    return model(text, w=(1, rows, 64), r=(1, rows, hidden), b=(1, 2 * rows))


def linear_recurrence(steps: int, elements: int) -> onnx.ModelProto:
    """h = a h + x, with all h stacked."""
    row = f"float[{elements}]"
    text = f"""(float[{steps}, {elements}] a, float[{steps}, {elements}] x) => ({row} last, float[{steps}, {elements}] y) {{
        last, y = Scan <num_scan_inputs = 2, body = step ({row} h, {row} d, {row} e) => ({row} n, {row} s) {{
            p = Mul (h, d) n = Add (p, e) s = Identity (n) }}> (h0, a, x) }}"""
    return model(text, h0=(elements,))


def rounded_convolution(filters: int, side: int, channels: int = 64) -> onnx.ModelProto:
    """A convolution of pixels whose channels lie side by side already."""
    text = f"""(float[1, {side}, {side}, {channels}] x) => (float[1, {side}, {side}, {filters}] y) {{
        a = Transpose <perm = [0, 3, 1, 2]> (x) b = Conv (a, w) y = Transpose <perm = [0, 2, 3, 1]> (b) }}"""
    return model(text, w=(filters, channels, 1, 1))


def first(size: int, _: int) -> float:
    return size


def last(_: int, before: int) -> float:
    return before


POWERS = [1 << k for k in range(7, 16)]

PROBES: Mapping[str, Probe] = {
    "small_region_elements": Probe(
        POWERS, functools.partial(chain, nodes=2), {"small_region_nodes": 0}, {"small_region_nodes": NEVER, "small_region_elements": NEVER},
        last,
    ),
    "small_region_nodes": Probe(
        range(2, 10), functools.partial(chain, 256), {"small_region_nodes": 0}, {"small_region_nodes": NEVER, "small_region_elements": NEVER}, first,
    ),
    "product_work": Probe(
        [1 << k for k in range(8)], product, {"product_work": 0}, {"product_work": NEVER}, lambda rows, before: rows * 32 * 32,
    ),
    "norm_elements": Probe(POWERS, norm, {"norm_elements": 0}, {"norm_elements": NEVER}, first),
    "softmax_width": Probe([8, 16, 32, 48, 64, 96, 128, 256], softmax, {"softmax_width": 0}, {"softmax_width": NEVER}, first),
    # With two Transposes at the border, so many convolutions of gain 1 pay from twice the cost on.
    "border_cost": Probe(
        range(1, 7), convolutions, {"border_cost": 0}, {"border_cost": NEVER, "image_channels": NEVER},
        lambda count, before: (count - 1) / 2,
    ),
    "image_channels": Probe(
        [16, 24, 32, 48, 64, 96, 128], functools.partial(convolutions, 1), {"image_channels": 0}, {"image_channels": NEVER}, last,
    ),
    "sequence_channels": Probe(
        [16, 24, 32, 48, 64, 96, 128, 192], sequence, {"sequence_channels": 0}, {"sequence_channels": NEVER}, last,
    ),
    "separable_pixels": Probe(
        [16, 32, 64, 100, 150, 200, 400, 800], separable,
        {"separable_pixels": 0, "border_cost": 0}, {"separable_pixels": NEVER, "border_cost": 0}, first,
    ),
    "inverted_part": Probe(
        range(1, 7), inverted_residuals, {"inverted_part": 0, "border_cost": 0}, {"inverted_part": NEVER},
        lambda blocks, before: round(3 * blocks / (7 + 2 * blocks), 2),
    ),
    "leaving_part": Probe(
        range(1, 9), leaving_blocks, {"leaving_part": 0, "border_cost": 0}, {"leaving_part": 2}, lambda count, before: round(count / 17, 2),
    ),
    "minimal_part": Probe(
        range(1, 7), minimal_filtering, {"minimal_part": 0, "border_cost": 0}, {"minimal_part": 2}, lambda count, before: round(count / 6, 2),
    ),
    "planar_channels": Probe(
        [1, 3, 4, 5, 6, 7, 8, 12], image, {"planar_channels": NEVER, "border_cost": 0}, {"planar_channels": 0, "border_cost": 0},
        last, pays_below=True,
    ),
    "recurrent_steps": Probe(
        [1, 2, 4, 6, 8, 12, 16, 32, 64], lambda steps: recurrent("RNN", 1, 64, steps),
        {"recurrent_steps": 0}, {"recurrent_steps": NEVER}, first,
    ),
    "lstm_hidden": Probe(
        [32, 64, 128, 256, 512], functools.partial(recurrent, "LSTM", 4), {"lstm_hidden": 0}, {"lstm_hidden": NEVER}, first,
    ),
    "gru_hidden": Probe(
        [32, 64, 128, 256, 512], functools.partial(recurrent, "GRU", 3), {"gru_hidden": 0}, {"gru_hidden": NEVER}, first,
    ),
    "chunked_steps": Probe(
        [1 << k for k in range(6, 14)], functools.partial(linear_recurrence, elements=1),
        {"chunked_steps": 0, "chunked_elements": NEVER}, {"chunked_steps": NEVER}, first, fast_math=True,
    ),
    "chunked_elements": Probe(
        [1 << k for k in range(9)], functools.partial(linear_recurrence, 4096),
        {"chunked_steps": 0, "chunked_elements": NEVER}, {"chunked_steps": NEVER}, lambda size, before: before, pays_below=True, fast_math=True,
    ),
    "rounding_work": Probe(
        [1 << k for k in range(5, 13)], functools.partial(rounded_convolution, side=8),
        {"rounding_work": 0, "rounding_element_work": 0}, {"rounding_work": NEVER}, lambda filters, before: filters * 64 * 8 * 8, quantized=True,
    ),
    # The filters are the multiplications for each element.
    "rounding_element_work": Probe(
        [2, 4, 6, 8, 12, 16, 24, 32, 48, 64], functools.partial(rounded_convolution, side=112),
        {"rounding_work": 0, "rounding_element_work": 0}, {"rounding_work": NEVER}, first, quantized=True,
    ),
}  # fmt: skip


def speed_of_fusion(made: onnx.ModelProto, probe: Probe, rounds: int, threads: int) -> float | None:
    """The speed with the fusion relative to without, the median of the rounds; None where both are the same model."""
    inputs = random_inputs(made, dims={}, seed=0)
    models = []
    for costs in (probe.plain, probe.fused):
        target = Target.named("cpu")
        target = dataclasses.replace(target, costs=target.costs.replaced(costs))
        if probe.quantized:
            models.append(onnxopt.quantize(made, calibration=[inputs], target=target))
        else:
            models.append(onnxopt.optimize(made, target=target, options=onnxopt.Options(fast_math=probe.fast_math)))
    if models[0] == models[1]:
        return None
    plain, fused = (functools.partial(onnxopt.session(one, threads=threads).run, None, inputs) for one in models)
    return statistics.median(itertools.islice(bench.ratios(plain, fused, bench.BURST_SECONDS / 2), rounds))


def turn(wins: Sequence[bool]) -> int | None:
    """The first index from which on all are won, where all before it are lost and there are both; None otherwise."""
    changes = [index for index in range(1, len(wins)) if wins[index] != wins[index - 1]]
    return changes[0] if len(changes) == 1 and wins[-1] else None


def measured(probe: Probe, speeds: Sequence[tuple[int, float]]) -> float | None:
    """The cost that the speeds by size tell; None where they do not."""
    wins = [(speed < 1) if probe.pays_below else (speed > 1) for _, speed in speeds]
    index = turn(wins)
    return None if index is None else probe.cost(speeds[index][0], speeds[index - 1][0])


def replaced(text: str, name: str, value: float) -> str:
    """The cost data with another value of one cost; everything else stays."""
    new, count = re.subn(rf"(\[{name}\]\nvalue = )\S+", rf"\g<1>{value!r}", text)
    assert count == 1, f"the cost data has no entry '{name}'"
    return new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("costs", nargs="*", metavar="COST", help=f"costs to measure: {', '.join(PROBES)}; all of them")
    parser.add_argument("--write", action="store_true", help="write what was measured to the cost data")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each comparison")
    parser.add_argument("--threads", type=int, default=1, help="threads of each session")
    options = parser.parse_args()
    unknown = set(options.costs) - set(PROBES)
    if unknown:
        parser.error(f"there is no cost {', '.join(sorted(unknown))}; the costs are {', '.join(PROBES)}")
    path, committed = FOLDER / "cpu.toml", describe("cpu")
    text = path.read_text(encoding="utf-8")
    for name in options.costs or PROBES:
        probe = PROBES[name]
        speeds = [
            (size, speed_of_fusion(probe.make(size), probe, options.rounds, options.threads)) for size in probe.sizes
        ]
        known = [(size, speed) for size, speed in speeds if speed is not None]
        value, old = measured(probe, known), committed[name]["value"]
        row = "  ".join(f"{size}: {speed:.2f}" for size, speed in known)
        verdict = f"stays {old}" if value is None else f"{old} -> {value}"
        print(f"{name:24s} {verdict:20s} {row}", flush=True)
        if value is not None:
            text = replaced(text, name, value)
    if options.write:
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
