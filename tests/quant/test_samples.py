"""Reading calibration data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers import model
from onnxopt import ir
from onnxopt.errors import CalibrationError
from onnxopt.quant.samples import read

ONE = ir.load(model("g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }"))
TWO = ir.load(model("g (float[N,2] x, int64[N] i) => (float[N,2] y) { y = Relu(x) }"))
X = np.ones((3, 2), np.float32)


def test_npz_and_npy_files_in_order_of_their_names(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        np.savez(tmp_path / f"{number}.npz", x=X * number)
    np.save(tmp_path / "3.npy", X * 3)
    (tmp_path / "notes.txt").write_text("not a sample")
    assert [sample["x"][0, 0] for sample in read(tmp_path, ONE)] == [0, 1, 2, 3]


@pytest.mark.parametrize("source", [[{"x": X}] * 2, iter([{"x": X}] * 2), lambda: ({"x": X} for _ in range(2))])
def test_samples_of_a_program(source: object) -> None:
    assert len(list(read(source, ONE))) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sample", "sentence"),
    [
        ({"z": X}, "has no array 'x'; it has z"),
        ({"x": X.astype(np.float64)}, "'x' is of type float64 and should be float32"),
        ({"x": X[0]}, "'x' has 1 dims and should have 2"),
        ({"x": X[:, :1]}, r"'x' has the shape \[3, 1\] and should have \[N, 2\]"),
        ([X], "is of type list; expected a dict"),
    ],
)
def test_samples_that_do_not_fit(sample: object, sentence: str) -> None:
    with pytest.raises(CalibrationError, match=sentence):
        list(read([sample], ONE))  # type: ignore[list-item]


def test_nothing_to_read(tmp_path: Path) -> None:
    for source in ([], tmp_path, tmp_path / "missing"):
        with pytest.raises(CalibrationError, match=r"There is no calibration sample|is no folder"):
            list(read(source, ONE))


def test_an_array_for_a_model_with_two_inputs(tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", X)
    with pytest.raises(CalibrationError, match="has one array, but the model has 2 inputs"):
        list(read(tmp_path, TWO))


def test_broken_files(tmp_path: Path) -> None:
    (tmp_path / "0.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(CalibrationError, match=r"0\.npz' cannot be read"):
        list(read(tmp_path, ONE))
