"""Reports of quantized models: whole, self-contained, readable by machines."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from helpers import model, set_costs
from onnxopt.cli import app

pytest.importorskip("onnxopt._native", reason="the native library is not built")
RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    set_costs(monkeypatch, product_work=1)
    weights = {name: RNG.standard_normal((8, 8, 3, 3)).astype(np.float32) / 8 for name in "wv"}
    text = "g (float[1,8,9,9] x) => (float[1,8,5,5] y) { a = Conv(x, w) b = Relu(a) y = Conv(b, v) }"
    onnx.save(model(text, **weights), tmp_path / "in.onnx")
    (tmp_path / "calib").mkdir()
    for number in range(4):
        np.save(tmp_path / "calib" / f"{number}.npy", RNG.standard_normal((1, 8, 9, 9)).astype(np.float32))
    (tmp_path / "metric.py").write_text(
        "import numpy as np\n"
        "def of(session):\n"
        "    return -float(session.run(None, {'x': np.ones((1, 8, 9, 9), np.float32)})[0].std())\n"
    )
    return tmp_path


def run(folder: Path, *options: str) -> str:
    arguments = ["quantize", "in.onnx", "--calib", "calib", "-o", "out.onnx", *options]
    arguments = [str(folder / one) if (folder / one).exists() or one == "out.onnx" else one for one in arguments]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_json(folder: Path) -> None:
    path = folder / "report.json"
    output = run(folder, "--report", str(path), "--max-drop", "5%", "--metric", f"{folder / 'metric.py'}:of")
    assert "'metric:of'" in output and "within 5 %" in output
    found = json.loads(path.read_text())
    assert (found["source"], found["output"], found["samples"]) == ("in.onnx", "out.onnx", 4)
    assert [one["precision"] for one in found["layers"]] == ["int8", "int8"]
    assert all(one["weight_sqnr"] > 30 for one in found["layers"])
    for one in found["activations"]:
        assert sum(one["counts"]) > 0 and one["low"] <= one["least"] < one["largest"] <= one["high"]
    assert found["metric"]["within"] and len(found["latency"]) == 2


def test_html(folder: Path) -> None:
    path = folder / "report.html"
    run(folder, "--report", str(path), "--max-drop", "45dB")
    text = path.read_text()
    assert "http" not in text.replace("http://www.w3.org", "") and "<script" not in text
    for expected in ("signal to noise, dB", "within", "in.onnx", "Activations", "the accuracy budget"):
        assert expected in text, expected
    for start in text.split("<svg class")[1:]:
        ElementTree.fromstring("<svg class" + start.partition("</svg>")[0] + "</svg>")


def test_a_raising_metric_is_an_error_with_a_sentence(folder: Path) -> None:
    (folder / "bad.py").write_text("def of(session):\n    raise ValueError('no labels')\n")
    arguments = ["quantize", str(folder / "in.onnx"), "--calib", str(folder / "calib"), "-o", str(folder / "o.onnx")]
    result = CliRunner().invoke(app, [*arguments, "--max-drop", "1%", "--metric", f"{folder / 'bad.py'}:of"])
    assert result.exit_code != 0 and not (folder / "o.onnx").exists()


def test_html_tells_which_scales_moved(folder: Path) -> None:
    weights = {
        "w": np.exp(2 * RNG.standard_normal(32)),
        "b": RNG.standard_normal(32),
        "v": RNG.standard_normal((32, 64)),
    }
    text = "g (float[1,20,32] x) => (float[1,20,64] y) { a = LayerNormalization(x, w, b) y = MatMul(a, v) }"
    onnx.save(model(text, **{name: one.astype(np.float32) for name, one in weights.items()}), folder / "in.onnx")
    for number in range(4):
        np.save(folder / "calib" / f"{number}.npy", RNG.standard_normal((1, 20, 32)).astype(np.float32))
    for option, there in (("--smooth", True), ("--no-smooth", False)):
        run(folder, "--report", str(folder / "report.html"), option)
        assert ("Scales moved into weights" in (folder / "report.html").read_text()) is there
