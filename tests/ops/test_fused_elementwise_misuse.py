"""FusedElementwise on nodes that nobody should write: an error with a sentence that says what and where, never a crash."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import onnxopt
from helpers import node_model

pytest.importorskip("onnxopt._native", reason="the native library is not built")
from onnxopt import _native as native

Array = np.ndarray[Any, Any]
ADD_ONE = "i0:f32 | t0=add(i0,#0x1p+0:f32) | t0:f32"
ADD = "i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32"
TWO_RESULTS = "i0:f32 | t0=add(i0,#0x1p+0:f32) t1=neg(t0) | t0:f32 t1:f32"


def ones(*shape: int) -> Array:
    return np.ones(shape, np.float32)


def run(attributes: dict[str, Any], feeds: Sequence[Array], **node: Any) -> list[Array]:
    session = onnxopt.session(node_model("FusedElementwise", attributes, feeds, **node))
    return session.run(None, {f"x{index}": feed for index, feed in enumerate(feeds)})


def refused(sentence: str, attributes: dict[str, Any], feeds: Sequence[Array], **node: Any) -> None:
    """The node is refused with the sentence, which names the op."""
    with pytest.raises(Exception, match=re.escape(f"onnxopt FusedElementwise: {sentence}")):
        run(attributes, feeds, **node)


# --- the expression ---
MALFORMED = {
    "empty": ("", "a section ends without '|'."),
    "spaces": ("   ", "a section ends without '|'."),
    "one section": ("i0:f32", "a section ends without '|'."),
    "two sections": ("i0:f32 | t0=neg(i0)", "a section ends without '|'."),
    "four sections": ("i0:f32 | t0=neg(i0) | t0:f32 | t0:f32", "something follows the outputs: '| t0:f32'."),
    "no statement": ("i0:f32 | | t0:f32", "it has no statement."),
    "no output": ("i0:f32 | t0=neg(i0) | ", "it has no output."),
    "input of no type": ("i0 | t0=neg(i0) | t0:f32", "input 'i0' should be i0 with a type."),
    "input of an unknown type": ("i0:f64 | t0=neg(i0) | t0:f64", "input 'i0:f64' should be i0 with a type."),
    "inputs out of order": ("i1:f32 | t0=neg(i1) | t0:f32", "input 'i1:f32' should be i0 with a type."),
    "statements out of order": ("i0:f32 | t1=neg(i0) | t1:f32", "statement 't1=neg(i0)' should read t0=op(operands)."),
    "statement without parentheses": ("i0:f32 | t0=neg | t0:f32", "statement 't0=neg' should read t0=op(operands)."),
    "unknown operation": ("i0:f32 | t0=nega(i0) | t0:f32", "there is no operation 'nega'."),
    "operation that is no ASCII": ("i0:f32 | t0=nég(i0) | t0:f32", "there is no operation 'n??g'."),
    "too few operands": ("i0:f32 | t0=add(i0) | t0:f32", "'t0=add(i0)' has 1 operands and should have 2."),
    "too many operands": ("i0:f32 | t0=neg(i0,i0) | t0:f32", "'t0=neg(i0,i0)' has 2 operands and should have 1."),
    "no operands": ("i0:f32 | t0=neg() | t0:f32", "'t0=neg()' has 0 operands and should have 1."),
    "input that is not there": ("i0:f32 | t0=neg(i5) | t0:f32", "operand 'i5' is neither an input, nor an earlier statement"),
    "statement that is not there": ("i0:f32 | t0=neg(t5) | t0:f32", "operand 't5' is neither an input, nor an earlier"),
    "statement that reads itself": ("i0:f32 | t0=neg(t0) | t0:f32", "operand 't0' is neither an input, nor an earlier"),
    "index beyond all numbers": ("i0:f32 | t0=neg(i99999999999999999999) | t0:f32", "operand 'i99999999999999999999' is"),
    "negative index": ("i0:f32 | t0=neg(i-1) | t0:f32", "operand 'i-1' is neither"),
    "operands of different types": ("i0:f32 | t0=add(i0,#1:i32) | t0:f32", "the operands of 't0=add(i0,#1:i32)' have"),
    "type that the operation has not": ("i0:bool | t0=exp(i0) | t0:bool", "'t0=exp(i0)' is not defined for bool."),
    "condition that is no bool": ("i0:f32 | t0=where(i0,i0,i0) | t0:f32", "the condition of 't0=where(i0,i0,i0)' should be"),
    "literal without a number": ("i0:f32 | t0=add(i0,#:f32) | t0:f32", "literal '#:f32' should read #value:type."),
    "literal without a type": ("i0:f32 | t0=add(i0,#1) | t0:f32", "literal '#1' should read #value:type."),
    "literal that is no number": ("i0:f32 | t0=add(i0,#one:f32) | t0:f32", "literal '#one:f32' is not a number of its type."),
    "literal beyond int32": ("i0:i32 | t0=add(i0,#2147483648:i32) | t0:i32", "literal '#2147483648:i32' is not a number"),
    "literal beyond int64": ("i0:i64 | t0=add(i0,#9223372036854775808:i64) | t0:i64", "literal '#9223372036854775808:i64' is not a number"),
    "bool that is none": ("i0:bool | t0=and(i0,#yes:bool) | t0:bool", "literal '#yes:bool' should be true or false."),
    "parameter that is no float": ("i0:f32 | t0=elu(i0,#1:i32) | t0:f32", "parameter '#1:i32' should be a float."),
    "output that is an input": ("i0:f32 | t0=neg(i0) | i0:f32", "output 'i0:f32' should be a statement with its type."),
    "output of another type": ("i0:f32 | t0=neg(i0) | t0:i32", "output 't0:i32' should be a statement with its type."),
    "output that is not there": ("i0:f32 | t0=neg(i0) | t1:f32", "output 't1:f32' should be a statement with its type."),
    "too many inputs": (" ".join(f"i{k}:f32" for k in range(33)) + " | t0=neg(i0) | t0:f32", "it has more than 32 inputs."),
    "too many statements": (
        "i0:f32 | " + " ".join(f"t{k}=neg(i0)" for k in range(257)) + " | t0:f32",
        "it has more than 256 statements.",
    ),
    "too many outputs": ("i0:f32 | t0=neg(i0) | " + "t0:f32 " * 17, "it has more than 16 outputs."),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_expressions(case: str) -> None:
    text, sentence = MALFORMED[case]
    refused(f"The expression is malformed: {sentence}", {"expr": text}, [ones(3)])


@pytest.mark.parametrize(
    "text", [b"i0:f32 | t0=ne\0g(i0) | t0:f32", bytes(range(1, 256)), b"\xff" * 50, b"i0:f32|" * 10_000]
)
def test_expressions_of_any_bytes(text: bytes) -> None:
    refused("The expression is malformed: ", {"expr": text}, [ones(3)])


def test_long_texts_are_quoted_in_part() -> None:
    with pytest.raises(Exception, match="is malformed") as caught:
        run({"expr": f"i0:f32 | t0={'x' * 100_000}(i0) | t0:f32"}, [ones(3)])
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("attributes", [{}, {"expr": 3}, {"expr": 1.5}, {"expr": ["a", "b"]}, {"expression": ADD_ONE}])
def test_no_expression(attributes: dict[str, Any]) -> None:
    refused("The node has no attribute 'expr'.", attributes, [ones(3)])


# --- inputs and outputs ---
@pytest.mark.parametrize("dtype", [np.float64, np.int8, np.uint64, np.int32, np.bool_])
def test_wrong_types_are_named(dtype: Any) -> None:
    name = helper.tensor_dtype_to_string(helper.np_dtype_to_tensor_dtype(np.dtype(dtype))).split(".")[1].lower()
    refused(f"Input 0 is of type {name} and should be f32.", {"expr": ADD_ONE}, [np.ones(3, dtype)])


def test_strings_are_refused() -> None:
    refused("Input 0 is of type string and should be f32.", {"expr": ADD_ONE}, [np.array(["a"], object)])


def test_the_input_to_blame_is_told() -> None:
    refused("Input 1 is of type int64 and should be f32.", {"expr": ADD}, [ones(3), np.ones(3, np.int64)])


def test_the_node_to_blame_is_told() -> None:
    with pytest.raises(Exception, match="Name:'culprit'"):
        run({"expr": ADD_ONE}, [np.ones(3)])


@pytest.mark.parametrize(("expr", "count", "expected"), [(ADD_ONE, 2, 1), (ADD, 1, 2), (ADD, 40, 2)])
def test_wrong_number_of_inputs(expr: str, count: int, expected: int) -> None:
    refused(f"It got {count} inputs and its expression has {expected}.", {"expr": expr}, [ones(3)] * count)


@pytest.mark.parametrize(("expr", "count", "expected"), [(ADD_ONE, 2, 1), (TWO_RESULTS, 1, 2), (TWO_RESULTS, 3, 2)])
def test_wrong_number_of_outputs(expr: str, count: int, expected: int) -> None:
    names = [f"y{index}" for index in range(count)]
    refused(f"The node has {count} outputs and its kernel makes {expected}.", {"expr": expr}, [ones(3)], outputs=names)


def test_output_that_is_left_out() -> None:
    refused("Output 0 of shape [3] cannot be made: ", {"expr": TWO_RESULTS}, [ones(3)], outputs=["", "y1"])


def test_input_that_is_left_out() -> None:
    with pytest.raises(onnxopt.ModelError, match="FusedElementwise"):
        run({"expr": ADD}, [ones(3)], inputs=["x0", ""])


def test_output_declared_with_another_type() -> None:
    with pytest.raises(onnxopt.ModelError, match=r"node \(culprit\) does not match expected type"):
        run({"expr": ADD_ONE}, [ones(3)], made=TensorProto.INT64)


# --- shapes ---
UNFIT = {
    "vectors": (
        (3,),
        (4,),
        "Input 1 of shape [4] cannot be broadcast with the inputs before it, of shape [3] together.",
    ),
    "empty": ((0,), (4,), "Input 1 of shape [4] cannot be broadcast with the inputs before it, of shape [0] together."),
    "leading dims": ((2, 5), (3, 1, 5, 5), "Input 1 of shape [3,1,5,5] cannot be broadcast with"),
}


@pytest.mark.parametrize("known", [True, False], ids=["declared", "not declared"])
@pytest.mark.parametrize("case", UNFIT)
def test_shapes_that_do_not_broadcast(case: str, known: bool) -> None:
    first, second, sentence = UNFIT[case]
    refused(sentence, {"expr": ADD}, [ones(*first), ones(*second)], shapes_known=known)


def test_result_that_no_memory_holds() -> None:
    refused("Output 0 of shape [1048576,1048576] cannot be made: ", {"expr": ADD}, [ones(1 << 20, 1), ones(1, 1 << 20)])


@pytest.mark.parametrize("last", [1 << 17, 0], ids=["full", "empty"])
def test_number_of_elements_beyond_64_bits(last: int) -> None:
    sizes = [1 << 17] * 4 + [last]
    feeds = [ones(*(size if axis == own else 1 for axis in range(5))) for own, size in enumerate(sizes)]
    expr = "i0:f32 i1:f32 i2:f32 i3:f32 i4:f32 | t0=add(i0,i1) t1=add(i2,i3) t2=add(t0,t1) t3=add(t2,i4) | t3:f32"
    refused("Output 0 of shape [131072,131072,131072,131072,", {"expr": expr}, feeds)


def test_more_broadcast_dims_than_the_kernel_walks() -> None:
    sentence = "The operands are broadcast along more than 16 separate dims."
    refused(sentence, {"expr": ADD}, [ones(*([1, 2] * 10)), ones(*([2, 1] * 10))])


@pytest.mark.parametrize("shapes", [[(0,), (1,)], [(0, 1), (1, 4)], [(2, 0, 3), (3,)], [(0,), ()], [(0, 0), (0, 0)]])
def test_empty_tensors(shapes: list[tuple[int, ...]]) -> None:
    (y,) = run({"expr": ADD}, [ones(*shape) for shape in shapes])
    assert y.shape == np.broadcast_shapes(*shapes)


@pytest.mark.parametrize("rank", [0, 1, 8, 40])
def test_ranks(rank: int) -> None:
    (y,) = run({"expr": ADD_ONE}, [ones(*[1] * rank)])
    np.testing.assert_array_equal(y, np.full([1] * rank, 2, np.float32))


def test_inputs_that_the_expression_does_not_read() -> None:
    (y,) = run({"expr": "i0:f32 i1:f32 | t0=neg(i0) | t0:f32"}, [ones(3), ones(4)])
    np.testing.assert_array_equal(y, -ones(3))


def test_expression_that_reads_no_input() -> None:
    (y,) = run({"expr": "i0:f32 | t0=neg(#0x1p+0:f32) | t0:f32"}, [ones(3)])
    np.testing.assert_array_equal(y, np.float32(-1))


def test_integer_division_by_zero_and_overflow_do_not_trap() -> None:
    low = np.iinfo(np.int32).min
    feeds = [np.array([5, low], np.int32), np.array([0, -1], np.int32)]
    assert run({"expr": "i0:i32 i1:i32 | t0=div(i0,i1) | t0:i32"}, feeds, made=TensorProto.INT32)[0].shape == (2,)


def test_session_goes_on_after_an_error() -> None:
    session = onnxopt.session(node_model("FusedElementwise", {"expr": ADD}, [ones(3), ones(3)]))
    for _ in range(3):
        with pytest.raises(Exception, match="cannot be broadcast"):
            session.run(None, {"x0": ones(3), "x1": ones(4)})
        np.testing.assert_array_equal(session.run(None, {"x0": ones(3), "x1": ones(3)})[0], 2 * ones(3))


# --- the kernel on arrays ---
@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "options", "sentence"),
    [
        ("Other", [ones(3)], {"expr": ADD_ONE}, {}, "There is no op 'Other'."),
        ("FusedElementwise", [ones(3)], {}, {}, "has no attribute 'expr'."),
        ("FusedElementwise", [ones(3)], {"expr": "?"}, {}, "The expression is malformed: "),
        ("FusedElementwise", [], {"expr": ADD_ONE}, {}, "It got 0 inputs and its expression has 1."),
        ("FusedElementwise", [np.ones(3)], {"expr": ADD_ONE}, {}, "Input 0 is of type double and should be f32."),
        ("FusedElementwise", [ones(3)], {"expr": ADD_ONE}, {"threads": 0}, "threads should be between 1 and"),
        ("FusedElementwise", [ones(3)], {"expr": ADD_ONE}, {"threads": 1 << 40}, "threads should be between 1 and"),
        ("FusedElementwise", [ones(3)], {"expr": ADD_ONE}, {"variant": "best"}, "There is no variant 'best'."),
        ("FusedElementwise", [ones(3), ones(4)], {"expr": ADD}, {}, "cannot be broadcast"),
    ],
)
def test_direct_calls(
    op: str, inputs: list[Array], attributes: dict[str, str], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        native.run(op, inputs, attributes, **options)


# --- fuzzing, in a process of its own: a crash would end it ---
MUTATIONS = 600
FUZZER = """
import random, sys
import numpy as np
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/.."]
import test_fused_elementwise_misuse as misuse

random.seed(int(sys.argv[2]))
seeds = [misuse.ADD, misuse.TWO_RESULTS, "i0:f32 | t0=less(i0,#0x1p+0:f32) t1=where(t0,i0,#nan:f32) t2=elu(t1,#0x1p-1:f32) | t2:f32 t0:bool"]
pieces = ["i0", "i1", "t0", "t1", "#1:i32", "#0x1p+0:f32", "#inf:f32", ":f32", ":bool", ":i64", "|", ",", "(", ")", "=", " ", "add", "where",
          "pow", "clip", "cast_i64", "999", "-1", "\\0", "\\xff", "#"]
feeds = [np.ones((2, 3), np.float32), np.arange(3, dtype=np.float32)]
outcomes = {"computed": 0, "refused": 0}
for _ in range(int(sys.argv[3])):
    text = random.choice(seeds)
    for _ in range(random.randint(1, 4)):
        start = random.randrange(len(text) + 1)
        end = min(len(text), start + random.choice([0, 0, 1, 2, 8]))
        text = text[:start] + random.choice([*pieces, ""]) + text[end:]
    count = text.split("|")[0].count(":")
    outputs = [f"y{index}" for index in range(max(1, text.split("|")[-1].count(":")))]
    print(repr(text), file=sys.stderr, flush=True)
    for call in (
        lambda: misuse.native.run("FusedElementwise", feeds[:count], {"expr": text}),
        lambda: misuse.run({"expr": text.encode("latin-1")}, feeds[:max(count, 1)], outputs=outputs),
    ):
        try:
            call()
            outcomes["computed"] += 1
        except Exception as error:
            assert str(error)
            outcomes["refused"] += 1
print(outcomes["computed"], outcomes["refused"])
"""


@pytest.mark.parametrize("seed", range(2))
def test_mutated_expressions_never_crash(seed: int) -> None:
    command = [sys.executable, "-c", FUZZER, str(Path(__file__).parent), str(seed), str(MUTATIONS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    last = done.stderr.splitlines()[-1:]
    assert done.returncode == 0, f"exit code {done.returncode} at {last}"
    computed, refusals = map(int, done.stdout.splitlines()[-1].split())
    assert computed + refusals == 2 * MUTATIONS and refusals > computed > 0
