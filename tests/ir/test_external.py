"""External data: mapped from the model's folder, refused anywhere else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

import helpers
from onnxopt import ir
from onnxopt.errors import ModelError, OptionError
from onnxopt.ir.mapped import MappedTensor

WEIGHT = np.arange(4096, dtype=np.float32)


def _write(folder: Path, location: str = "data.bin", **entries: int | str) -> Path:
    """A model whose weight lies in `location`; `entries` change or add what the tensor says about it."""
    proto = helpers.model("g (float[1] x) => (float[4096] y) { y = Add (x, w) }", w=WEIGHT)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": 0, "length": WEIGHT.nbytes, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def _weight(model: ir.Model) -> np.ndarray:
    value = model.graph.initializers["w"].const_value
    assert value is not None
    return value.numpy()


def test_data_is_mapped(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(b"abc" + WEIGHT.tobytes())
    model = ir.load(_write(tmp_path, offset=3))
    assert isinstance(model.graph.initializers["w"].const_value, MappedTensor)
    np.testing.assert_array_equal(_weight(model), WEIGHT)


def test_length_may_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(WEIGHT.tobytes() + b"more")
    path = _write(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    del proto.graph.initializer[0].external_data[1:]
    path.write_bytes(proto.SerializeToString())
    np.testing.assert_array_equal(_weight(ir.load(path)), WEIGHT)


def test_folders_below_and_links_inside_are_fine(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/data.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "link.bin").symlink_to("below/data.bin")
    for location in ("below/data.bin", "below/../below/data.bin", "link.bin"):
        np.testing.assert_array_equal(_weight(ir.load(_write(tmp_path, location))), WEIGHT)


def test_relative_path_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.bin").write_bytes(WEIGHT.tobytes())
    _write(tmp_path)
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(_weight(ir.load("model.onnx")), WEIGHT)


@pytest.mark.parametrize(
    "location",
    [
        "/etc/passwd",
        "../data.bin",
        "../../etc/passwd",
        "below/../../data.bin",
        "",
        ".",
        "bad\0name",
        "absent.bin",
        "a" * 5000,
    ],
)
def test_refuses_data_outside_of_the_folder(tmp_path: Path, location: str) -> None:
    (tmp_path / "data.bin").write_bytes(WEIGHT.tobytes())
    with pytest.raises(ModelError, match="'w'"):
        ir.load(_write(tmp_path / "models", location))


def test_refuses_links_that_lead_outside(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/data.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "models").mkdir()
    (tmp_path / "models/link.bin").symlink_to(tmp_path / "data.bin")
    (tmp_path / "models/folder").symlink_to(tmp_path / "outside")
    for location in ("link.bin", "folder/data.bin"):
        with pytest.raises(ModelError, match="out of the model's folder"):
            ir.load(_write(tmp_path / "models", location))


def test_refuses_pipes_and_folders_as_data(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for location in ("pipe", "folder"):
        with pytest.raises(ModelError, match="no such file"):
            ir.load(_write(tmp_path, location))


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": 4},
        {"offset": -4},
        {"offset": 1 << 62},
        {"length": WEIGHT.nbytes - 4},
        {"length": WEIGHT.nbytes + 4},
        {"length": -1},
        {"length": "many"},
        {"offset": "9" * 5000},
    ],
    ids=lambda entries: f"{next(iter(entries))}_{str(next(iter(entries.values())))[:8]}",
)
def test_refuses_ranges_that_do_not_fit(tmp_path: Path, entries: dict[str, int | str]) -> None:
    (tmp_path / "data.bin").write_bytes(WEIGHT.tobytes())
    with pytest.raises(ModelError):
        ir.load(_write(tmp_path, **entries))


def test_refuses_external_data_of_a_model_in_memory(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(WEIGHT.tobytes())
    proto = onnx.load(_write(tmp_path), load_external_data=False)
    with pytest.raises(ModelError, match="load it from its file"):
        ir.load(proto)


@pytest.mark.parametrize("mode", [None, "inside", "external", "reference"])
def test_written_weights_read_back(tmp_path: Path, mode: str | None) -> None:
    (tmp_path / "data.bin").write_bytes(b"abc" + WEIGHT.tobytes())
    out = tmp_path / "out.onnx"
    ir.save(ir.load(_write(tmp_path, offset=3)), out, external_data=mode)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(onnx.load(out).graph.initializer[0]), WEIGHT)
    assert (tmp_path / "out.onnx.data").exists() == (mode in (None, "external"))


def test_reference_names_the_input_data_from_the_output_folder(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/data.bin").write_bytes(WEIGHT.tobytes())
    ir.save(ir.load(_write(tmp_path / "models")), tmp_path / "out.onnx", external_data="reference")
    proto = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    assert proto.graph.initializer[0].external_data[0].value == "models/data.bin"


def test_reference_out_of_the_output_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "models/data.bin").write_bytes(WEIGHT.tobytes())
    with pytest.raises(OptionError, match="outside of its folder"):
        ir.save(ir.load(_write(tmp_path / "models")), tmp_path / "out/out.onnx", external_data="reference")
    assert not list((tmp_path / "out").iterdir())


def test_the_file_may_be_replaced_after_loading(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(WEIGHT.tobytes())
    model = ir.load(_write(tmp_path))
    (tmp_path / "new.bin").write_bytes(bytes(WEIGHT.nbytes))
    os.replace(tmp_path / "new.bin", tmp_path / "data.bin")
    np.testing.assert_array_equal(_weight(model), WEIGHT)
