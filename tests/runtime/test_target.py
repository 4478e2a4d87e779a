"""Targets: their names, what they allow, and what is said of others."""

from __future__ import annotations

import dataclasses

import pytest

import helpers
import onnxopt
from onnxopt import ir
from onnxopt.errors import OptionError
from onnxopt.pipeline import PHASES, PassManager
from onnxopt.runtime.target import TARGETS, Target


@pytest.mark.parametrize("name", TARGETS)
def test_targets_are_found_by_name(name: str) -> None:
    assert Target.named(name).name == name


@pytest.mark.parametrize("name", ["tpu", "CPU", "", "gpu"])
def test_unknown_targets_are_refused_and_the_known_ones_named(name: str) -> None:
    with pytest.raises(OptionError, match=rf"no target '{name}'\. The targets are: cpu, cuda, generic\."):
        Target.named(name)
    with pytest.raises(OptionError, match="The targets are"):
        onnxopt.optimize(helpers.model("g (float[2] x) => (float[2] y) { y = Abs (x) }"), target=name)


def test_targets_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TARGETS["cpu"].custom_ops = False  # type: ignore[misc]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("phase", PHASES)
def test_only_custom_ops_depend_on_the_target(name: str, phase: str) -> None:
    target = Target.named(name)
    assert target.runs_phase(phase) == (target.custom_ops or phase not in ("quantize", "fuse"))


def test_generic_target_runs_no_pass_that_emits_custom_ops() -> None:
    graph = helpers.model("g (float[2] x) => (float[2] y) { y = Abs (x) }")
    generic, cpu = (
        {record.name for record in PassManager(name).run(ir.load(graph)).records} for name in ("generic", "cpu")
    )
    assert cpu - generic == {*PHASES["quantize"], *PHASES["fuse"]} - generic
    assert {"fuse_gemms", "fuse_elementwise", "convolutions_channels_last"} & generic == set()


@pytest.mark.parametrize(("name", "domains"), [("generic", {""}), ("cpu", {"ai.onnxopt"})])
def test_generic_target_emits_standard_ops_only(name: str, domains: set[str]) -> None:
    text = "g (float[N, 64] x) => (float[N, 64] y) { a = Tanh (x) b = Mul (a, x) c = Add (b, a) y = Exp (c) }"
    optimized = onnxopt.optimize(helpers.model(text), target=name)
    assert {node.domain for node in optimized.graph.node} == domains
    assert {one.domain for one in optimized.opset_import} == {""} | domains
