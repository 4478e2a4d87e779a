"""Convolutions of bytes among floats: whether they save what it takes to make bytes for them."""

from __future__ import annotations

import math

from onnxopt import ir
from onnxopt.inspection import node_flops
from onnxopt.quant.placement import CONVOLUTIONS, Placement, makers_of
from onnxopt.runtime.costs import Costs


def too_small(placement: Placement, shapes: ir.ShapeEnv, costs: Costs) -> frozenset[str]:
    """The names of convolutions whose region, as far as bytes go from one to the next, has fewer multiplications than it takes to make its
    bytes of floats. `shapes` are those of a sample; regions of unknown size are none of them.
    """
    regions = _Regions()
    for node in dict.fromkeys([*placement.nodes, *placement.makers.values()]):
        for value in node.inputs:
            for maker in makers_of(value, placement.makers):
                regions.join(node, maker)
    work, price = dict[ir.Node, float](), dict[ir.Node, float]()
    for node in placement.nodes:
        if node.op_type in CONVOLUTIONS:
            flops, region = node_flops(node, shapes), regions.of(node)
            work[region] = work.get(region, 0.0) + (math.inf if flops is None else flops / 2)
    read = {(regions.of(node), node.inputs[0]) for node in placement.fresh}
    for region, value in read:
        shape = None if value is None else shapes.static_shape(value)
        price[region] = (
            price.get(region, 0.0) + costs.rounding_work + costs.rounding_element_work * math.prod(shape or ())
        )
    return frozenset(
        ir.node_name(node)
        for node in placement.nodes
        if node.op_type in CONVOLUTIONS and work[regions.of(node)] < price.get(regions.of(node), 0.0)
    )


class _Regions:
    """Disjoint sets of nodes, each known by one of them."""

    def __init__(self) -> None:
        self._joined: dict[ir.Node, ir.Node] = {}

    def of(self, node: ir.Node) -> ir.Node:
        while (other := self._joined.get(node, node)) is not node:
            node = other
        return node

    def join(self, one: ir.Node, other: ir.Node) -> None:
        self._joined[self.of(one)] = self.of(other)
