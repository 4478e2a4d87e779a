"""What a pass is, and what it is given: the model's context."""

from __future__ import annotations

import abc
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar, cast

import numpy as np

from onnxopt import ir
from onnxopt.errors import OnnxOptError, OptionError
from onnxopt.ir.dims import LARGEST
from onnxopt.rewrite.driver import Driver, walk
from onnxopt.rewrite.editor import Editor
from onnxopt.rewrite.rules import Refusal, RuleSet

if TYPE_CHECKING:
    from onnxopt.quant.blocks import BlockedMatrix
    from onnxopt.quant.weights import QuantizedMatrix
    from onnxopt.runtime.target import Target

SHARED_CONSTANT_BYTES = 4096
"""Constants that rewrites make are stored once per content up to this size; hashing larger ones is left to the deduplication pass."""


class Names:
    """Gives names that no value or node of the model has."""

    def __init__(self, model: ir.Model) -> None:
        self._values: set[str] = set()
        self._nodes: set[str] = set()
        self._next: dict[str, int] = {}
        self._collect(model.graph)

    def _collect(self, graph: ir.Graph) -> None:
        values, nodes = self._values, self._nodes
        values.update(value.name for value in graph.inputs if value.name)
        values.update(graph.initializers.data)
        for node in walk(graph):
            if node.name:
                nodes.add(node.name)
            for value in node.outputs:
                if value._name:
                    values.add(value._name)
            for inner in ir.inner_graphs(node):
                self._values.update(value.name for value in inner.inputs if value.name)
                self._values.update(inner.initializers)

    def separate(self, graph: ir.Graph, outer: frozenset[str] = frozenset()) -> None:
        """Give values inside subgraphs that are called like one of a graph around them other names.

        Such a name means the inner value where both are visible, which changes when a pass moves the outer one.
        """
        own = frozenset(value.name for value in _defined(graph) if value.name)
        visible = outer | own
        for node in graph:
            for inner in ir.inner_graphs(node):
                for value in _defined(inner):
                    if value.name in visible and not value.is_initializer():
                        value.name = self.value(value.name or "value")
                self.separate(inner, visible)

    def value(self, stem: str) -> str:
        return self._unique(stem, self._values)

    def node(self, stem: str) -> str:
        return self._unique(stem, self._nodes)

    def _unique(self, stem: str, taken: set[str]) -> str:
        base = stem.split("~", 1)[0]
        while True:
            number = self._next.get(base, 0) + 1
            self._next[base] = number
            name = f"{base}~{number}"
            if name not in taken:
                taken.add(name)
                return name


def _defined(graph: ir.Graph) -> Iterator[ir.Value]:
    """The values that a graph itself defines."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


class Budget:
    """How many patches may still be applied; None is no limit. Bisection runs the pipeline with ever smaller budgets."""

    def __init__(self, patches: int | None = None) -> None:
        self.limit = patches
        self.used = 0

    def take(self) -> bool:
        if self.limit is not None and self.used >= self.limit:
            return False
        self.used += 1
        return True

    def give_back(self) -> None:
        self.used -= 1


@dataclasses.dataclass(slots=True)
class RuleStats:
    """How often a rule was tried, at nodes whose op types fit, and how often it was applied."""

    attempts: int = 0
    applied: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class NearMiss:
    """A rule that nearly applied: where, why not, and how many nodes of its pattern had matched."""

    rule: str
    node: ir.Node
    refusal: Refusal
    depth: int


class AppliedPatch(NamedTuple):
    """One applied patch: its number in the run (what `stop_after` counts), pass, rule and the node it was rooted at.

    Nodes without a name are called by their first output; the op type of a patch of an initializer is "initializer".
    """

    number: int
    pass_name: str
    rule: str
    node: str
    op_type: str


class Log:
    """What happened: patches, attempts, near misses, warnings and defects. Sentences are made when someone asks."""

    def __init__(self, budget: Budget, *, explain: bool) -> None:
        self._budget = budget
        self._explain = explain
        self.pass_name = ""
        self.rules: dict[tuple[str, str], RuleStats] = {}
        self.patches: list[AppliedPatch] = []
        self.near_misses: list[NearMiss] = []
        self.warnings: list[str] = []
        self.defects: list[OnnxOptError] = []

    def _stats(self, rule: str) -> RuleStats:
        key = (self.pass_name, rule)
        stats = self.rules.get(key)
        if stats is None:
            stats = self.rules[key] = RuleStats()
        return stats

    def attempted(self, rule: str) -> None:
        self._stats(rule).attempts += 1

    def applied(self, rule: str, anchor: ir.Node) -> None:
        self._record(rule, ir.node_name(anchor), anchor.op_type)

    def replaced(self, initializer: ir.Value) -> None:
        """The pass let another value stand for an initializer: a patch without a node."""
        self._record(self.pass_name, initializer.name or "", "initializer")

    def _record(self, rule: str, where: str, kind: str) -> None:
        self._stats(rule).applied += 1
        self.patches.append(AppliedPatch(self._budget.used, self.pass_name, rule, where, kind))

    def refused(self, rule: str, node: ir.Node, refusal: Refusal, depth: int) -> None:
        if self._explain:
            self.near_misses.append(NearMiss(rule, node, refusal, depth))

    def warn(self, sentence: str) -> None:
        if sentence not in self.warnings:
            self.warnings.append(sentence)


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """Choices that several passes share.

    Attributes:
        dims: fixes a named dim (its size) or bounds it (lowest, highest); a dim without a name is called by its input and axis, `x_0`.
        fold_budget_bytes: how large constants that folding makes may be.
        inline_functions: inline model-local functions.
        opset: upgrade the model to this opset first; None keeps the model's.
        fast_math: allow rewrites that change rounding.
        allow_contrib: use onnxruntime's own contrib ops (domain com.microsoft) where no kernel of ours computes the same; the result needs
            onnxruntime.
        quantize_products: let products with constant matrices multiply 8-bit integers; see `onnxopt.quantize`.
        ranges: of activations by their names, which QuantizeLinear and DequantizeLinear are written for; see `onnxopt.quantize`.
        dynamic: names of convolutions whose operand gets its range when the model runs.
        keep_float: names of convolutions and products that do not become integers; those without a name are called by their first output.
        matrices: the integers of constant weights, by the name of the layer; all others are rounded to the nearest.
        blocked: the integers of the weights of products whose rows stay in float, by the name of the layer; see `onnxopt.quantize`.
        unroll_nodes: write every loop out that takes at most so many nodes; None only those for which it pays.
        unroll_factor: let each iteration of a Loop do the work of so many; None leaves long loops as they are.
        without: names of passes to leave out of the pipeline.
        not_at: names of nodes at which a rule is not applied, by the rule's name; nodes without a name are called by their first output.

    Raises:
        OptionError: a value is out of range.
    """

    dims: Mapping[str, int | tuple[int, int]] = dataclasses.field(default_factory=dict)
    fold_budget_bytes: int = 4 << 20
    inline_functions: bool = False
    opset: int | None = None
    fast_math: bool = False
    allow_contrib: bool = False
    quantize_products: bool = False
    ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    dynamic: frozenset[str] = frozenset()
    keep_float: frozenset[str] = frozenset()
    matrices: Mapping[str, QuantizedMatrix] = dataclasses.field(default_factory=dict)
    blocked: Mapping[str, BlockedMatrix] = dataclasses.field(default_factory=dict)
    unroll_nodes: int | None = None
    unroll_factor: int | None = None
    without: frozenset[str] = frozenset()
    not_at: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", {name: _plain_sizes(size) for name, size in self.dims.items()})
        for name, size in self.dims.items():
            bounds = (size, size) if isinstance(size, int) else size
            if not _is_range(bounds):
                raise OptionError(
                    f"The dim '{name}' is {size!r}; expected a size or (lowest, highest) with sizes from 0 to 2**63 - 1."
                )
        if self.fold_budget_bytes < 0:
            raise OptionError(f"fold_budget_bytes is {self.fold_budget_bytes}; expected at least 0.")
        if self.unroll_nodes is not None and self.unroll_nodes < 0:
            raise OptionError(f"unroll_nodes is {self.unroll_nodes}; expected at least 0.")
        if self.unroll_factor is not None and self.unroll_factor < 2:
            raise OptionError(f"unroll_factor is {self.unroll_factor}; expected at least 2.")


def _plain_sizes(size: Any) -> Any:
    """Sizes of numpy as Python's."""
    if isinstance(size, (tuple, list)):
        return tuple(map(_plain_sizes, size))
    return int(size) if isinstance(size, np.integer) else size


def _is_range(bounds: object) -> bool:
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        return False
    lowest, highest = bounds
    return isinstance(lowest, int) and isinstance(highest, int) and 0 <= lowest <= highest <= LARGEST


class Context:
    """Everything that passes share about one model: shapes, names, target, budget, log."""

    def __init__(
        self,
        model: ir.Model,
        *,
        target: Target,
        options: Options | None = None,
        stop_after: int | None = None,
        explain: bool = False,
        strict: bool = False,
    ) -> None:
        self.model = model
        self.target = target
        self.options = options or Options()
        self.explain = explain
        self.strict = strict
        self.budget = Budget(stop_after)
        self.log = Log(self.budget, explain=explain)
        self.editor = Editor(self)
        self.not_foldable: set[ir.Node] = set()
        self.rolled: set[ir.Graph] = set()  # bodies of Scans whose steps the model had written out
        self._nodes: dict[tuple[str, str], list[tuple[int, ir.Node]]] | None = None
        self._once: set[ir.Graph] | None = None
        self.refresh()

    def refresh(self) -> None:
        """Forget every analysis and start anew: for passes that changed the model behind the editor's back."""
        self.names = Names(self.model)
        # Passes remove subgraphs and make none, so this stays true enough: at worst a pass looks in vain.
        self.has_subgraphs = any(graph is not self.model.graph for graph in ir.walk_graphs(self.model.graph))
        if self.has_subgraphs:
            self.names.separate(self.model.graph)
        self.shapes = ir.ShapeEnv(self.model, self.options.dims)
        self.shapes.infer_model()
        self._constants: dict[tuple[object, ...], ir.Value] = {}
        self._derived: dict[tuple[ir.Value, str], ir.Value] = {}
        self._bytes: dict[int, tuple[ir.TensorProtocol, int]] = {}
        self.forget_nodes()
        self.forget_graphs()

    def graphs(self) -> list[ir.Graph]:
        """The main graph and all graphs inside its nodes."""
        return list(ir.walk_graphs(self.model.graph)) if self.has_subgraphs else [self.model.graph]

    def graphs_run_once(self) -> list[ir.Graph]:
        """The main graph and the branches of Ifs, but for what loops repeat."""
        return list(_run_once(self.model.graph)) if self.has_subgraphs else [self.model.graph]

    def runs_once(self, node: ir.Node) -> bool:
        """Whether a node runs at most once: it is in no body of a loop and in no function."""
        if node.graph is self.model.graph or not self.has_subgraphs:
            return node.graph is self.model.graph
        if self._once is None:
            self._once = set(self.graphs_run_once())
        return node.graph in self._once

    def walk(self) -> Iterator[ir.Node]:
        """All nodes of the model in order, those of subgraphs behind the node that holds them."""
        return walk(self.model.graph) if self.has_subgraphs else iter(self.model.graph)

    def nodes_of(self, ops: Iterable[tuple[str, str]]) -> list[ir.Node]:
        """The nodes of these ops (domain and op type), in the order of the model, subgraphs included."""
        if self._nodes is None:
            filed: dict[tuple[str, str], list[tuple[int, ir.Node]]] = {}
            for entry in enumerate(self.walk()):
                node = entry[1]
                key = node.domain, node.op_type
                known = filed.get(key)
                if known is None:
                    filed[key] = [entry]
                else:
                    known.append(entry)
            self._nodes = filed
        lists = [self._nodes[op] for op in self._nodes.keys() & ops]
        if len(lists) < 2:  # they are in order as they are
            return [node for entries in lists for _, node in entries]
        return [node for _, node in sorted(itertools.chain.from_iterable(lists))]

    def forget_nodes(self) -> None:
        """Nodes came or went: what is filed of them is collected anew when it is asked for."""
        self._nodes = None

    def forget_graphs(self) -> None:
        """Branches came or went, as they do between passes."""
        self._once = None

    def node_count(self) -> int:
        """How many nodes the model has, subgraphs included."""
        return sum(graph.num_nodes() for graph in self.graphs())

    def sizes(self) -> tuple[int, int]:
        """How many nodes the model has, subgraphs included, and how many bytes of weights."""
        weights = 0
        for graph in self.graphs():
            for value in graph.initializers.data.values():
                tensor = value.const_value
                if tensor is not None:
                    weights += self._bytes_of(tensor)
        for node in self.nodes_of([("", "Constant")]):
            constant = ir.constant(node.outputs[0]) if node.outputs else None
            if constant is not None:
                weights += self._bytes_of(constant)
        return self.node_count(), weights

    def _bytes_of(self, tensor: ir.TensorProtocol) -> int:
        known = self._bytes.get(id(tensor))
        if known is not None:
            return known[1]
        size = tensor.nbytes
        if size <= SHARED_CONSTANT_BYTES:
            self._bytes[id(tensor)] = tensor, size  # small ones are kept, so that their ids stay their own
        return size

    @property
    def opset(self) -> int:
        """The model's opset of the default domain."""
        return self.model.graph.opset_imports.get("", 1)

    def defect(self, error: OnnxOptError) -> None:
        """A rule or pass proposed something wrong. It was not applied; with `strict` (tests) it is raised."""
        if self.strict:
            raise error
        self.log.defects.append(error)

    def constant(
        self, array: np.ndarray | np.generic | ir.TensorProtocol, name: str, anchor: ir.Node | None = None
    ) -> ir.Value:
        """A new initializer of the main graph (or a Constant node before `anchor` inside a function), shared when small and equal."""
        data: np.ndarray | None = None
        if isinstance(array, (np.ndarray, np.generic)):
            data = array if array.flags.c_contiguous else np.ascontiguousarray(array).reshape(array.shape)  # type: ignore[assignment]
        owner = None if anchor is None else function_of(anchor, self.model)
        key = None
        if data is not None and owner is None and data.nbytes <= SHARED_CONSTANT_BYTES and data.dtype.kind != "O":
            key = data.dtype, data.shape, data.tobytes()
            known = self._constants.get(key)
            if known is not None and known.is_initializer():
                return known
        tensor = ir.tensor_of(data) if data is not None else cast(ir.TensorProtocol, array)
        value = self._new_constant(tensor, name, anchor, owner)
        if key is not None:
            self._constants[key] = value
        return value

    def derived(self, source: ir.Value, form: str, make: Callable[[], ir.TensorProtocol]) -> ir.Value:
        """An initializer that is made of a constant: one for each `form` of it, whoever asks."""
        known = self._derived.get((source, form))
        if known is None or not known.is_initializer():
            known = self._derived[source, form] = self.constant(make(), source.name or "weights")
        return known

    def _new_constant(
        self, tensor: ir.TensorProtocol, name: str, anchor: ir.Node | None, owner: ir.Function | None
    ) -> ir.Value:
        unique = self.names.value(name)
        if owner is not None:
            assert anchor is not None and anchor.graph is not None
            node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], name=self.names.node(name))
            node.outputs[0].name = unique
            anchor.graph.insert_before(anchor, node)
            value = node.outputs[0]
        else:
            value = ir.PlainValue(
                name=unique,
                const_value=tensor,
                type=ir.TensorType(tensor.dtype),
                shape=tensor.shape,  # type: ignore[arg-type]
            )
            tensor.name = unique
            ir.add_initializer(self.model.graph, value)
        self.shapes.set_constant(value)
        return value


def _run_once(graph: ir.Graph) -> Iterator[ir.Graph]:
    yield graph
    for node in graph:
        if node.op_type == "If" and not node.domain:
            for branch in ir.inner_graphs(node):
                yield from _run_once(branch)


def function_of(node: ir.Node, model: ir.Model) -> ir.Function | None:
    """The model-local function whose body holds the node, or None. Only top-level nodes of a function body are found at once."""
    graph = node.graph
    if graph is model.graph or not model.functions:
        return None
    for function in model.functions.values():
        if ir.is_graph_of(function, graph):
            return function
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class PassResult:
    """Whether the model changed at all, and how many patches did it."""

    modified: bool
    patches: int = 0


class Pass(abc.ABC):
    """One transformation of a model.

    `run` changes the model in place, keeps no state in the pass, says exactly whether anything changed, and changes nothing when it
    is run again on its own result.
    """

    name: ClassVar[str]
    phase: ClassVar[str]

    @abc.abstractmethod
    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        """Transform `model` in place."""

    def rule_names(self) -> list[str]:
        """The names under which the pass counts its patches."""
        return [self.name]

    @classmethod
    def summary(cls) -> str:
        """The first sentence of the doc string."""
        paragraph = " ".join((cls.__doc__ or "").strip().partition("\n\n")[0].split())
        sentence, end, _ = paragraph.partition(". ")
        return sentence + end.strip()


class RulePass(Pass):
    """A pass that is a set of rules: most passes are."""

    rules: ClassVar[RuleSet]

    def rule_names(self) -> list[str]:
        return [rule.name for rule in self.rules]

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        nodes = ctx.nodes_of(self.rules.by_root)
        patches = Driver(self.rules, ctx).run(nodes) if nodes else 0
        return PassResult(patches > 0, patches)


REGISTRY: dict[str, type[Pass]] = {}
"""Every pass by name, in the order of registration; `onnxopt passes` lists it."""


PassClass = TypeVar("PassClass", bound=type[Pass])


def register_pass(cls: PassClass) -> PassClass:
    """Class decorator: file a pass under its name."""
    if cls.name in REGISTRY:
        raise OptionError(f"A pass named '{cls.name}' is registered already.")
    REGISTRY[cls.name] = cls
    return cls
