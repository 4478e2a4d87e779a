"""One run of quantization: simplify the model, see what its activations are, choose layers, write or fuse the integers."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxopt import __version__, ir
from onnxopt.errors import CalibrationError, OptionError
from onnxopt.passes.base import Context, Options
from onnxopt.pipeline import PassManager
from onnxopt.quant import layers, ranges, samples
from onnxopt.quant.blocks import WeightFormat
from onnxopt.quant.budget import Budget, Metric, Outputs, decibels, metric_identity, metric_name, score
from onnxopt.quant.checkpoint import Checkpoint
from onnxopt.quant.correction import correct
from onnxopt.quant.dynamic import choose
from onnxopt.quant.functions import function_of
from onnxopt.quant.histogram import Histogram
from onnxopt.quant.journal import Journal
from onnxopt.quant.migration import Rounding, migrate, places
from onnxopt.quant.observe import observe, session_of
from onnxopt.quant.outliers import too_coarse
from onnxopt.quant.parallel import in_parallel, workers
from onnxopt.quant.placement import PRODUCTS, Placement, place, share_ranges
from onnxopt.quant.regions import too_small
from onnxopt.quant.result import ActivationResult, LayerResult, MetricResult, Quantization
from onnxopt.quant.search import Candidate, search
from onnxopt.quant.weights import QuantizedMatrix, quantize_columns
from onnxopt.runtime.target import Target

if TYPE_CHECKING:
    import onnxruntime

MIN_OPSET = 13
"""The opset from which on weights have a scale per channel."""

WRITE = ("write_qdq", "eliminate_common_subexpressions", "dequantize_after_moves", "eliminate_dead_code")
MEASURED_SAMPLES = 8
"""Samples on which the outputs of both models are compared."""

KEPT_SAMPLES = 16
"""Samples that are kept, and on which layers are corrected: what is alive of the model for all of them is in memory at once."""

PROBED_SAMPLES = 2
"""Of these, with which the noise of one layer is measured."""


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """What every run is told: the arguments of `quantize` of these names."""

    format: str
    target: Target
    dims: dict[str, int | tuple[int, int]]
    keep: frozenset[str]
    tick: Callable[..., object]


class Job:
    """One run: the simplified model in `model`, what is known of its layers and activations, and the result as it fills."""

    def __init__(
        self, model: ir.Model, task: Task, *, smooth: bool = True, bias_correction: bool = True, adaptive: bool = False
    ) -> None:
        self.smooth, self.bias_correction, self.adaptive = smooth, bias_correction, adaptive
        self.model, self.format, self.target = model, task.format, task.target
        self.keep, self.tick = task.keep, task.tick
        self.result = Quantization(self.format, {}, ir.weight_bytes(model), 0)
        opset = model.graph.opset_imports.get("", MIN_OPSET)
        options = Options(dims=task.dims, opset=self.min_opset if opset < self.min_opset else None)
        PassManager("generic", options=options).run(model)
        self.options = dataclasses.replace(options, opset=None, quantize_products=self.format == "fused")
        self._place()
        unknown = sorted(self.keep - self.layers.keys())
        if unknown:
            raise OptionError(f"No convolution or product that can be quantized is named '{unknown[0]}'.")
        self.histograms: dict[str, Histogram] = {}
        self.kept: list[samples.Sample] = []
        self.noise: dict[str, float] = {}
        self.weight_sqnr: dict[str, float] = {}
        self.broken: frozenset[str] = frozenset()
        self.coarse: dict[str, float] = {}
        self.small: frozenset[str] = frozenset()
        self.rounded = False
        self._nearest: dict[str, QuantizedMatrix] = {}
        self._digest = hashlib.sha256()

    min_opset = MIN_OPSET
    precision = "int8"
    form: WeightFormat | None = None
    """Of weights that become integers alone."""

    def _context(self) -> Context:
        return Context(self.model, target=self.target, options=self.options)

    def _place(self) -> None:
        """Find the layers, and the activations that become bytes."""
        ctx = self._context()
        self.layers = layers.describe(self.place(ctx), ctx.shapes)

    def place(self, ctx: Context) -> list[ir.Node]:
        """The nodes that are to read integers. Notes which of them need calibration, and of what."""
        fused = self.format == "fused"
        whole, partly = self._placement(ctx, frozenset()), self._placement(ctx, self.keep)
        self.static = {ir.node_name(node) for node in whole.nodes}
        self.observed, self.fresh = partly.observed, partly.fresh
        return layers.nodes_of(whole, ctx, products=fused)

    def _placement(self, ctx: Context, keep: frozenset[str]) -> Placement:
        """Where the integers go with some layers in float."""
        fused, dynamic = self.format == "fused", self.options.dynamic
        return place(self.model, ctx.shapes, products=not fused, epilogues=fused, keep=keep, dynamic=dynamic)

    def _placed(self, keep: frozenset[str], names: Iterable[str]) -> set[str]:
        """Which of some layers multiply integers or, kept in float, could: not convolutions that read none any more."""
        placement = self._placement(self._context(), keep | self.broken | self.coarse.keys() | self.small)
        static = {ir.node_name(node) for node in placement.nodes}
        return {name for name in names if name in keep or name in static or name not in self.static}

    def _migrate(self, method: str) -> None:
        """Move scales from activations into weights where that lowers the error of layers."""
        ctx = self._context()
        nodes = [node for node in self._nodes() if ir.node_name(node) not in self.keep]
        found = places(ctx, nodes, insert=self.format == "qdq")
        self.tick(f"{len(found)} places where scales can move")
        try:
            moved = migrate(self.model, ctx, found, self._rounding, self.kept, method)
        except CalibrationError as error:
            self.result.warnings.append(f"Scales are not moved: {error}")
            return
        self.result.migrated = {one.name: decibels(one.error) for one in moved}
        self._place()

    def _rounding(self, node: ir.Node) -> Rounding:
        name = ir.node_name(node)
        return "sample" if name in self.options.dynamic else "model" if name in self.static else "row"

    def _choose_dynamic(self, method: str) -> None:
        """Find the convolutions that are better off with a range for each sample; other engines compute such ones in floats."""
        try:
            chosen = choose(self.model, self.fresh, self.kept, method)
        except CalibrationError as error:
            self.result.warnings.append(f"All convolutions have one range for all samples: {error}")
            return
        self.options = dataclasses.replace(self.options, dynamic=chosen)
        self._place()

    def _nodes(self) -> list[ir.Node]:
        """The nodes of the layers, in order."""
        return [node for node in self.model.graph if ir.node_name(node) in self.layers and node.op_type in layers.OPS]

    def calibrate(self, calibration: samples.Source, method: str, path: Path | None = None) -> None:
        """The ranges of the activations; the first samples are kept, since an iterator gives them once. What was observed stays in a file."""

        def counted() -> Iterator[dict[str, np.ndarray]]:
            for sample in samples.read(calibration, self.model):
                self.result.samples += 1
                if len(self.kept) < KEPT_SAMPLES:
                    self.kept.append(sample)
                for name in sorted(sample):
                    self._digest.update(f"{name} {sample[name].dtype} {sample[name].shape}".encode())
                    self._digest.update(sample[name].tobytes())
                yield sample

        source = counted()
        first = list(itertools.islice(source, KEPT_SAMPLES))
        if self.format == "fused":
            self._choose_dynamic(method)
        if self.smooth:
            self._migrate(method)
        checkpoint = self._checkpoint(calibration, path)
        self.histograms = observe(self.model, self.observed, itertools.chain(first, source), self.tick, checkpoint)
        functions = self._functions() if method == "mse" else {}
        limits = {
            name: ranges.estimate(one, method, functions.get(name)) for name, one in self.histograms.items() if one.seen
        }
        self.result.warnings += [
            f"'{name}' has no element in any sample." for name in self.histograms if name not in limits
        ]
        self.options = dataclasses.replace(self.options, ranges=share_ranges(self.model, limits))
        if self.format == "qdq" and self.observed:
            self._round_nearest()
            self._find_coarse(method)
        sized = ir.ShapeEnv(self.model, {**samples.sizes(self.model, self.kept[0]), **self.options.dims})
        sized.infer_model()
        self.layers = layers.describe(self._nodes(), sized)
        if self.format == "fused" and self.target.name == "cpu":
            self.small = too_small(self._placement(self._context(), self.keep), sized, self.target.costs)

    def _functions(self) -> dict[str, ranges.Function]:
        """Of activations that are rounded before something is computed of them element by element: what that is."""
        shapes = self._context().shapes
        found = {str(value.name): function_of(value, self.model, shapes) for value in self.observed}
        return {name: function for name, function in found.items() if function is not None}

    def _find_coarse(self, method: str) -> None:
        """Choose the ranges of what products read by their results, and find the products that stay in float, since the kernels of other
        engines do not quantize row by row. What is clipped of a few large elements is what matters most to some rows."""
        nodes = [node for node in self._nodes() if node.op_type in PRODUCTS and ir.node_name(node) not in self.keep]
        shared = {layer.activation for layer in self.layers.values() if layer.op_type not in PRODUCTS}
        tried = {
            name: [limits, ranges.whole(self.histograms[name])] if method == "mse" and name not in shared else [limits]
            for name, limits in self.options.ranges.items()
        }
        self.tick("products with outliers")
        try:
            chosen, self.coarse = too_coarse(self.model, nodes, tried, self._nearest, self.kept[::2])
        except CalibrationError as error:
            self.result.warnings.append(f"Products with outliers are not looked for: {error}")
        else:
            self.options = dataclasses.replace(self.options, ranges={**self.options.ranges, **chosen})

    def _checkpoint(self, calibration: samples.Source, path: Path | None) -> Checkpoint:
        """What an earlier run has observed of these samples, if they can be read twice."""
        names = sorted(str(value.name) for value in self.observed)
        if path is None or not names or not samples.is_repeatable(calibration):
            return Checkpoint(None, "")
        self.tick("samples of an earlier run")
        key = hashlib.sha256(repr([__version__, ir.fingerprint(self.model), names]).encode()).hexdigest()
        return Checkpoint.open(path, key, samples.read(calibration, self.model))

    def round_weights(self) -> None:
        """Round the weights of all layers once, for all models that are made of them; those that are not finite stay as they are."""
        if not self._nearest:
            self._round_nearest()
        self.rounded = True
        if self.corrects:
            self._correct(self.keep)

    def _round_nearest(self) -> None:
        matrices, broken = {}, set()
        for node in self._nodes():
            name = ir.node_name(node)
            if name not in matrices:
                matrix = layers.matrix_of(node)
                if np.isfinite(matrix).all():
                    rounded = matrices[name] = QuantizedMatrix(*quantize_columns(matrix))
                    self.weight_sqnr[name] = rounded.signal_to_noise(matrix)
                else:
                    broken.add(name)
        self.broken = frozenset(broken)
        self.options = dataclasses.replace(self.options, matrices=matrices)
        self._nearest = matrices

    @property
    def corrects(self) -> bool:
        return (self.bias_correction or self.adaptive) and bool(self.kept)

    def _correct(self, keep: frozenset[str]) -> None:
        """Measure what layers lack on average, with all others in integers that can be."""
        keep |= self.coarse.keys() | self.small
        ranges, nodes = self.options.ranges, [node for node in self.model.graph if node.op_type in layers.OPS]
        names = [ir.node_name(node) for node in nodes]
        chosen = [
            node
            for node, name in zip(nodes, names, strict=True)
            if name in self._nearest and name not in keep and names.count(name) == 1
            if name not in self.static or self.layers[name].activation in ranges
        ]
        try:
            matrices = correct(
                self.model,
                chosen,
                self._placement(self._context(), keep).everywhere,
                ranges,
                self._nearest,
                self.kept,
                dynamic=self.options.dynamic,
                biases=self.bias_correction,
                adaptive=self.adaptive,
                tick=self.tick,
            )
        except CalibrationError as error:
            self.result.warnings.append(f"Layers are not corrected: {error}")
        else:
            self.options = dataclasses.replace(self.options, matrices=matrices)

    def write(self, model: ir.Model, keep: frozenset[str], *, fuse: bool = True) -> dict[str, int]:
        """Write the integers of all other layers into the model, and fuse what is around them. Returns the nodes after, by op."""
        options = dataclasses.replace(self.options, keep_float=keep | self.broken | self.coarse.keys() | self.small)
        if options.ranges:
            PassManager("generic", WRITE, options=options).run(model)
        if self.format == "qdq":
            return ir.count_ops(model)
        passes = None if fuse else ["quantize_products"]
        return PassManager(self.target, passes, options=options).run(model).ops_after

    def session(
        self, keep: frozenset[str], *, fuse: bool = True, threads: int | None = None
    ) -> onnxruntime.InferenceSession:
        """Of a model whose layers stay in float that are named."""
        candidate = self.model.clone()
        self.write(candidate, keep, fuse=fuse)
        return session_of(candidate, library=self.format == "fused", threads=threads)

    def search(self, original: ir.Model, budget: Budget, metric: Metric | None, path: Path | None) -> frozenset[str]:
        """The layers that stay in float so that the metric is within the budget."""
        self.round_weights()
        reference = session_of(original, library=False)
        outputs = Outputs(reference, self.kept[:MEASURED_SAMPLES])
        measured = metric or (outputs.signal_to_noise if budget.unit == "dB" else outputs.cosine)
        title = metric_name(metric) if metric else "signal to noise, dB" if budget.unit == "dB" else "cosine to float"
        journal = Journal(path, self._key(metric_identity(measured)))
        before = journal.get("score", "float")
        if before is None:
            before = journal.put("score", "float", score(measured, reference, "the float model"))
        del reference

        def scored(keep: frozenset[str], what: str = "") -> float:
            """Measured once, and kept."""
            name = what + hashlib.sha256("\n".join(sorted(keep)).encode()).hexdigest()
            known = journal.get("score", name)
            if known is None:
                self.tick(f"{len(keep)} of {len(self.layers)} layers in float")
                of = f"the model with {len(keep)} layers in float"
                known = journal.put("score", name, score(measured, self.session(keep | self.keep), of))
            return known

        least = budget.least(before)
        free = [name for name in self.layers if name not in self.keep | self.coarse.keys() | self.small]
        after = scored(frozenset())
        found = frozenset[str]()
        if after < least:
            self._probe(outputs, free, journal)
            operations = layers.costs(self.layers)
            candidates = [Candidate(name, operations[name], self.noise[name]) for name in free]
            best = search(candidates, scored, least)
            found, after = best.keep, best.score
            if found and self.corrects:
                after = self._correct_again(found, after, lambda keep: scored(keep, "corrected "))
        self.result.metric = MetricResult(title, before, after, str(budget), least, after >= least)
        if not after >= least:
            self.result.warnings.append(
                f"No choice of layers stays within {budget}: with all of them in float, {title} is {after:.6g} and should be at least {least:.6g}."
            )
        elif free and found and found.issuperset(self._placed(found | self.keep, free)):
            self.result.warnings.append(f"No layer can multiply integers within {budget}: the model stays in float.")
        return found | self.keep

    def _correct_again(self, keep: frozenset[str], before: float, score: Callable[[frozenset[str]], float]) -> float:
        """Measure corrections anew for the layers that are left in integers, and take them where the metric is no worse. Returns it."""
        options = self.options
        self._correct(keep | self.keep)
        after = score(keep)
        if after >= before:
            return after
        self.options = options
        return before

    def _probe(self, outputs: Outputs, names: list[str], journal: Journal) -> None:
        """The noise in the outputs where one layer alone multiplies integers; several layers at a time."""
        few = outputs.first(PROBED_SAMPLES)

        def noise_of(name: str) -> float:
            alone = self.session(frozenset(self.layers) - {name}, fuse=False, threads=1)
            return max(few.noise(alone).values(), default=0.0)

        known = {name: journal.get("noise", name) for name in names}
        left = [name for name in names if known[name] is None]
        for name, noise in in_parallel(noise_of, left, workers(self.result.bytes_before)):
            known[name] = journal.put("noise", name, noise)
            done = sum(one is not None for one in known.values())
            self.tick(f"sensitivity of {done} of {len(names)} layers", done, len(names))
        self.noise = {
            name: noise if noise is not None and math.isfinite(noise) else math.inf for name, noise in known.items()
        }

    def _key(self, metric: str) -> str:
        """A text that stands for all that measurements depend on."""
        parts = [
            __version__,
            ir.fingerprint(self.model),
            self._digest.hexdigest(),
            self.format,
            repr(self.target),
            metric,
        ]
        if self.form is not None:
            parts.append(repr(self.form))
        limits = sorted(self.options.ranges.items())
        return hashlib.sha256(
            repr(
                [
                    *parts,
                    sorted(self.options.dims.items()),
                    limits,
                    sorted(self.keep),
                    self.smooth,
                    self.bias_correction,
                ]
            ).encode()
        ).hexdigest()

    def finish(self, keep: frozenset[str]) -> None:
        """Write the integers into the model, and the result down."""
        calibrated = bool(self.histograms)
        result = self.result
        left = [name for name in self.static - keep if not calibrated]
        if left:
            result.warnings.append(f"{len(left)} convolutions stay in float: there are no calibration samples.")
        if not self.rounded:
            self.round_weights()
        placed = self._placed(keep, self.layers)
        described = [self._described(layer, keep, placed, calibrated) for layer in self.layers.values()]
        made = self.write(self.model, keep)
        kinds = [one.op_type for one in described if one.precision != "float" and self.is_counted(one)]
        result.quantized = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
        if made.get("ai.onnxopt::QGemm"):
            result.quantized["QGemm"] = made["ai.onnxopt::QGemm"]
        result.layers = described
        result.activations = [
            ActivationResult(
                name, limits, one.least, one.largest, one.low, one.high, [int(count) for count in one.counts]
            )
            for name, limits in self.options.ranges.items()
            for one in [self.histograms[name]]
        ]
        result.bytes_after = ir.weight_bytes(self.model)

    def is_counted(self, layer: LayerResult) -> bool:
        """Whether a layer is counted by what it was: products that QGemm computes are counted as what they became."""
        return layer.name in self.static

    def _described(self, layer: layers.Layer, keep: frozenset[str], placed: set[str], calibrated: bool) -> LayerResult:
        reason = ""
        if layer.name in self.keep:
            reason = "it was to stay in float"
        elif layer.name in self.broken:
            reason = "its weights are not finite"
        elif layer.name in self.coarse:
            reason = f"one range is too coarse for its activation: {decibels(self.coarse[layer.name]):.1f} dB"
        elif layer.name in self.small:
            reason = "it saves less than making bytes for it takes"
        elif layer.name in keep:
            reason = "the accuracy budget"
        elif layer.name in self.static and not calibrated:
            reason = "there are no calibration samples"
        elif layer.name in self.static and layer.activation not in self.options.ranges:
            reason = "its activation has no element in any sample"
        elif layer.name in self.static and layer.name not in placed:
            reason = "floats alone read its results"
        noise = self.noise.get(layer.name)
        return LayerResult(
            layer.name,
            layer.op_type,
            layer.activation,
            "float" if reason else self.precision,
            reason,
            layer.operations,
            layer.weights,
            weight_sqnr=None if reason else self.weight_sqnr.get(layer.name),
            output_sqnr=None if noise is None else decibels(noise),
        )

    def measure(self, original: ir.Model) -> None:
        """Write down how near the outputs come to those of the original."""
        outputs = Outputs(session_of(original, library=False), self.kept[:MEASURED_SAMPLES])
        noise = outputs.noise(session_of(self.model, library=True))
        self.result.sqnr = {name: decibels(one) for name, one in noise.items()}
