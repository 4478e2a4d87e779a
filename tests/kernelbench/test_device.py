"""Measuring kernels on a CUDA device: what the host does for it, with a stand-in for the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

native = pytest.importorskip("onnxopt._native", reason="the native module is not built")

from onnxopt.cli import app  # noqa: E402  (after the check that it can be used)
from onnxopt.errors import OptionError, VerificationError  # noqa: E402
from onnxopt.kernelbench import PROBLEMS, bench, bench_kernel, device  # noqa: E402
from onnxopt.kernelbench.ceilings import Ceilings  # noqa: E402

PROBLEM = native.cuda_problem()
CEILINGS = Ceilings(threads=1, copying=4e12, reading=4e12, float32=60e12, int8=None)
EMULATED = {"FusedElementwise": "elementwise__cuda_emulated", "FusedNorm": "norm__cuda_emulated"}


class StandIn:
    """Runs kernels as the host emulates them, and tells that a run takes 1 ms."""

    def __init__(self, offset: float = 0.0) -> None:
        self.offset, self.sets = offset, 0

    def cuda_problem(self) -> str:
        return ""

    def ops(self) -> list[dict[str, Any]]:
        listed = [{"name": "one", "device": "cuda", "usable": True, "chosen": True}]
        listed += [{"name": "newer", "device": "cuda", "usable": False, "chosen": False}]
        return [{"op": op, "variants": listed} for op in PROBLEMS]

    def time_on_device(  # type: ignore[no-untyped-def]
        self, op, inputs, attributes, variant, sets, bursts, starts
    ):
        self.sets = sets
        found = native.run(op, inputs, attributes, variant=EMULATED[op])
        return [one + np.float32(self.offset) for one in found], [1.0] * bursts


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setattr(device, "native", lambda: made)
    monkeypatch.setattr(device, "measure_ceilings", lambda: (CEILINGS, 50 << 20))
    return made


@pytest.mark.parametrize("op", EMULATED)
def test_measures_one_node_right_first(op: str, stand_in: StandIn) -> None:
    (one,) = bench_kernel(op, [(64, 1000)], device="cuda").measurements
    assert one.variant == "one" and 0 < one.error < 1e-4
    assert one.bound == "memory" and one.median_ms == 1.0
    moved = {"FusedElementwise": 12, "FusedNorm": 16}[op] * 64 * 1000
    assert one.of_ceiling == pytest.approx(moved / 4e12 / 1e-3)
    assert stand_in.sets == 64


def test_a_wrong_kernel_is_not_measured(stand_in: StandIn) -> None:
    stand_in.offset = 0.1
    with pytest.raises(VerificationError, match="one is off by"):
        bench_kernel("FusedNorm", [(64, 1000)], device="cuda")


@pytest.mark.parametrize(("names", "chosen"), [(None, ["one"]), (["all"], ["one"]), (["one"], ["one"])])
def test_variants(names: list[str] | None, chosen: list[str], stand_in: StandIn) -> None:
    assert device.variants_of("FusedNorm", names) == chosen
    with pytest.raises(OptionError, match=r"runs no variant 'newer' of FusedNorm\. It runs one\."):
        device.variants_of("FusedNorm", ["newer"])


@pytest.mark.parametrize(
    ("cache", "size", "sets"), [(50, 100, 2), (50, 10, 11), (0, 10, 1), (50, 0, 64), (1000, 1, 64)]
)
def test_sets_are_larger_than_the_cache(cache: int, size: int, sets: int) -> None:
    assert device.sets_beyond(cache, size) == sets


def test_a_problem_of_several_nodes_is_a_sentence() -> None:
    problem = PROBLEMS["FusedElementwise"].case("FusedElementwise", (4, 4), "float32")
    arrays = problem.draw("float32", 0)
    with pytest.raises(OptionError, match="has the nodes Sigmoid, Mul, Mul"):
        device.Node.of(problem.model(arrays, "float32"), arrays)


@pytest.mark.skipif(not PROBLEM, reason="this machine has a CUDA device")
def test_says_that_there_is_no_device() -> None:
    with pytest.raises(OptionError, match="cannot be measured on the device 'cuda': " + PROBLEM.split("(")[0]):
        bench_kernel("FusedNorm", [(4, 64)], device="cuda")
    told = CliRunner().invoke(app, ["bench-kernel", "FusedNorm", "--shape", "4x64", "--device", "cuda"])
    assert told.exit_code != 0
    for call in (native.device_limits, lambda: native.time_on_device("FusedNorm", [], {}, "norm__cuda", 1, 1, 1)):
        with pytest.raises(ValueError, match=PROBLEM.split("(")[0]):
            call()


@pytest.mark.skipif(bool(PROBLEM), reason=PROBLEM or "-")
@pytest.mark.gpu
@pytest.mark.parametrize("op", EMULATED)
def test_on_the_device(op: str) -> None:
    for one in bench_kernel(op, [(4096, 1024)], device="cuda").measurements:
        assert 0 < one.of_ceiling < 2 and 0 < one.error < 1e-4


def test_unknown_device_is_a_sentence() -> None:
    with pytest.raises(OptionError, match="on the devices 'cpu' and 'cuda'; 'tpu' is not supported"):
        bench.bench_kernel("FusedNorm", [(4, 64)], device="tpu")
