"""onnxopt: a graph-optimization compiler for ONNX."""

__version__ = "0.1.0"
