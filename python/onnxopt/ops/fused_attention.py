"""FusedAttention: softmax(Q K^T scale + masks) V, computed tile by tile.

Inputs: Q, K, V, one tensor for each word of `masks`, and with `rotary` the cosines and the signed sines. All float32, or for CUDA
devices float16 or bfloat16, but for boolean masks; scores and their Softmax are float32. Processors have kernels for float32 alone, and convert
the others to it.

A layout (attributes `q`, `k`, `v`, `y`) has a word for each dim of a tensor: the axes that it holds, outermost first, of b (batch), h (heads),
s (rows or keys) and d (columns), and after `@` where they begin in a dim that holds more. `b s hd` is [batch, rows, heads * columns];
`b s hd@768` lies from column 768 on; `@1 b h s d` is one of several tensors that are stacked.

Attributes: `heads`, `kv_heads` (heads share keys and values in groups of heads / kv_heads), `head_size` (columns of Q and K), `value_size` (columns
of V), `scale`, `softcap` (scores become softcap * tanh(scores / softcap)), `masks` (`add`: added to the scores; `repeat`: added, over again along
the batch; `keep=NUMBER`, `hide=NUMBER`: booleans, scores become the number where they are false or true; masks are broadcast to [batch, heads, rows, keys]),
`nan_to_zero` (weights that are NaN become 0), `rotary` (`q`, `k` or `qk`: which of them are rotated by x cos + partner(x) sin, over as many columns as
the cosines have; cosines and sines are broadcast to [batch, heads, rows, columns]), `interleaved` (a column's partner is its neighbour, not half
the columns away).

Sources: T. Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention" (2022); J. Su et al., "RoFormer" (2021).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from onnxopt import ir
from onnxopt.ir import DataType
from onnxopt.ops.base import BodyBuilder, OpSpec, overload_of

SPEC = OpSpec(
    name="FusedAttention",
    attributes=(
        "q",
        "k",
        "v",
        "y",
        "heads",
        "kv_heads",
        "head_size",
        "value_size",
        "scale",
        "softcap",
        "masks",
        "nan_to_zero",
        "rotary",
        "interleaved",
    ),
    dtypes=(DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16),
    tolerance={DataType.FLOAT: 2e-5, DataType.FLOAT16: 4e-3, DataType.BFLOAT16: 4e-2},
)

MOST_MASKS = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Attention:
    """The attributes of a node, and what its body depends on besides: `width`, the columns that are rotated, and `dtype`, the elements."""

    q: str
    k: str
    v: str
    y: str
    heads: int
    kv_heads: int
    head_size: int
    value_size: int
    scale: float = 1.0
    softcap: float = 0.0
    masks: tuple[str, ...] = ()
    nan_to_zero: bool = False
    rotary: str = ""
    interleaved: bool = False
    width: int = 0
    dtype: DataType = DataType.FLOAT

    def attributes(self) -> dict[str, str | int | float]:
        """Those that differ from their defaults."""
        found: dict[str, str | int | float] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("width", "dtype") and value != field.default:
                found[field.name] = " ".join(value) if isinstance(value, tuple) else value
        return {name: int(value) if isinstance(value, bool) else value for name, value in found.items()}

    @property
    def inputs(self) -> int:
        return 3 + len(self.masks) + (2 if self.rotary else 0)

    def overload(self, opset: int) -> str:
        return overload_of(f"{opset}|{self}")

    def body(self, opset: int) -> ir.Function:
        """The function in standard ops."""
        builder = BodyBuilder(self.inputs, opset)
        return builder.function(SPEC, self.overload(opset), [Body(self, builder).result()])


@dataclasses.dataclass(frozen=True, slots=True)
class _Dim:
    """A size that only the run knows: that of a dim of a value."""

    value: ir.Value
    axis: int


class Body:
    """Writes attention in standard ops, over tensors [batch, heads, rows, columns]. What the products multiply may be rounded by a subclass."""

    def __init__(self, attention: Attention, builder: BodyBuilder) -> None:
        self._attention = attention
        self.builder = builder

    def result(self) -> ir.Value:
        a, b = self._attention, self.builder
        tables = b.inputs[3 + len(a.masks) :]
        q = self._operand(b.inputs[0], a.q, a.heads, a.head_size)
        k = self._operand(b.inputs[1], a.k, a.kv_heads, a.head_size)
        v = self._operand(b.inputs[2], a.v, a.kv_heads, a.value_size)
        if "q" in a.rotary:
            q = self._rotate(q, *tables)
        if "k" in a.rotary:
            k = self._rotate(k, *tables)
        q, k, v = self.rounded_rows(q), self.rounded_rows(k), self.rounded_columns(v)
        if a.scale != 1.0:
            q = b.op("Mul", [q, self._number(a.scale, a.dtype)])
        keys = b.op("Transpose", [self._for_all_heads(k, a.head_size)], {"perm": [0, 1, 3, 2]})
        scores = self._cast(b.op("MatMul", [q, keys]), DataType.FLOAT)
        if a.softcap != 0.0:
            capped = b.op("Tanh", [b.op("Div", [scores, self._number(a.softcap)])])
            scores = b.op("Mul", [capped, self._number(a.softcap)])
        for kind, mask in zip(a.masks, b.inputs[3:], strict=False):
            scores = self._mask(scores, kind, mask)
        weights = b.op("Softmax", [scores], {"axis": 3})
        if a.nan_to_zero:
            weights = b.op("Where", [b.op("IsNaN", [weights]), self._number(0.0), weights])
        weights = self._cast(self.rounded_weights(weights), a.dtype)
        return self._arrange(b.op("MatMul", [weights, self._for_all_heads(v, a.value_size)]))

    def rounded_rows(self, x: ir.Value) -> ir.Value:
        """Queries and keys."""
        return x

    def rounded_columns(self, x: ir.Value) -> ir.Value:
        """Values."""
        return x

    def rounded_weights(self, x: ir.Value) -> ir.Value:
        return x

    def _number(self, number: float, dtype: DataType = DataType.FLOAT) -> ir.Value:
        return self.builder.constant(np.array(number, dtype.numpy()))

    def _cast(self, x: ir.Value, dtype: DataType) -> ir.Value:
        """What is computed of elements of two bytes as float32, and the other way round."""
        return x if self._attention.dtype is DataType.FLOAT else self.builder.op("Cast", [x], {"to": int(dtype)})

    def _mask(self, scores: ir.Value, kind: str, mask: ir.Value) -> ir.Value:
        b = self.builder
        kind, _, number = kind.partition("=")
        if number:
            fill = self._number(float(number))
            return b.op("Where", [mask, scores, fill] if kind == "keep" else [mask, fill, scores])
        mask = self._cast(mask, DataType.FLOAT)
        if kind == "repeat":
            times = b.op("Div", [self._size(_Dim(scores, 0)), self._size(_Dim(mask, 0))])
            mask = b.op("Tile", [mask, b.op("Concat", [times, b.integers(1, 1, 1)], {"axis": 0})])
        return b.op("Add", [scores, mask])

    def _rotate(self, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
        a, b = self._attention, self.builder
        columns = np.arange(a.width)
        partner = columns ^ 1 if a.interleaved else (columns + a.width // 2) % a.width
        turned = x if a.width == a.head_size else self._slice(x, 3, 0, a.width)
        crossed = b.op("Gather", [turned, b.constant(partner.astype(np.int64))], {"axis": 3})
        result = b.op("Add", [b.op("Mul", [turned, cos]), b.op("Mul", [crossed, sin])])
        if a.width == a.head_size:
            return result
        return b.op("Concat", [result, self._slice(x, 3, a.width, a.head_size)], {"axis": 3})

    def _for_all_heads(self, x: ir.Value, columns: int) -> ir.Value:
        """Keys or values, once for each head that shares them."""
        a, b = self._attention, self.builder
        if a.kv_heads in (1, a.heads):
            return x  # MatMul broadcasts a single one
        times = a.heads // a.kv_heads
        apart = self._reshape(x, [_Dim(x, 0), a.kv_heads, 1, _Dim(x, 2), columns])
        copies = b.op("Expand", [apart, b.integers(1, 1, times, 1, 1)])
        return self._reshape(copies, [_Dim(x, 0), a.heads, _Dim(x, 2), columns])

    def _operand(self, x: ir.Value, layout: str, heads: int, columns: int) -> ir.Value:
        known = {"h": heads, "d": columns}
        sizes: list[int | _Dim] = []
        words = layout.split(" ")
        for axis, word in enumerate(words):
            letters, at, start = word.partition("@")
            if at:
                x = self._slice(x, axis, int(start), int(start) + math.prod(known[letter] for letter in letters))
        for axis, word in enumerate(words):
            letters = word.partition("@")[0]
            alone = len(letters) == 1
            sizes += [known.get(letter, _Dim(x, axis) if alone else -1) for letter in letters]
        letters = "".join(word.partition("@")[0] for word in words)
        if any(len(word.partition("@")[0]) != 1 for word in words):
            x = self._reshape(x, sizes)
        perm = [letters.index(letter) for letter in "bhsd" if letter in letters]
        if perm != list(range(len(perm))):
            x = self.builder.op("Transpose", [x], {"perm": perm})
        if len(perm) == 4:
            return x
        have = iter(range(len(perm)))
        return self._reshape(x, [_Dim(x, next(have)) if letter in letters else 1 for letter in "bhsd"])

    def _arrange(self, y: ir.Value) -> ir.Value:
        """The result [batch, heads, rows, columns] in the output's layout."""
        a = self._attention
        words = a.y.split(" ")
        letters = "".join(words)
        missing = [axis for axis, letter in enumerate("bhsd") if letter not in letters]
        order = [*("bhsd".index(letter) for letter in letters), *missing]
        if order != list(range(4)):
            y = self.builder.op("Transpose", [y], {"perm": order})
        if len(words) == 4:
            return y
        known = {"h": a.heads, "d": a.value_size}
        sizes: list[int | _Dim] = []
        for word in words:
            if all(letter in known for letter in word):
                sizes.append(math.prod(known[letter] for letter in word))
            else:
                sizes.append(_Dim(y, letters.index(word)) if len(word) == 1 else -1)
        return self._reshape(y, sizes)

    def _slice(self, x: ir.Value, axis: int, start: int, end: int) -> ir.Value:
        b = self.builder
        if b.opset < 10:
            return b.op("Slice", [x], {"starts": [start], "ends": [end], "axes": [axis]})
        return b.op("Slice", [x, *(b.integers(number) for number in (start, end, axis))])

    def _size(self, dim: _Dim) -> ir.Value:
        b = self.builder
        return b.op("Gather", [b.op("Shape", [dim.value]), b.integers(dim.axis)], {"axis": 0})

    def _reshape(self, x: ir.Value, sizes: list[int | _Dim]) -> ir.Value:
        b = self.builder
        # 0 keeps the dim of the same axis.
        plain = [0 if size == _Dim(x, axis) else size for axis, size in enumerate(sizes)]
        if all(isinstance(size, int) for size in plain):
            return b.op("Reshape", [x, b.integers(*(size for size in plain if isinstance(size, int)))])
        parts = [b.integers(size) if isinstance(size, int) else self._size(size) for size in sizes]
        return b.op("Reshape", [x, b.op("Concat", parts, {"axis": 0})])
