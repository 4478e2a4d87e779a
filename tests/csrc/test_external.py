"""Libraries of kernels that are refused: each says why, and nothing of it stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import onnxopt
from onnxopt.errors import OptionError
from onnxopt.ops import describe_ops

pytest.importorskip("onnxopt._native", reason="the native library is not built")

SOURCE = """
#include <onnxopt/kernel.h>

static const char* create(const OnnxOptAttributes* attributes, void** state) { (void)attributes, *state = 0; return 0; }
static const char* outputs(const void* state, const OnnxOptTensor* inputs, size_t count, OnnxOptOutputs* made) {
  (void)state, (void)count;
  made->add(made, inputs->type, inputs->shape, inputs->rank);
  return 0;
}
static const char* run(const void* state, const OnnxOptTensor* inputs, size_t count, const OnnxOptTensor* made, size_t made_count,
                       const OnnxOptExecution* execution) {
  (void)state, (void)inputs, (void)count, (void)made, (void)made_count, (void)execution;
  return "It computes nothing.";
}
static const OnnxOptKernel kernels[] = {{DOMAIN, OP, VARIANT, ISA, 0, create, 0, outputs, RUN}};
static const OnnxOptKernelLibrary library = {ABI, 1, kernels};
const OnnxOptKernelLibrary* onnxopt_kernels(void) { return &library; }
"""
RIGHT = {
    "DOMAIN": '"com.example"',
    "OP": '"Nothing"',
    "VARIANT": '"nothing"',
    "ISA": '"scalar"',
    "RUN": "run",
    "ABI": "1",
}


@pytest.fixture(scope="module", autouse=True)
def nothing_stays():  # type: ignore[no-untyped-def]
    before = describe_ops()
    yield
    assert describe_ops() == before


def built(folder: Path, source: str, **macros: str) -> Path:
    """A library, written in C."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    (folder / "bad.c").write_text(source)
    defined = [f"-D{name}={value}" for name, value in macros.items()]
    flags = [
        "-std=c11",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unused-function",
        "-shared",
        "-fPIC",
        "-I",
        str(onnxopt.cmake_dir().parent / "include"),
    ]
    subprocess.run(["cc", *flags, *defined, "bad.c", "-o", "libbad.so"], cwd=folder, check=True)
    return folder / "libbad.so"


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"ABI": "7"}, "built for version 7 of the interface of kernels, and this onnxopt has 1: build it again."),
        ({"ISA": '"sse9"'}, "needs the instruction set 'sse9', and should need scalar, avx2"),
        ({"DOMAIN": '"ai.onnxopt"'}, "is for the op 'Nothing', which onnxopt does not have."),
        ({"OP": '"FusedNorm"'}, "The op 'FusedNorm' is onnxopt's own, in the domain ai.onnxopt."),
        (
            {"DOMAIN": '"ai.onnxopt"', "OP": '"FusedNorm"', "VARIANT": '"norm__scalar"'},
            "has a variant 'norm__scalar' already",
        ),
        ({"RUN": "0"}, "The kernel 'nothing' lacks 'create', 'outputs' or 'run'."),
        ({"VARIANT": '""'}, "has no domain, op, variant or instruction set."),
    ],
    ids=[
        "another version",
        "unknown instruction set",
        "unknown op",
        "op of ours",
        "variant of ours",
        "no function",
        "no name",
    ],
)
def test_says_what_is_wrong_with_a_library(tmp_path: Path, wrong: dict[str, str], sentence: str) -> None:
    library = built(tmp_path, SOURCE, **{**RIGHT, **wrong})
    with pytest.raises(OptionError) as error:
        onnxopt.load_kernels(library)
    assert f"The library of kernels '{library}' cannot be loaded: " in str(error.value) and sentence in str(error.value)


def test_a_library_without_kernels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="It has no kernels"):
        onnxopt.load_kernels(built(tmp_path, "int other;"))


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("text")
    with pytest.raises(OptionError, match=r"invalid ELF header|too short"):
        onnxopt.load_kernels(tmp_path / "text.so")


@pytest.mark.parametrize(
    ("own", "variant", "tuned", "most", "chosen"),
    [
        ({}, "nothing", "", "", "nothing"),
        ({}, "nothing", "", "75", "nothing"),
        ({"DOMAIN": '"ai.onnxopt"', "OP": '"FusedNorm"'}, "mine", "", "", "norm__cuda"),
        ({"DOMAIN": '"ai.onnxopt"', "OP": '"FusedNorm"'}, "mine", "mine", "75", "mine"),
    ],
    ids=["an op of the user's", "on an old device", "not for our op", "for our op where it is asked for"],
)
def test_kernels_for_cuda_devices_are_chosen(
    tmp_path: Path, own: dict[str, str], variant: str, tuned: str, most: str, chosen: str
) -> None:
    """Ours need the architecture that they are compiled for, and the user's are asked themselves."""
    library = built(tmp_path, SOURCE, **{**RIGHT, **own, "ISA": '"cuda"', "VARIANT": f'"{variant}"'})
    op = own.get("OP", RIGHT["OP"]).strip('"')
    (tmp_path / "tuned.toml").write_text(f'[variants]\n{op} = "{tuned}"\n' if tuned else "")
    code = f"import onnxopt; onnxopt.load_kernels({str(library)!r}); print(onnxopt._native.cuda_choice({op!r}, 90), end='')"
    variables = {"ONNXOPT_MAX_SM": most, "ONNXOPT_TUNING": str(tmp_path / "tuned.toml")}
    told = subprocess.run([sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True)
    assert told.stdout == chosen, told.stderr
