"""Einsum as Transpose, Mul, MatMul and Reshape: all kinds of letters, sizes of one, ellipses, constant operands, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, ops, run_passes
from onnxopt import ir

Array = np.ndarray[Any, Any]
PASS = "write_out_einsums"
RNG = np.random.default_rng(11)
# Sizes of 0 end the process in onnxruntime's Einsum.
# Sizes of 0 end the process in onnxruntime's Einsum.
SIZES = {letter: size for size, letter in enumerate("abcdehijknq", 2)}


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def make(equation: str, *dims: str, weights: Array | None = None, result: str = "") -> onnx.ModelProto:
    """An Einsum of inputs x0, x1 ... of these dims, the last one the constant `weights` where there are any."""
    inputs = ", ".join(f"float[{text}] x{index}" for index, text in enumerate(dims))
    names = [f"x{index}" for index in range(len(dims))] + ([] if weights is None else ["w"])
    constants = {} if weights is None else {"w": weights}
    return model(
        f'g ({inputs}) => (float[{result}] y) {{ y = Einsum<equation = "{equation}">({", ".join(names)}) }}',
        **constants,
    )


def letters_of(equation: str) -> list[str]:
    return [",".join(part.strip()) for part in equation.partition("->")[0].split(",")]


def feeds(equation: str, **sizes: int) -> dict[str, Array]:
    parts = equation.partition("->")[0].split(",")
    return {f"x{index}": normal(*({**SIZES, **sizes}[one] for one in part.strip())) for index, part in enumerate(parts)}


def result_of(equation: str) -> str:
    return ",".join(equation.partition("->")[2].strip())


EQUATIONS = [
    *("i,j->ij", "bi,j->bji", "ij,ij->ij", "ij->ji", "abc->cab"),
    *("bij,bjk->bik", "bij,bkj->bik", "bij,bjk->bki", "ij,jk->ik", "ij,jk->ki", "bi,bi->b", "i,ij->j", "ij,j->i"),
    *("bind,bjnd->bnij", "bnij,bjnd->bind", "ibnd,jbnd->bnij", "bnij,jbnd->ibnd", "ibnd,jnd->ijbn"),
    *("bhkc,hqc->bhkq", "bhkc,kqc->bhkq", "abk,dk->abd", "abk,dk->dab", "ki,abk->abi", "bcij, bcjk -> bcik"),
]


@pytest.mark.parametrize("equation", EQUATIONS)
def test_is_written_out(equation: str) -> None:
    before = make(equation, *letters_of(equation), result=result_of(equation))
    after, _ = run_passes(before, PASS)
    assert "Einsum" not in ops(after)
    assert_same(before, after, [feeds(equation), feeds(equation, b=1, i=1, j=1)], atol=1e-5)


def test_opset_12_has_axes_as_attributes() -> None:
    equation = "bi,j->bji"
    before = make(equation, *letters_of(equation), result=result_of(equation))
    before.opset_import[0].version = 12
    after, _ = run_passes(before, PASS)
    assert_same(before, after, feeds(equation))


MATRICES = {
    "abc,cd->abd": (7, 5),
    "abc,cde->abde": (7, 5, 6),
    "abcd,cde->abe": (4, 5, 3),
    "abcd,dce->abe": (5, 4, 3),
    "bct,oc->bot": (3, 4),
}


@pytest.mark.parametrize("equation", MATRICES)
def test_constant_operand_is_a_matrix(equation: str) -> None:
    weights = normal(*MATRICES[equation])
    left, right = equation.partition("->")[0].split(",")
    sizes = dict(zip(right, weights.shape, strict=True))
    dims = ",".join(str(sizes.get(one, one.upper())) for one in left)
    before = make(
        equation,
        dims,
        weights=weights,
        result=",".join(str(sizes.get(one, one.upper())) for one in result_of(equation).split(",")),
    )
    after, _ = run_passes(before, PASS, "fold_constants")
    product = next(node for node in after.graph.node if node.op_type == "MatMul")
    (matrix,) = [one for one in after.graph.initializer if one.name == product.input[1]]
    assert len(matrix.dims) == 2
    for size in (2, 1):
        assert_same(before, after, {"x0": normal(*(sizes.get(one, size) for one in left))}, atol=1e-5)


def test_ellipsis() -> None:
    before = make("...ij,...jk->...ik", "A,B,I,J", "A,B,J,K", result="A,B,I,K")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["MatMul"]
    assert_same(before, after, {"x0": normal(2, 3, 4, 5), "x1": normal(2, 3, 5, 6)}, atol=1e-5)


def test_equation_without_a_result() -> None:
    before = make("ij,jk", "I,J", "J,K", result="I,K")
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["MatMul"]
    assert_same(before, after, {"x0": normal(4, 5), "x1": normal(5, 6)}, atol=1e-5)


@pytest.mark.parametrize(
    ("equation", "dims", "result"),
    [
        ("ii->i", ["I,I"], "I"),
        ("ij->i", ["I,J"], "I"),
        ("ij,jk->k", ["I,J", "J,K"], "K"),
        ("ij,jk,kl->il", ["I,J", "J,K", "K,L"], "I,L"),
        ("ij,jk->ik", ["I,J", "M,K"], "I,K"),
        ("ijk,ijl->kl", ["I,J,K", "I,J,L"], "K,L"),
        ("abk,cdk->abcd", ["A,B,K", "C,D,K"], "A,B,C,D"),
    ],
)
def test_refuses(equation: str, dims: list[str], result: str) -> None:
    after, report = run_passes(make(equation, *dims, result=result), PASS)
    assert op_list(after) == ["Einsum"] and not report.patches


def test_shape_of_an_einsum_keeps_its_symbols() -> None:
    loaded = ir.load(make("...hqd,...hkd,d->...hqk", "N,8,S,64", "N,8,T,64", "64", result="?,?,?,?"))
    shapes = ir.ShapeEnv(loaded, {})
    shapes.infer_model()
    (node,) = loaded.graph
    assert str(shapes.shape(node.outputs[0])) == "(N, 8, S, T)"
