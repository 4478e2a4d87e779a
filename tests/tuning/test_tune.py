"""Tuning of whole models: what is tried, what is refused, what the file says. Bursts are cut to nothing: no test depends on speed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

import helpers
import onnxopt
from onnxopt import cli
from onnxopt.errors import OptionError
from onnxopt.runtime import bench
from onnxopt.tuning import Tuning, workbench
from onnxopt.tuning.search import DEFAULT, ORIGINAL, Candidate, Change
from onnxopt.tuning.workbench import Workbench

pytest.importorskip("onnxopt._native", reason="the native library is not built")

RNG = np.random.default_rng(0)
TEXT = """g (float[N, 64] x) => (float[N, 64] y) {
    a = MatMul (x, w) b = Tanh (a) c = MatMul (b, v) d = Softmax <axis = -1> (c) e = Mul (d, x) y = LayerNormalization (e, s) }"""


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(workbench, "BURST_SECONDS", (0.0, 0.0))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    weights = {"w": (64, 64), "v": (64, 64), "s": (64,)}
    arrays = {name: RNG.normal(0, 0.1, shape).astype(np.float32) for name, shape in weights.items()}
    path = tmp_path / "model.onnx"
    onnx.save(helpers.model(TEXT, **arrays), path)
    return path


@pytest.fixture
def made(model: Path, tmp_path: Path) -> Workbench:
    return Workbench(model, {"x": (8, 64)}, tmp_path, dims={}, threads=1)


def always(ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every contender is so many times as fast as its rival."""
    monkeypatch.setattr(bench, "ratios", lambda *_: itertools.repeat(ratio))


# --- candidates ---
def test_changes_are_passes_kernels_nodes_and_costs(made: Workbench) -> None:
    changes = made.changes()
    assert {change.kind for change in changes} >= {"without", "cost"}
    assert {"fuse_gemms", "fuse_norms"} <= {change.name for change in changes if change.kind == "without"}
    assert len({change.label for change in changes}) == len(changes)


def test_candidates_that_are_the_same_are_not_measured(made: Workbench) -> None:
    same = Change("cost", "separable_pixels", 1, "separable_pixels = 1")
    assert made.refuse(DEFAULT.with_change(same), DEFAULT, False) == "It is the same."
    other = Change("without", "fuse_gemms", ("fuse_gemms",), "without fuse_gemms")
    assert made.refuse(DEFAULT.with_change(other), DEFAULT, True) is None


def test_candidates_that_compute_something_else_are_refused(made: Workbench) -> None:
    made._truth = [array + 1 for array in made._truth]
    assert "Its outputs differ" in (made.refuse(DEFAULT, ORIGINAL, False) or "")


def test_candidates_that_cannot_be_made_are_refused(made: Workbench) -> None:
    wrong = Candidate(changes=frozenset([Change("cost", "speed", 1, "speed = 1")]))
    assert "no cost 'speed'" in (made.refuse(wrong, DEFAULT, False) or "")


def test_only_two_candidates_are_kept(made: Workbench) -> None:
    trials = [Change("without", name, (name,), name) for name in ("fuse_gemms", "fuse_norms", "fuse_epilogues")]
    for change in trials:
        assert made.refuse(DEFAULT.with_change(change), DEFAULT, False) is None
    assert len(made._sessions) <= 2
    assert len(list(made.folder.glob("[0-9]*.onnx"))) <= 2


def test_a_candidate_is_what_its_tuning_makes(made: Workbench, tmp_path: Path) -> None:
    candidate = DEFAULT.with_change(Change("without", "fuse_gemms", ("fuse_gemms",), "without fuse_gemms"))
    built = made._build(candidate)
    onnxopt.optimize(made.model, tmp_path / "again.onnx", tuning=built.tuning)
    assert (tmp_path / "again.onnx").read_bytes() == built.model.read_bytes()


# --- whole runs ---
def test_what_wins_is_in_the_file(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    always(1.5, monkeypatch)
    found = onnxopt.tune(model, tmp_path / "t.toml", input_shapes={"x": (8, 64)}, threads=1)
    assert Tuning.read(tmp_path / "t.toml") == found.tuning
    assert found.tuning.without and not found.tuning.keep_original
    assert found.tuning.measured["times_original"] == found.tuning.measured["times_default"] == 1.5
    onnxopt.optimize(model, tmp_path / "out.onnx", tuning=tmp_path / "t.toml", verify=True)


def test_a_tie_keeps_the_original(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    always(1.0, monkeypatch)
    found = onnxopt.tune(model, tmp_path / "t.toml", input_shapes={"x": (8, 64)}, threads=1)
    assert found.tuning.keep_original
    onnxopt.optimize(model, tmp_path / "out.onnx", tuning=tmp_path / "t.toml")
    assert helpers.ops(onnx.load(tmp_path / "out.onnx")) == helpers.ops(onnx.load(model))


def test_a_second_run_measures_nothing_again(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    always(1.0, monkeypatch)
    first = onnxopt.tune(model, tmp_path / "t.toml", input_shapes={"x": (8, 64)}, threads=1)

    def measured(*_: object) -> Iterator[float]:
        raise AssertionError("it was measured again")

    monkeypatch.setattr(bench, "ratios", measured)
    again = onnxopt.tune(model, tmp_path / "t.toml", input_shapes={"x": (8, 64)}, threads=1)
    assert again == first


def test_a_record_at_other_shapes_is_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    always(1.0, monkeypatch)
    onnxopt.tune(model, tmp_path / "t.toml", input_shapes={"x": (8, 64)}, seconds=0, threads=1)
    with pytest.raises(OptionError, match="whose shapes is x:8x64 and not x:9x64"):
        onnxopt.tune(model, tmp_path / "t.toml", input_shapes={"x": (9, 64)}, seconds=0, threads=1)


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ({}, "The dims N have no size: say at which shapes to measure, --input-shapes x:Nx64"),
        ({"z": (1,)}, "no input 'z'. Its inputs are: x"),
        ({"x": (8,)}, "'x' has 2 dims"),
        ({"x": (8, 63)}, "Dim 1 of the input 'x' is 64, and was given as 63"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    model: Path, tmp_path: Path, shapes: dict[str, tuple[int, ...]], sentence: str
) -> None:
    with pytest.raises(OptionError, match=sentence):
        onnxopt.tune(model, tmp_path / "t.toml", input_shapes=shapes)
    assert not (tmp_path / "t.toml").exists()


def test_one_dim_has_one_size(tmp_path: Path) -> None:
    path = tmp_path / "two.onnx"
    onnx.save(helpers.model("g (float[N] a, float[N] b) => (float[N] y) { y = Add (a, b) }"), path)
    with pytest.raises(OptionError, match="Dim 0 of the input 'b' is 3, and was given as 4"):
        onnxopt.tune(path, tmp_path / "t.toml", input_shapes={"a": (3,), "b": (4,)})


# --- the command ---
@pytest.mark.parametrize("as_json", [False, True])
def test_command_writes_the_file_beside_the_model(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    always(1.5, monkeypatch)
    flags = ["--json"] if as_json else []
    with pytest.raises(SystemExit) as end:
        cli.main(["tune", str(model), "--input-shapes", "x:8x64", "--time", "0", "--threads", "1", *flags])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert model.with_suffix(".tuning.toml").exists()
    if as_json:
        assert json.loads(out)["chosen"] == "the default"
    else:
        assert "Fastest: the default, 1.50 times as fast as the original; wrote " in out


@pytest.mark.parametrize("text", ["x", "x:", ":3", "x:3x", "x:-1", "x:3,x:4", "x:3,"])
def test_command_refuses_shapes_of_another_form(text: str) -> None:
    with pytest.raises(OptionError, match="expected INPUT:SIZExSIZE"):
        cli.parse_shapes([text])


def test_command_parses_shapes() -> None:
    assert cli.parse_shapes(["a:1x2,b:3", "c:0:4x5"]) == {"a": (1, 2), "b": (3,), "c:0": (4, 5)}


def test_optimize_warns_of_another_machine(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    always(1.0, monkeypatch)
    found = onnxopt.tune(model, tmp_path / "t.toml", input_shapes={"x": (8, 64)}, seconds=0, threads=1)
    text = (tmp_path / "t.toml").read_text()
    (tmp_path / "t.toml").write_text(text.replace(found.tuning.machine["processor"], "Another"))
    with pytest.raises(SystemExit):
        cli.main(["optimize", str(model), "-o", str(tmp_path / "o.onnx"), "--tuning", str(tmp_path / "t.toml")])
    assert "warning: The tuning was measured with processor 'Another'" in capsys.readouterr().err
