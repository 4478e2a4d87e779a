"""The wire format: large tensors become ranges, everything else stays byte for byte."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import helpers
from onnxopt.errors import ModelError
from onnxopt.ir import wire

LARGE = np.arange(wire.LARGE_BYTES // 4, dtype=np.float32)
SMALL = LARGE[:-1]


def _ranges(skeleton: bytes) -> dict[str, tuple[int, int]]:
    """Offset and length of every tensor that the skeleton refers to, by name."""
    found = {}
    for tensor in _tensors(onnx.ModelProto.FromString(skeleton)):
        entries = {one.key: one.value for one in tensor.external_data}
        if entries.get("location") == wire.INSIDE:
            assert tensor.data_location == onnx.TensorProto.EXTERNAL
            assert not tensor.HasField("raw_data")
            found[tensor.name] = int(entries["offset"]), int(entries["length"])
    return found


def _tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    found = list(model.graph.initializer)
    for node in nodes:
        for attribute in node.attribute:
            found += [attribute.t, *attribute.tensors, *attribute.g.initializer]
            nodes += attribute.g.node
    return found


def _tensor(name: str) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(LARGE, name)


def _model_with_tensors_everywhere() -> onnx.ModelProto:
    model = helpers.model("g (float[1] x, bool c) => (float[N] y) { y = Add (x, initializer) }")
    model.graph.initializer.append(_tensor("initializer"))
    constant = model.graph.node.add(op_type="Constant", output=["k"])
    constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(_tensor("attribute"))
    several = model.graph.node.add(op_type="Custom", domain="d", output=["l"])
    several.attribute.add(name="values", type=onnx.AttributeProto.TENSORS).tensors.append(_tensor("one of several"))
    branch = model.graph.node.add(op_type="If", input=["c"], output=["m"])
    body = branch.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g
    body.initializer.append(_tensor("in a subgraph"))
    function = model.functions.add(name="F", domain="f", output=["o"])
    inner = function.node.add(op_type="Constant", output=["o"])
    inner.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(_tensor("in a function"))
    return model


def test_finds_large_tensors_wherever_they_are() -> None:
    data = _model_with_tensors_everywhere().SerializeToString()
    ranges = _ranges(wire.split(data))
    assert set(ranges) == {"initializer", "attribute", "one of several", "in a subgraph", "in a function"}
    for offset, length in ranges.values():
        assert data[offset : offset + length] == LARGE.tobytes()


def test_putting_the_bytes_back_gives_the_model() -> None:
    model = _model_with_tensors_everywhere()
    data = model.SerializeToString()
    skeleton = onnx.ModelProto.FromString(wire.split(data))
    for tensor in _tensors(skeleton):
        entries = {one.key: one.value for one in tensor.external_data}
        if entries:
            start = int(entries["offset"])
            tensor.raw_data = data[start : start + int(entries["length"])]
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    assert skeleton == model


def test_small_models_stay_byte_for_byte() -> None:
    data = helpers.model("g (float[1] x) => (float[N] y) { y = Add (x, w) }", w=SMALL).SerializeToString()
    assert wire.split(data) == data


def _with_initializer(tensor: onnx.TensorProto | bytes) -> bytes:
    """A model with one initializer, whose bytes may be any."""
    model = helpers.model("g (float[1] x) => (float[N] y) { y = Add (x, w) }")
    model.ClearField("graph")
    payload = tensor if isinstance(tensor, bytes) else tensor.SerializeToString()
    graph = wire.field(5, len(payload)) + payload
    return model.SerializeToString() + wire.field(7, len(graph)) + graph


@pytest.mark.parametrize(("data_type", "kind"), [(onnx.TensorProto.FLOAT, "<f4"), (onnx.TensorProto.DOUBLE, "<f8")])
def test_elements_that_lie_as_bytes_do_are_found(data_type: int, kind: str) -> None:
    data = _with_initializer(onnx.helper.make_tensor("w", data_type, LARGE.shape, LARGE.tolist()))
    ((offset, length),) = _ranges(wire.split(data)).values()
    assert np.array_equal(np.frombuffer(data[offset : offset + length], kind), LARGE)


_ONE_BY_ONE = b"".join(wire.varint(4 << 3 | 5) + one.tobytes() for one in LARGE)
_TYPED = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, LARGE.shape, LARGE.tolist()).SerializeToString()


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(onnx.helper.make_tensor("w", onnx.TensorProto.INT64, LARGE.shape, LARGE.tolist()), id="numbers"),
        pytest.param(onnx.helper.make_tensor("w", onnx.TensorProto.COMPLEX64, LARGE.shape, LARGE.tolist()), id="pairs"),
        pytest.param(
            onnx.TensorProto(data_type=1, dims=LARGE.shape).SerializeToString() + _ONE_BY_ONE, id="one by one"
        ),
        pytest.param(_TYPED + _TYPED, id="two pieces"),
        pytest.param(_TYPED + _tensor("w").SerializeToString(), id="two kinds"),
    ],
)
def test_elements_that_do_not_stay(tensor: onnx.TensorProto | bytes) -> None:
    data = _with_initializer(tensor)
    assert wire.split(data) == data


def test_unknown_fields_stay() -> None:
    data = helpers.model("g (float[1] x) => (float[N] y) { y = Add (x, w) }", w=LARGE).SerializeToString()
    unknown = wire.field(999, 3) + b"abc" + wire.varint(998 << 3) + b"\x07"
    assert wire.split(data + unknown).endswith(unknown)


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 1 << 21, (1 << 35) + 5, (1 << 64) - 1])
def test_varint_reads_back(number: int) -> None:
    encoded = wire.varint(number)
    assert wire._read_varint(encoded, 0, len(encoded)) == (number, len(encoded))


@pytest.mark.parametrize("cut", [1, 5, 17, 1000, 4097])
def test_truncated_files_are_refused(cut: int) -> None:
    data = helpers.model("g (float[1] x) => (float[N] y) { y = Add (x, w) }", w=LARGE).SerializeToString()
    with pytest.raises(ModelError, match=r"truncated|does not end"):
        wire.split(data[:-cut])


@pytest.mark.parametrize("data", [b"\xff" * 20, b"\x3a" + b"\xff" * 9 + b"\x01", b"\x3b", b"\x80"])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ModelError):
        wire.split(data)


def test_deep_nesting_is_refused() -> None:
    payload = b"\0" * wire.LARGE_BYTES
    for _ in range(wire.MAX_DEPTH):
        payload = wire.field(6, len(payload)) + payload  # AttributeProto.g
        payload = wire.field(5, len(payload)) + payload  # NodeProto.attribute
        payload = wire.field(1, len(payload)) + payload  # GraphProto.node
    with pytest.raises(ModelError, match="deep"):
        wire.split(wire.field(7, len(payload)) + payload)
