"""Models that are quantized as a whole: what they compute, what they are made of, and what goes wrong with a sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxopt
from helpers import evaluate, model, op_list
from onnxopt.errors import CalibrationError, MetricError, OptionError
from onnxopt.quant import Quantization, job, quantize

pytest.importorskip("onnxopt._native", reason="the native library is not built")
pytestmark = pytest.mark.usefixtures("fuse_small_products")

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


PERCEPTRON = """g (float[N,32] x) => (float[N,32] y) {
    a = MatMul(x, w) b = Add(a, c) d = Relu(b) e = MatMul(d, v) y = Add(e, x)
}"""
NETWORK = """g (float[1,8,9,9] x) => (float[1,16,9,9] y) {
    a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a)
    c = Conv<group=16, pads=[1,1,1,1]>(r, d) e = Conv(c, v, f) s = Add(e, r) t = Relu(s)
    y = Conv(t, v)
}"""


def perceptron(opset: int = 17) -> onnx.ModelProto:
    return model(PERCEPTRON, opset=opset, w=normal(32, 64), c=normal(64), v=normal(64, 32) / 8)


def network() -> onnx.ModelProto:
    constants = {"w": normal(16, 8, 3, 3) / 8, "b": normal(16), "d": normal(16, 1, 3, 3) / 3}
    return model(NETWORK, **constants, v=normal(16, 16, 1, 1) / 4, f=normal(16))


def samples(shape: tuple[int, ...], count: int = 5) -> list[dict[str, Array]]:
    return [{"x": normal(*shape)} for _ in range(count)]


def noise(wanted: Array, found: Array) -> float:
    """In dB below the signal."""
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - found).sum()))


def test_products_need_no_calibration() -> None:
    proto, feeds = perceptron(), {"x": normal(5, 32)}
    after = quantize(proto)
    assert op_list(after) == ["QGemm", "QGemm"]
    (wanted,) = evaluate(proto, feeds)
    for library in (True, False):
        assert noise(wanted, evaluate(after, feeds, library=library)[0]) > 35


@pytest.mark.parametrize("format", ["fused", "qdq"])
@pytest.mark.parametrize("build", [perceptron, network])
def test_quantized_models_come_near(build: Any, format: str) -> None:
    proto = build()
    shape = (5, 32) if build is perceptron else (1, 8, 9, 9)
    found: list[Quantization] = []
    after = quantize(proto, calibration=samples(shape), format=format, report=found.append)
    (result,) = found
    feeds = {"x": normal(*shape)}
    (wanted,) = evaluate(proto, feeds)
    for library in (True, False):
        assert noise(wanted, evaluate(after, feeds, library=library)[0]) > 28
    assert result.samples == 5 and result.sqnr["y"] > 28
    assert build is network or result.bytes_after < 0.7 * result.bytes_before
    if format == "qdq":
        assert all(not node.domain for node in after.graph.node)


def test_qdq_lets_regions_of_convolutions_stay_in_bytes() -> None:
    after = quantize(network(), calibration=samples((1, 8, 9, 9)), format="qdq")
    made = {output: node.op_type for node in after.graph.node for output in node.output}
    for node in after.graph.node:
        if node.op_type in ("Conv", "Add"):
            assert made[node.input[0]] == made[node.input[1]] == "DequantizeLinear"
    assert {one.data_type for one in after.graph.initializer if len(one.dims) == 4} == {onnx.TensorProto.INT8}


def test_old_opsets_are_upgraded() -> None:
    after = quantize(perceptron(opset=11), calibration=samples((5, 32)), format="qdq")
    assert after.opset_import[0].version >= 13
    assert op_list(after).count("DequantizeLinear") == 5, "of two products, one of which has a bias"


def test_convolutions_without_samples_stay_in_float_and_say_so() -> None:
    found: list[Quantization] = []
    quantize(network(), report=found.append)
    assert any(
        "3 convolutions stay in float" in one or "convolutions stay in float" in one for one in found[0].warnings
    )


def test_a_file_stays_as_it_is_and_an_iterator_is_read_once(tmp_path: Path) -> None:
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(perceptron(), source)
    before = source.read_bytes()
    assert onnxopt.quantize(source, target, calibration=iter(samples((5, 32))), format="qdq") == target
    assert source.read_bytes() == before
    onnx.checker.check_model(onnx.load(target))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_tensors_that_are_not_finite_are_named(bad: float) -> None:
    data = samples((5, 32))
    data[3]["x"][2, 2] = bad
    with pytest.raises(CalibrationError, match="'x' is not finite for calibration sample 3"):
        quantize(perceptron(), calibration=data, format="qdq")


def test_samples_that_onnxruntime_cannot_run() -> None:
    proto = model("g (float[N,S] x) => (float[N,32] y) { y = MatMul(x, w) }", w=normal(32, 32))
    with pytest.raises(CalibrationError, match="Calibration sample 0 cannot be run"):
        quantize(proto, calibration=[{"x": normal(5, 31)}], format="qdq", smooth=False)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"format": "int4"}, "There is no format 'int4'"),
        ({"method": "best"}, "There is no method 'best'"),
        ({"format": "qdq"}, "needs calibration samples"),
        ({"keep": "a"}, "are one text; expected a list of names"),
    ],
)
def test_wrong_options(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        quantize(perceptron(), **options)


@pytest.mark.parametrize("format", ["fused", "qdq"])
@pytest.mark.parametrize("build", [perceptron, network])
def test_a_budget_keeps_layers_in_float(build: Any, format: str, tmp_path: Path) -> None:
    data, target = samples((5, 32) if build is perceptron else (1, 8, 9, 9)), tmp_path / "out.onnx"
    results: dict[str, Quantization] = {}
    for drop in ("20dB", "42dB", "200dB"):
        quantize(
            build(),
            target,
            calibration=data,
            format=format,
            max_drop=drop,
            report=lambda r, drop=drop: results.update({drop: r}),
        )
    assert (tmp_path / "out.onnx.journal").exists()
    kept = {drop: [one.name for one in result.layers if one.precision == "float"] for drop, result in results.items()}
    assert kept["20dB"] == [] and len(kept["200dB"]) == len(results["200dB"].layers) > 1
    assert set(kept["42dB"]) <= set(kept["200dB"])
    metric = results["42dB"].metric
    assert metric is not None and metric.within and metric.after >= 42
    assert any("the model stays in float" in one for one in results["200dB"].warnings) or any(
        "No choice of layers" in one for one in results["200dB"].warnings
    )
    for layer in results["42dB"].layers:
        reasons = ("the accuracy budget", "floats alone read its results") if layer.precision == "float" else ("",)
        assert layer.reason in reasons and layer.operations and layer.weights


@pytest.mark.parametrize("format", ["fused", "qdq"])
def test_sensitivities_are_the_same_in_any_number_of_sessions_and_after_a_stop(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto, data, measured = network(), samples((1, 8, 9, 9)), []
    session_of = job.Job.session

    def session(run: Any, keep: frozenset[str], **options: Any) -> Any:
        if "threads" in options:
            measured.append(keep)
            if len(measured) == stop:
                raise RuntimeError("killed")
        return session_of(run, keep, **options)

    monkeypatch.setattr(job.Job, "session", session)

    def sensitivities(name: str, sessions: int) -> list[tuple[str, float | None]]:
        monkeypatch.setattr(job, "workers", lambda _: sessions)
        found: list[Quantization] = []
        report: dict[str, Any] = {"report": found.append, "tick": lambda *one: told.append(one)}
        quantize(proto, tmp_path / name, calibration=data, format=format, max_drop="200dB", **report)
        return [(layer.name, layer.output_sqnr) for layer in found[0].layers]

    told: list[tuple[Any, ...]] = []
    stop = 0
    alone = sensitivities("alone", 1)
    assert [one[1:] for one in told if one[0].startswith("sensitivity")] == [(done, 4) for done in (1, 2, 3, 4)]
    assert len(measured) == len(alone) == 4 and all(ratio is not None for _, ratio in alone)
    assert sensitivities("together", 3) == alone
    measured.clear()
    stop = 3
    with pytest.raises(RuntimeError, match="killed"):
        sensitivities("stopped", 1)
    measured.clear()
    stop = 0
    assert sensitivities("stopped", 2) == alone
    assert len(measured) == 2, "what was measured before the stop is not measured again"


def test_a_search_that_was_stopped_goes_on(tmp_path: Path) -> None:
    data, proto, calls = samples((1, 8, 9, 9)), network(), []
    reference: list[Array] = []

    def metric(session: Any, stop: int = 5) -> float:
        calls.append(session)
        if len(calls) == stop:
            raise RuntimeError("killed")
        (found,) = session.run(None, data[0])
        reference.append(found)
        return -float(np.square(found - reference[0]).mean())

    def run() -> list[Quantization]:
        found: list[Quantization] = []
        quantize(
            proto, tmp_path / "out.onnx", calibration=data, max_drop="0.000001", metric=metric, report=found.append
        )
        return found

    with pytest.raises(MetricError, match=r"failed for the model with .* RuntimeError: killed"):
        run()
    assert not (tmp_path / "out.onnx").exists()
    (first,) = run()
    done = len(calls)
    (second,) = run()
    assert len(calls) == done, "a finished search measures nothing again"
    assert first.layers == second.layers and first.metric == second.metric
    assert first.metric is not None and first.metric.after >= first.metric.least


def test_nodes_that_are_to_stay_in_float() -> None:
    found: list[Quantization] = []
    after = quantize(network(), calibration=samples((1, 8, 9, 9)), format="qdq", keep=[], report=found.append)
    names = [one.name for one in found[0].layers]
    assert len(names) == 4
    after = quantize(network(), calibration=samples((1, 8, 9, 9)), format="qdq", keep=[names[1]], report=found.append)
    assert [one.reason for one in found[1].layers] == ["", "it was to stay in float", "", ""]
    assert found[1].quantized == {"Conv": 3}
    assert [one.data_type for one in after.graph.initializer if len(one.dims) == 4].count(onnx.TensorProto.FLOAT) == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_drop": "1%", "calibration": None}, "needs calibration samples"),
        ({"max_drop": "30dB", "metric": lambda _: 1.0}, "is one of the outputs"),
        ({"metric": lambda _: 1.0}, "needs the greatest drop"),
        ({"keep": ["nothing"]}, "No convolution or product that can be quantized is named 'nothing'"),
    ],
)
def test_wrong_budgets(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        quantize(perceptron(), **{"calibration": samples((5, 32)), **options})


def test_constant_and_zero_activations() -> None:
    data = [{"x": np.zeros((5, 32), np.float32)}] * 2
    after = quantize(perceptron(), calibration=data, format="qdq")
    (found,) = evaluate(after, {"x": np.zeros((5, 32), np.float32)})
    assert np.isfinite(found).all()


@pytest.mark.parametrize("module", ["onnxopt.quant", "onnxopt.fusions.quantize_product", "onnxopt.passes.write_qdq"])
def test_modules_can_be_imported_in_any_order(module: str) -> None:
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
