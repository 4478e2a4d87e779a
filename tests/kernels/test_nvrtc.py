"""How NVRTC is found and asked, and what is kept on disk: with a library that answers as NVRTC does and tells what it was asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

native = pytest.importorskip("onnxopt._native", reason="the native module is not built")

ROOT = Path(__file__).resolve().parents[2]

STAND_IN = r"""
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
namespace {
std::string code, log_text;
void tell(const std::string& text) {
  if (FILE* file = std::fopen(std::getenv("STAND_IN_LOG"), "a")) {
    std::fprintf(file, "%s\n", text.c_str());
    std::fclose(file);
  }
}
}  // namespace
extern "C" {
int nvrtcVersion(int* major, int* minor) { *major = 12, *minor = std::atoi(std::getenv("STAND_IN_MINOR")); return 0; }
int nvrtcGetNumSupportedArchs(int* count) { *count = 3; return 0; }
int nvrtcGetSupportedArchs(int* list) { list[0] = 75, list[1] = 80, list[2] = 90; return 0; }
int nvrtcCreateProgram(void** program, const char* source, const char*, int, const char* const*, const char* const*) {
  code = source;
  *program = &code;
  return 0;
}
int nvrtcDestroyProgram(void** program) { *program = nullptr; return 0; }
int nvrtcCompileProgram(void*, int count, const char* const* options) {
  if (code.find("wrong") != code.npos) { log_text = "expression.cu(1): error: wrong\nmore"; return 6; }
  tell(options[count - 1]);
  code = std::string(options[count - 1]) + " of " + code;
  return 0;
}
int nvrtcGetCUBINSize(void*, size_t* size) { *size = code.size(); return 0; }
int nvrtcGetCUBIN(void*, char* text) { std::memcpy(text, code.data(), code.size()); return 0; }
int nvrtcGetPTXSize(void*, size_t* size) { *size = code.size(); return 0; }
int nvrtcGetPTX(void*, char* text) { std::memcpy(text, code.data(), code.size()); return 0; }
int nvrtcGetProgramLogSize(void*, size_t* size) { *size = log_text.size() + 1; return 0; }
int nvrtcGetProgramLog(void*, char* text) { std::strcpy(text, log_text.c_str()); return 0; }
const char* nvrtcGetErrorString(int) { return "NVRTC_ERROR_COMPILATION"; }
}
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine")
    folder = tmp_path_factory.mktemp("nvrtc")
    (folder / "nvrtc.cc").write_text(STAND_IN)
    subprocess.run(
        [compiler, "-shared", "-fPIC", str(folder / "nvrtc.cc"), "-o", str(folder / "libnvrtc.so")], check=True
    )
    return folder / "libnvrtc.so"


Compile = Callable[..., str]


@pytest.fixture
def compiled(stand_in: Path, tmp_path: Path) -> Compile:
    """What a process of its own makes of a source, or the sentence that it gets; the variables are set for it."""

    def run(source: str = "source", sm: int = 90, **variables: str) -> str:
        code = (
            "import sys\n"
            f"sys.path.insert(0, {str(Path(native.__file__).parent)!r})\n"
            "import _native\n"
            f"try: print(_native.compile_cuda({source!r}, {sm}).decode())\n"
            "except ValueError as error: print(error)\n"
        )
        usual = {
            "ONNXOPT_NVRTC": str(stand_in),
            "ONNXOPT_CACHE_DIR": str(tmp_path / "cache"),
            "STAND_IN_LOG": str(tmp_path / "log"),
            "STAND_IN_MINOR": "4",
        }
        environment = {**os.environ, **usual, **variables}
        done = subprocess.run([sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.rstrip("\n")

    return run


def compilations(folder: Path) -> int:
    log = folder / "log"
    return len(log.read_text().splitlines()) if log.exists() else 0


# --- what is compiled for ---
@pytest.mark.parametrize(
    ("sm", "most", "option"),
    [
        (90, "", "sm_90"),
        (80, "", "sm_80"),
        (86, "", "compute_80"),
        (120, "", "compute_90"),
        (90, "sm_80", "compute_80"),
        (90, "89", "compute_80"),
        (80, "90", "sm_80"),
    ],
)
def test_machine_code_where_nvrtc_knows_the_device_else_ptx(sm: int, most: str, option: str, compiled: Compile) -> None:
    assert compiled(sm=sm, ONNXOPT_MAX_SM=most) == f"--gpu-architecture={option} of source"


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"ONNXOPT_NVRTC": "off"}, "ONNXOPT_NVRTC is off."),
        ({"ONNXOPT_NVRTC": "/nowhere/libnvrtc.so"}, "ONNXOPT_NVRTC names a library that cannot be loaded: "),
        ({"ONNXOPT_MAX_SM": "75"}, "NVRTC 12.4 compiles nothing for sm_75."),
        ({"ONNXOPT_MAX_SM": "ninety"}, "ONNXOPT_MAX_SM is 'ninety' and should be an architecture such as 80 or sm_90."),
    ],
)
def test_says_why_nothing_is_compiled(variables: dict[str, str], sentence: str, compiled: Compile) -> None:
    assert compiled(**variables).startswith(sentence)


def test_another_library_is_no_nvrtc(compiled: Compile) -> None:
    path = next(Path(native.__file__).parent.glob("libonnxopt_ops.so"))
    assert compiled(ONNXOPT_NVRTC=str(path)) == "The NVRTC that was found is older than 11.2."


def test_what_nvrtc_says_of_a_source(compiled: Compile, tmp_path: Path) -> None:
    sentence = "NVRTC cannot compile: NVRTC_ERROR_COMPILATION: expression.cu(1): error: wrong."
    assert compiled("wrong") == sentence
    assert not (tmp_path / "cache").exists()


# --- what is kept ---
def test_is_compiled_once_for_each_source_architecture_and_version(compiled: Compile, tmp_path: Path) -> None:
    for _ in range(2):
        assert compiled("one").endswith("of one")
    assert compilations(tmp_path) == 1
    for changed in ({"source": "another"}, {"sm": 80}, {"STAND_IN_MINOR": "5"}):
        compiled(**{"source": "one", **changed})
    assert compilations(tmp_path) == 4
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".bin"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-9],
        lambda content: b"",
        lambda content: content[:-12] + b"x" + content[-11:],
        lambda content: content.replace(b"\nsource", b"\nsauces"),
    ],
    ids=["cut", "empty", "changed", "of another source"],
)
def test_a_damaged_entry_is_made_again(damage: Callable[[bytes], bytes], compiled: Compile, tmp_path: Path) -> None:
    right = compiled()
    (entry,) = (tmp_path / "cache").iterdir()
    content = entry.read_bytes()
    assert damage(content) != content
    entry.write_bytes(damage(content))
    assert compiled() == right
    assert entry.read_bytes() == content
    assert compilations(tmp_path) == 2


def test_folders_of_the_cache(compiled: Compile, tmp_path: Path) -> None:
    home, xdg = tmp_path / "home", tmp_path / "xdg"
    compiled(ONNXOPT_CACHE_DIR="", XDG_CACHE_HOME=str(xdg), HOME=str(home))
    assert len(list((xdg / "onnxopt").iterdir())) == 1 and not home.exists()
    compiled(ONNXOPT_CACHE_DIR="", XDG_CACHE_HOME="", HOME=str(home))
    assert len(list((home / ".cache" / "onnxopt").iterdir())) == 1
    for _ in range(2):
        compiled(ONNXOPT_CACHE_DIR="off", HOME=str(home))
    assert compilations(tmp_path) == 4


def test_a_folder_that_cannot_be_written_is_no_error(compiled: Compile, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for _ in range(2):
        assert compiled(ONNXOPT_CACHE_DIR=str(tmp_path / "file")).endswith("of source")
    assert compilations(tmp_path) == 2
