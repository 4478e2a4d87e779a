"""What exporters write stays what it computes, and becomes the ops that it should: every file of the corpus, one test each."""

from __future__ import annotations

import functools
import re
from unittest import mock

import numpy as np
import onnx
import pytest

import corpus
import onnxopt
from helpers import emulated_variant, ops
from onnxopt import ir
from onnxopt.fusions import sizes
from onnxopt.ops.base import DOMAIN
from onnxopt.rewrite.driver import walk
from onnxopt.runtime.library import native

pytest.importorskip("onnxopt._native", reason="the native library is not built")


FAST_LINES = 60
"""Longer files, mostly whole layers with the shape arithmetic of an exporter, are for the slow tests."""

session = functools.partial(onnxopt.session, threads=1, optimize=False)

STEMS = [
    pytest.param(stem, marks=[pytest.mark.slow] if corpus.lines(stem) > FAST_LINES else []) for stem in corpus.stems()
]


FAMILIES = {
    re.sub(r"_(torchscript|dynamo)\d.*", "", stem): stem for stem in corpus.stems() if corpus.lines(stem) <= FAST_LINES
}
"""One file of each module, whatever exported it."""


def assert_same(expected: list[corpus.Array], actual: list[corpus.Array], loose: float) -> None:
    for wanted, found in zip(expected, actual, strict=True):
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        if wanted.dtype.kind != "f":
            np.testing.assert_array_equal(found, wanted)
            continue
        scale = np.abs(wanted[np.isfinite(wanted)]).max(initial=1e-6).astype(np.float64)
        np.testing.assert_allclose(found.astype(np.float64), wanted.astype(np.float64), rtol=loose, atol=loose * scale)


@functools.cache
def optimized_for_cpu(stem: str) -> onnx.ModelProto:
    """Optimized as if tables were long: a narrow one of the corpus stands for a wide one."""
    with mock.patch.object(sizes, "UNKNOWN_ROWS", 1 << 20):
        return onnxopt.optimize(corpus.load(stem), strict=True)


@pytest.mark.parametrize("stem", STEMS)
def test_states_its_origin(stem: str) -> None:
    model = corpus.load(stem)
    origin = corpus.origin(model)
    assert origin.get("exporter") and origin.get("module")
    dynamic = {dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim} - {""}
    assert all(set(some) == dynamic for some in corpus.sizes(model))
    assert len(corpus.sizes(model)) == 1 or dynamic


@pytest.mark.parametrize("stem", STEMS)
def test_gives_the_same_outputs(stem: str) -> None:
    """For target cpu with the library and by the bodies alone, and for target generic."""
    before = corpus.load(stem)
    for_cpu, generic = optimized_for_cpu(stem), onnxopt.optimize(before, target="generic", strict=True)
    original = session(before, library=False)
    optimized = [session(for_cpu, library=True), session(for_cpu, library=False), session(generic, library=False)]
    for feeds in corpus.draw_inputs(before):
        wanted = original.run(None, feeds)
        for one in optimized:
            assert_same(wanted, one.run(None, feeds), corpus.tolerance(before))


@pytest.mark.parametrize("stem", STEMS)
def test_becomes_the_expected_ops(stem: str) -> None:
    before = corpus.load(stem)
    found = corpus.tracked_ops(before, optimized_for_cpu(stem))
    wanted = corpus.expected()[stem]
    assert {name: found.get(name, 0) for name in wanted if found.get(name, 0) < wanted[name]} == {}


@pytest.mark.parametrize("stem", FAMILIES.values())
def test_target_cuda_makes_what_its_kernels_take(stem: str) -> None:
    """No op without a kernel for CUDA devices, and no attributes that one refuses."""
    after = onnxopt.optimize(corpus.load(stem), target="cuda", strict=True)
    for node in walk(ir.load(after).graph):
        if node.domain == DOMAIN:
            attributes = {name: attr.value for name, attr in node.attributes.items()}
            assert native().refusal(node.op_type, attributes, emulated_variant(node.op_type)) == ""


@pytest.mark.parametrize("stem", [stem for stem in corpus.stems() if "half" in stem])
def test_float16_gives_the_same_outputs_for_target_cuda(stem: str) -> None:
    before = corpus.load(stem)
    after = onnxopt.optimize(before, target="cuda", strict=True)
    original, optimized = session(before, library=False), [session(after, library=one) for one in (True, False)]
    for feeds in corpus.draw_inputs(before):
        wanted = original.run(None, feeds)
        for one in optimized:
            assert_same(wanted, one.run(None, feeds), corpus.tolerance(before))


@pytest.mark.parametrize(
    "stem",
    [
        *(
            "attention_encoder_layer_dynamo18",
            "attention_bert_eager_torchscript17",
            "attention_gpt2_cache_eager_dynamo18",
        ),
        *("attention_llama_eager_dynamo18", "attention_swin_layer_shifted_eager_dynamo18", "swiglu_llama_dynamo18"),
    ],
)
def test_float16_becomes_what_float32_becomes_for_target_cuda(stem: str) -> None:
    floats, before = corpus.load(stem), corpus.halved(corpus.load(stem))
    after = onnxopt.optimize(before, target="cuda", strict=True)
    counts = [ops(one) for one in (onnxopt.optimize(floats, target="cuda"), after)]
    assert counts[0]["FusedGemm"] == counts[1]["FusedGemm"] > 0
    assert counts[0].get("FusedAttention") == counts[1].get("FusedAttention")
    feeds = next(corpus.draw_inputs(before))
    wanted = session(before, library=False).run(None, feeds)
    for library in (True, False):
        assert_same(wanted, session(after, library=library).run(None, feeds), 1e-2)


def test_table_names_no_other_files() -> None:
    assert set(corpus.expected()) == set(corpus.stems())
