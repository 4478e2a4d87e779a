"""Measuring kernels on a CUDA device: what the host does for it, with a stand-in for the device."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

native = pytest.importorskip("onnxopt._native", reason="the native module is not built")

from helpers import emulated_variant, set_costs  # noqa: E402  (after the check that it can be used)
from onnxopt.cli import app  # noqa: E402
from onnxopt.errors import OptionError, VerificationError  # noqa: E402
from onnxopt.kernelbench import PROBLEMS, bench, bench_kernel, device  # noqa: E402
from onnxopt.kernelbench.ceilings import Ceilings  # noqa: E402

PROBLEM = native.cuda_problem()
CEILINGS = Ceilings(threads=1, copying=4e12, reading=4e12, float32=60e12, int8=None)
EMULATED = {"FusedElementwise": "elementwise__cuda_emulated", "FusedNorm": "norm__cuda_emulated"}
HALVES = {
    "FusedAttention": (1, 40, 2, 64),
    "FusedElementwise": (8, 64),
    "FusedGemm": (30, 64, 48),
    "FusedSoftmax": (8, 64),
}


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
        found = native.run(op, inputs, attributes, variant=emulated_variant(op))
        return [one + one.dtype.type(self.offset) for one in found], [1.0] * bursts


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


@pytest.fixture
def runtime_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime's ops run where this machine can run them."""
    monkeypatch.setattr(device, "DEVICE", "cpu")
    monkeypatch.setattr(device, "PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(device, "STARTS", 2)


@pytest.mark.usefixtures("stand_in", "runtime_of_the_host")
@pytest.mark.parametrize("op", HALVES)
def test_onnxruntime_stands_beside_kernels_of_float16(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_costs(monkeypatch, product_work=1, small_region_elements=0)
    found = bench_kernel(op, [HALVES[op]], dtype="float16", device="cuda")
    theirs, ours = found.measurements
    assert (theirs.variant, ours.variant) == ("onnxruntime", "one")
    assert theirs.times_onnxruntime == 1.0 and found.unmeasured == ""
    assert ours.times_onnxruntime == pytest.approx(theirs.median_ms / 1.0)
    assert theirs.median_ms > 0 and theirs.error < 1e-2


@pytest.mark.usefixtures("stand_in")
@pytest.mark.skipif(not PROBLEM, reason="this machine has a CUDA device")
def test_kernels_stand_alone_where_onnxruntime_has_no_provider() -> None:
    found = bench_kernel("FusedNorm", [(64, 1000)], device="cuda")
    (one,) = found.measurements
    assert one.times_onnxruntime is None
    assert "has no CUDAExecutionProvider" in found.unmeasured


@pytest.mark.usefixtures("stand_in")
def test_the_table_says_that_onnxruntime_was_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "PROVIDER", "ElsewhereExecutionProvider")
    told = CliRunner().invoke(app, ["bench-kernel", "FusedNorm", "--shape", "64x1000", "--device", "cuda"])
    assert told.exit_code == 0
    assert "onnxruntime was not measured: this onnxruntime has no ElsewhereExecutionProvider" in told.output


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
