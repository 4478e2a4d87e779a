"""`python -m onnxopt` is the `onnxopt` command."""

from onnxopt.cli import main

main()
