"""The standard's own tests of Loop, Scan, If, sequences and optional values: equal outputs, also when every loop is written out."""

from __future__ import annotations

import collections
from typing import Any

import pytest
from onnx.backend.test.case.node import collect_testcases

import onnxopt
from loops.test_random_loops import session
from onnxopt import ir
from onnxopt.pipeline import PassManager
from test_standard_corpus import feeds_of, same

NAMES = ("loop", "scan", "if_", "sequence", "optional", "range", "split_to_sequence", "concat_from_sequence")
OPTIONS = {"as it pays": onnxopt.Options(), "written out": onnxopt.Options(unroll_nodes=10_000)}


def outcome(case: Any, options: onnxopt.Options) -> str:
    feeds = feeds_of(case.model, list(case.data_sets[0][0]))
    try:
        truth = session(case.model, library=False).run(None, feeds)
    except Exception:
        return "not runnable by onnxruntime"
    loaded = ir.load(case.model)
    PassManager("cpu", options=options, strict=True).run(loaded)
    optimized = ir.to_proto(loaded)
    results = [session(optimized, library).run(None, feeds) for library in (True, False)]
    return "equal" if all(same(list(truth), list(result)) for result in results) else "differs"


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_node_tests_of_control_flow_give_the_same_outputs(options: str) -> None:
    cases = [one for one in collect_testcases(None) if one.model and any(name in one.name for name in NAMES)]
    outcomes = {one.name: outcome(one, OPTIONS[options]) for one in cases}
    counts = collections.Counter(outcomes.values())
    assert not counts["differs"], [name for name, word in outcomes.items() if word == "differs"]
    assert counts["equal"] >= 25, counts
