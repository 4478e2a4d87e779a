"""The native library and sessions with it: kinds of models, threads, lifetimes, and what is said when something is missing."""

from __future__ import annotations

import gc
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import helpers
import onnxopt
from onnxopt import cli, ir
from onnxopt.errors import ModelError, OptionError, RuntimeMissingError
from onnxopt.runtime import library

GRAPH = "g (float[N, 64] x) => (float[N, 64] y) { a = Tanh (x) b = Mul (a, x) c = Add (b, a) y = Exp (c) }"
FEEDS = {"x": np.random.default_rng(0).standard_normal((37, 64)).astype(np.float32)}


@pytest.fixture(scope="module")
def fused() -> onnx.ModelProto:
    """A model whose only node is a custom op."""
    proto = onnxopt.optimize(helpers.model(GRAPH))
    assert [node.domain for node in proto.graph.node] == ["ai.onnxopt"]
    return proto


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return helpers.evaluate(helpers.model(GRAPH), FEEDS)[0]


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The package as if it was not built: its folder holds no library."""
    monkeypatch.setattr(library, "__file__", str(tmp_path / "runtime" / "library.py"))


@pytest.fixture
def no_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)


def options() -> onnxruntime.SessionOptions:
    made = onnxruntime.SessionOptions()
    made.log_severity_level = 4
    made.intra_op_num_threads = 1
    return made


def make(proto: onnx.ModelProto, with_options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(proto.SerializeToString(), with_options, providers=["CPUExecutionProvider"])


# --- the library ---
def test_library_is_a_file_of_the_package() -> None:
    path = onnxopt.library_path()
    assert path.is_file() and path.parent == Path(onnxopt.__file__).parent


def test_registered_library_runs_kernels(fused: onnx.ModelProto, expected: np.ndarray) -> None:
    own = options()
    onnxopt.register(own)
    np.testing.assert_allclose(make(fused, own).run(None, FEEDS)[0], expected, rtol=1e-5)


def test_registering_twice_is_once(fused: onnx.ModelProto, expected: np.ndarray) -> None:
    own = options()
    onnxopt.register(own)
    onnxopt.register(own)
    np.testing.assert_allclose(make(fused, own).run(None, FEEDS)[0], expected, rtol=1e-5)


def test_options_serve_several_sessions(fused: onnx.ModelProto) -> None:
    own = options()
    onnxopt.register(own)
    first, second = make(fused, own), make(fused, own)
    np.testing.assert_array_equal(first.run(None, FEEDS)[0], second.run(None, FEEDS)[0])


def test_sessions_outlive_their_options(fused: onnx.ModelProto, expected: np.ndarray) -> None:
    own = options()
    onnxopt.register(own)
    session = make(fused, own)
    del own
    gc.collect()
    np.testing.assert_allclose(session.run(None, FEEDS)[0], expected, rtol=1e-5)


def test_sessions_that_end_leave_others_alone(fused: onnx.ModelProto) -> None:
    first, second = onnxopt.session(fused), onnxopt.session(fused)
    before = second.run(None, FEEDS)[0]
    del first
    gc.collect()
    np.testing.assert_array_equal(second.run(None, FEEDS)[0], before)
    np.testing.assert_array_equal(onnxopt.session(fused).run(None, FEEDS)[0], before)


def test_sessions_of_eight_threads_give_the_same_bits(fused: onnx.ModelProto) -> None:
    start = Barrier(8)

    def work(_: int) -> list[np.ndarray]:
        start.wait()
        session = onnxopt.session(fused, threads=1)
        return [session.run(None, FEEDS)[0] for _ in range(10)]

    with ThreadPoolExecutor(8) as pool:
        results = [result for found in pool.map(work, range(8)) for result in found]
    assert {result.tobytes() for result in results} == {results[0].tobytes()}


def test_eight_threads_share_one_session(fused: onnx.ModelProto) -> None:
    session = onnxopt.session(fused, threads=2)
    rows = [FEEDS["x"][: index + 1] for index in range(8)]
    alone = [session.run(None, {"x": one})[0] for one in rows]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda one: session.run(None, {"x": one})[0], rows * 10))
    for index, result in enumerate(together):
        np.testing.assert_array_equal(result, alone[index % 8])


@pytest.mark.parametrize("threads", [2, 4])
def test_results_do_not_depend_on_the_number_of_threads(threads: int) -> None:
    fused = onnxopt.optimize(helpers.model(GRAPH))
    feeds = {"x": np.random.default_rng(1).standard_normal((4099, 64)).astype(np.float32)}
    one, several = (onnxopt.session(fused, threads=count).run(None, feeds)[0] for count in (1, threads))
    np.testing.assert_array_equal(one, several)


# --- sessions ---
KINDS = {
    "proto": lambda proto, path: proto,
    "bytes": lambda proto, path: proto.SerializeToString(),
    "path": lambda proto, path: path,
    "text path": lambda proto, path: str(path),
    "onnx-ir": lambda proto, path: ir.load(proto),
}


@pytest.mark.parametrize("kind", KINDS)
def test_sessions_of_every_kind_of_model(
    kind: str, fused: onnx.ModelProto, expected: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(fused, path)
    session = onnxopt.session(KINDS[kind](fused, path))
    np.testing.assert_allclose(session.run(None, FEEDS)[0], expected, rtol=1e-5)


@pytest.mark.parametrize("arguments", [{"library": False}, {"optimize": False}, {"threads": 3}])
def test_sessions_with_choices(arguments: dict[str, Any], fused: onnx.ModelProto, expected: np.ndarray) -> None:
    session = onnxopt.session(fused, **arguments)
    np.testing.assert_allclose(session.run(None, FEEDS)[0], expected, rtol=1e-5)
    assert session.get_session_options().intra_op_num_threads == arguments.get("threads", 0)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (b"not a model", "onnxruntime cannot load the model"),
        ("/nowhere/model.onnx", "/nowhere/model.onnx"),
        (helpers.model("g (float[2] x) => (float[2] y) { y = NoSuchOp (x) }"), "NoSuchOp"),
    ],
    ids=["garbage", "missing file", "unknown op"],
)
def test_models_that_do_not_load_are_a_sentence(model: Any, said: str) -> None:
    with pytest.raises(ModelError, match="onnxruntime cannot load the model") as caught:
        onnxopt.session(model)
    assert said in str(caught.value) and "\n" not in str(caught.value)


# --- what is missing ---
def test_missing_library_is_a_sentence(no_library: None, fused: onnx.ModelProto) -> None:
    for call in (
        library.library_path,
        library.native,
        lambda: onnxopt.register(options()),
        lambda: onnxopt.session(fused),
    ):
        with pytest.raises(
            RuntimeMissingError, match=r"native library '.*libonnxopt_ops\.so' is missing: build it with"
        ):
            call()


def test_models_are_optimized_and_run_without_the_library(no_library: None, expected: np.ndarray) -> None:
    optimized = onnxopt.optimize(helpers.model(GRAPH))
    assert [node.domain for node in optimized.graph.node] == ["ai.onnxopt"]
    session = onnxopt.session(optimized, library=False)
    np.testing.assert_allclose(session.run(None, FEEDS)[0], expected, rtol=1e-5)


def test_library_that_onnxruntime_refuses_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libonnxopt_ops.so").write_bytes(b"not a library")
    monkeypatch.setattr(library, "__file__", str(tmp_path / "runtime" / "library.py"))
    with pytest.raises(RuntimeMissingError, match=r"onnxruntime refuses the library '.*libonnxopt_ops\.so': "):
        onnxopt.register(options())


def test_missing_onnxruntime_is_a_sentence_that_says_what_to_install(
    no_onnxruntime: None, fused: onnx.ModelProto
) -> None:
    folded = helpers.model("g (float[2] x) => (float[2] y) { e = Exp (w) y = Add (x, e) }", w=np.ones(2, np.float32))
    for call in (library.import_onnxruntime, lambda: onnxopt.session(fused), lambda: onnxopt.optimize(folded)):
        with pytest.raises(
            RuntimeMissingError, match=r"onnxruntime is not installed: install onnxopt\[gpu\] .* or onnxopt\[cpu\]"
        ):
            call()


def test_broken_onnxruntime_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libcudart is missing')")
    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeMissingError, match=r"onnxruntime cannot be imported \(libcudart is missing\)"):
        library.import_onnxruntime()


def test_command_tells_what_is_missing_by_its_exit_code(
    no_onnxruntime: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(helpers.model(GRAPH), path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["verify", str(path), str(path)])
    assert stopped.value.code == 5
    assert "onnxruntime is not installed" in capsys.readouterr().err


def test_unknown_instruction_set_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXOPT_MAX_ISA", "sse9")
    with pytest.raises(OptionError, match="ONNXOPT_MAX_ISA is 'sse9'"):
        library.native()


# --- versions ---
def test_description_names_what_it_runs_on() -> None:
    text = library.describe()
    assert text.startswith(
        f"onnxopt {onnxopt.__version__}, onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}"
    )
    assert "targets cpu, cuda, generic" in text


def test_description_names_what_is_missing(no_onnxruntime: None, no_library: None) -> None:
    assert "no onnxruntime, no native library" in library.describe()
