"""Inputs of bodies that hide values of the graphs around them."""

from __future__ import annotations

import numpy as np
import pytest

import onnxopt
from helpers import assert_same, model
from onnxopt import ir
from onnxopt.pipeline import PassManager

FEEDS = {"x": np.array([1, -2, 0.5, 3], np.float32), "h": np.array([0.25, 4, -1, 2], np.float32)}
BODIES = {
    "a captured name": "float[4] h) => (bool again, float[4] r) { again = Identity(k) q = Neg(h) r = Add(q, x) }",
    "the name of its own start": "float[4] x) => (bool again, float[4] r) { again = Identity(k) q = CumSum(x, zero) r = Add(q, h) }",
}
OPTIONS = {"as it pays": {}, "written out": {"unroll_nodes": 1000}, "by twos": {"unroll_factor": 2}}


@pytest.mark.parametrize("trips", [0, 1, 3, 7])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("body", BODIES)
def test_hidden_values_stay_apart(body: str, options: str, trips: int) -> None:
    weights = {"n": np.array(trips), "c": np.array(True)} | ({"zero": np.array(0)} if "zero" in BODIES[body] else {})
    text = f"g (float[4] x, float[4] h) => (float[4] y) {{ y = Loop (n, c, x) <body = b (int64 i, bool k, {BODIES[body]}> }}"
    before = model(text, **weights)
    loaded = ir.load(before)
    PassManager("cpu", options=onnxopt.Options(**OPTIONS[options]), strict=True).run(loaded)
    for library in (True, False):
        assert_same(before, ir.to_proto(loaded), FEEDS, library=library)
