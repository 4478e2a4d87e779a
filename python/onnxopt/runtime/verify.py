"""Whether two models compute the same: both run on random inputs, and every output is compared."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxopt import ir
from onnxopt.errors import ModelError, OptionError, VerificationError, first_line
from onnxopt.ir import DataType
from onnxopt.rewrite.driver import walk
from onnxopt.runtime.library import session

if TYPE_CHECKING:
    from onnxopt.pipeline import PassManager

TOLERANCE = {"float16": 1e-2, "bfloat16": 5e-2, "float32": 1e-3, "float64": 1e-6}
"""Largest difference relative to the largest element of an output. Reordered sums of deep models differ by some 1e-5 in float32; a wrong
rewrite differs by far more than this."""

RANDOM_OPS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
SMALL_DIM = 3
"""Size of a named dim without bounds: small, odd, and different from the sizes that models are built of."""

LARGER_DIMS = (32, 96, 224, 640)
"""Sizes that are tried next, for models that refuse small inputs: images have a least size, first for every dim but the batch, then for
last dims alone, as sound has."""

SMALLEST_SCALE = 1e-3
"""Outputs whose elements are all smaller are compared as if they were of this size: what is left of a sigmoid near 0 is rounding."""


@dataclasses.dataclass(frozen=True, slots=True)
class OutputDifference:
    """How one output differs: largest absolute difference, the same relative to the reference's largest element, and a sentence."""

    output: str
    absolute: float
    relative: float
    sentence: str


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One comparison: the shapes of its inputs, how the second model ran ("kernels", "bodies", "standard"), and what differed."""

    shapes: dict[str, tuple[int, ...]]
    ran: str
    worst: float
    differences: tuple[OutputDifference, ...]
    failure: str = ""


@dataclasses.dataclass(slots=True)
class VerificationReport:
    """What a verification found. `equal` needs at least one sample that both models ran."""

    samples: list[Sample] = dataclasses.field(default_factory=list)
    not_verifiable: str = ""
    culprit: str = ""

    @property
    def compared(self) -> list[Sample]:
        return [sample for sample in self.samples if not sample.failure]

    @property
    def equal(self) -> bool:
        return bool(self.compared) and not any(sample.differences for sample in self.samples)

    def sentence(self) -> str:
        if self.not_verifiable:
            return f"Not verified: {self.not_verifiable}"
        different = [sample for sample in self.samples if sample.differences]
        if different:
            first = different[0].differences[0]
            blame = f" {self.culprit}" if self.culprit else ""
            return f"Outputs differ ({different[0].ran}): {first.sentence}{blame}"
        if not self.compared:
            return f"Not verified: the original model itself fails: {self.samples[0].failure if self.samples else 'no samples'}"
        worst = max(sample.worst for sample in self.compared)
        return f"Verified: {len(self.compared)} comparisons, largest relative difference {worst:.1e}."

    def to_json(self) -> dict[str, Any]:
        return {
            "equal": self.equal,
            "sentence": self.sentence(),
            "samples": [dataclasses.asdict(one) for one in self.samples],
        }


def verify(
    original: Any,
    optimized: Any,
    *,
    samples: int = 3,
    dims: Mapping[str, int | tuple[int, int]] | None = None,
    seed: int = 0,
) -> VerificationReport:
    """Compare the outputs of two models on random inputs.

    The original runs without any of onnxruntime's optimizations. The optimized model runs as users run it, and where it holds custom ops
    also without the library, on their standard bodies.

    Args:
        original: a path, `onnx.ModelProto` or `onnx_ir.Model`.
        optimized: the model to compare with it.
        samples: how many random inputs, drawn over the named dims.
        dims: sizes or bounds of named dims.
        seed: seed of the inputs, at least 0.

    Raises:
        OptionError: the seed is negative.
        ModelError: the optimized model does not load although the original does.
        RuntimeMissingError: onnxruntime or the native library is missing.
    """
    if seed < 0:
        raise OptionError(f"The seed {seed} is negative.")
    with _as_path(original) as first, _as_path(optimized) as second:
        return _verify_files(first, second, samples, dims or {}, seed)


def _verify_files(
    first: Path, second: Path, samples: int, dims: Mapping[str, int | tuple[int, int]], seed: int
) -> VerificationReport:
    report = VerificationReport()
    model = ir.load(first)
    random = sorted({node.op_type for node in walk(model.graph) if node.op_type in RANDOM_OPS})
    if random:
        report.not_verifiable = f"it holds random ops ({', '.join(random)})."
        return report
    try:
        reference = session(first, library=_has_custom_ops(model), optimize=False)
        draw_inputs(model, dims, np.random.default_rng(seed), SMALL_DIM)
    except ModelError as error:
        report.not_verifiable = str(error)
        return report
    candidates = [("kernels", session(second))]
    if _has_custom_ops(ir.load(second)):
        candidates.append(("bodies", session(second, library=False)))
    for index in range(samples):
        inputs, truth, failure = _run_original(reference, model, dims, seed, index)
        shapes = {name: tuple(array.shape) for name, array in inputs.items()}
        if failure:
            report.samples.append(Sample(shapes, "original", 0.0, (), failure))
            continue
        names = [output.name for output in reference.get_outputs()]
        for ran, candidate in candidates:
            try:
                results = candidate.run(None, inputs)
            except Exception as error:
                failed = OutputDifference("", np.inf, np.inf, f"the optimized model fails: {first_line(error)}")
                report.samples.append(Sample(shapes, ran, np.inf, (failed,)))
                continue
            worst, differences = compare(names, truth, results)
            report.samples.append(Sample(shapes, ran, worst, differences))
    return report


def _run_original(
    reference: Any, model: ir.Model, dims: Mapping[str, int | tuple[int, int]], seed: int, index: int
) -> tuple[dict[str, np.ndarray], list[Any], str]:
    """Inputs that the original model accepts, its outputs, and why it failed when it accepts none."""
    failure = ""
    inputs: dict[str, np.ndarray] = {}
    smallest = 1 if index == 1 else SMALL_DIM + index
    attempts = [(size, False) for size in (smallest, *LARGER_DIMS)] + [(size, True) for size in LARGER_DIMS]
    for size, last_only in attempts:
        inputs = draw_inputs(model, dims, np.random.default_rng([seed, index]), size, last_only=last_only)
        try:
            return inputs, reference.run(None, inputs), ""
        except Exception as error:
            failure = failure or first_line(error)
    return inputs, [], failure


def compare(names: list[str], truth: list[Any], results: list[Any]) -> tuple[float, tuple[OutputDifference, ...]]:
    """The largest relative difference of all outputs, and those that are beyond their tolerance. NaN equals NaN, inf equals inf."""
    worst, differences = 0.0, []
    if len(truth) != len(results):
        found = OutputDifference("", np.inf, np.inf, f"there are {len(results)} outputs instead of {len(truth)}.")
        return np.inf, (found,)
    for name, expected, actual in zip(names, truth, results, strict=True):
        found = _difference(name, expected, actual)
        worst = max(worst, found.relative)
        if found.sentence:
            differences.append(found)
    return worst, tuple(differences)


def _difference(name: str, expected: Any, actual: Any) -> OutputDifference:
    if not isinstance(expected, np.ndarray):
        same = _same_object(expected, actual)
        return OutputDifference(name, 0.0, 0.0, "" if same else f"output '{name}' differs.")
    if not isinstance(actual, np.ndarray) or expected.shape != actual.shape or expected.dtype != actual.dtype:
        got = f"{actual.dtype}{list(actual.shape)}" if isinstance(actual, np.ndarray) else type(actual).__name__
        return OutputDifference(
            name, np.inf, np.inf, f"output '{name}' is {got} and should be {expected.dtype}{list(expected.shape)}."
        )
    if expected.dtype.kind not in "fV":
        wrong = int((expected != actual).sum())
        sentence = f"output '{name}' differs in {wrong} of {expected.size} elements." if wrong else ""
        return OutputDifference(name, float(wrong), float(wrong > 0), sentence)
    a, b = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    scale = max(float(np.abs(a[finite]).max(initial=0.0)), SMALLEST_SCALE)
    absolute = float(np.abs(np.subtract(a, b, where=finite, out=np.zeros_like(a))).max(initial=0.0))
    unlike = ~finite & ~((a == b) | (np.isnan(a) & np.isnan(b)))
    relative = np.inf if unlike.any() else absolute / scale
    limit = TOLERANCE.get(str(expected.dtype), 1e-3)
    sentence = (
        f"output '{name}' differs by {absolute:.3g}, {relative:.1e} of its largest element." if relative > limit else ""
    )
    return OutputDifference(name, absolute, relative, sentence)


def _same_object(expected: Any, actual: Any) -> bool:
    if isinstance(expected, list) and isinstance(actual, list):
        return len(expected) == len(actual) and all(
            not _difference("", a, b).sentence for a, b in zip(expected, actual)
        )
    if isinstance(expected, dict) and isinstance(actual, dict):
        return expected.keys() == actual.keys() and all(_same_object(one, actual[key]) for key, one in expected.items())
    if isinstance(expected, float) and isinstance(actual, float):
        return not _difference("", np.array([expected], np.float32), np.array([actual], np.float32)).sentence
    return bool(expected == actual)


def _has_custom_ops(model: ir.Model) -> bool:
    return any(node.domain == "ai.onnxopt" for node in walk(model.graph))


class _as_path:
    """A model as a file: itself when it is one, else a temporary file."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Path:
        if isinstance(self._model, (str, Path)):
            return Path(self._model)
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / "model.onnx"
        ir.save(ir.load_copy(self._model), path)
        return path

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()


# --- inputs --------------------------------------------------------------------------------------------------------
def random_inputs(model: Any, *, dims: Mapping[str, int | tuple[int, int]], seed: int) -> dict[str, np.ndarray]:
    """Random inputs that a model accepts: a path, `onnx.ModelProto` or `onnx_ir.Model`. Named dims are as large as they must be.

    Raises:
        ModelError: the model refuses all sizes that are tried; state them.
    """
    with _as_path(model) as path:
        loaded = ir.load(path)
        inputs, _, failure = _run_original(session(path), loaded, dims, seed, 0)
    if failure:
        names = ", ".join(ir.open_dims(loaded)) or "none is open"
        raise ModelError(
            f"No size of the dims that was tried runs; state them with --dim ({names}). onnxruntime says: {failure}"
        )
    return inputs


def draw_inputs(
    model: ir.Model,
    dims: Mapping[str, int | tuple[int, int]],
    rng: np.random.Generator,
    size: int,
    *,
    last_only: bool = False,
) -> dict[str, np.ndarray]:
    """One array for every input without a default. Open dims without stated sizes are `size`, equal names equal; with `last_only` those
    that are not the last of their input are 1.

    Floats are normal; integers are small and not negative, below the sizes that Gather allows where the input indexes a constant.
    """
    sizes: dict[str, int] = {}
    inputs: dict[str, np.ndarray] = {}
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        if not isinstance(value.type, ir.TensorType) or value.shape is None or value.name is None:
            raise ModelError(
                f"The input '{value.name}' is no tensor of known rank, so no random input can be made for it."
            )
        shape = []
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, int) and not ir.is_open(dim):
                shape.append(dim)
                continue
            name = ir.given_name(dim) or ir.unnamed_dim(value.name, axis)
            default = 1 if last_only and axis + 1 < len(value.shape) else size
            shape.append(_size(name, dims, sizes, rng, default))
        inputs[value.name] = _random_array(tuple(shape), value.type.dtype, rng, _index_limit(value))
    return inputs


def _size(
    name: str, dims: Mapping[str, int | tuple[int, int]], sizes: dict[str, int], rng: np.random.Generator, default: int
) -> int:
    if name not in sizes:
        stated = dims.get(name)
        if isinstance(stated, int):
            sizes[name] = stated
        elif stated is not None:
            sizes[name] = int(rng.integers(stated[0], stated[1] + 1))
        else:
            sizes[name] = 1 if not sizes and default > LARGER_DIMS[0] // 2 else default
    return sizes[name]


def _index_limit(value: ir.Value) -> int:
    """The largest index that every Gather on the value allows, as far as that can be seen."""
    limit, stack = 100, [value]
    seen: set[ir.Value] = set()
    while stack:
        one = stack.pop()
        if one in seen:
            continue
        seen.add(one)
        for user, position in one.uses():
            if user.op_type == "Gather" and position == 1 and user.inputs[0] is not None:
                tensor = ir.constant(user.inputs[0])
                if tensor is not None and len(tensor.shape):
                    limit = min(limit, tensor.shape.numpy()[0])
            elif user.op_type in ("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape"):
                stack.extend(user.outputs)
    return max(limit, 1)


def _random_array(shape: tuple[int, ...], dtype: DataType, rng: np.random.Generator, limit: int) -> np.ndarray:
    if dtype == DataType.STRING:
        return np.full(shape, "text", dtype=object)
    kind = dtype.numpy()
    if dtype == DataType.BOOL:
        return rng.integers(0, 2, shape).astype(kind)
    if dtype.is_integer():
        return rng.integers(0, limit, shape).astype(kind)
    return rng.standard_normal(shape).astype(kind)


# --- a run of the pipeline -----------------------------------------------------------------------------------------
def verify_run(source: Callable[[], ir.Model], optimized: ir.Model, manager: PassManager) -> VerificationReport:
    """Verify what a manager made of a model; when it differs, find the rewrite to blame.

    Args:
        source: loads the original afresh.
        optimized: the result.
        manager: what was run.

    Raises:
        VerificationError: outputs differ; the text names pass, rule and node.
    """
    dims = manager.options.dims
    report = verify(source(), optimized, dims=dims)
    if not any(sample.differences for sample in report.samples):
        return report
    from onnxopt.bisection import first_bad_patch

    def is_right(model: ir.Model) -> bool:
        return not any(sample.differences for sample in verify(source(), model, dims=dims).samples)

    patch = first_bad_patch(source, manager, is_right)
    if patch is None:
        report.culprit = "No single rewrite is to blame: loading, saving or the runtime is."
    else:
        report.culprit = (
            f"The first wrong rewrite is number {patch.number}: rule {patch.rule} of pass {patch.pass_name} "
            f"at {patch.op_type} node '{patch.node}'."
        )
    raise VerificationError(report.sentence())
