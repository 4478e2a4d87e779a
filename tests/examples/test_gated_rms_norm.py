"""The example of kernels of one's own: built by CMake against the package, it runs in onnxruntime, and is checked and measured beside ours.

Libraries stay loaded, so what loads one runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import onnxopt

pytest.importorskip("onnxopt._native", reason="the native library is not built")
pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")

EXAMPLE = Path(__file__).parents[2] / "examples" / "gated_rms_norm"
SETUP = """
import json, sys
import numpy as np, onnx, onnxruntime
import onnxopt
from onnxopt.kernelbench import Ceilings, bench, bench_kernel, load_problems
from onnxopt.kernelbench.bench import _session
from onnxopt.runtime.bench import Latency
library, problems = sys.argv[1], load_problems(sys.argv[2])
"""


def build(source: Path, folder: Path) -> None:
    find = f"-Donnxopt_DIR={onnxopt.cmake_dir()}"
    for arguments in (["-S", source, "-B", folder, "-G", "Ninja", find], ["--build", folder]):
        done = subprocess.run(["cmake", *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("example")
    build(EXAMPLE, folder)
    return folder / "libgated_rms_norm.so"


def run(library: Path, code: str, **environment: str) -> Any:
    """What a program prints as JSON."""
    command = [sys.executable, "-c", SETUP + code, str(library), str(EXAMPLE / "problems.py")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_onnxruntime_takes_it_as_a_library_of_custom_ops(library: Path) -> None:
    code = """
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(library)
options.log_severity_level = 4
text = '''<ir_version: 10, opset_import: ["" : 21, "com.example" : 1]> g (float[N,S,W] x, float[N,S,W] z, float[W] s) => (float[N,S,W] y) {
    a = com.example.GatedRmsNorm<epsilon=0.001>(x, z, s) y = Identity(a) }'''
one = onnxruntime.InferenceSession(onnx.parser.parse_model(text).SerializeToString(), options)
rng, worst = np.random.default_rng(0), 0.0
for shape in [(1, 1, 1), (2, 0, 7), (2, 3, 0), (3, 5, 19), (1, 700, 64), (4, 4, 8), (2, 9, 1023)]:
    x, z = rng.standard_normal((2, *shape), np.float32) * 3
    s = rng.standard_normal(shape[-1:], np.float32)
    g = x * (z / (1 + np.exp(-z.astype(np.float64))))
    wanted = g / np.sqrt((g * g).mean(-1, keepdims=True) + 0.001) * s
    (found,) = one.run(None, {"x": x, "z": z, "s": s})
    assert found.shape == shape
    worst = max(worst, np.abs(found - wanted).max(initial=0) / max(np.abs(wanted).max(initial=0), 1e-30))
x, z, s = rng.standard_normal((3, 40), np.float32)
x[3] = np.nan
(found,) = one.run(None, {"x": np.stack([x, z])[None], "z": np.stack([z, x * 0 + 1])[None], "s": s})
assert np.isnan(found[0, 0]).all() and np.isfinite(found[0, 1]).sum() == 0
try:
    one.run(None, {"x": np.ones((1, 2, 3), np.float32), "z": np.ones((1, 2, 4), np.float32), "s": s[:3]})
except Exception as error:
    print(json.dumps([float(worst), str(error)]))
"""
    worst, sentence = run(library, code)
    assert worst < 2e-6
    assert "GatedRmsNorm: x and gate have one shape." in sentence or "Got invalid dimensions" in sentence


def test_it_stays_when_the_session_that_brought_it_goes(library: Path) -> None:
    code = """
import gc
from onnxopt.ops import describe_ops
before = len(describe_ops())
for _ in range(2):
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library)
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[3] x) => (float[3] y) { y = Abs(x) }'
    one = onnxruntime.InferenceSession(onnx.parser.parse_model(text).SerializeToString(), options)
    one.run(None, {"x": np.ones(3, np.float32)})
    del one, options
    gc.collect()
print(json.dumps([len(describe_ops()) - before, library in open("/proc/self/maps").read()]))
"""
    assert run(library, code) == [1, True]


def test_it_runs_in_models_that_tell_no_ranks(library: Path) -> None:
    code = """
onnxopt.load_kernels(library)
text = '''<ir_version: 10, opset_import: ["" : 21, "com.example" : 1]> g (float x, float z, float[W] s) => (float y) {
    a = com.example.GatedRmsNorm(x, z, s) y = Abs(a) }'''
model = onnx.parser.parse_model(text)
for one in (*model.graph.input[:2], *model.graph.output):
    one.type.tensor_type.ClearField("shape")
x = np.ones((2, 3), np.float32)
print(json.dumps(onnxopt.session(model).run(None, {"x": x, "z": x, "s": x[0]})[0].tolist()))
"""
    assert run(library, code) == [[pytest.approx(1, rel=1e-4)] * 3] * 2


def test_an_optimized_model_keeps_the_op(library: Path) -> None:
    code = """
onnxopt.load_kernels(library)
case = problems["GatedRmsNorm"].case("GatedRmsNorm", (64, 256), "float32")
model = onnxopt.optimize(case.model(case.draw("float32", 0), "float32"), verify=True)
print(json.dumps([node.op_type for node in model.graph.node]))
"""
    assert run(library, code) == ["GatedRmsNorm"]


QUICK = """
def once(contenders, rounds):
    for _, call in contenders: call()
    return [Latency(name, 1.0, 1.0, 1.0, 1.0) for name, _ in contenders]
Ceilings.measure = staticmethod(lambda threads: Ceilings(threads, 20e9, 30e9, 200e9, None))
bench.compare = once
onnxopt.load_kernels(library)
def errors(op, shape, **more):
    found = bench_kernel(op, [shape], problems=problems, **more)
    return {one.variant: one.error for one in found.measurements}
"""


def test_it_is_checked_and_measured_beside_onnxruntime_and_onnxopt(library: Path) -> None:
    found = run(library, QUICK + "print(json.dumps(errors('GatedRmsNorm', (33, 130), variants=['all'])))")
    assert list(found) == ["onnxruntime", "onnxopt", *own_variants("gated_rms_norm")]
    assert all(0 < error < 1e-5 for error in found.values())


def test_a_variant_of_an_op_of_ours_is_measured_beside_ours(library: Path) -> None:
    found = run(library, QUICK + "print(json.dumps(errors('FusedNorm', (64, 768), variants=['all'])))")
    ours = [
        one["name"] for one in next(op for op in onnxopt_ops() if op["op"] == "FusedNorm")["variants"] if one["usable"]
    ]
    assert list(found) == ["onnxruntime", *ours, *own_variants("plain_rms_norm")]
    assert all(0 < error < 1e-5 for error in found.values())


def test_a_wrong_kernel_is_not_measured(library: Path) -> None:
    code = (
        QUICK
        + """
from onnxopt.errors import VerificationError
from onnxopt.kernelbench import Case
right = Case.exact
Case.exact = lambda self, arrays, dtype: [one + 0.01 for one in right(self, arrays, dtype)]
try:
    errors("GatedRmsNorm", (33, 130))
except VerificationError as error:
    print(json.dumps(str(error)))
"""
    )
    assert "is off by" in run(library, code)


def test_a_node_that_a_variant_declines_is_not_measured_and_runs_on_ours(library: Path) -> None:
    code = (
        QUICK
        + """
from onnxopt.kernelbench import PROBLEMS
case = PROBLEMS["FusedNorm"].case("FusedNorm", (64, 768), "float32")
arrays = case.draw("float32", 0)
model = onnxopt.optimize(case.model(arrays, "float32"))
feeds = {name: arrays[name] for name in case.inputs}
one, other = (_session(model, "FusedNorm", name, 1).run(None, feeds) for name in ("plain_rms_norm__portable", "norm__scalar"))
np.testing.assert_allclose(one[0], other[0], rtol=1e-4, atol=1e-5)
try:
    bench_kernel("FusedNorm", [(64, 768)], variants=["plain_rms_norm__portable"])
except onnxopt.OptionError as error:
    print(json.dumps(str(error)))
"""
    )
    assert run(library, code) == (
        "The variant 'plain_rms_norm__portable' does not take this node of FusedNorm: It computes RMSNorm only."
    )


def test_what_is_chosen_and_what_cannot_be_loaded_beside_it(library: Path) -> None:
    copy = library.with_name("libcopy.so")
    shutil.copy(library, copy)
    code = f"""
onnxopt.load_kernels(library)
onnxopt.load_kernels(library)
try:
    onnxopt.load_kernels({str(copy)!r})
except onnxopt.OptionError as error:
    from onnxopt.ops import describe_ops
    chosen = {{op["op"]: v["name"] for op in describe_ops() for v in op["variants"] if v["chosen"] and v["device"] == "cpu"}}
    print(json.dumps([str(error), chosen["FusedNorm"], chosen["GatedRmsNorm"]]))
"""
    sentence, ours, own = run(library, code, ONNXOPT_MAX_ISA="scalar")
    assert "has a variant" in sentence or "belongs to one library" in sentence
    assert (ours, own) == ("norm__scalar", "gated_rms_norm__portable")


def test_command_loads_it(library: Path) -> None:
    command = [sys.executable, "-m", "onnxopt", "ops", "--json", "--kernels", str(library)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    (op,) = (one for one in found if one["op"] == "GatedRmsNorm")
    assert op["domain"] == "com.example"


def build_readme(folder: Path, language: str, ending: str) -> Path:
    """The library of the README's kernel in a language."""
    (code,) = re.findall(f"```{language}\n(.*?)```", (EXAMPLE.parent / "README.md").read_text(), re.S)
    (folder / f"negate.{ending}").write_text(code)
    (folder / "CMakeLists.txt").write_text(
        f"""cmake_minimum_required(VERSION 3.24)
        project(negate LANGUAGES CXX {"CUDA" if language == "cuda" else ""})
        find_package(onnxopt CONFIG REQUIRED)
        onnxopt_add_kernel(negate SOURCES negate.{ending})"""
    )
    build(folder, folder / "build")
    return folder / "build" / "libnegate.so"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
def test_the_cuda_kernel_of_the_readme_is_one(tmp_path: Path) -> None:
    code = """
onnxopt.load_kernels(library)
from onnxopt.ops import describe_ops
print(json.dumps(next(one["variants"][0] for one in describe_ops() if one["op"] == "Negate")))
"""
    found = run(build_readme(tmp_path, "cuda", "cu"), code)
    assert found["name"] == "negate__cuda" and found["usable"] is (found["problem"] == "")


def test_the_kernel_of_the_readme_is_one(tmp_path: Path) -> None:
    code = """
onnxopt.load_kernels(library)
from onnxopt.runtime.library import native
print(json.dumps(native().run("Negate", [np.array([[1, -2, 3]], np.float32)], {}, threads=2)[0].tolist()))
"""
    assert run(build_readme(tmp_path, "cpp", "cc"), code) == [[-1, 2, -3]]


def own_variants(stem: str) -> list[str]:
    from onnxopt.runtime.library import native

    return [f"{stem}__{isa}" for isa in ("avx2", "portable") if isa == "portable" or isa in native().cpu_features()]


def onnxopt_ops() -> list[dict[str, Any]]:
    from onnxopt.ops import describe_ops

    return describe_ops()
