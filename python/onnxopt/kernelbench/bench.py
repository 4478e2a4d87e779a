"""One op's kernel variants side by side with onnxruntime's own, and each beside what the machine can do at most."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxopt.errors import OptionError, VerificationError
from onnxopt.kernelbench import device as on_device
from onnxopt.kernelbench.case import Case, Problem
from onnxopt.kernelbench.ceilings import Ceilings
from onnxopt.kernelbench.problems import PROBLEMS
from onnxopt.ops.base import DOMAIN
from onnxopt.runtime.bench import Latency, compare
from onnxopt.runtime.library import native, session

ROTATED_BYTES = 96 << 20
"""Inputs that are run in turn are so large together that caches hold none of them when its turn comes."""

MOST_ROTATED = 64
"""Inputs that are run in turn at most: small ones lie in a cache in every program that uses them."""

ROUNDINGS = 4
"""Of float16, that a kernel may make of the largest number: of operands, of weights between two products, and of the result."""

ONNXRUNTIME = on_device.ONNXRUNTIME
ONNXOPT = "onnxopt"
"""What runs beside the variants: the standard ops, and what onnxopt makes of the definition of an op of yours."""


@dataclasses.dataclass(frozen=True, slots=True)
class Measurement:
    """One variant at one shape.

    Attributes:
        shape: the sizes of the problem.
        variant: the kernel variant; "onnxruntime" for the same nodes without the library; of an op of yours, "onnxopt" for what onnxopt
            makes of its definition.
        median_ms: milliseconds of a run in onnxruntime.
        gigabytes_per_second: bytes that have to move, over that time.
        gigaoperations_per_second: operations over that time.
        intensity: operations for each byte that has to move.
        bound: "memory" or "arithmetic", whichever takes longer at the machine's ceilings.
        of_ceiling: the least time that the ceilings allow, over that time.
        times_onnxruntime: speed relative to onnxruntime, the median over rounds; None where it was not measured.
        error: the largest one to float64, relative to the largest magnitude.
    """

    shape: tuple[int, ...]
    variant: str
    median_ms: float
    gigabytes_per_second: float
    gigaoperations_per_second: float
    intensity: float
    bound: str
    of_ceiling: float
    times_onnxruntime: float | None
    error: float


@dataclasses.dataclass(frozen=True, slots=True)
class KernelBench:
    """What was measured of one op, and the ceilings of the same run.

    Attributes:
        rate: the ceiling that bounds its operations.
        besides: what onnxruntime did besides; empty where that is nothing.
        unmeasured: why onnxruntime was not measured; empty where it was.
    """

    op: str
    dtype: str
    rate: str
    ceilings: Ceilings
    measurements: tuple[Measurement, ...]
    besides: str = ""
    unmeasured: str = ""


def bench_kernel(
    op: str,
    shapes: Sequence[tuple[int, ...]],
    *,
    dtype: str = "float32",
    device: str = "cpu",
    variants: Sequence[str] | None = None,
    threads: int = 2,
    rounds: int = 5,
    problems: Mapping[str, Problem] | None = None,
    tick: Callable[[str], object] = lambda _: None,
) -> KernelBench:
    """Measure an op's kernels: first whether they are right, then how fast they are, then how near the machine's ceilings.

    Runs are in onnxruntime, in turn and in bursts, on inputs that take turns.

    Args:
        op: the name of a custom op, one of `PROBLEMS` or of `problems`.
        shapes: sizes as the op's problem names them.
        dtype: of inputs and outputs.
        device: "cpu", or "cuda": kernels alone on the current device, and beside them onnxruntime's CUDA provider, where it is there.
        variants: kernel variants; None is the one that this machine chooses.
        threads: intra-op threads.
        rounds: bursts of each contender.
        problems: of ops of yours, or others than ours.
        tick: called with a sentence as it goes on.

    Raises:
        OptionError: an unknown op, variant, dtype or device, a shape of other sizes, or a variant or device that cannot run here or does
            not take the problem.
        VerificationError: a kernel is further from float64 than it may be.
    """
    known = {**PROBLEMS, **(problems or {})}
    if op not in known:
        raise OptionError(f"There is no problem for the op '{op}'. There is one for {', '.join(known)}.")
    problem = known[op]
    if device not in ("cpu", "cuda"):
        raise OptionError(f"Kernels are measured on the devices 'cpu' and 'cuda'; '{device}' is not supported.")
    if not shapes:
        raise OptionError(f"{op} needs a shape: {'x'.join(problem.sizes)}.")
    chosen = variants_of(op, variants) if device == "cpu" else on_device.variants_of(op, variants)
    cases = [(shape, problem.case(op, shape, dtype)) for shape in shapes]
    tick("ceilings")
    if device == "cuda":
        return _bench_on_device(op, dtype, cases, chosen, rounds, tick)
    ceilings = Ceilings.measure(threads)
    found: list[Measurement] = []
    for shape, case in cases:
        tick("x".join(map(str, shape)))
        found += measure(op, shape, case, dtype, chosen, ceilings, rounds)
    return KernelBench(op, dtype, cases[0][1].rate, ceilings, tuple(found), cases[0][1].besides)


def _bench_on_device(
    op: str,
    dtype: str,
    cases: list[tuple[tuple[int, ...], Case]],
    variants: list[str],
    rounds: int,
    tick: Callable[[str], object],
) -> KernelBench:
    ceilings, cache_bytes = on_device.measure_ceilings()
    found: list[Measurement] = []
    unmeasured = ""
    for shape, case in cases:
        tick("x".join(map(str, shape)))
        arrays = case.draw(dtype, 0)
        model = case.model(arrays, dtype)
        node = on_device.Node.of(_fused(op, shape, case, model, "cuda"), arrays)
        exact = case.exact(arrays, dtype)
        theirs = None
        try:
            runtime = on_device.runtime(model)
        except OptionError as problem:
            unmeasured = str(problem)
        else:
            results, theirs = on_device.measure_runtime(runtime, arrays, cache_bytes, rounds)
            found.append(_described(shape, case, theirs, ceilings, _error(exact, results)))
        for name in variants:
            results, latency = on_device.measure(node, name, cache_bytes, rounds)
            error = _error(exact, results)
            _demand_right(name, error, case, dtype)
            speed = None if theirs is None else theirs.median_ms / latency.median_ms
            one = _described(shape, case, latency, ceilings, error)
            found.append(dataclasses.replace(one, times_onnxruntime=speed))
    besides = "" if unmeasured else cases[0][1].besides
    return KernelBench(op, dtype, cases[0][1].rate, ceilings, tuple(found), besides, unmeasured)


def _fused(op: str, shape: tuple[int, ...], case: Case, model: onnx.ModelProto, target: str) -> onnx.ModelProto:
    """The model with the op, which it calls itself or onnxopt makes of it."""
    import onnxopt

    fused: onnx.ModelProto = model if case.functions else onnxopt.optimize(model, target=target)
    if op not in [node.op_type for node in fused.graph.node]:
        raise OptionError(
            f"{op} does not pay for the shape {'x'.join(map(str, shape))}: onnxopt leaves the standard ops there."
        )
    return fused


def _demand_right(variant: str, error: float, case: Case, dtype: str) -> None:
    allowed = case.largest_error + (ROUNDINGS * float(np.finfo(dtype).eps) if dtype == "float16" else 0.0)
    if not error <= allowed:
        raise VerificationError(f"{variant} is off by {error:.1e} of the largest magnitude; {allowed:.0e} is allowed.")


def variants_of(op: str, names: Sequence[str] | None) -> list[str]:
    """The kernel variants that names mean: None is the one that this machine chooses, "all" every one that runs here.

    Raises:
        OptionError: there is none of that name, or it cannot run here.
    """
    listed = next((one["variants"] for one in native().ops() if one["op"] == op), None)
    if listed is None:
        raise OptionError(f"No library that is loaded has a kernel of the op '{op}'.")
    here = {one["name"]: one for one in listed if one["device"] == "cpu"}
    if names is None:
        return [name for name, one in here.items() if one["chosen"]]
    if list(names) == ["all"]:
        return [name for name, one in here.items() if one["usable"]]
    for name in names:
        if name not in here:
            raise OptionError(f"{op} has no kernel variant '{name}'. It has {', '.join(here)}.")
        if not here[name]["usable"]:
            raise OptionError(f"The variant '{name}' cannot run here: {here[name]['problem']}")
    return list(names)


def measure(
    op: str, shape: tuple[int, ...], case: Case, dtype: str, variants: list[str], ceilings: Ceilings, rounds: int
) -> list[Measurement]:
    """Measure variants of an op on one case, onnxruntime first.

    Raises:
        OptionError: onnxopt does not make the op of that case.
        VerificationError: a kernel is further from float64 than it may be.
    """
    import onnxopt

    arrays = case.draw(dtype, 0)
    model = case.model(arrays, dtype)
    contenders = [(ONNXRUNTIME, session(model, threads=ceilings.threads, library=False))]
    fused = _fused(op, shape, case, model, "cpu")
    if any(function.domain != DOMAIN for function in fused.functions):
        compiled = onnxopt.optimize(model, options=onnxopt.Options(inline_functions=True))
        contenders.append((ONNXOPT, session(compiled, threads=ceilings.threads)))
    _demand_accepted(op, fused, variants)
    sets = _rotated(case, arrays, dtype)
    contenders += [(name, _session(fused, op, name, ceilings.threads)) for name in variants]
    exact = case.exact(arrays, dtype)
    errors = {name: _error(exact, one.run(None, sets[0])) for name, one in contenders}
    for name in variants:
        _demand_right(name, errors[name], case, dtype)
    calls = [(name, _in_turn(one, sets)) for name, one in contenders]
    return [_described(shape, case, one, ceilings, errors[one.name]) for one in compare(calls, rounds)]


def _demand_accepted(op: str, model: onnx.ModelProto, variants: list[str]) -> None:
    """Refuse variants that do not take the model's nodes of the op: another one would run in their place."""
    for node in model.graph.node:
        if node.op_type != op:
            continue
        attributes = on_device.attributes_of(node)
        for variant in variants:
            if problem := native().refusal(op, attributes, variant):
                raise OptionError(f"The variant '{variant}' does not take this node of {op}: {problem}")


def _rotated(case: Case, arrays: dict[str, np.ndarray], dtype: str) -> list[dict[str, np.ndarray]]:
    first = {name: arrays[name] for name in case.inputs}
    size = sum(array.nbytes for array in first.values())
    count = min(max(ROTATED_BYTES // size, 1), MOST_ROTATED)
    return [first] + [{name: array.copy() for name, array in first.items()} for _ in range(count - 1)]


def _session(model: onnx.ModelProto, op: str, variant: str, threads: int) -> Any:
    from onnxopt.tuning.file import Tuning

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "variant.toml"
        Tuning("one kernel", variants={op: variant}).write(file)
        return session(model, threads=threads, tuning=file)


def _in_turn(one: Any, sets: list[dict[str, np.ndarray]]) -> Callable[[], object]:
    feeds = itertools.cycle(sets)
    return lambda: one.run(None, next(feeds))


def _error(exact: list[np.ndarray], found: list[np.ndarray]) -> float:
    return max(
        float(np.abs(one - two).max(initial=0) / max(np.abs(one).max(initial=0), np.finfo(np.float32).tiny))
        for one, two in zip(exact, found, strict=True)
    )


def _described(shape: tuple[int, ...], case: Case, latency: Latency, ceilings: Ceilings, error: float) -> Measurement:
    seconds, moved = latency.median_ms / 1e3, case.bytes_read + case.bytes_written
    # A copy writes as much as it reads; what hardly writes is bound by reading.
    memory = moved / (ceilings.reading if case.bytes_written * 8 < case.bytes_read else ceilings.copying)
    rate = getattr(ceilings, case.rate)
    arithmetic = case.operations / rate if rate else 0.0
    return Measurement(
        shape,
        latency.name,
        latency.median_ms,
        moved / seconds / 1e9,
        case.operations / seconds / 1e9,
        case.operations / moved,
        "memory" if memory > arithmetic else "arithmetic",
        max(memory, arithmetic) / seconds,
        latency.speedup,
        error,
    )
