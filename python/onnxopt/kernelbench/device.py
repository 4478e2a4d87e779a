"""Kernels measured on a CUDA device: one node alone, between CUDA's events, on tensors that take turns so that no cache holds them."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from onnxopt.errors import OptionError
from onnxopt.kernelbench.ceilings import Ceilings
from onnxopt.runtime.bench import Latency
from onnxopt.runtime.library import import_onnxruntime, load_nvrtc, native, session

STARTS = 50
"""Runs of a burst: a run may be as short as the device's clock can tell."""

MOST_SETS = 64
"""Sets of tensors that take turns at most."""

ONNXRUNTIME = "onnxruntime"
DEVICE, PROVIDER = "cuda", "CUDAExecutionProvider"
"""Where onnxruntime's own ops run beside kernels, and who runs them there."""

UNSYNCHRONIZED = "disable_synchronize_execution_providers"
"""The option of onnxruntime with which a run is only started."""


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """One node of a model with what it reads.

    Attributes:
        op: its op.
        attributes: by name.
        inputs: arrays, in the order of its inputs.
    """

    op: str
    attributes: dict[str, Any]
    inputs: list[np.ndarray]

    @staticmethod
    def of(model: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> Node:
        """The only node of a model whose inputs are `arrays`.

        Raises:
            OptionError: the model has other nodes, which would have to run as well.
        """
        if len(model.graph.node) != 1:
            names = ", ".join(node.op_type for node in model.graph.node)
            raise OptionError(f"Kernels are measured alone on a CUDA device, and the problem has the nodes {names}.")
        (node,) = model.graph.node
        known = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer} | arrays
        return Node(node.op_type, attributes_of(node), [np.ascontiguousarray(known[name]) for name in node.input])


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of a node as the native module takes them."""
    values = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def variants_of(op: str, names: Sequence[str] | None) -> list[str]:
    """The kernel variants for CUDA devices that names mean: None is the one that this device chooses, "all" every one that it runs.

    Raises:
        OptionError: there is no device, or no variant of that name that it runs.
    """
    if problem := native().cuda_problem():
        raise OptionError(f"Kernels cannot be measured on the device 'cuda': {problem}")
    listed: list[dict[str, Any]] = next((one["variants"] for one in native().ops() if one["op"] == op), [])
    usable = {one["name"]: one for one in listed if one["device"] == "cuda" and one["usable"]}
    if not usable:
        raise OptionError(f"The CUDA device runs no kernel of {op}.")
    if names is None:
        return [name for name, one in usable.items() if one["chosen"]]
    for name in names:
        if name != "all" and name not in usable:
            raise OptionError(f"The CUDA device runs no variant '{name}' of {op}. It runs {', '.join(usable)}.")
    return list(usable) if list(names) == ["all"] else list(names)


def measure_ceilings() -> tuple[Ceilings, int]:
    """What the device does at most, and the bytes of its cache. Reading is told as copying: the runtime has nothing that reads alone."""
    load_nvrtc()
    limits = native().device_limits()
    return Ceilings(1, limits["copying"], limits["copying"], limits["float32"], None), limits["cache_bytes"]


def sets_beyond(cache_bytes: int, node_bytes: int) -> int:
    """How many sets of tensors are larger than a cache twice over, so that none lies there when its turn comes again."""
    return min(-(-2 * cache_bytes // max(node_bytes, 1)) + 1, MOST_SETS)


def measure(node: Node, variant: str, cache_bytes: int, rounds: int) -> tuple[list[np.ndarray], Latency]:
    """Outputs of a variant, and the time of its runs; speed-ups are relative to itself."""
    size = sum(array.nbytes for array in node.inputs)
    sets = sets_beyond(cache_bytes, size)
    found, times = native().time_on_device(node.op, node.inputs, node.attributes, variant, sets, rounds, STARTS)
    return found, Latency(variant, statistics.median(times), min(times), max(times), 1.0)


def runtime(model: onnx.ModelProto) -> Any:
    """A session of a model's standard ops in onnxruntime's provider for the device.

    Raises:
        OptionError: this onnxruntime has none, or cannot start it.
    """
    if PROVIDER in import_onnxruntime().get_available_providers():
        made = session(model, library=False, providers=[PROVIDER])
        if made.get_providers()[0] == PROVIDER:
            return made
    raise OptionError(f"this onnxruntime has no {PROVIDER}, or cannot start it")


def measure_runtime(
    made: Any, feeds: dict[str, np.ndarray], cache_bytes: int, rounds: int
) -> tuple[list[np.ndarray], Latency]:
    """Outputs of a session, and the time of its runs on tensors that lie on the device.

    Runs of a burst are started one after the other and waited for once: a run takes as long as the device needs, or as starting it does.
    """
    size = sum(array.nbytes for array in feeds.values())
    bindings = [_bound(made, feeds) for _ in range(sets_beyond(cache_bytes, size))]
    options = import_onnxruntime().RunOptions()
    options.add_run_config_entry(UNSYNCHRONIZED, "1")

    def burst() -> float:
        start = time.perf_counter()
        for binding in itertools.islice(itertools.cycle(bindings), STARTS):
            made.run_with_iobinding(binding, options)
        for binding in bindings:
            binding.synchronize_outputs()
        return (time.perf_counter() - start) / STARTS * 1e3

    burst()
    found = [np.asarray(one) for one in bindings[0].copy_outputs_to_cpu()]
    times = [burst() for _ in range(rounds)]
    return found, Latency(ONNXRUNTIME, statistics.median(times), min(times), max(times), 1.0)


def _bound(made: Any, feeds: dict[str, np.ndarray]) -> Any:
    """Copies of inputs on the device, and outputs there."""
    binding = made.io_binding()
    for one in made.get_inputs():
        value = import_onnxruntime().OrtValue.ortvalue_from_numpy(feeds[one.name], DEVICE, 0)
        binding.bind_ortvalue_input(one.name, value)
    for one in made.get_outputs():
        binding.bind_output(one.name, DEVICE)
    return binding
