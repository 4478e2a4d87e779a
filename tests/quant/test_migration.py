"""Scales that move from activations into weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from helpers import evaluate, model, op_list
from onnxopt import ir
from onnxopt.cli import app
from onnxopt.passes.base import Context
from onnxopt.pipeline import PassManager
from onnxopt.quant import Quantization, layers, quantize
from onnxopt.quant.migration import Migrated, migrate, places, times

pytest.importorskip("onnxopt._native", reason="the native library is not built")
pytestmark = pytest.mark.usefixtures("fuse_small_products")

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
FORMATS = pytest.mark.parametrize("format", ["fused", "qdq"])


@pytest.fixture(autouse=True)
def same_samples() -> None:
    """Samples do not depend on the tests that ran before."""
    RNG.bit_generator.state = np.random.default_rng(1).bit_generator.state


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def spread(*shape: int) -> Array:
    """Positive numbers of very different sizes."""
    return np.exp(2 * normal(*shape))


def images() -> list[dict[str, Array]]:
    return [{"x": normal(1, 8, 7, 9)} for _ in range(6)]


def rows() -> list[dict[str, Array]]:
    return [{"x": normal(2, 20, 32)} for _ in range(6)]


def moved(
    proto: onnx.ModelProto, data: list[dict[str, Array]], *, insert: bool = False
) -> tuple[list[Migrated], ir.Model]:
    loaded = ir.load(proto)
    ctx = Context(loaded, target=PassManager("generic").target)
    nodes = [node for node in loaded.graph if node.op_type in layers.OPS]
    found = places(ctx, nodes, insert=insert)
    rounding = {op: "model" if insert or op == "Conv" else "row" for op in layers.OPS}
    return migrate(loaded, ctx, found, lambda node: rounding[node.op_type], data, "mse"), loaded  # type: ignore[arg-type,return-value]


CASES = {
    "norm": (
        "g (float[N,S,32] x) => (float[N,S,64] y) { a = LayerNormalization(x, w, b) y = MatMul(a, v) }",
        {"w": spread(32), "b": normal(32), "v": normal(32, 64)},
        "a",
    ),
    "readers of one norm": (
        """g (float[N,S,32] x) => (float[N,S,64] y) {
            a = LayerNormalization(x, w, b) p = MatMul(a, v) q = MatMul(a, u) y = Add(p, q) }""",
        {"w": spread(32), "b": normal(32), "v": normal(32, 64), "u": normal(32, 64)},
        "a",
    ),
    "written out": (
        "g (float[N,S,32] x) => (float[N,S,64] y) { a = Mul(x, w) c = Add(a, b) y = MatMul(c, v) }",
        {"w": spread(32), "b": normal(32), "v": normal(32, 64)},
        "c",
    ),
    "gate": (
        """g (float[N,S,32] x) => (float[N,S,16] y) {
            p = MatMul(x, w) s = Sigmoid(p) q = MatMul(x, u) m = Mul(s, q) y = MatMul(m, v) }""",
        {"w": normal(32, 64), "u": normal(32, 64) * spread(64), "v": normal(64, 16)},
        "m",
    ),
    "relu": (
        "g (float[N,8,H,W] x) => (float[N,16,H,W] y) { a = Conv(x, w, b) r = Relu(a) y = Conv(r, v) }",
        {"w": normal(32, 8, 1, 1) * spread(32, 1, 1, 1), "b": normal(32), "v": normal(16, 32, 1, 1)},
        "r",
    ),
    "depthwise and pooled": (
        """g (float[N,8,H,W] x) => (float[N,32,P,Q] y) {
            a = Conv(x, w) r = Relu(a) p = MaxPool<kernel_shape=[2,2]>(r) y = Conv<group=32,pads=[1,1,1,1]>(p, k) }""",
        {"w": normal(32, 8, 1, 1) * spread(32, 1, 1, 1), "k": normal(32, 1, 3, 3)},
        "p",
    ),
    "groups": (
        "g (float[N,8,H,W] x) => (float[N,16,H,W] y) { a = Conv(x, w) y = Conv<group=4>(a, v) }",
        {"w": normal(32, 8, 1, 1) * spread(32, 1, 1, 1), "v": normal(16, 8, 1, 1)},
        "a",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_scales_move_and_the_model_computes_the_same(case: str) -> None:
    text, weights, name = CASES[case]
    data = images() if "8,H,W" in text else rows()
    proto = model(text, **weights)
    found, after = moved(proto, data)
    assert [one.name for one in found] == [name]
    assert found[0].error < 0.9 and (found[0].factors > 0).all()
    assert op_list(ir.to_proto(after)) == op_list(proto)
    for sample in data[:2]:
        wanted = evaluate(proto, sample)[0]
        np.testing.assert_allclose(
            evaluate(ir.to_proto(after), sample)[0], wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max()
        )


REFUSED = {
    "read by a sum": """g (float[N,S,32] x) => (float[N,S,32] y) {
        a = LayerNormalization(x, w, b) p = MatMul(a, v) y = Add(p, a) }""",
    "an output": "g (float[N,S,32] x) => (float[N,S,32] y, float[N,S,32] a) { a = LayerNormalization(x, w, b) y = MatMul(a, v) }",
    "not homogeneous": "g (float[N,S,32] x) => (float[N,S,32] y) { p = MatMul(x, v) a = Gelu(p) y = MatMul(a, v) }",
    "others read what lies between": """g (float[N,S,32] x) => (float[N,S,32] y) {
        p = MatMul(x, v) a = Relu(p) q = MatMul(a, v) y = Add(p, q) }""",
    "another axis": "g (float[N,S,32] x) => (float[N,S,32] y) { a = LayerNormalization<axis=1>(x, wide, wide) y = MatMul(a, v) }",
    "numbers that would become vectors": """g (float[N,S,32] x) => (float[N,S,32] y) {
        p = MatMul(x, v) q = Mul(p, half) a = Relu(q) y = MatMul(a, v) }""",
    "an input": "g (float[N,S,32] x) => (float[N,S,32] y) { y = MatMul(x, v) }",
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    weights = {
        "w": spread(32),
        "b": normal(32),
        "v": normal(32, 32),
        "wide": spread(20, 32),
        "half": np.array([0.5], np.float32),
    }
    proto = model(
        REFUSED[case],
        opset=20,
        **{k: v for k, v in weights.items() if k in REFUSED[case].replace("LayerNormalization", "")},
    )
    before = ir.to_proto(ir.load(proto)).SerializeToString()
    found, after = moved(proto, rows())
    assert found == [] and ir.to_proto(after).SerializeToString() == before


INSERTED = {
    "read by a sum": """g (float[N,S,32] x) => (float[N,S,32] y) {
        a = Mul(x, w) p = MatMul(a, v) r = Sigmoid(p) q = MatMul(r, u) y = Add(q, a) }""",
    "an output": "g (float[N,S,32] x) => (float[N,S,256] y, float[N,S,32] a) { a = Mul(x, w) y = MatMul(a, v) }",
    "not homogeneous": "g (float[N,S,32] x) => (float[N,S,256] y) { p = Mul(x, w) a = Softplus(p) y = MatMul(a, v) }",
    "an input": "g (float[N,S,32] a) => (float[N,S,256] y) { y = MatMul(a, v) }",
    "two products": """g (float[N,S,32] x) => (float[N,S,128] y, float[N,S,128] z) {
        a = Mul(x, w) s = Abs(a) y = MatMul(a, f) z = MatMul(a, f) }""",
}


def of_case(case: str) -> tuple[onnx.ModelProto, list[dict[str, Array]]]:
    """A model of the case, and samples in which a few channels are large; their weights are small."""
    text = INSERTED[case]
    sizes = np.where(np.arange(32) < 3, 40, 1).astype(np.float32)
    weights = {"w": sizes, "v": normal(32, 256) / sizes[:, None], "u": normal(256, 32) / 16}
    weights["f"] = weights["v"][:, :128]
    proto = model(text, **{name: array for name, array in weights.items() if f" {name})" in text})
    data = [{"x": normal(2, 20, 32)} if "] x)" in text else {"a": normal(2, 20, 32) * sizes} for _ in range(6)]
    return proto, data


@pytest.mark.parametrize("case", INSERTED)
def test_a_mul_takes_the_factors_where_constants_cannot(case: str) -> None:
    proto, data = of_case(case)
    assert moved(proto, data)[0] == []
    found, after = moved(proto, data, insert=True)
    assert [one.name for one in found] == ["a"] and found[0].error < 0.6
    assert op_list(ir.to_proto(after)).count("Mul") == op_list(proto).count("Mul") + 1
    for sample in data[:2]:
        for wanted, given in zip(evaluate(proto, sample), evaluate(ir.to_proto(after), sample), strict=True):
            np.testing.assert_allclose(given, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


def test_no_mul_where_the_products_are_narrow_or_nothing_is_gained() -> None:
    text = "g (float[N,S,32] a) => (float[N,S,32] y) { y = MatMul(a, v) }"
    proto, data = of_case("an input")
    assert (
        moved(model(text, v=onnx.numpy_helper.to_array(proto.graph.initializer[0])[:, :32]), data, insert=True)[0] == []
    )
    even = [{"a": normal(2, 20, 32)} for _ in range(6)]
    assert moved(model(text, v=normal(32, 256)), even, insert=True)[0] == []


def test_only_other_engines_need_a_mul() -> None:
    proto, data = of_case("read by a sum")
    found: list[Quantization] = []
    counts = [
        op_list(quantize(proto, calibration=data, format=one, report=found.append)).count("Mul")
        for one in ("qdq", "fused")
    ]
    assert counts[0] == 2 and "a" in found[0].migrated and "a" not in found[1].migrated


def test_nothing_moves_where_it_does_not_help() -> None:
    text = "g (float[N,S,32] x) => (float[N,S,32] y) { a = LayerNormalization(x, w, b) y = MatMul(a, v) }"
    flat = np.ones((32, 32), np.float32)
    found, _ = moved(model(text, w=np.ones(32, np.float32), b=np.zeros(32, np.float32), v=flat), rows())
    assert found == []


@pytest.mark.parametrize(
    ("op", "shape"),
    [("Conv", (16, 8, 3, 3)), ("Conv<group=8>", (8, 1, 3, 3)), ("Conv<group=2>", (6, 4, 1, 1)), ("MatMul", (9, 5))],
)
def test_weights_take_factors_along_the_channels_of_their_operand(op: str, shape: tuple[int, ...]) -> None:
    inside = "float[1,8,7,9]" if op != "MatMul" else "float[2,9]"
    proto = model(f"g ({inside} x) => (float y) {{ y = {op}(x, w) }}", w=normal(*shape))
    (node,) = list(ir.load(proto).graph)
    x = normal(1, 8, 7, 9) if op != "MatMul" else normal(2, 9)
    factors = spread(8 if op != "MatMul" else 9)
    shaped = factors[:, None, None] if op != "MatMul" else factors
    changed = onnx.ModelProto.FromString(proto.SerializeToString())
    changed.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(times(node, factors), "w"))
    wanted = evaluate(proto, {"x": x})[0]
    np.testing.assert_allclose(evaluate(changed, {"x": x / shaped})[0], wanted, rtol=1e-3, atol=1e-4)


@FORMATS
def test_quantized_models_come_nearer_or_have_fewer_layers_in_float(format: str) -> None:
    text = """g (float[N,S,32] x) => (float[N,S,32] y) {
        a = LayerNormalization(x, w, b) p = MatMul(a, v) r = Relu(p) y = MatMul(r, u) }"""
    proto = model(text, w=spread(32), b=normal(32), v=normal(32, 64) / 6, u=normal(64, 32) / 8)
    found: list[Quantization] = []
    for smooth in (False, True):
        quantize(proto, calibration=rows(), format=format, smooth=smooth, report=found.append)
    assert found[0].migrated == {} and "a" in found[1].migrated and found[1].migrated["a"] > 0
    floats = [sum(layer.precision == "float" for layer in one.layers) for one in found]
    assert floats[1] < floats[0] or found[1].sqnr["y"] > found[0].sqnr["y"] + 2


def test_layers_that_stay_in_float_keep_their_operand() -> None:
    text, weights, _ = CASES["norm"]
    found: list[Quantization] = []
    quantize(model(text, **weights), calibration=rows(), keep=["y"], report=found.append)
    assert found[0].migrated == {}


def test_channels_that_are_large_by_chance_move_nothing() -> None:
    text = "g (float[1,S,256] x) => (float[1,S,64] y) { a = LayerNormalization(x, w, b) y = MatMul(a, v) }"
    proto = model(text, w=np.ones(256, np.float32), b=np.zeros(256, np.float32), v=normal(256, 64))
    data = [{"x": normal(1, 2, 256) ** 3} for _ in range(6)]
    assert moved(proto, data)[0] == []


def test_the_command_line_has_the_choices(tmp_path: Path) -> None:
    text, weights, name = CASES["norm"]
    source, samples = tmp_path / "in.onnx", tmp_path / "samples"
    onnx.save(model(text, **weights), source)
    samples.mkdir()
    for number, sample in enumerate(rows()):
        np.savez(samples / f"{number}.npz", **sample)
    command = ["quantize", str(source), "-o", str(tmp_path / "out.onnx"), "--calib", str(samples), "--json"]
    results = [
        json.loads(CliRunner().invoke(app, [*command, *more]).stdout)
        for more in ([], ["--no-smooth"], ["--no-smooth", "--no-bias-correction", "--rounding", "adaptive"])
    ]
    assert [list(one["migrated"]) for one in results] == [[name], [], []]
    assert results[2]["sqnr"] != results[1]["sqnr"]
    wrong = CliRunner().invoke(app, [*command, "--rounding", "up"])
    assert "There is no rounding 'up'" in str(wrong.exception)
