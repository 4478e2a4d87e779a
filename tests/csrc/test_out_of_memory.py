"""What no memory holds is an error of the run, whichever thread it happens on."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from helpers import node_model

pytest.importorskip("onnxopt._native", reason="the native library is not built")

RUN = """
import resource, sys
import numpy as np
import onnxruntime
from onnxopt.runtime.library import register

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 4
options.log_severity_level = 4
register(options)
session = onnxruntime.InferenceSession(sys.stdin.buffer.read(), options, providers=["CPUExecutionProvider"])
mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + (1 << 30),) * 2)
for pixels in (64, 64, 0):
    feeds = {"x0": np.ones((pixels, 1, 1, 1), np.float32), "x1": np.ones((1, 512, 3, 16), np.float32)}
    try:
        print(session.run(None, feeds)[0].shape)
    except Exception as error:
        print(error)
"""


def test_memory_that_tasks_do_not_get() -> None:
    """Each task of the convolution asks for lines of several GiB."""
    attributes = {"kernel_shape": [1, 3], "pads": [0, 2**28, 0, 2**28], "strides": [1, 2**27], "filters": 8192}
    feeds = [np.ones((1, 1, 1, 1), np.float32), np.ones((1, 512, 3, 16), np.float32)]
    proto = node_model("FusedConv", attributes, feeds)
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=proto.SerializeToString(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    first, second, nothing = done.stdout.decode().splitlines()
    assert "onnxopt FusedConv: std::bad_alloc" in first
    assert "onnxopt FusedConv: std::bad_alloc" in second
    assert nothing == "(0, 1, 4, 8192)"
