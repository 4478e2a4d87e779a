"""Every fused op in sessions: shapes that alternate, many threads, models side by side, any sizes, numbers that are not finite, float16.

The model of an op is the shortest file of the corpus with named dims that becomes the op.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

import corpus
import onnxopt
from onnxopt.errors import ModelError

pytest.importorskip("onnxopt._native", reason="the native library is not built")

Feeds = Mapping[str, corpus.Array]
OPS = sorted({op for ops in corpus.expected().values() for op in ops if op.startswith("Fused")})
SIZES = (0, 1, 2, 3, 5, 8, 17)
NOT_FINITE = (np.nan, np.inf, -np.inf)


def stem_of(op: str) -> str:
    """The shortest file with named dims that becomes the op; none with the standard's Attention, which adds -inf to the scores of hidden
    keys, so that NaNs among these pass: FusedAttention does not look at them."""
    stems = sorted((stem for stem, ops in corpus.expected().items() if op in ops), key=corpus.lines)
    models = ((stem, corpus.load(stem)) for stem in stems)
    return next(
        stem
        for stem, model in models
        if len(corpus.sizes(model)) > 1 and all(node.op_type != "Attention" for node in model.graph.node)
    )


MODELS = {op: stem_of(op) for op in OPS}
every_op = pytest.mark.parametrize("op", OPS)


@functools.cache
def original(op: str) -> onnxruntime.InferenceSession:
    return onnxopt.session(corpus.load(MODELS[op]), library=False, optimize=False, threads=1)


@functools.cache
def optimized(op: str, threads: int = 1) -> onnxruntime.InferenceSession:
    proto = onnxopt.optimize(corpus.load(MODELS[op]), strict=True)
    assert op in {node.op_type for node in proto.graph.node}
    return onnxopt.session(proto, threads=threads)


@functools.cache
def feeds_of(op: str) -> tuple[Feeds, ...]:
    return tuple(corpus.draw_inputs(corpus.load(MODELS[op])))


def run(session: onnxruntime.InferenceSession, feeds: Feeds) -> list[corpus.Array]:
    return session.run(None, dict(feeds))


def bits(outputs: list[corpus.Array]) -> list[bytes]:
    return [output.tobytes() for output in outputs]


def assert_close(expected: list[corpus.Array], actual: list[corpus.Array], tolerance: float) -> None:
    for wanted, found in zip(expected, actual, strict=True):
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        finite = np.abs(wanted[np.isfinite(wanted)].astype(np.float64))
        np.testing.assert_allclose(
            found.astype(np.float64), wanted, rtol=tolerance, atol=tolerance * finite.max(initial=1e-6)
        )


@every_op
def test_shapes_that_alternate(op: str) -> None:
    """What a kernel keeps of one shape must not reach into the next."""
    first, second = feeds_of(op)
    seen = []
    for feeds in (first, second, first, second):
        found = run(optimized(op), feeds)
        assert_close(run(original(op), feeds), found, 1e-4)
        seen.append(bits(found))
    assert seen[:2] == seen[2:]


@every_op
def test_eight_threads_of_one_session(op: str) -> None:
    """Half of the threads run one shape, half the other; everyone gets the bits of a run alone."""
    feeds = feeds_of(op)
    alone = [bits(run(optimized(op, 2), one)) for one in feeds]
    start = Barrier(8)

    def work(index: int) -> bool:
        start.wait()
        which = index % 2
        return all(bits(run(optimized(op, 2), feeds[which])) == alone[which] for _ in range(8))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_models_side_by_side() -> None:
    """A session of each op, all in one process and at once."""
    alone = {op: bits(run(optimized(op), feeds_of(op)[0])) for op in OPS}
    start = Barrier(len(OPS))

    def work(op: str) -> bool:
        start.wait()
        return all(bits(run(optimized(op), feeds_of(op)[0])) == alone[op] for _ in range(8))

    with ThreadPoolExecutor(len(OPS)) as pool:
        assert dict(zip(OPS, pool.map(work, OPS), strict=True)) == dict.fromkeys(OPS, True)


@every_op
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_sizes(op: str, data: st.DataObject) -> None:
    model = corpus.load(MODELS[op])
    sizes = {name: data.draw(st.sampled_from(SIZES), label=name) for name in corpus.sizes(model)[0]}
    feeds = next(corpus.draw_inputs(resized(model, sizes)))
    try:
        expected = run(original(op), feeds)
    except Exception as reason:  # onnxruntime raises types of its own for sizes that the model does not accept
        assert onnxruntime.__name__ in type(reason).__module__
        return
    assert_close(expected, run(optimized(op), feeds), 1e-4)


@every_op
@pytest.mark.parametrize("number", NOT_FINITE, ids=str)
def test_numbers_that_are_not_finite(op: str, number: float) -> None:
    """One element of each operand: what it reaches in the original, it reaches here, and nothing else."""
    for feeds in feeds_of(op):
        spoilt = {name: array.copy() for name, array in feeds.items()}
        for array in spoilt.values():
            if array.dtype.kind == "f":
                array.reshape(-1)[array.size // 2] = number
        assert_close(run(original(op), spoilt), run(optimized(op), spoilt), 1e-4)


@every_op
def test_half_precision(op: str) -> None:
    """The same model of float16 operands and weights."""
    half = to_half(corpus.load(MODELS[op]))
    try:
        before = onnxopt.session(half, library=False, optimize=False, threads=1)
    except ModelError:
        pytest.skip("onnxruntime does not run the original in float16")
    after = onnxopt.session(onnxopt.optimize(half, strict=True), threads=1)
    for feeds in corpus.draw_inputs(half):
        assert_close(run(before, feeds), run(after, feeds), 2e-2)


def resized(model: onnx.ModelProto, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """The model with these sizes in the metadata that inputs are drawn by."""
    for entry in model.metadata_props:
        if entry.key == "sizes":
            entry.value = " ".join(f"{name}={size}" for name, size in sizes.items())
    return model


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every float32 tensor turned into float16, but for sizes, which are float32 for every type of data."""
    kept = {name for node in model.graph.node if node.op_type == "Resize" for name in node.input[1:]}
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        tensor = value.type.tensor_type
        tensor.elem_type = half_of(tensor.elem_type)
    for weight in model.graph.initializer:
        if weight.name not in kept:
            weight.CopyFrom(half_tensor(weight))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "value" and node.output[0] not in kept:
                attribute.t.CopyFrom(half_tensor(attribute.t))
            elif attribute.name in ("to", "dtype"):
                attribute.i = half_of(attribute.i)
    return model


def half_of(kind: int) -> int:
    return TensorProto.FLOAT16 if kind == TensorProto.FLOAT else kind


def half_tensor(tensor: onnx.TensorProto) -> onnx.TensorProto:
    if tensor.data_type != TensorProto.FLOAT:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
