"""The library from C++ alone: a small program that knows nothing of Python loads it into onnxruntime and runs a model."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

import onnxopt
from onnxopt import ir

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled program; it links to nothing but the C++ runtime and dl."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine")
    target = tmp_path_factory.mktemp("cpp") / "load_library"
    source = ROOT / "tests" / "csrc" / "load_library.cc"
    command = [
        compiler,
        "-std=c++20",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{ROOT}",
        str(source),
        "-o",
        str(target),
        "-ldl",
    ]
    subprocess.run(command, check=True)
    return target


def onnxruntime_library() -> Path:
    folder = Path(onnxruntime.__file__).parent / "capi"
    found = sorted(folder.glob("libonnxruntime.so*"))
    if not found:
        pytest.skip("this wheel of onnxruntime has no shared object of its own")
    return found[0]


def model(path: Path) -> int:
    """Two element-wise regions around a Softmax; returns the number of custom ops."""
    nodes = []
    for index, op in enumerate(
        ["Tanh", "Exp", "Abs", "Sqrt", "Neg", "Softmax", "Exp", "Tanh", "Sigmoid", "Neg", "Abs"]
    ):
        nodes.append(helper.make_node(op, [f"v{index}"], [f"v{index + 1}"]))
    info = [helper.make_tensor_value_info(f"v{index}", TensorProto.FLOAT, ["N", 33]) for index in (0, len(nodes))]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnxopt.optimize(proto, path)
    return sum(node.op_type == "FusedElementwise" for node in ir.load(path).graph)


def test_a_program_without_python_runs_a_model_with_custom_ops(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    assert model(path) == 2
    arguments = [program, onnxruntime_library(), onnxopt.library_path(), path, "v0", "v11", "67", "33"]
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, total = done.stdout.split()
    x = (np.float32(0.01) * np.arange(67 * 33, dtype=np.float32)).reshape(67, 33)
    expected = onnxopt.session(path).run(None, {"v0": x})[0]
    assert int(count) == expected.size
    assert float(total) == pytest.approx(float(expected.astype(np.float64).sum()), rel=1e-5)


def test_a_missing_library_is_a_sentence(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model(path)
    arguments = [program, onnxruntime_library(), tmp_path / "missing.so", path, "v0", "v11", "67", "33"]
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True)
    assert done.returncode == 1
    assert "missing.so" in done.stderr
