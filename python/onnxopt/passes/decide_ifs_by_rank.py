"""Ifs of which one branch gives a tensor that what follows cannot take."""

from __future__ import annotations

import numpy as np

from onnxopt import ir
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.driver import walk
from onnxopt.rewrite.rules import attribute

Ranks = frozenset[int]

MAX_STEPS = 64
"""Nodes that a question about a rank looks back or ahead over: answers lie near, and deep models have long chains."""

SAME_RANK = frozenset(
    [
        "Abs",
        "AveragePool",
        "BatchNormalization",
        "Cast",
        "Ceil",
        "Clip",
        "Cos",
        "Dropout",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "InstanceNormalization",
        "LayerNormalization",
        "LeakyRelu",
        "Log",
        "LogSoftmax",
        "MaxPool",
        "Mish",
        "Neg",
        "Not",
        "Pad",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sin",
        "Slice",
        "Softmax",
        "Softplus",
        "Sqrt",
        "Tanh",
        "Transpose",
    ]
)
"""Ops whose first result has the rank of their first input."""

RECURRENT = {"GRU": (0, 5), "LSTM": (0, 5, 6), "RNN": (0, 5)}
"""Inputs of recurrent ops that have three dims: the sequence and the initial states."""

CONVOLUTIONS = ("Conv", "ConvTranspose")


class _RankQuestions:
    """Ranks that follow from the ops alone: shapes that a file declares within branches may be those of one run."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.steps = 0

    def possible(self, value: ir.Value | None) -> Ranks | None:
        """The ranks that a value may have; None where that is not known."""
        self.steps += 1
        if value is None or self.steps > MAX_STEPS:
            return None
        tensor = ir.constant(value)
        if tensor is not None:
            return frozenset({len(tensor.shape)})
        if value.is_graph_input():
            rank = self.ctx.shapes.rank(value) if value.graph is self.ctx.model.graph else None
            return None if rank is None else frozenset({rank})
        node = value.producer()
        return None if node is None or node.domain else self._of_result(node, value)

    def _of_result(self, node: ir.Node, value: ir.Value) -> Ranks | None:
        index = value.index() or 0
        if node.op_type == "If":
            branches = [self.possible(branch.outputs[index]) for branch in _branches(node)]
            return None if None in branches else frozenset().union(*(one for one in branches if one is not None))
        if node.op_type in RECURRENT:
            return frozenset({3 if index else 4})
        if index:
            return None
        if node.op_type in CONVOLUTIONS and ir.constant(node.inputs[1]) is not None:
            return self.possible(node.inputs[1])
        added = _added_dims(node)
        before = None if added is None else self.possible(node.inputs[0])
        return None if before is None or added is None else frozenset(rank + added for rank in before)

    def required(self, value: ir.Value) -> int | None:
        """The rank that a value must have for what follows in its own graph to run; None where nothing tells."""
        for user, index in value.uses():
            if user.graph is value.graph and not user.domain:
                rank = self._required_by(user, index)
                if rank is not None:
                    return rank
        return None

    def _required_by(self, user: ir.Node, index: int) -> int | None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            return None
        if index in RECURRENT.get(user.op_type, ()):
            return 3
        if index:
            return None
        weights = ir.constant(user.inputs[1]) if user.op_type in CONVOLUTIONS else None
        if weights is not None:
            return len(weights.shape)
        if user.op_type == "Transpose" and "perm" in user.attributes:
            return len(attribute(user, "perm") or ()) or None
        added = _added_dims(user)
        after = None if added is None else self.required(user.outputs[0])
        return None if after is None or added is None else after - added


def _added_dims(node: ir.Node) -> int | None:
    """How many dims more than the first input the first result has."""
    if node.op_type in SAME_RANK:
        return 0
    if node.op_type not in ("Squeeze", "Unsqueeze"):
        return None
    axes = attribute(node, "axes")
    if axes is None:
        axes = ir.integers(ir.input_at(node, 1))
    if axes is None:
        return None
    return len(axes) if node.op_type == "Unsqueeze" else -len(axes)


def _branches(node: ir.Node) -> tuple[ir.Graph, ir.Graph]:
    return node.attributes["then_branch"].as_graph(), node.attributes["else_branch"].as_graph()


def _decision(node: ir.Node, ctx: Context) -> bool | None:
    """Which branch alone gives results of the ranks that are needed; None where neither or both may."""
    for index, value in enumerate(node.outputs):
        required = _RankQuestions(ctx).required(value)
        if required is None:
            continue
        ranks = [_RankQuestions(ctx).possible(branch.outputs[index]) for branch in _branches(node)]
        fits = [one is None or required in one for one in ranks]
        if fits[0] != fits[1]:
            return fits[0]
    return None


@register_pass
class DecideIfsByRank(Pass):
    """Give an If a constant condition when only one branch gives results of the rank that what follows can take.

    Exporters write Ifs around Squeeze and Unsqueeze of which only one branch fits the LSTM or convolution behind
    them. Where the other branch would have been chosen, the model as it was failed as well. Refused: ranks that only
    shapes declared inside the file tell, and requirements of nodes that may not run.
    """

    name = "decide_ifs_by_rank"
    phase = "fold"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        if not ctx.has_subgraphs:
            return PassResult(False)
        patches = 0
        for node in walk(model.graph):
            if node.op_type != "If" or node.domain or ir.constant(node.inputs[0]) is not None:
                continue
            decision = _decision(node, ctx)
            if decision is not None and ctx.budget.take():
                node.replace_input_with(0, ctx.constant(np.array(decision), "condition", node))
                ctx.log.applied(self.name, node)
                patches += 1
        return PassResult(patches > 0, patches)
