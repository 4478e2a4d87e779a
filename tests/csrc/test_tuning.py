"""The library reads kernel variants from a tuning file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import helpers
import onnxopt
from onnxopt.errors import ModelError
from onnxopt.tuning import Tuning

native = pytest.importorskip("onnxopt._native", reason="the native library is not built")


def chosen(op: str) -> str:
    (entry,) = (one for one in native.ops() if one["op"] == op)
    return next((variant["name"] for variant in entry["variants"] if variant["chosen"]), "")


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "t.toml"
    monkeypatch.setenv("ONNXOPT_TUNING", str(path))
    return path


def test_named_variant_is_chosen(tuned: Path) -> None:
    Tuning("abc", variants={"FusedNorm": "norm__scalar"}, machine={"FusedGemm": "gemm__scalar"}).write(tuned)
    assert chosen("FusedNorm") == "norm__scalar"
    assert chosen("FusedGemm") != "gemm__scalar"


@pytest.mark.parametrize(
    "text", ["", "[variants]\n", "[other]\nFusedNorm = 'x'\n", "# FusedNorm = 1", "[variants]\n[costs]\nFusedNorm = 1"]
)
def test_others_stay_as_they_are(tuned: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    tuned.write_text(text)
    found = chosen("FusedNorm")
    monkeypatch.delenv("ONNXOPT_TUNING")
    assert found == chosen("FusedNorm") != ""


def test_variant_of_another_machine_is_not_chosen(tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned.write_text('[variants]\n  FusedNorm  =  "norm__avx512"  # best\n')
    monkeypatch.setenv("ONNXOPT_MAX_ISA", "scalar")
    assert chosen("FusedNorm") == "norm__scalar"


def session(**options: object) -> object:
    before = helpers.model("g (float[4, 4096] x) => (float[4, 4096] y) { a = Tanh (x) b = Mul (a, x) y = Exp (b) }")
    return onnxopt.session(onnxopt.optimize(before), **options)


def test_missing_file_is_a_sentence(tuned: Path) -> None:
    with pytest.raises(ModelError, match=r"ONNXOPT_TUNING names the file '.*t\.toml', which cannot be read"):
        session()


def test_unknown_variant_is_a_sentence(tuned: Path) -> None:
    tuned.write_text('[variants]\nFusedElementwise = "elementwise__sse9"\n')
    with pytest.raises(ModelError, match="names the variant 'elementwise__sse9', which it does not have"):
        session()


def test_session_takes_a_file_and_leaves_the_environment(tmp_path: Path) -> None:
    Tuning("abc", variants={"FusedElementwise": "elementwise__scalar"}).write(tmp_path / "t.toml")
    x = np.linspace(-1, 1, 4 * 4096, dtype=np.float32).reshape(4, 4096)
    results = [session(**options).run(None, {"x": x})[0] for options in ({}, {"tuning": tmp_path / "t.toml"})]  # type: ignore[attr-defined]
    np.testing.assert_allclose(*results, rtol=1e-6)
    assert "ONNXOPT_TUNING" not in os.environ
