"""Cuts out of trained models: what PaddleOCR's, TensorFlow's and other exporters wrote."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import onnx
from onnx import helper, numpy_helper

from corpus_cases.text import INLINE_ELEMENTS


@dataclasses.dataclass(frozen=True, slots=True)
class Cut:
    """The nodes of a model between some of its values.

    `inputs` maps a value to its dims, such as `N 16 H W`, with the element type before it where it is not float32; `dims` gives
    sizes to names of dims that are not those of `cases.SIZES`.
    """

    stem: str
    model: str
    what: str
    inputs: dict[str, str]
    outputs: tuple[str, ...]


EXPORTERS = {
    "ppdet": ("paddle2onnx (names p2o; version not stated)", "PP-OCRv4 detector (ch_PP-OCRv4_det_infer)"),
    "pprec": ("paddle2onnx (names p2o; version not stated)", "PP-OCRv4 recognizer (ch_PP-OCRv4_rec_infer)"),
    "ppcls": ("paddle2onnx (version not stated)", "PP-OCR classifier of angles (ch_ppocr_mobile_v2.0_cls_infer)"),
    "magika": ("tf2onnx of a JAX model by jax2tf", "magika standard_v3_3"),
    "silero": ("torch.onnx (torchscript), joined by spox", "silero-vad 6"),
}
"""Of each model of `bench/models.py`, what wrote it and what it is."""

JAX = "jax2tf_get_logits_/pjit_get_logits_/MagikaV2/"
BRANCH = "If_0_then_branch__Inline_0__"

CUTS = [
    Cut("ppdet_stem", "ppdet", "conv and batch norm; depthwise blocks with a scalar scale and shift, hard-swish by Clip and Div with a scalar scale and shift", {"x": "N 3 H W"}, ("p2o.Add.19",)),
    Cut("ppdet_se", "ppdet", "depthwise block, squeeze-and-excite (HardSigmoid with default attributes), pointwise block", {"p2o.Add.147": "N 192 H W"}, ("p2o.Add.163",)),
    Cut("ppdet_se_residual", "ppdet", "1x1 conv, squeeze-and-excite with a residual", {"conv2d_471.tmp_0": "N 42 H W"}, ("p2o.Add.235",)),
    Cut("ppdet_neck", "ppdet", "top-down additions of Resize by two, convs with squeeze-and-excite, Resize by 8, 4 and 2, Concat", {"p2o.Add.229": "N 96 1 2", "p2o.Add.235": "N 96 2 4", "p2o.Add.241": "N 96 4 8", "p2o.Add.247": "N 96 8 16"}, ("p2o.Concat.1",)),
    Cut("ppdet_head", "ppdet", "conv, batch norm, ReLU, ConvTranspose with its bias as Add, twice, Sigmoid", {"p2o.Concat.1": "N 96 H W"}, ("sigmoid_0.tmp_0",)),
    Cut("ppcls_stem", "ppcls", "conv, batch norm, hard-swish by Add, Clip, Mul, Div; depthwise; squeeze-and-excite with biases that are reshaped", {"x": "N 3 H W"}, ("batch_norm_3.tmp_2",)),
    Cut("ppcls_inverted_residual", "ppcls", "1x1, depthwise 3x3, 1x1, residual", {"batch_norm_6.tmp_2": "N 8 H W"}, ("elementwise_add_0",)),
    Cut("ppcls_hardswish_se", "ppcls", "1x1 and depthwise with hard-swish, squeeze-and-excite, 1x1", {"elementwise_add_0": "N 8 H W"}, ("batch_norm_12.tmp_2",)),
    Cut("ppcls_head", "ppcls", "hard-swish, max pool, global pool, reshape by computed shape, MatMul, Softmax, Identity", {"batch_norm_34.tmp_2": "N 200 H W"}, ("save_infer_model/scale_0.tmp_1",)),
    Cut("pprec_downsample_se", "pprec", "strided depthwise block, squeeze-and-excite (HardSigmoid with slope 1/6), pointwise block", {"p2o.Add.159": "N 240 H W"}, ("p2o.Add.179",)),
    Cut("pprec_pool_swish", "pprec", "average pool of 3x2, 1x3 conv, batch norm, swish as Mul by 1, Sigmoid, Mul", {"p2o.Add.231": "N 480 3 W"}, ("swish_12.tmp_0",)),
    Cut("pprec_flatten_norm", "pprec", "flatten by Shape and Reshape, Transpose, decomposed LayerNormalization", {"swish_12.tmp_0": "N 120 1 W"}, ("p2o.Add.235",)),
    Cut("pprec_encoder_layer", "pprec", "attention on one product for q, k, v (Slice, Squeeze, scale on q), swish feed-forward, pre-norm, decomposed LayerNormalization", {"transpose_43.tmp_0": "N S 120"}, ("p2o.Add.251",)),
    Cut("pprec_merge", "pprec", "norm, reshape and transpose back to an image, 1x1 conv, swish, Concat, 1x3 conv", {"p2o.Add.271": "1 S 120", "swish_12.tmp_0": "1 120 1 S", "p2o.AveragePool.1": "1 480 1 S"}, ("swish_16.tmp_0",)),
    Cut("pprec_ctc_head", "pprec", "1x1 conv, batch norm, swish, Squeeze, Transpose, MatMul to 6625 classes, Softmax", {"swish_16.tmp_0": "N 60 1 S"}, ("softmax_11.tmp_0",)),
    Cut("magika_embedding", "magika", "one-hot by Expand and Equal, MatMul, tanh Gelu", {"bytes": "int32 N 2048"}, (f"{JAX}ApplyActivation_0/Mul_5:0",)),
    Cut("magika_layer_norm", "magika", "Flax's LayerNorm: ReduceSum of x and of its square, Max with 0, Expand, Sqrt, Reciprocal", {"bytes": "int32 N 2048", f"{JAX}Reshape:0": "N 512 256"}, (f"{JAX}LayerNorm_0/AddV2_1:0",)),
    Cut("magika_conv_gelu_pool", "magika", "conv over one dim between Unsqueeze, Transpose and Squeeze, tanh Gelu, global max pool", {f"{JAX}LayerNorm_0/AddV2_1:0": "N 512 256"}, (f"{JAX}Max:0",)),
    Cut("magika_head", "magika", "Flax's LayerNorm of a matrix, MatMul, softmax by ReduceMax, Sub, Exp, ReduceSum, Div", {"bytes": "int32 N 2048", f"{JAX}Max_Squeeze__213:0": "N 512"}, ("target_label",)),
    Cut("silero_encoder", "silero", "reflecting pad by computed pads, short-time Fourier transform as a conv, magnitude, 1-D convs with ReLU", {"input": "N 576"}, (f"{BRANCH}/encoder/3/activation/Relu_output_0",)),
]  # fmt: skip

TYPES = {"float": onnx.TensorProto.FLOAT, "int32": onnx.TensorProto.INT32}


def cut_out(cut: Cut, model: onnx.ModelProto) -> onnx.ModelProto:
    """The part of the model as a model of its own; large constants become initializers."""
    graph = next(
        graph
        for graph in graphs(model.graph)
        if set(cut.outputs) <= {name for node in graph.node for name in node.output}
    )
    weights = {tensor.name: tensor for tensor in [*model.graph.initializer, *graph.initializer]}
    makers = {name: node for node in graph.node for name in node.output}
    wanted, needed = list(cut.outputs), set()
    while wanted:
        name = wanted.pop()
        if name in cut.inputs or name in weights or name in needed:
            continue
        needed.add(name)
        wanted.extend(filter(None, makers[name].input))
    nodes = [node for node in graph.node if needed & set(node.output)]
    initializers = [
        weights[name] for name in dict.fromkeys(name for node in nodes for name in node.input) if name in weights
    ]
    kept = []
    for node in nodes:
        array = numpy_helper.to_array(node.attribute[0].t) if node.op_type == "Constant" else None
        if array is not None and array.dtype.kind == "f" and array.size > INLINE_ELEMENTS:
            initializers.append(numpy_helper.from_array(array, node.output[0]))
        else:
            kept.append(node)
    inputs = [_declare(name, dims) for name, dims in cut.inputs.items()]
    outputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in cut.outputs]
    made = helper.make_model(
        helper.make_graph(kept, "subgraph", inputs, outputs, initializers),
        opset_imports=[one for one in model.opset_import if not one.domain],
    )
    made.ir_version, made.producer_name, made.producer_version = (
        model.ir_version,
        model.producer_name,
        model.producer_version,
    )
    return _with_inferred_outputs(made)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def _declare(name: str, text: str) -> onnx.ValueInfoProto:
    words = text.split()
    kind = TYPES[words.pop(0)] if words[0] in TYPES else onnx.TensorProto.FLOAT
    return helper.make_tensor_value_info(name, kind, [int(word) if word.isdigit() else word for word in words])


def _with_inferred_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the types and shapes of its outputs as far as onnx infers them."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for value, found in zip(model.graph.output, inferred.graph.output):
        value.CopyFrom(found)
    return model
