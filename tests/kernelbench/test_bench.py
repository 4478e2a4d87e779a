"""Measuring kernels alone: what is measured is right, what is told of it adds up, and what cannot be measured is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from onnxopt.cli import app
from onnxopt.errors import OptionError, VerificationError
from onnxopt.kernelbench import PROBLEMS, Ceilings, bench, bench_kernel
from onnxopt.kernelbench.case import Case
from onnxopt.kernelbench.roofline import draw
from onnxopt.ops import describe_ops
from onnxopt.runtime.bench import Latency

CEILINGS = Ceilings(threads=2, copying=20e9, reading=30e9, float32=200e9, int8=None)
SHAPES = {
    "FusedAttention": (2, 33, 3, 20),
    "FusedConv": (2, 13, 11, 20, 36, 3),
    "FusedConvTranspose": (2, 13, 11, 20, 6, 2),
    "FusedElementwise": (64, 1000),
    "FusedGemm": (33, 70, 130),
    "FusedInvertedResidual": (1, 30, 31, 12, 60, 20, 3),
    "FusedLoop": (5, 3, 33),
    "FusedNorm": (64, 768),
    "FusedPool": (2, 13, 12, 19, 3),
    "FusedRecurrence": (5, 3, 33),
    "FusedResize": (2, 5, 6, 19, 2),
    "FusedSeparableConv": (1, 30, 31, 20, 36, 3),
    "FusedSoftmax": (64, 500),
    "FusedSqueezeExcite": (2, 7, 6, 20, 5),
    "QAttention": (2, 70, 3, 20),
    "QConv": (2, 13, 11, 20, 36, 3),
    "QGemm": (33, 70, 130),
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings that are known, and every contender called once: its time is its place."""

    def once(contenders, rounds):  # type: ignore[no-untyped-def]
        for _, call in contenders:
            call()
        return [Latency(name, 1.0 + at, 1.0, 1.0, 1 / (1 + at)) for at, (name, _) in enumerate(contenders)]

    monkeypatch.setattr(Ceilings, "measure", staticmethod(lambda threads: CEILINGS))
    monkeypatch.setattr(bench, "compare", once)


def test_every_op_with_a_kernel_has_a_problem_and_a_shape_here() -> None:
    assert SHAPES.keys() == PROBLEMS.keys() == {one["op"] for one in describe_ops()}


@pytest.mark.parametrize("op", SHAPES)
def test_all_variants_compute_what_float64_does(op: str, quick: None) -> None:
    found = bench_kernel(op, [SHAPES[op]], variants=["all"])
    usable = [v["name"] for one in describe_ops() if one["op"] == op for v in one["variants"] if v["usable"]]
    assert [one.variant for one in found.measurements] == ["onnxruntime", *usable]
    exact = op in ("FusedPool", "FusedResize")  # which only choose among numbers
    assert all(one.error == 0 if exact else 0 <= one.error < 1e-2 for one in found.measurements[1:])


def test_fractions_are_of_the_ceiling_that_binds(quick: None) -> None:
    norm = bench_kernel("FusedNorm", [(64, 768)]).measurements[0]
    assert norm.bound == "memory"
    assert norm.gigabytes_per_second == pytest.approx(16 * 64 * 768 / 1e-3 / 1e9)
    assert norm.of_ceiling == pytest.approx(16 * 64 * 768 / 20e9 / 1e-3)
    product = bench_kernel("FusedGemm", [(128, 256, 256)]).measurements[0]
    assert product.bound == "arithmetic"
    assert product.of_ceiling == pytest.approx(2 * 128 * 256 * 256 / 200e9 / 1e-3)


def test_products_of_few_rows_are_bound_by_reading(quick: None) -> None:
    one = bench_kernel("FusedGemm", [(2, 512, 512)]).measurements[0]
    assert one.bound == "memory"
    moved = 4 * (512 * (2 + 512) + 2 * 512)
    assert one.of_ceiling == pytest.approx(moved / 30e9 / 1e-3)


def test_a_wrong_kernel_is_not_measured(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Case.model

    def wrong(self, arrays, dtype):  # type: ignore[no-untyped-def]
        return right(self, {**arrays, "s": arrays["s"] + np.float32(0.01)}, dtype)

    monkeypatch.setattr(Case, "model", wrong)
    with pytest.raises(VerificationError, match=r"norm__\w+ is off by"):
        bench_kernel("FusedNorm", [(64, 768)])


@pytest.mark.parametrize(
    ("op", "shape", "more", "sentence"),
    [
        ("FusedFoo", (1,), {}, "no problem for the op 'FusedFoo'"),
        ("FusedNorm", (10**11, 10**8), {}, "FusedNorm of 100000000000x100000000 reads and writes"),
        ("FusedNorm", (1, 2, 3), {}, "The shape of FusedNorm is ROWSxWIDTH, all at least 1; '1x2x3' is not."),
        ("FusedNorm", (0, 4), {}, "'0x4' is not"),
        ("FusedRecurrence", (4, 2, 8), {"dtype": "float16"}, "in float32, not in 'float16'"),
        ("FusedNorm", (64, 768), {"device": "tpu"}, "'tpu' is not supported"),
        ("FusedNorm", (64, 768), {"variants": ["norm__best"]}, "no kernel variant 'norm__best'. It has norm__"),
        ("FusedNorm", (1, 4), {}, "FusedNorm does not pay for the shape 1x4"),
        ("FusedConv", (1, 8, 8, 8, 8, 2), {}, "is odd"),
    ],
)
def test_says_what_cannot_be_measured(op: str, shape: tuple[int, ...], more: dict, sentence: str, quick: None) -> None:
    with pytest.raises(OptionError) as error:
        bench_kernel(op, [shape], **more)
    assert sentence in str(error.value)


def test_command_prints_table_json_and_roofline(quick: None, tmp_path: Path) -> None:
    chart = tmp_path / "roofline.svg"
    arguments = ["bench-kernel", "FusedNorm", "--shape", "64x768", "--chart", str(chart)]
    text = CliRunner().invoke(app, arguments).stdout
    assert "64x768" in text and "of memory" in text and "ceilings: copying 20.0 GB/s" in text
    assert chart.read_text().startswith("<svg")
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert found["ceilings"]["int8"] is None
    assert found["measurements"][0]["variant"] == "onnxruntime"


def test_roofline_bends_where_both_ceilings_meet(quick: None) -> None:
    picture = draw(bench_kernel("FusedGemm", [(64, 256, 256)]))
    assert "ceiling" in picture and "FusedGemm, float32, 2 threads" in picture


@pytest.mark.slow
def test_ceilings_are_of_this_machine() -> None:
    found = Ceilings.measure(1)
    assert found.copying > 1e8 and found.reading > 1e8 and found.float32 > 1e8
    assert found.int8 is None or found.int8 > found.float32
