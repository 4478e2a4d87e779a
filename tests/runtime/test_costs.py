"""Cost data: what is committed, what may replace it, and that the passes ask the target for it."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest

import helpers
from onnxopt.errors import OptionError
from onnxopt.runtime.costs import Costs, describe
from onnxopt.runtime.target import TARGETS

RNG = np.random.default_rng(0)
COSTS = Costs.of("cpu")


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(0, 1, shape).astype(np.float32)


def test_every_cost_has_value_unit_and_sentence() -> None:
    entries = describe("cpu")
    assert list(entries) == [field.name for field in dataclasses.fields(Costs)]
    for entry in entries.values():
        assert set(entry) == {"value", "unit", "about"}
        assert entry["unit"] and entry["about"].endswith(".")


@pytest.mark.parametrize("target", TARGETS)
def test_targets_have_costs(target: str) -> None:
    assert TARGETS[target].costs == COSTS


def test_costs_are_replaced_by_name() -> None:
    other = COSTS.replaced({"product_work": 1, "border_cost": 0.5})
    assert (other.product_work, other.border_cost, other.norm_elements) == (1, 0.5, COSTS.norm_elements)
    assert COSTS.replaced({}) == COSTS


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"speed": 1}, r"no cost 'speed'\. The costs are: small_region_elements, "),
        ({"product_work": -1}, r"'product_work' is -1; expected a whole number of at least 0"),
        ({"product_work": 1.5}, "expected a whole number"),
        ({"product_work": True}, "expected a whole number"),
        ({"border_cost": float("nan")}, "'border_cost' is nan; expected a number of at least 0"),
        ({"border_cost": "1"}, "'border_cost' is '1'"),
    ],
)
def test_wrong_costs_are_refused(values: dict[str, float], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        COSTS.replaced(values)


def chain(elements: int, nodes: int) -> onnx.ModelProto:
    lines = ["v0 = Tanh(x)"] + [f"v{k} = Tanh(v{k - 1})" for k in range(1, nodes)]
    return helpers.model(f"g (float[{elements}] x) => (float[{elements}] v{nodes - 1}) {{ {' '.join(lines)} }}")


def product(rows: int) -> onnx.ModelProto:
    return helpers.model(f"g (float[{rows}, 16] x) => (float[{rows}, 16] y) {{ y = MatMul (x, w) }}", w=normal(16, 16))


def norm(elements: int) -> onnx.ModelProto:
    text = f"g (float[1, {elements}] x) => (float[1, {elements}] y) {{ y = LayerNormalization (x, w) }}"
    return helpers.model(text, w=normal(elements))


def softmax(width: int) -> onnx.ModelProto:
    text = f"g (float[4, {width}] x) => (float[4, {width}] y) {{ a = Mul (x, x) y = Softmax (a) }}"
    return helpers.model(text)


def image(channels: int, convolutions: int) -> onnx.ModelProto:
    """Convolutions in a row between two tensors that are not channels-last."""
    lines = [f"v{k + 1} = Conv <pads = [1, 1, 1, 1]> (v{k}, w{k})" for k in range(convolutions)]
    filters = {f"w{k}": normal(16, channels if k == 0 else 16, 3, 3) for k in range(convolutions)}
    text = f"g (float[1, {channels}, 8, 8] v0) => (float[1, 16, 8, 8] v{convolutions}) {{ {' '.join(lines)} }}"
    return helpers.model(text, **filters)


def separable(side: int) -> onnx.ModelProto:
    text = f"""g (float[1, 16, {side}, {side}] x) => (float[1, 16, {side}, {side}] y) {{
        a = Conv <pads = [1, 1, 1, 1], group = 16> (x, w, b) c = Conv (a, v, b) y = Conv <pads = [1, 1, 1, 1]> (c, u, b) }}"""
    return helpers.model(text, w=normal(16, 1, 3, 3), v=normal(16, 16, 1, 1), u=normal(16, 16, 3, 3), b=normal(16))


def inverted_residuals(blocks: int, pointwise: int) -> onnx.ModelProto:
    """A convolution of an image, inverted residuals and pointwise convolutions; one less than these are pointwise ones for onnxruntime."""
    block = "e{k} = Conv (v{k}, u, c) f{k} = Relu (e{k}) d{k} = Conv <group = 24, pads = [1, 1, 1, 1]> (f{k}, w, c) v{n} = Conv (d{k}, t, b)"
    lines = [block.format(k=k, n=k + 1) for k in range(blocks)]
    lines += [f"v{k + 1} = Conv (v{k}, s, b)" for k in range(blocks, blocks + pointwise)]
    last = f"v{blocks + pointwise}"
    text = f"g (float[1, 3, 9, 9] x) => (float[1, 16, 9, 9] {last}) {{ v0 = Conv (x, r, b) {' '.join(lines)} }}"
    filters = {
        "r": normal(16, 3, 1, 1),
        "s": normal(16, 16, 1, 1),
        "t": normal(16, 24, 1, 1),
        "u": normal(24, 16, 1, 1),
    }
    return helpers.model(text, w=normal(24, 1, 3, 3), b=normal(16), c=normal(24), **filters)


def leaving_blocks(nodes: int, convolutions: int) -> onnx.ModelProto:
    """Convolutions in a row, and so many nodes between them that onnxruntime does not compute in blocks."""
    lines = [
        f"e{k} = Elu (v{k}) v{k + 1} = Conv (e{k}, w)" if k < nodes else f"v{k + 1} = Conv (v{k}, w)"
        for k in range(convolutions)
    ]
    lines[0] = lines[0].replace("v0", "x0")
    text = f"g (float[1, 16, 9, 9] x) => (float[1, 16, 9, 9] v{convolutions}) {{ x0 = Conv (x, w) {' '.join(lines)} }}"
    return helpers.model(text, w=normal(16, 16, 1, 1))


def minimal_filtering(dilation: int) -> onnx.ModelProto:
    """Two convolutions, of which the second is computed with fewer multiplications, as the first one is unless it is dilated."""
    pads = ", ".join([str(dilation)] * 4)
    text = f"""g (float[1, 16, 9, 9] x) => (float[1, 16, 9, 9] y) {{
        a = Conv <pads = [{pads}], dilations = [{dilation}, {dilation}]> (x, w) y = Conv <pads = [1, 1, 1, 1]> (a, w) }}"""
    return helpers.model(text, w=normal(16, 16, 3, 3))


def recurrent(op: str, gates: int, hidden: int = 4, steps: int = 9) -> onnx.ModelProto:
    text = f"g (float[{steps}, 1, 4] x) => (float[{steps}, 1, 1, {hidden}] y) {{ y = {op} <hidden_size = {hidden}> (x, w, r) }}"
    return helpers.model(text, w=normal(1, gates * hidden, 4), r=normal(1, gates * hidden, hidden))


@pytest.mark.parametrize(
    ("passes", "before", "cost", "applied", "not_applied"),
    [
        ("fuse_elementwise", chain(8, 3), "small_region_nodes", 3, 4),
        ("fuse_elementwise", chain(8, 2), "small_region_elements", 7, 8),
        ("fuse_gemms", product(4), "product_work", 4 * 16 * 16, 4 * 16 * 16 + 1),
        ("fuse_norms", norm(64), "norm_elements", 64, 65),
        ("fuse_softmax", softmax(16), "softmax_width", 16, 17),
        ("unfold_recurrent_ops", recurrent("RNN", 1, steps=5), "recurrent_steps", 5, 6),
        ("unfold_recurrent_ops", recurrent("LSTM", 4, 6), "lstm_hidden", 6, 7),
        ("unfold_recurrent_ops", recurrent("GRU", 3, 6), "gru_hidden", 6, 7),
        ("convolutions_channels_last", image(32, 3), "border_cost", 1, 2),
        ("convolutions_channels_last", inverted_residuals(1, 1), "inverted_part", 0.6, 0.61),
        ("convolutions_channels_last", leaving_blocks(2, 3), "leaving_part", 0.5, 0.51),
        ("convolutions_channels_last", minimal_filtering(2), "minimal_part", 0.5, 0.51),
        ("convolutions_channels_last fuse_separable_convs", separable(4), "separable_pixels", 16, 17),
    ],
)
def test_passes_ask_the_target(
    monkeypatch: pytest.MonkeyPatch, passes: str, before: onnx.ModelProto, cost: str, applied: int, not_applied: int
) -> None:
    last = passes.split()[-1]
    for value, expected in ((applied, True), (not_applied, False)):
        helpers.set_costs(monkeypatch, **{"border_cost": 0, "image_channels": 1 << 30, cost: value})
        _, report = helpers.run_passes(before, *passes.split(), target="cpu")
        assert any(patch.pass_name == last for patch in report.patches) is expected, (cost, value)


@pytest.mark.parametrize(("most", "read_as_it_is"), [(3, True), (2, False)])
def test_images_of_few_channels_are_read_as_they_are(
    monkeypatch: pytest.MonkeyPatch, most: int, read_as_it_is: bool
) -> None:
    helpers.set_costs(monkeypatch, planar_channels=most, border_cost=0)
    after, _ = helpers.run_passes(image(3, 2), "convolutions_channels_last", target="cpu")
    (first, *_) = (node for node in after.graph.node if node.op_type == "FusedConv")
    assert any(one.name == "planar" and one.i for one in first.attribute) is read_as_it_is
