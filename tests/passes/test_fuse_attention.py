"""The pass that makes FusedAttention, in the pipeline."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxopt
from helpers import evaluate, model, ops, run_passes, set_costs
from onnxopt import ir
from onnxopt.passes.base import Options
from onnxopt.pipeline import PassManager

pytest.importorskip("onnxopt._native", reason="the native library is not built")

RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def layers(count: int, opset: int = 17) -> onnx.ModelProto:
    """Self-attention with a padding mask, as encoders write it, a few times."""
    text = "".join(
        f"""q{i} = MatMul(x{i}, wq)  k{i} = MatMul(x{i}, wk)  v{i} = MatMul(x{i}, wv)
        qs{i} = Reshape(q{i}, split)  qt{i} = Transpose<perm = [0, 2, 1, 3]>(qs{i})
        ks{i} = Reshape(k{i}, split)  kt{i} = Transpose<perm = [0, 2, 1, 3]>(ks{i})
        vs{i} = Reshape(v{i}, split)  vt{i} = Transpose<perm = [0, 2, 1, 3]>(vs{i})
        kk{i} = Transpose<perm = [0, 1, 3, 2]>(kt{i})  s{i} = MatMul(qt{i}, kk{i})  d{i} = Div(s{i}, root)
        a{i} = Add(d{i}, hidden)  p{i} = Softmax<axis = 3>(a{i})  y{i} = MatMul(p{i}, vt{i})
        yt{i} = Transpose<perm = [0, 2, 1, 3]>(y{i})  x{i + 1} = Reshape(yt{i}, merge)
        """
        for i in range(count)
    )
    shapes = {"split": np.array([0, 0, 4, 8]), "merge": np.array([0, 0, 32]), "root": np.array(8**0.5, np.float32)}
    return model(
        f"""g (float[B,S,32] x0, float[B,S] mask) => (float[B,S,32] x{count}) {{
            wide = Reshape(mask, row)  seen = Mul(wide, low)  hidden = Sub(seen, low)
            {text}
        }}""",
        opset=opset,
        wq=normal(32, 32),
        wk=normal(32, 32),
        wv=normal(32, 32),
        low=np.array(1e4, np.float32),
        row=np.array([0, 1, 1, -1]),
        **shapes,
    )


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
def test_every_layer_of_an_encoder(opset: int) -> None:
    before = layers(3, opset)
    after = onnxopt.optimize(before, strict=True)
    found = ops(after)
    assert found["FusedAttention"] == 3
    assert not {"Softmax", "FusedSoftmax", "Transpose"} & set(found)
    assert len(after.functions) == len({(one.domain, one.name, one.overload) for one in after.functions})
    mask = np.ones((2, 9), np.float32)
    mask[1, 5:] = 0
    feeds = {"x0": normal(2, 9, 32), "mask": mask}
    (wanted,) = evaluate(before, feeds)
    for library in (True, False):
        np.testing.assert_allclose(evaluate(after, feeds, library=library)[0], wanted, rtol=1e-3, atol=1e-3)


def test_layers_alike_share_a_body() -> None:
    after, _ = run_passes(layers(3), "fuse_attention", target="cpu")
    assert [one.name for one in after.functions] == ["FusedAttention"]


def test_other_targets_keep_standard_ops() -> None:
    assert "FusedAttention" not in ops(onnxopt.optimize(layers(1), target="generic"))


def test_a_spent_budget_leaves_the_rest() -> None:
    loaded = ir.load(layers(3))
    PassManager("cpu", ["fuse_attention"], stop_after=2).run(loaded)
    found = ir.count_ops(loaded)
    assert sum(count for name, count in found.items() if "FusedAttention" in name) == 2
    assert found["Softmax"] == 1


def quantized(before: onnx.ModelProto, keep: frozenset[str] = frozenset()) -> dict[str, int]:
    loaded = ir.load(before)
    options = Options(quantize_products=True, keep_float=keep)
    PassManager("cpu", options=options, strict=True).run(loaded)
    return ops(ir.to_proto(loaded))


@pytest.fixture
def fuse_small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    set_costs(monkeypatch, product_work=1)


@pytest.mark.usefixtures("fuse_small_products")
def test_attention_of_quantized_products_rounds_its_operands() -> None:
    found = quantized(layers(1))
    assert found["QAttention"] == 1 and "FusedAttention" not in found


@pytest.mark.usefixtures("fuse_small_products")
def test_attention_of_a_product_in_float_stays_in_float() -> None:
    before = layers(1)
    (kept,) = (node for node in before.graph.node if node.output[0] == "k0")
    kept.name = "keys"
    assert quantized(before, frozenset({"keys"}))["FusedAttention"] == 1


@pytest.mark.usefixtures("fuse_small_products")
@pytest.mark.parametrize(("rows", "name"), [(63, "FusedAttention"), (64, "QAttention")])
def test_few_keys_stay_in_float(rows: int, name: str) -> None:
    before = layers(1)
    for value in before.graph.input:
        value.type.tensor_type.shape.dim[1].dim_value = rows
    assert quantized(before)[name] == 1


def in_branches(before: onnx.ModelProto) -> onnx.ModelProto:
    """The model in both branches of an If that read the same weights, as merged decoders do; what they do first differs."""
    made = {"x0", *(name for node in before.graph.node for name in node.output)}
    branches = []
    for op in ("Relu", "Tanh"):
        nodes = [onnx.helper.make_node(op, ["x0"], [f"{op}x0"])]
        for node in before.graph.node:
            inputs, outputs = (
                [op + name if name in made else name for name in names] for names in (node.input, node.output)
            )
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
            nodes[-1].input[:], nodes[-1].output[:] = inputs, outputs
        (output,) = (onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in before.graph.output)
        output.name = op + output.name
        branches.append(onnx.helper.make_graph(nodes, op, [], [output]))
    result = onnx.ModelProto.FromString(before.SerializeToString())
    names = [value.name for value in before.graph.output]
    del result.graph.node[:]
    result.graph.node.append(
        onnx.helper.make_node("If", ["c"], names, then_branch=branches[0], else_branch=branches[1])
    )
    result.graph.input.append(onnx.helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []))
    return result


@pytest.mark.usefixtures("fuse_small_products")
@pytest.mark.parametrize("taken", [True, False])
def test_layers_in_branches(taken: bool) -> None:
    before = in_branches(layers(2))
    after = onnxopt.optimize(before, strict=True)
    for graph in (attr.g for node in after.graph.node if node.op_type == "If" for attr in node.attribute):
        found = [node.op_type for node in graph.node]
        assert found.count("FusedAttention") == found.count("FusedGemm") == 2
        assert not {"Softmax", "FusedSoftmax", "MatMul", "Transpose"} & set(found)
    feeds = {"x0": normal(2, 9, 32), "mask": np.ones((2, 9), np.float32), "c": np.array(taken)}
    (wanted,) = evaluate(before, feeds)
    for library in (True, False):
        np.testing.assert_allclose(evaluate(after, feeds, library=library)[0], wanted, rtol=1e-3, atol=1e-3)
