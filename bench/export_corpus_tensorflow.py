"""Export what tf2onnx writes for Keras layers and functions of TensorFlow, for `export_corpus.py --binary`.

    PYTHONHASHSEED=0 python bench/export_corpus_tensorflow.py FOLDER [--only TEXT]

Needs tensorflow 2.15 and tf2onnx 1.17. tf2onnx converts Einsum (`keras_attention`) in one of several ways, by the order of sets.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tensorflow as tf
import tf2onnx

layers = tf.keras.layers

EXAMPLE_SIZE = 4
"""Of a dynamic dim at the first call, which makes the weights."""


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A function of tensors and its dims: `N S 16`, or `int32 N S` for integers."""

    name: str
    module: str
    make: Callable[[], Callable[..., Any]]
    inputs: dict[str, str]
    opsets: tuple[int, ...]


CASES: list[Case] = []


def case(name: str, module: str, *, opsets: tuple[int, ...] = (13, 17), **inputs: str) -> Callable[..., Any]:
    """Register a function that returns a function of tensors."""

    def register(make: Callable[[], Any]) -> Callable[[], Any]:
        CASES.append(Case(name, module, make, inputs, opsets))
        return make

    return register


def split_dims(text: str) -> tuple[tf.DType, list[str]]:
    words = text.split()
    return (tf.int32, words[1:]) if words[0] == "int32" else (tf.float32, words)


def randomize(variables: list[tf.Variable]) -> None:
    """Values that no exporter can fold away; variances are positive."""
    rng = np.random.default_rng(0)
    for variable in variables:
        values = rng.normal(0, 0.2, variable.shape).round(2)
        variable.assign(np.abs(values) + 0.5 if "moving_variance" in variable.name else values)


def export(one: Case, opset: int) -> onnx.ModelProto:
    tf.keras.backend.clear_session()  # names of layers start over
    function = one.make()
    dims = [split_dims(text) for text in one.inputs.values()]
    examples = [
        tf.zeros([int(word) if word.isdigit() else EXAMPLE_SIZE for word in words], kind) for kind, words in dims
    ]
    with tf.GradientTape() as tape:
        function(*examples)
    randomize(list(tape.watched_variables()))
    signature = [
        tf.TensorSpec([int(word) if word.isdigit() else None for word in words], kind, name=name)
        for name, (kind, words) in zip(one.inputs, dims)
    ]
    model, _ = tf2onnx.convert.from_function(tf.function(function), input_signature=signature, opset=opset)
    for value, (_, words) in zip(model.graph.input, dims):
        for dim, word in zip(value.type.tensor_type.shape.dim, words):
            if not word.isdigit():
                dim.dim_param = word
    return model


# --- cases -------------------------------------------------------------------------------------------------------------
@case(
    "keras_layer_norm",
    "keras LayerNormalization(epsilon=1e-6): means of the last of three axes as GlobalAveragePool",
    x="N S 16",
)
def layer_norm() -> Any:
    return layers.LayerNormalization(epsilon=1e-6)


@case(
    "keras_layer_norm_large_epsilon",
    "keras LayerNormalization(epsilon=1e-3): fused_batch_norm of a reshaped tensor",
    x="N S 16",
)
def layer_norm_fused() -> Any:
    return layers.LayerNormalization(epsilon=1e-3)


@case("keras_layer_norm_images", "keras LayerNormalization over the channels of NHWC", x="N H W 16")
def layer_norm_images() -> Any:
    return layers.LayerNormalization(epsilon=1e-6)


@case("tf_layer_norm_moments", "tf.nn.moments, tf.nn.batch_normalization over the last axis (BERT of 2018)", x="N S 16")
def layer_norm_moments() -> Any:
    scale, bias = tf.Variable(tf.ones(16)), tf.Variable(tf.zeros(16))

    def run(x: tf.Tensor) -> tf.Tensor:
        mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
        return tf.nn.batch_normalization(x, mean, variance, bias, scale, 1e-12)

    return run


@case("tf_rms_norm", "x * tf.math.rsqrt(tf.reduce_mean(tf.square(x))) * weight (T5 in TensorFlow)", x="N S 16")
def rms_norm() -> Any:
    weight = tf.Variable(tf.ones(16))
    return lambda x: x * tf.math.rsqrt(tf.reduce_mean(tf.square(x), axis=-1, keepdims=True) + 1e-6) * weight


@case("keras_group_norm", "keras GroupNormalization(4) on NHWC", x="N 8 8 16")
def group_norm() -> Any:
    return layers.GroupNormalization(4)


@case("keras_dense_gelu", "keras Dense on three dims (tensordot), tf.nn.gelu", x="N S 16")
def dense_gelu() -> Any:
    dense = layers.Dense(32)
    return lambda x: tf.nn.gelu(dense(x))


@case("keras_dense_gelu_tanh", "keras Dense on three dims, tf.nn.gelu(approximate=True)", x="N S 16")
def dense_gelu_tanh() -> Any:
    dense = layers.Dense(32)
    return lambda x: tf.nn.gelu(dense(x), approximate=True)


@case("keras_dense_swish", "keras Dense on a matrix, tf.nn.silu", x="N 16")
def dense_swish() -> Any:
    dense = layers.Dense(32)
    return lambda x: tf.nn.silu(dense(x))


@case("keras_einsum_dense", "keras EinsumDense('abc,cde->abde') with bias (KerasNLP's projections)", x="N S 16")
def einsum_dense() -> Any:
    return layers.EinsumDense("abc,cde->abde", output_shape=(None, 2, 8), bias_axes="de")


@case("keras_attention", "keras MultiHeadAttention(2, 8), self-attention", x="N S 16")
def attention() -> Any:
    layer = layers.MultiHeadAttention(2, 8)
    return lambda x: layer(x, x)


@case(
    "keras_attention_masked",
    "keras MultiHeadAttention(2, 8), cross attention with a mask",
    x="N S 16",
    memory="N E 16",
    mask="int32 N S E",
)
def attention_masked() -> Any:
    layer = layers.MultiHeadAttention(2, 8)
    return lambda x, memory, mask: layer(x, memory, attention_mask=tf.cast(mask, tf.bool))


@case("keras_attention_causal", "keras MultiHeadAttention(2, 8), use_causal_mask=True", x="N S 16")
def attention_causal() -> Any:
    layer = layers.MultiHeadAttention(2, 8)
    return lambda x: layer(x, x, use_causal_mask=True)


@case(
    "tf_attention_bert",
    "BERT's attention as transformers 4 writes it in TensorFlow: reshape, transpose, matmul(transpose_b), / sqrt, + mask",
    x="N S 16",
    mask="N 1 1 S",
)
def attention_bert() -> Any:
    query, key, value = layers.Dense(16), layers.Dense(16), layers.Dense(16)

    def heads(x: tf.Tensor, batch: tf.Tensor) -> tf.Tensor:
        return tf.transpose(tf.reshape(x, (batch, -1, 2, 8)), perm=[0, 2, 1, 3])

    def run(x: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        batch = tf.shape(x)[0]
        q, k, v = heads(query(x), batch), heads(key(x), batch), heads(value(x), batch)
        scores = tf.divide(tf.matmul(q, k, transpose_b=True), tf.cast(tf.sqrt(8.0), tf.float32))
        weights = tf.nn.softmax(tf.add(scores, mask), axis=-1)
        return tf.reshape(tf.transpose(tf.matmul(weights, v), perm=[0, 2, 1, 3]), (batch, -1, 16))

    return run


@case(
    "tf_embedding_bert",
    "word, type and position embeddings by tf.gather, sum, LayerNormalization",
    ids="int32 N S",
    kinds="int32 N S",
)
def embedding() -> Any:
    words, types, positions = (tf.Variable(tf.zeros((rows, 16))) for rows in (32, 2, 16))
    norm = layers.LayerNormalization(epsilon=1e-12)

    def run(ids: tf.Tensor, kinds: tf.Tensor) -> tf.Tensor:
        places = tf.expand_dims(tf.range(tf.shape(ids)[1]), 0)
        return norm(tf.gather(words, ids) + tf.gather(types, kinds) + tf.gather(positions, places))

    return run


@case("keras_conv_bn_relu", "keras Conv2D(same), BatchNormalization, ReLU on NHWC", x="N H W 8")
def conv() -> Any:
    layer, norm = layers.Conv2D(8, 3, padding="same", use_bias=False), layers.BatchNormalization()
    return lambda x: tf.nn.relu(norm(layer(x), training=False))


@case("keras_conv_stride_swish", "keras Conv2D(stride 2, same), BatchNormalization, swish on NHWC", x="N 8 12 8")
def conv_swish() -> Any:
    layer, norm = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False), layers.BatchNormalization()
    return lambda x: tf.nn.silu(norm(layer(x), training=False))


@case(
    "keras_depthwise_relu6",
    "keras DepthwiseConv2D, BatchNormalization, ReLU6, Conv2D 1x1, BatchNormalization, residual (MobileNetV2)",
    x="N 8 12 8",
)
def depthwise() -> Any:
    deep, point = layers.DepthwiseConv2D(3, padding="same", use_bias=False), layers.Conv2D(8, 1, use_bias=False)
    norms = [layers.BatchNormalization(), layers.BatchNormalization()]
    return lambda x: x + norms[1](point(tf.nn.relu6(norms[0](deep(x), training=False))), training=False)


@case(
    "keras_squeeze_excite",
    "GlobalAveragePooling2D, Reshape, Conv2D 1x1 twice, hard sigmoid as relu6(x + 3) / 6, multiply (MobileNetV3)",
    x="N 8 12 8",
)
def squeeze() -> Any:
    pool, down, up = layers.GlobalAveragePooling2D(keepdims=True), layers.Conv2D(4, 1), layers.Conv2D(8, 1)

    def run(x: tf.Tensor) -> tf.Tensor:
        gate = tf.nn.relu6(up(tf.nn.relu(down(pool(x)))) + 3.0) * (1.0 / 6.0)
        return layers.Multiply()([x, gate])

    return run


@case("keras_hard_swish", "x * relu6(x + 3) / 6 after Conv2D with bias (MobileNetV3)", x="N 8 12 8")
def hard_swish() -> Any:
    layer, relu6, multiply = layers.Conv2D(8, 1), layers.ReLU(6.0), layers.Multiply()

    def run(x: tf.Tensor) -> tf.Tensor:
        y = layer(x)
        return multiply([y, relu6(y + 3.0) * (1.0 / 6.0)])

    return run


@case("keras_upsample_concat", "UpSampling2D, Concatenate, Conv2D on NHWC (U-Net)", x="N 4 4 8", skip="N 8 8 8")
def upsample() -> Any:
    up, join, layer = layers.UpSampling2D(2), layers.Concatenate(), layers.Conv2D(8, 3, padding="same")
    return lambda x, skip: tf.nn.relu(layer(join([up(x), skip])))


@case("keras_conv_transpose", "Conv2DTranspose(2, stride 2) with bias, relu on NHWC", x="N 4 6 8")
def conv_transpose() -> Any:
    layer = layers.Conv2DTranspose(8, 2, strides=2)
    return lambda x: tf.nn.relu(layer(x))


@case(
    "keras_convnext_block",
    "depthwise 7x7, LayerNormalization, Dense, gelu, Dense, layer scale, residual (keras ConvNeXt)",
    x="N 8 8 16",
)
def convnext() -> Any:
    deep, norm = layers.DepthwiseConv2D(7, padding="same"), layers.LayerNormalization(epsilon=1e-6)
    up, down, scale = layers.Dense(32), layers.Dense(16), tf.Variable(tf.ones(16))
    return lambda x: x + scale * down(tf.nn.gelu(up(norm(deep(x)))))


@case("keras_pool_softmax", "GlobalAveragePooling2D, Dense(softmax)", x="N H W 8")
def pool() -> Any:
    pooling, dense = layers.GlobalAveragePooling2D(), layers.Dense(4, activation="softmax")
    return lambda x: dense(pooling(x))


@case(
    "tf_window_partition",
    "reshape, transpose, reshape of NHWC to windows of 4, tf.roll (Swin in TensorFlow)",
    x="N 8 12 16",
)
def windows() -> Any:
    def run(x: tf.Tensor) -> tf.Tensor:
        x = tf.roll(x, shift=(-2, -2), axis=(1, 2))
        x = tf.reshape(x, (tf.shape(x)[0], 2, 4, 3, 4, 16))
        return tf.reshape(tf.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 4, 4, 16))

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="a regular expression over the names of cases")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for one in CASES:
        for opset in one.opsets if re.search(options.only, one.name) else ():
            model = export(one, opset)
            origin = {
                "exporter": f"tf2onnx {tf2onnx.__version__} (tensorflow {tf.__version__})",
                "module": one.module,
                "options": "dynamic dims",
            }
            onnx.helper.set_model_props(model, origin)
            onnx.save(model, options.folder / f"{one.name}_{opset}.onnx")


if __name__ == "__main__":
    main()
