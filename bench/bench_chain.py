"""Time of optimizing a chain of nodes, by its length: it must grow in proportion.

python bench/bench_chain.py [LENGTH ...]
"""

from __future__ import annotations

import sys
import time

from onnx import TensorProto, helper

from onnxopt import ir
from onnxopt.pipeline import PassManager

OPS = ("Relu", "Transpose", "Sigmoid", "Softmax")


def chain(length: int) -> ir.Model:
    """A chain that is not all element-wise, so that nothing collapses it at once."""
    nodes = [helper.make_node(OPS[i % len(OPS)], [f"v{i}"], [f"v{i + 1}"], name=f"n{i}") for i in range(length)]
    info = [helper.make_tensor_value_info(f"v{i}", TensorProto.FLOAT, [4, 4]) for i in (0, length)]
    graph = helper.make_graph(nodes, "chain", info[:1], info[1:])
    return ir.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10))


def main() -> None:
    first = None
    for length in [int(text) for text in sys.argv[1:]] or [10_000, 100_000]:
        model = chain(length)
        start = time.perf_counter()
        report = PassManager("cpu").run(model)
        seconds = time.perf_counter() - start
        first = first or (length, seconds)
        print(
            f"{length:8d} nodes {seconds:7.2f} s  {seconds / first[1]:5.1f} x  -> {report.nodes_after} nodes",
            flush=True,
        )


if __name__ == "__main__":
    main()
