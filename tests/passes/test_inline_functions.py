"""Model-local functions, inlined on request."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import pytest

from helpers import assert_same, model, op_list
from onnxopt import ir
from onnxopt.passes.base import Options
from onnxopt.pipeline import PassManager, Report

FEED = {"x": np.array([1, -2, np.nan, np.inf], np.float32)}


def function(
    name: str, *nodes: onnx.NodeProto, overload: str = "", attributes: list[str] | None = None
) -> onnx.FunctionProto:
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("local", 1)]
    made = onnx.helper.make_function("local", name, ["a"], ["b"], list(nodes), opsets, attributes)
    made.overload = overload
    return made


def node(op: str, inputs: str, outputs: str, domain: str = "", **attributes: object) -> onnx.NodeProto:
    return onnx.helper.make_node(op, inputs.split(), outputs.split(), domain=domain, **attributes)


def calling(body: str, *functions: onnx.FunctionProto, overloads: tuple[str, ...] = ()) -> onnx.ModelProto:
    proto = model(f"g (float[4] x) => (float[4] y) {{ {body} }}", ir_version=10)
    proto.opset_import.add(domain="local", version=1)
    names = {one.name for one in functions}
    for one in proto.graph.node:
        if one.op_type in names:
            one.domain = "local"
    for one, overload in zip(proto.graph.node, overloads, strict=False):
        one.overload = overload
    proto.functions.extend(functions)
    return proto


def inlined(proto: onnx.ModelProto, *, request: bool = True) -> tuple[onnx.ModelProto, Report]:
    loaded = ir.load(onnx.ModelProto.FromString(proto.SerializeToString()))
    report = PassManager("generic", ["inline_functions"], options=Options(inline_functions=request), strict=True).run(
        loaded
    )
    return ir.to_proto(loaded), report


DOUBLE = function("Double", node("Add", "a a", "b"))
TWICE = function("Twice", node("Double", "a", "t", "local"), node("Double", "t", "b", "local"))


@pytest.mark.parametrize(
    ("body", "functions", "left"),
    [
        ("y = Double(x)", [DOUBLE], ["Add"]),
        ("a = Double(x)\n y = Double(a)", [DOUBLE], ["Add", "Add"]),
        ("y = Twice(x)", [DOUBLE, TWICE], ["Add", "Add"]),
        ("b = Neg(x)\n t = Double(b)\n y = Twice(t)", [DOUBLE, TWICE], ["Neg", "Add", "Add", "Add"]),
    ],
    ids=["one call", "two calls", "nested calls", "names that clash"],
)
def test_calls_become_bodies(body: str, functions: list[onnx.FunctionProto], left: list[str]) -> None:
    before = calling(body, *functions)
    after, report = inlined(before)
    assert (op_list(after), list(after.functions)) == (left, [])
    assert report.records[0].modified
    assert_same(before, after, FEED)


def test_a_function_of_another_opset_keeps_what_it_calls() -> None:
    twice = onnx.FunctionProto.FromString(TWICE.SerializeToString())
    twice.opset_import[0].version = 13
    before = calling("d = Double(x)\n y = Twice(d)", DOUBLE, twice)
    after, _ = inlined(before)
    assert (op_list(after), {one.name for one in after.functions}) == (["Add", "Twice"], {"Twice", "Double"})
    assert_same(before, after, FEED)


def test_calls_stay_without_a_request() -> None:
    before = calling("y = Double(x)", DOUBLE)
    after, report = inlined(before, request=False)
    assert (op_list(after), len(after.functions)) == (["Double"], 1)
    assert not report.records[0].modified


def test_a_model_without_functions_is_not_changed() -> None:
    _, report = inlined(calling("y = Neg(x)"))
    assert not report.records[0].modified


@pytest.mark.parametrize("kind", [onnx.AttributeProto.FLOAT, None], ids=["typed", "untyped"])
def test_attributes(kind: int | None) -> None:
    leaky = node("LeakyRelu", "a", "b")
    leaky.attribute.add(name="alpha", ref_attr_name="slope", type=kind)
    before = calling("y = Leaky<slope=0.5>(x)", function("Leaky", leaky, attributes=["slope"]))
    after, _ = inlined(before)
    assert [(one.name, one.f) for one in after.graph.node[0].attribute] == [("alpha", 0.5)]
    assert_same(before, after, FEED)


def test_overloads() -> None:
    first, second = (function("Pick", node(op, "a", "b"), overload=op.lower()) for op in ("Neg", "Abs"))
    before = calling("t = Pick(x)\n y = Pick(t)", first, second, overloads=("abs", "neg"))
    after, _ = inlined(before)
    assert op_list(after) == ["Abs", "Neg"]
    np.testing.assert_array_equal(-np.abs(FEED["x"]), onnx.reference.ReferenceEvaluator(after).run(None, FEED)[0])


def test_calls_inside_a_branch() -> None:
    branches = "then_branch = a () => (float[4] t) { t = Double(x) }, else_branch = c () => (float[4] e) { e = Neg(x) }"
    before = calling(f"s = ReduceSum<keepdims=0>(x)\n c = Cast<to=9>(s)\n y = If(c) <{branches}>", DOUBLE)
    before.graph.node[2].attribute[0].g.node[0].domain = "local"
    after, _ = inlined(before)
    assert after.graph.node[2].attribute[0].g.node[0].op_type == "Add"
    assert_same(before, after, FEED)


def test_later_passes_see_the_new_nodes() -> None:
    before = calling("y = Same(x)", function("Same", node("Identity", "a", "t"), node("Identity", "t", "b")))
    loaded = ir.load(onnx.ModelProto.FromString(before.SerializeToString()))
    PassManager("generic", options=Options(inline_functions=True), strict=True).run(loaded)
    after = ir.to_proto(loaded)
    assert op_list(after) == ["Identity"]
    assert_same(before, after, FEED)
