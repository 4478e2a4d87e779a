"""Tuning files: what they say is read back, what is none is refused, and what they do to a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

import helpers
import onnxopt
from onnxopt import ir
from onnxopt.errors import OptionError
from onnxopt.pipeline import Report
from onnxopt.tuning import file
from onnxopt.tuning.file import Tuning

HERE = {"processor": "P", "instructions": "avx2", "onnxruntime": "1", "onnxopt": "0"}
WEIGHTS = np.random.default_rng(0).normal(0, 1, (64, 64)).astype(np.float32)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "describe_machine", lambda: dict(HERE))


def product(weights: np.ndarray = WEIGHTS) -> onnx.ModelProto:
    text = (
        "g (float[64, 64] x) => (float[64, 64] y) { a = MatMul (x, w) b = Tanh (a) c = Mul (b, x) y = MatMul (c, v) }"
    )
    return helpers.model(text, w=weights, v=weights + 1)


def tuning(**said: object) -> Tuning:
    return Tuning(ir.fingerprint(ir.load(product())), machine=HERE, **said)  # type: ignore[arg-type]


FULL = Tuning(
    model="abc",
    target="cuda",
    keep_original=True,
    without=("fuse_norms", "fuse_softmax"),
    allow_contrib=True,
    not_at={"fuse_gemm": ('a "quoted" name', "back\\slash", "tab\tnewline\n", "äß\x7f")},
    costs={"border_cost": 0.5, "product_work": 7},
    variants={"FusedGemm": "gemm__avx2"},
    dims={"N": 1, "S dim": (1, 8)},
    machine=HERE,
    measured={"x": "1x3", "times_original": 1.5, "threads": 2},
)


@pytest.mark.parametrize("said", [FULL, Tuning("abc")])
def test_what_is_written_is_read(tmp_path: Path, said: Tuning) -> None:
    said.write(tmp_path / "t.toml")
    assert Tuning.read(tmp_path / "t.toml") == said
    assert [path.name for path in tmp_path.iterdir()] == ["t.toml"]


def test_equal_tunings_have_equal_texts() -> None:
    other = dataclasses.replace(FULL, costs=dict(reversed(FULL.costs.items())))
    assert other.text() == FULL.text()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "its version is None"),
        ("version = 2", "its version is 2"),
        ("version = ", "is not a tuning file: "),
        ("version = 1", "does not say which model"),
        ('version = 1\nmodel = "a"\nspeed = 1', "'speed' is unknown or of a wrong form"),
        ("version = 1\nmodel = 1", "'model' is unknown or of a wrong form"),
        ('version = 1\nmodel = "a"\nwithout = "fuse_gemms"', "'without' is"),
        ('version = 1\nmodel = "a"\n[costs]\nproduct_work = "a"', "'costs' is"),
        ('version = 1\nmodel = "a"\n[not_at]\nfuse_gemm = [1]', "'not_at' is"),
        ('version = 1\nmodel = "a"\n[dims]\nN = [1, 2, 3]', "'dims' is"),
        ('version = 1\nmodel = "a"\n[variants]\nFusedGemm = 1', "'variants' is"),
        ("[" * 5000, "is not a tuning file"),
    ],
)
def test_what_is_no_tuning_file_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(OptionError, match=sentence):
        Tuning.read(tmp_path / "t.toml")


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_what_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "t.toml").write_bytes(content)
    with pytest.raises(OptionError, match=r"t\.toml"):
        onnxopt.optimize(product(), tuning=tmp_path / "t.toml")


# --- what it does ---
def ops(said: Tuning | None) -> dict[str, int]:
    return helpers.ops(onnxopt.optimize(product(), tuning=said))


def test_passes_are_left_out() -> None:
    assert "FusedGemm" in ops(None)
    assert "FusedGemm" not in ops(tuning(without=("fuse_gemms",)))


def test_rules_are_not_applied_at_named_nodes() -> None:
    report: list[Report] = []
    onnxopt.optimize(product(), report=report.append)
    nodes = [patch.node for patch in report[0].patches if patch.rule == "fuse_gemm"]
    assert len(nodes) == 2
    found = ops(tuning(not_at={"fuse_gemm": (nodes[1],)}))
    assert (found["FusedGemm"], found["MatMul"]) == (1, 1)
    assert "FusedGemm" not in ops(tuning(not_at={"fuse_gemm": tuple(nodes)}))


def test_costs_are_replaced() -> None:
    assert "FusedGemm" not in ops(tuning(costs={"product_work": 1 << 30}))


def test_original_is_kept() -> None:
    assert ops(tuning(keep_original=True)) == helpers.ops(product())


def test_dims_are_those_of_the_tuning_unless_stated() -> None:
    before = helpers.model("g (float[N, 4] x) => (float[N, 4] y) { y = Tanh (x) }")
    said = Tuning(ir.fingerprint(ir.load(before)), machine=HERE, dims={"N": 3})

    def first_dim(**stated: object) -> int:
        after = onnxopt.optimize(before, tuning=said, **stated)
        return int(after.graph.input[0].type.tensor_type.shape.dim[0].dim_value)

    assert first_dim() == first_dim(dims={"N": 3})
    assert (
        first_dim(dims={"N": 5})
        == onnxopt.optimize(before, dims={"N": 5}).graph.input[0].type.tensor_type.shape.dim[0].dim_value
    )


def test_same_tuning_and_model_give_the_same_bytes(tmp_path: Path) -> None:
    said = tuning(without=("fuse_elementwise",), costs={"product_work": 1})
    said.write(tmp_path / "t.toml")
    onnx.save(product(), tmp_path / "in.onnx")
    for name in ("a", "b"):
        onnxopt.optimize(tmp_path / "in.onnx", tmp_path / f"{name}.onnx", tuning=tmp_path / "t.toml")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    elsewhere = dataclasses.replace(said, machine={**HERE, "processor": "another"}, measured={"times_original": 9.0})
    onnxopt.optimize(tmp_path / "in.onnx", tmp_path / "c.onnx", tuning=elsewhere)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes()


# --- what it refuses ---
@pytest.mark.parametrize("kind", ["weights", "graph"])
def test_another_model_is_refused(kind: str) -> None:
    other = (
        product(WEIGHTS + 1) if kind == "weights" else helpers.model("g (float[2] x) => (float[2] y) { y = Abs (x) }")
    )
    with pytest.raises(OptionError, match="The tuning is for another model"):
        onnxopt.optimize(other, tuning=tuning())


def test_another_machine_is_a_warning() -> None:
    report: list[Report] = []
    said = dataclasses.replace(tuning(), machine={**HERE, "processor": "Q", "unknown": "x"})
    onnxopt.optimize(product(), tuning=said, report=report.append)
    (warning,) = report[0].warnings
    assert "measured with processor 'Q', and this machine has 'P'" in warning


@pytest.mark.parametrize(
    ("said", "options", "sentence"),
    [
        ({"target": "cuda"}, {}, "for the target 'cuda', and the model is optimized for 'cpu'"),
        ({"without": ("fuse_nothing",)}, {}, "no pass named 'fuse_nothing'"),
        ({"costs": {"speed": 1}}, {}, "no cost 'speed'"),
        ({"costs": {"product_work": -1}}, {}, "'product_work' is -1"),
        ({"dims": {"N": (3, 1)}}, {}, "The dim 'N'"),
        ({}, {"passes": ["fuse_gemms"]}, "passes cannot be chosen beside it"),
    ],
)
def test_what_does_not_fit_is_refused(said: dict[str, object], options: dict[str, object], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        onnxopt.optimize(product(), tuning=tuning(**said), **options)
