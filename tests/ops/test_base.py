"""What Python says of custom ops against what the library says of them."""

from __future__ import annotations

import importlib
import pkgutil

import numpy as np
import pytest

import onnxopt.ops
from helpers import evaluate, model
from onnxopt import ir
from onnxopt.ops.base import DOMAIN, BodyBuilder, OpSpec, overload_of, prepare_model

native = pytest.importorskip("onnxopt._native", reason="the native library is not built")

MODULES = [importlib.import_module(f"onnxopt.ops.{one.name}") for one in pkgutil.iter_modules(onnxopt.ops.__path__)]
SPECS: dict[str, OpSpec] = {module.SPEC.name: module.SPEC for module in MODULES if hasattr(module, "SPEC")}
REGISTERED = {op["op"]: op for op in native.ops()}


def test_library_has_the_ops_that_python_emits() -> None:
    assert set(SPECS) == set(REGISTERED)


@pytest.mark.parametrize("name", SPECS)
def test_domain_and_attributes_are_those_of_the_library(name: str) -> None:
    assert SPECS[name].domain == REGISTERED[name]["domain"]
    assert set(SPECS[name].attributes) == set(REGISTERED[name]["attributes"])


@pytest.mark.parametrize("name", SPECS)
def test_every_op_has_a_portable_variant_and_tolerances_for_its_types(name: str) -> None:
    *_, portable = [one for one in REGISTERED[name]["variants"] if one["device"] == "cpu"]
    assert portable["isa"] == "scalar" and portable["usable"]
    assert set(SPECS[name].tolerance) <= set(SPECS[name].dtypes)


@pytest.mark.parametrize("opset", [7, 13, 21])
def test_body_is_built_and_copied_with_its_constants(opset: int) -> None:
    inner = BodyBuilder(1, opset)
    inner_result = inner.op("Mul", [inner.inputs[0], inner.constant(np.array([2, 3], np.float32))])
    function = inner.function(SPECS["FusedElementwise"], "inner", [inner_result])
    outer = BodyBuilder(2, opset)
    known = {function.inputs[0]: outer.op("Add", outer.inputs)}
    outer.copy(function, known)
    body = outer.function(SPECS["FusedElementwise"], "outer", [known[function.outputs[0]]])

    proto = model("g (float[N,2] x, float[2] z) => (float[N,2] y) { y = Add(x, z) }", opset=opset, ir_version=10)
    loaded = ir.load(proto)
    prepare_model(loaded)
    loaded.functions[body.identifier()] = body
    (node,) = loaded.graph
    node.domain, node.op_type, node.overload = DOMAIN, "FusedElementwise", "outer"
    feeds = {"x": np.ones((3, 2), np.float32), "z": np.array([1, 2], np.float32)}
    (y,) = evaluate(ir.to_proto(loaded), feeds)
    np.testing.assert_array_equal(y, np.tile(np.array([4, 9], np.float32), (3, 1)))


def test_overloads_are_short_stable_and_tell_texts_apart() -> None:
    assert overload_of("a") == overload_of("a") != overload_of("b")
    assert len(overload_of("x" * 100_000)) == 16


@pytest.mark.parametrize(("before", "after"), [(3, 10), (8, 10), (10, 10), (11, 11)])
def test_models_get_the_ir_version_that_has_overloads(before: int, after: int) -> None:
    loaded = ir.load(model("g (float[2] x) => (float[2] y) { y = Neg(x) }", ir_version=before))
    prepare_model(loaded)
    assert loaded.ir_version == after
    assert loaded.graph.opset_imports[DOMAIN] == 1
