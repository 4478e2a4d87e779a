"""Loops as the passes see them: one view of Loop and Scan, how often they run, what depends on what, and how they are rebuilt."""

from onnxopt.loops.batching import Batch, can_batch, is_elementwise
from onnxopt.loops.dependences import can_fail, is_movable, varying_values
from onnxopt.loops.scans import arranged, length
from onnxopt.loops.trips import runs_at_least_once, trip_count
from onnxopt.loops.view import Carry, Loop, ScanInput, ScanOutput, loops_of, view

__all__ = [
    "Batch",
    "Carry",
    "Loop",
    "ScanInput",
    "ScanOutput",
    "arranged",
    "can_batch",
    "can_fail",
    "is_elementwise",
    "is_movable",
    "length",
    "loops_of",
    "runs_at_least_once",
    "trip_count",
    "varying_values",
    "view",
]
