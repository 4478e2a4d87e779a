"""Saving: whole or not at all, weights streamed, inputs never changed."""

from __future__ import annotations

import importlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import helpers
from onnxopt import ir
from onnxopt.errors import ModelError, OptionError
from onnxopt.ir import mapped

saving = importlib.import_module("onnxopt.ir.save")

WEIGHT = np.arange(1 << 18, dtype=np.float32)
OLD = b"the old output"


def _proto(**weights: np.ndarray) -> onnx.ModelProto:
    return helpers.model("g (float[1] x) => (float[N] y) { y = Add (x, w) }", **{"w": WEIGHT, **weights})


def _file(folder: Path, name: str = "in.onnx") -> Path:
    onnx.save(_proto(small=np.arange(3), tail=WEIGHT[::2].copy()), folder / name)
    return folder / name


def _external_file(folder: Path) -> Path:
    onnx.save(_proto(), folder / "in.onnx", save_as_external_data=True, location="in.data", size_threshold=0)
    return folder / "in.onnx"


def _arrays(path: Path) -> dict[str, np.ndarray]:
    return {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


def _temporary_files(folder: Path) -> list[Path]:
    return list(folder.glob(".*.tmp"))


@pytest.mark.parametrize("mode", [None, "auto", "inside", "external"])
def test_the_model_reads_back(tmp_path: Path, mode: str | None) -> None:
    source, out = _file(tmp_path), tmp_path / "out.onnx"
    ir.save(ir.load(source), out, external_data=mode)
    onnx.checker.check_model(out)
    expected, found = _arrays(source), _arrays(out)
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    assert (tmp_path / "out.onnx.data").exists() == (mode == "external")
    assert not _temporary_files(tmp_path)


@pytest.mark.parametrize("mode", ["inside", "external"])
def test_same_model_gives_the_same_bytes(tmp_path: Path, mode: str) -> None:
    source = _file(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        ir.save(ir.load(source), tmp_path / name / "out.onnx", external_data=mode)
    for one in (tmp_path / "a").iterdir():
        assert one.read_bytes() == (tmp_path / "b" / one.name).read_bytes()


def test_a_second_round_changes_no_byte(tmp_path: Path) -> None:
    ir.save(ir.load(_file(tmp_path)), tmp_path / "one.onnx")
    ir.save(ir.load(tmp_path / "one.onnx"), tmp_path / "two.onnx")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_copies_without_help_of_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "_kernel_copy", lambda *_: 0)
    monkeypatch.setattr(mapped, "CHUNK_BYTES", 1000)
    ir.save(ir.load(_file(tmp_path)), tmp_path / "out.onnx")
    np.testing.assert_array_equal(_arrays(tmp_path / "out.onnx")["w"], WEIGHT)


def test_external_tensors_start_on_pages_and_run(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    ir.save(ir.load(_file(tmp_path)), out, external_data="external")
    for tensor in onnx.load(out, load_external_data=False).graph.initializer:
        entries = {one.key: one.value for one in tensor.external_data}
        if entries:
            aligned = saving.LARGE_ALIGNMENT if int(entries["length"]) >= saving.LARGE_TENSOR else saving.PAGE_ALIGNMENT
            assert int(entries["offset"]) % aligned == 0
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": np.zeros(1, np.float32)})[0], WEIGHT)


def test_models_over_the_protobuf_limit_become_external(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "PROTOBUF_LIMIT", 1 << 20)
    model = ir.load(_file(tmp_path))
    ir.save(model, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").exists()
    with pytest.raises(ModelError, match="write it to a file"):
        ir.to_proto(model)


def test_the_model_is_not_changed(tmp_path: Path) -> None:
    model = ir.load(_file(tmp_path))
    before = model.graph.initializers["w"].const_value
    ir.save(model, tmp_path / "out.onnx", external_data="external")
    assert model.graph.initializers["w"].const_value is before


def test_large_tensors_in_attributes_and_subgraphs_are_written(tmp_path: Path) -> None:
    proto = helpers.model(
        "g (bool c, float[1] x) => (float[N] y) { y = If (c) <then_branch = t () => (float[N] p) { p = Add (x, w) },"
        " else_branch = e () => (float[N] q) { q = Constant () }> }"
    )
    then_branch, else_branch = (attribute.g for attribute in proto.graph.node[0].attribute)
    then_branch.initializer.append(onnx.numpy_helper.from_array(WEIGHT, "w"))
    attribute = else_branch.node[0].attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    attribute.t.CopyFrom(onnx.numpy_helper.from_array(-WEIGHT))
    onnx.save(proto, tmp_path / "in.onnx")
    for mode in ("inside", "external"):
        out = tmp_path / f"{mode}.onnx"
        ir.save(ir.load(tmp_path / "in.onnx"), out, external_data=mode)
        for condition in (True, False):
            feeds = {"c": np.array(condition), "x": np.zeros(1, np.float32)}
            helpers.assert_same(proto, onnx.load(out), feeds)


# --- refusals --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("link", ["same", "symlink", "hardlink", "dots"])
def test_refuses_to_overwrite_its_input(tmp_path: Path, link: str) -> None:
    source = _file(tmp_path)
    before = source.read_bytes()
    out = {"same": source, "dots": tmp_path / ".." / tmp_path.name / "in.onnx"}.get(link, tmp_path / "out.onnx")
    if link == "symlink":
        out.symlink_to(source)
    elif link == "hardlink":
        os.link(source, out)
    with pytest.raises(OptionError, match="read from"):
        ir.save(ir.load(source), out)
    assert source.read_bytes() == before


def test_refuses_to_overwrite_the_data_of_its_input(tmp_path: Path) -> None:
    source = _external_file(tmp_path)
    os.link(tmp_path / "in.data", tmp_path / "out.onnx.data")
    for out in (tmp_path / "in.data", tmp_path / "out.onnx"):
        with pytest.raises(OptionError, match="read from"):
            ir.save(ir.load(source), out)


def test_refuses_to_overwrite_plain_external_tensors(tmp_path: Path) -> None:
    import onnx_ir

    _external_file(tmp_path)
    with pytest.raises(OptionError, match="read from"):
        ir.save(onnx_ir.load(tmp_path / "in.onnx"), tmp_path / "in.data")


def test_refuses_unknown_mode_and_missing_folder(tmp_path: Path) -> None:
    model = ir.load(_proto())
    with pytest.raises(OptionError, match="inside, external"):
        ir.save(model, tmp_path / "out.onnx", external_data="sideways")
    with pytest.raises(OptionError, match="does not exist"):
        ir.save(model, tmp_path / "absent" / "out.onnx")
    with pytest.raises(OptionError, match="folder"):
        ir.save(model, tmp_path)


@pytest.mark.parametrize("linked", [False, True])
def test_refuses_what_is_no_ordinary_file(tmp_path: Path, linked: bool) -> None:
    """A device or a pipe would be gone."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    with pytest.raises(OptionError, match="is not an ordinary file"):
        ir.save(ir.load(_proto()), link if linked else pipe)
    assert pipe.is_fifo() and link.is_symlink()


def test_a_link_is_replaced_and_the_file_that_it_names_stays(tmp_path: Path) -> None:
    old, link = tmp_path / "old.onnx", tmp_path / "link.onnx"
    old.write_bytes(OLD)
    link.symlink_to(old)
    ir.save(ir.load(_proto()), link)
    assert not link.is_symlink() and old.read_bytes() == OLD
    onnx.checker.check_model(link)


@pytest.mark.parametrize("protected", ["out.onnx", "."])
def test_refuses_what_may_not_be_written(tmp_path: Path, protected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out, access = tmp_path / "out.onnx", os.access
    out.write_bytes(OLD)
    monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and Path(path) != tmp_path / protected)
    with pytest.raises(PermissionError, match="cannot be written"):
        ir.save(ir.load(_proto()), out)
    assert out.read_bytes() == OLD


# --- failures --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["inside", "external"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, MemoryError])
def test_failure_leaves_the_old_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], mode: str
) -> None:
    model = ir.load(_file(tmp_path))
    out = tmp_path / "out.onnx"
    out.write_bytes(OLD)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(saving, "_write_tensor", fail)
    with pytest.raises(error):
        ir.save(model, out, external_data=mode)
    assert out.read_bytes() == OLD
    assert {one.name for one in tmp_path.iterdir()} == {"in.onnx", "out.onnx"}


LIMITED = """
import resource, signal, sys
from onnxopt import ir
model = ir.load(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
try:
    ir.save(model, sys.argv[2], external_data=sys.argv[3])
except OSError as error:
    print("refused", error.errno)
"""


@pytest.mark.parametrize("mode", ["inside", "external"])
@pytest.mark.parametrize("size", [0, 100, 700_000])
def test_file_that_may_not_grow_leaves_the_old_output(tmp_path: Path, mode: str, size: int) -> None:
    source, out = _file(tmp_path), tmp_path / "out.onnx"
    out.write_bytes(OLD)
    before = source.read_bytes()
    arguments = [sys.executable, "-c", LIMITED, str(source), str(out), mode, str(size)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert "refused 27" in done.stdout, done.stderr
    assert (out.read_bytes(), source.read_bytes()) == (OLD, before)
    assert {one.name for one in tmp_path.iterdir()} == {"in.onnx", "out.onnx"}


@pytest.mark.parametrize("mode", ["inside", "external"])
def test_full_disk_leaves_the_old_output(tmp_path: Path, mode: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        model, out = ir.load(_file(tmp_path)), disk / "out.onnx"
        out.write_bytes(OLD)
        with pytest.raises(OSError, match="No space"):
            ir.save(model, out, external_data=mode)
        assert out.read_bytes() == OLD
        assert [one.name for one in disk.iterdir()] == ["out.onnx"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


STUCK = """
import sys, time
from onnxopt import ir
import onnxopt.ir.mapped as mapped
model = ir.load(sys.argv[1])
copy = mapped.MappedTensor.copy_to
def slow(self, target):
    copy(self, target)
    print("written", flush=True)
    time.sleep(60)
mapped.MappedTensor.copy_to = slow
ir.save(model, sys.argv[2], external_data=sys.argv[3])
"""


@pytest.mark.parametrize("mode", ["inside", "external"])
def test_killed_process_leaves_the_old_output_and_the_next_save_cleans_up(tmp_path: Path, mode: str) -> None:
    source, out = _file(tmp_path), tmp_path / "out.onnx"
    out.write_bytes(OLD)
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(source), str(out), mode], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert out.read_bytes() == OLD
    assert _temporary_files(tmp_path)
    ir.save(ir.load(source), out, external_data=mode)
    assert not _temporary_files(tmp_path)
    np.testing.assert_array_equal(_arrays(out)["w"], WEIGHT)


def test_temporary_files_of_running_processes_stay(tmp_path: Path) -> None:
    other = tmp_path / f".out.onnx.onnxopt-{os.getppid()}.tmp"
    other.touch()
    ir.save(ir.load(_proto()), tmp_path / "out.onnx")
    assert other.exists()


def test_saving_costs_little_more_than_copying(tmp_path: Path) -> None:
    proto = _proto()
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.zeros(32 << 20, np.float32), "w"))
    onnx.save(proto, tmp_path / "in.onnx")
    model = ir.load(tmp_path / "in.onnx")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    ir.save(model, tmp_path / "out.onnx")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 0.05
