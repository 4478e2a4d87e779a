"""What the kernels of this example are measured on."""

from onnxopt.kernelbench import Case, Problem

GATED_RMS_NORM = """<domain: "com.example", opset_import: ["" : 21]>
GatedRmsNorm <epsilon> (x, gate, scale) => (y) {
    sigmoid = Sigmoid(gate)
    silu = Mul(gate, sigmoid)
    g = Mul(x, silu)
    squares = Mul(g, g)
    last = Constant<value_ints=[-1]>()
    mean = ReduceMean(squares, last)
    little = Constant<value_float: float = @epsilon>()
    sum = Add(mean, little)
    root = Sqrt(sum)
    normal = Div(g, root)
    y = Mul(normal, scale)
}"""


def gated(rows: int, width: int, *, item: int) -> Case:
    """An op of this library, whose definition is a function in standard ops: it is what onnxruntime runs, and in float64 the reference."""
    return Case(
        "y = com.example.GatedRmsNorm<epsilon=0.00001>(x, gate, scale)",
        inputs={"x": (rows, width), "gate": (rows, width)},
        constants={"scale": (width,)},
        expected=None,
        bytes_read=2 * item * rows * width,
        bytes_written=item * rows * width,
        operations=9 * rows * width,
        functions=(GATED_RMS_NORM,),
    )


def plain(rows: int, width: int, *, item: int) -> Case:
    """Standard ops that onnxopt makes a FusedNorm of, of which this library has a variant."""
    return Case(
        """squares = Mul(x, x)
        last = Constant<value_ints=[-1]>()
        mean = ReduceMean(squares, last)
        little = Constant<value_float=0.00001>()
        sum = Add(mean, little)
        root = Sqrt(sum)
        normal = Div(x, root)
        y = Mul(normal, scale)""",
        inputs={"x": (rows, width)},
        constants={"scale": (width,)},
        expected=None,
        bytes_read=item * rows * width,
        bytes_written=item * rows * width,
        operations=4 * rows * width,
    )


PROBLEMS = {"GatedRmsNorm": Problem(("ROWS", "WIDTH"), gated), "FusedNorm": Problem(("ROWS", "WIDTH"), plain)}
