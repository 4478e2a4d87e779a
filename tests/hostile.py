"""Feeds broken models to `onnxopt.optimize`, in a process of its own: a crash or a hang must not take the tests along.

    python tests/hostile.py KIND FIRST_SEED COUNT

prints one JSON line with the outcomes and stops at the first seed whose outcome is neither a model nor an `OnnxOptError`.
"""

from __future__ import annotations

import collections
import contextlib
import json
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx

import onnxopt
from onnxopt.errors import OnnxOptError

MEMORY_LIMIT = 2 << 30
"""Bytes that no file, however hostile, may make the process use."""

SECONDS_LIMIT = 20
"""Seconds after which one small model counts as a hang."""

TEXTS = {
    "perceptron": "g (float[N, 16] x) => (float[N, 64] y) { a = MatMul (x, w) b = Add (a, v) y = Relu (b) }",
    "shapes": """g (float[N, 4, 8] x) => (float[A, B] y) {
        s = Shape (x) i = Constant <value = int64 {0}> () n = Gather <axis = 0> (s, i)
        a = Constant <value = int64[1] {0}> () u = Unsqueeze (n, a) r = Constant <value = int64[1] {-1}> ()
        t = Concat <axis = 0> (u, r) z = Reshape (x, t) p = Cast <to = 1> (z) y = Identity (p) }""",
    "branches": """g (float[2] x) => (float[2] y) {
        c = Constant <value = bool {1}> () k = Abs (x)
        y = If (c) <then_branch = t () => (float[2] p) { p = Neg (k) }, else_branch = e () => (float[2] q) { q = Exp (k) }> }""",
    "loop": """g (float[2] x) => (float[2] y) {
        n = Constant <value = int64 {3}> () c = Constant <value = bool {1}> ()
        y = Loop (n, c, x) <body = b (int64 i, bool d, float[2] s) => (bool o, float[2] r) { o = Identity (d) r = Add (s, s) }> }""",
    "convolution": """g (float[1, 3, 8, 8] x) => (float[1, 4, H, W] y) {
        a = Pad (x, pads) b = Conv <kernel_shape = [3, 3]> (a, kernel) c = BatchNormalization (b, ones, ones, ones, ones) d = Sigmoid (c) y = Mul (c, d) }""",
    "elementwise": """g (float[N, 4] x) => (float[N, 4] y) {
        two = Constant <value = float {2}> () a = Mul (x, two) b = Add (a, x) c = Tanh (b) d = Sub (c, x) y = Exp (d) }""",
    "views": """g (float[2, 3, 4] x) => (float[4, 6] y) {
        a = Transpose <perm = [2, 0, 1]> (x) b = Transpose <perm = [0, 2, 1]> (a) s = Constant <value = int64[2] {4, 6}> ()
        c = Reshape (b, s) i = Constant <value = int64[1] {0}> () e = Constant <value = int64[1] {100}> () y = Slice (c, i, e, i) }""",
    "fill": """g (float[1] x) => (float[K] y) {
        s = Constant <value = int64[2] {4, 5}> () f = ConstantOfShape <value = float[1] {1}> (s) y = Add (f, x) }""",
}

WEIGHTS = {
    "w": np.arange(16 * 64, dtype=np.float32).reshape(16, 64) / 1024,
    "v": np.ones(64, np.float32),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "kernel": np.ones((4, 3, 3, 3), np.float32),
    "ones": np.ones(4, np.float32),
}


def base_models() -> list[bytes]:
    """Small models that between them make most passes work."""
    models = []
    for text in TEXTS.values():
        proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
        used = {name for node in proto.graph.node for name in node.input}
        proto.graph.initializer.extend(
            onnx.numpy_helper.from_array(array, name) for name, array in WEIGHTS.items() if name in used
        )
        onnx.checker.check_model(proto)
        models.append(proto.SerializeToString())
    return models


# --- mutations -------------------------------------------------------------------------------------------------------
def _truncate(data: bytearray, pick: random.Random) -> None:
    del data[pick.randrange(len(data)) :]


def _flip_bits(data: bytearray, pick: random.Random) -> None:
    for _ in range(pick.choice((1, 1, 1, 2, 8))):
        data[pick.randrange(len(data))] ^= 1 << pick.randrange(8)


def _set_bytes(data: bytearray, pick: random.Random) -> None:
    start = pick.randrange(len(data))
    length = min(pick.randrange(1, 9), len(data) - start)
    data[start : start + length] = bytes([pick.choice((0, 1, 0x7F, 0x80, 0xFF))]) * length


def _splice(data: bytearray, pick: random.Random) -> None:
    start, length = pick.randrange(len(data)), pick.randrange(1, 64)
    target = pick.randrange(len(data))
    data[target : target + pick.choice((0, length))] = data[start : start + length]


def _delete(data: bytearray, pick: random.Random) -> None:
    start = pick.randrange(len(data))
    del data[start : start + pick.randrange(1, 32)]


BYTE_MUTATIONS: list[Callable[[bytearray, random.Random], None]] = [
    _truncate,
    _delete,
    _splice,
    _set_bytes,
    *[_flip_bits] * 4,
]

NUMBERS = (-(1 << 63), -(1 << 31), -2, -1, 0, 1, 2, 3, 5, 7, 64, 1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1)
OPS = (
    "Add",
    "Reshape",
    "Concat",
    "Gather",
    "Slice",
    "Transpose",
    "Conv",
    "MatMul",
    "If",
    "Loop",
    "Cast",
    "Expand",
    "Tile",
)
OPS += (
    "ConstantOfShape",
    "Range",
    "Split",
    "Pad",
    "Unsqueeze",
    "Squeeze",
    "Where",
    "Shape",
    "TopK",
    "NoSuchOp",
    "Identity",
)


def _messages(message: object) -> Iterator[tuple[object, object]]:
    """Every message of a protobuf with its set fields."""
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        yield message, field
        for one in value if hasattr(value, "__len__") and not isinstance(value, (str, bytes)) else [value]:
            if hasattr(one, "ListFields"):
                yield from _messages(one)


def _mutate_message(proto: onnx.ModelProto, pick: random.Random) -> None:
    """Change one field of one message to another value of its kind: what parses and is wrong nonetheless."""
    message, field = pick.choice(list(_messages(proto)))
    value = getattr(message, field.name)
    names = [name for node in proto.graph.node for name in [*node.input, *node.output]] + ["", "nowhere"]
    if isinstance(value, str):
        setattr(message, field.name, pick.choice(OPS if field.name == "op_type" else names))
    elif isinstance(value, bytes):
        setattr(message, field.name, value[: pick.randrange(len(value) + 1)] + bytes(pick.randrange(9)))
    elif isinstance(value, int):
        _set_number(message, field.name, pick)
    elif isinstance(value, float):
        setattr(message, field.name, pick.choice((float("nan"), float("inf"), 0.0, -1.0)))
    elif hasattr(value, "ListFields"):
        message.ClearField(field.name)
    else:
        _mutate_list(value, names, pick)


def _set_number(message: object, name: str, pick: random.Random) -> None:
    for number in (pick.choice(NUMBERS), pick.randrange(16), 1):
        with contextlib.suppress(ValueError):  # not every number is a value of every field
            setattr(message, name, number)
            return


def _mutate_list(items: object, names: list[str], pick: random.Random) -> None:
    index = pick.randrange(len(items))  # type: ignore[arg-type]
    one = items[index]  # type: ignore[index]
    action = pick.randrange(3)
    if action == 0:
        del items[index]  # type: ignore[attr-defined]
    elif action == 1:
        items.append(one)  # type: ignore[attr-defined]
    elif isinstance(one, str):
        items[index] = pick.choice(names)  # type: ignore[index]
    elif isinstance(one, int):
        with contextlib.suppress(ValueError):  # fields of 32 bits
            items[index] = pick.choice(NUMBERS)  # type: ignore[index]
    elif hasattr(one, "ListFields"):
        items.extend([type(one).FromString(one.SerializeToString())] * 2)  # type: ignore[attr-defined]


def mutated(kind: str, seed: int, models: list[bytes]) -> bytes:
    """The broken model of a seed: of its bytes, or of its messages."""
    pick = random.Random(seed)
    data = pick.choice(models)
    for _ in range(pick.choice((1, 1, 1, 2, 4))):
        if kind == "bytes":
            changed = bytearray(data)
            pick.choice(BYTE_MUTATIONS)(changed, pick)
            data = bytes(changed) or data
        else:
            proto = onnx.ModelProto.FromString(data)
            _mutate_message(proto, pick)
            data = proto.SerializeToString()
    return data


# --- the process -----------------------------------------------------------------------------------------------------
def _on_alarm(*_: object) -> None:
    raise TimeoutError(f"no result after {SECONDS_LIMIT} seconds")


def outcome(data: bytes) -> str:
    """What `optimize` makes of the bytes: "model", or the name of its error."""
    signal.alarm(SECONDS_LIMIT)
    try:
        onnxopt.optimize(data)
        return "model"
    except OnnxOptError as error:
        assert str(error).strip(), "an error without a sentence"
        return type(error).__name__
    finally:
        signal.alarm(0)


def peak_bytes() -> int:
    """The most memory that this program had: what getrusage says begins with that of the process which started it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main(kind: str, first: int, count: int) -> None:
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _on_alarm)
    models = base_models()
    for data in models:
        assert outcome(data) == "model"
    outcomes: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    for seed in range(first, first + count):
        print(seed, file=sys.stderr, flush=True)
        start = time.perf_counter()
        try:
            outcomes[outcome(mutated(kind, seed, models))] += 1
        except BaseException:
            traceback.print_exc()
            sys.exit(f"seed {seed} of kind {kind} is not survived")
        slowest = max(slowest, time.perf_counter() - start)
    print(json.dumps({"outcomes": outcomes, "slowest_seconds": slowest, "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
