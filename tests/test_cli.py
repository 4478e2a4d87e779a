"""The command line: every subcommand, its JSON, and the documented exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt import cli
from onnxopt.errors import OptionError, RuntimeMissingError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """MatMul with a bias and a decomposed activation over a dynamic batch."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((8, 16)).astype(np.float32), "w"),
        numpy_helper.from_array(rng.standard_normal(16).astype(np.float32), "b"),
    ]
    nodes = [
        helper.make_node("Identity", ["x"], ["i"]),
        helper.make_node("MatMul", ["i", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["s"]),
        helper.make_node("Mul", ["a", "s"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command."""
    try:
        cli.main([str(one) for one in arguments])
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_optimize_writes_a_verified_model_and_says_what_was_gained(model: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    output = tmp_path / "out.onnx"
    code, out, _ = run(capsys, "optimize", model, "-o", output, "--verify")
    assert code == 0 and output.exists()
    assert "5 ->" in out and "Verified" in out


@pytest.mark.parametrize("suffix", [".json", ".html"])
def test_reports_are_written(model: Path, tmp_path: Path, capsys, suffix: str) -> None:  # type: ignore[no-untyped-def]
    report = tmp_path / f"report{suffix}"
    code, _, _ = run(capsys, "optimize", model, "-o", tmp_path / "o.onnx", "--report", report, "--dim", "N=2")
    text = report.read_text()
    assert code == 0
    assert (
        json.loads(text)["nodes"]["before"] == 5 if suffix == ".json" else "<svg" in text and "http-equiv" not in text
    )


def test_report_is_written_when_latency_cannot_be_measured(
    model: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeMissingError("The native library is missing.")

    monkeypatch.setattr("onnxopt.runtime.bench.compare_models", refuse)
    report = tmp_path / "report.html"
    code, _, err = run(capsys, "optimize", model, "-o", tmp_path / "o.onnx", "--report", report)
    sentence = "Latency was not measured: The native library is missing."
    assert code == 0 and sentence in err and sentence in report.read_text()


def test_json_of_a_run_lists_its_rewrites(model: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run(capsys, "optimize", model, "-o", tmp_path / "o.onnx", "--json")
    found = json.loads(out)
    assert code == 0 and found["nodes"]["after"] < found["nodes"]["before"]
    assert any(one["rule"] == "drop_identity" for one in found["rewrites"])


@pytest.mark.parametrize("arguments", [("passes",), ("ops",)])
def test_lists_are_json_too(capsys, arguments: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 0 and len(json.loads(out)) >= 1


def test_inspect_counts_operations_for_stated_dims(model: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run(capsys, "inspect", model, "--dim", "N=4", "--json")
    assert code == 0 and json.loads(out)["flops_by_op"]["MatMul"] == 2 * 4 * 8 * 16


def test_diff_and_verify_tell_by_their_exit_code(model: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    output = tmp_path / "o.onnx"
    run(capsys, "optimize", model, "-o", output)
    assert run(capsys, "diff", model, model)[0] == 0
    assert run(capsys, "diff", model, output)[0] == 1
    assert run(capsys, "verify", model, output)[0] == 0


@pytest.mark.parametrize("command", ["diff", "verify"])
def test_a_second_model_that_is_missing_is_told_apart(model: Path, capsys, command: str) -> None:  # type: ignore[no-untyped-def]
    code, _, err = run(capsys, command, model)
    assert code == 2 and "Missing argument 'SECOND'" in err


def test_verify_finds_a_changed_weight(model: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    changed = onnx.load(model)
    bias = next(one for one in changed.graph.initializer if one.name == "b")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, "b"))
    other = tmp_path / "changed.onnx"
    onnx.save(changed, other)
    code, out, _ = run(capsys, "verify", model, other)
    assert code == 1 and "differs" in out


def test_infinite_differences_are_null_in_json(model: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    changed = onnx.load(model)
    changed.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.full(16, np.inf, np.float32), "b"))
    other = tmp_path / "changed.onnx"
    onnx.save(changed, other)
    code, out, _ = run(capsys, "verify", model, other, "--json")
    assert code == 1 and "Infinity" not in out and json.loads(out)["samples"][0]["worst"] is None


def test_explain_names_rules_and_refuses_unknown_ones(model: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run(capsys, "explain", model, "--json")
    assert code == 0 and any(one["applied"] for one in json.loads(out)["rules"])
    code, _, err = run(capsys, "explain", model, "--rule", "no_such_rule")
    assert code == 2 and "no_such_rule" in err


def test_inline_puts_standard_ops_back(model: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    fused, plain = tmp_path / "fused.onnx", tmp_path / "plain.onnx"
    run(capsys, "optimize", model, "-o", fused)
    assert run(capsys, "inline", fused, "-o", plain)[0] == 0
    assert not any(node.domain for node in onnx.load(plain).graph.node)
    assert run(capsys, "verify", model, plain)[0] == 0


def test_bench_compares_models(model: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run(capsys, "bench", model, model, "--rounds", "1", "--dim", "N=2", "--json")
    found = json.loads(out)
    assert code == 0 and [one["name"] for one in found] == [str(model)] * 2


def test_bench_refuses_models_with_other_inputs(model: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    other = tmp_path / "other.onnx"
    onnx.save(
        onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 17]> g (float[3] q) => (float[3] y) { y = Abs (q) }'
        ),
        other,
    )
    code, _, err = run(capsys, "bench", model, other, "--rounds", "1", "--dim", "N=2")
    assert code == 3 and "other.onnx' does not run on the inputs of" in err and "'q'" in err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("optimize", "missing.onnx", "-o", "out.onnx"), 3),
        (("optimize", "{model}", "-o", "{model}"), 2),
        (("optimize", "{model}", "-o", "out.onnx", "--target", "tpu"), 2),
        (("optimize", "{model}", "-o", "out.onnx", "--passes", "no_such_pass"), 2),
        (("optimize", "{model}", "-o", "out.onnx", "--passes", ""), 2),
        (("optimize", "{model}", "-o", "out.onnx", "--passes", "fold_constants,,inline_ifs"), 2),
        (("optimize", "{model}", "-o", "out.onnx", "--dim", "N=x"), 2),
        (("optimize", "{model}", "-o", "out.onnx", "--opset", "99"), 2),
        (("optimize", "{model}", "-o", "out.onnx", "--opset", "-1"), 2),
        (("optimize", "{model}", "-o", "out.onnx", "--external-data", "cloud"), 2),
        (("optimize", "{model}", "-o", "out.onnx", "--report", "report.pdf"), 2),
        (("optimize", "{model}", "-o", "out.onnx", "--report", "missing/report.html"), 2),
        (("optimize", "{model}", "-o", "out.onnx", "--report", "folder.html"), 2),
        (("optimize", "{model}", "-o", "missing/out.onnx"), 2),
        (("optimize", "{model}", "-o", "pipe"), 2),
        (("tune", "{model}", "--input-shapes", "x:2x8", "-o", "{model}"), 2),
        (("tune", "{model}", "--input-shapes", "x:2x8", "-o", "folder.html"), 2),
        (("verify", "{model}", "{model}", "--seed", "-1"), 2),
        (("bench-kernel", "FusedNorm", "--chart", "chart.png"), 2),
        (("bench-kernel", "FusedNorm", "--chart", "missing/chart.svg"), 2),
        (("inspect", "{garbage}"), 3),
    ],
)
def test_bad_input_gets_a_sentence_and_its_exit_code(
    model: Path, tmp_path: Path, capsys, arguments: tuple[str, ...], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"not a model")
    os.mkfifo("pipe")
    Path("folder.html").mkdir()
    before = model.read_bytes()
    found, _, err = run(capsys, *(one.format(model=model, garbage=garbage) for one in arguments))
    assert found == code
    assert err.startswith("onnxopt: ") and err.rstrip().endswith(".")
    assert model.read_bytes() == before and not (tmp_path / "out.onnx").exists()


def test_names_of_passes_may_have_spaces_around_them(model: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    passes = "eliminate_noops, eliminate_dead_code"
    code, out, _ = run(capsys, "optimize", model, "-o", tmp_path / "o.onnx", "--passes", passes, "--json")
    assert code == 0 and [one["name"] for one in json.loads(out)["passes"]] == passes.split(", ")


@pytest.mark.parametrize("command", ["inspect", "optimize"])
def test_unknown_dims_are_warned_of_and_the_known_ones_named(model: Path, tmp_path: Path, capsys, command: str) -> None:  # type: ignore[no-untyped-def]
    output = ["-o", tmp_path / "o.onnx"] if command == "optimize" else []
    code, _, err = run(capsys, command, model, *output, "--dim", "batch=2")
    assert code == 0 and err == "warning: No dim is named 'batch'; the inputs' dims are: N.\n"


def test_verification_that_cannot_be_done_is_no_success(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    text = "g (float[3] x) => (float[3] y) { r = RandomNormal <shape = [3]> () y = Add (x, r) }"
    path = tmp_path / "random.onnx"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}'), path)
    code, out, _ = run(capsys, "optimize", path, "-o", tmp_path / "o.onnx", "--verify")
    assert code == 1 and "Not verified: it holds random ops" in out


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interruption_is_a_sentence(model: Path, capsys, monkeypatch: pytest.MonkeyPatch, as_json: bool) -> None:  # type: ignore[no-untyped-def]
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxopt.inspection.inspect", interrupted)
    code, out, err = run(capsys, "inspect", model, *(["--json"] if as_json else []))
    assert code == 130 and code in cli.EXIT_CODES
    assert json.loads(out)["error"] == "Interrupted." if as_json else err.strip() == "onnxopt: Interrupted."


def test_wrong_instruction_set_in_the_environment_is_a_sentence(capsys, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("ONNXOPT_MAX_ISA", "sse9")
    code, _, err = run(capsys, "ops")
    assert code == 2 and "ONNXOPT_MAX_ISA is 'sse9' and should be scalar" in err


def test_errors_are_json_when_json_is_asked_for(capsys) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run(capsys, "inspect", "missing.onnx", "--json")
    assert code == 3 and json.loads(out)["kind"] == "ModelError" and not err


def test_piped_tables_are_not_cut(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    name = "a_very_long_name_of_a_dimension_" * 10
    text = f"g (float[{name}, 3] x) => (float[{name}, 3] y) {{ y = Abs (x) }}"
    path = tmp_path / "long.onnx"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}'), path)
    code, out, _ = run(capsys, "inspect", path)
    assert code == 0 and f"{name} x 3" in out


def test_unknown_operations_are_said_to_be_unknown(model: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    _, out, _ = run(capsys, "inspect", model)
    assert "operations: 0 FLOP (4 nodes of unknown sizes not counted: fix dims with --dim N=...)" in out
    run(capsys, "optimize", model, "-o", tmp_path / "o.onnx")
    _, out, _ = run(capsys, "diff", model, tmp_path / "o.onnx")
    assert "operations unknown -> unknown" in out
    _, out, _ = run(capsys, "diff", model, tmp_path / "o.onnx", "--dim", "N=4")
    assert "operations 1.22 KFLOP -> " in out


@pytest.mark.parametrize("text", ["N", "N=", "=3", "N=-1", "N=5..2", "N=1..2..3"])
def test_malformed_dims_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="expected NAME=SIZE"):
        cli.parse_dims([text])


def test_a_dim_that_is_given_twice_is_refused() -> None:
    with pytest.raises(OptionError, match="--dim N=2: the dim 'N' is given twice"):
        cli.parse_dims(["N=1", "N=2"])


def test_output_that_cannot_be_written_is_named(model: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    target = tmp_path / f"{'n' * 240}.onnx"  # too long a name once it is that of a temporary file
    code, _, err = run(capsys, "optimize", model, "-o", target)
    assert code == 6 and err.startswith("onnxopt: The output cannot be written: ") and err.endswith(f": '{target}'\n")


def test_python_runs_the_package_as_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "onnxopt", "--help"], capture_output=True, text=True, check=True)
    assert "optimize" in done.stdout


COMMAND = '"$0" -m onnxopt "$@"'


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_streams_that_are_closed_are_no_error(model: Path, tmp_path: Path, closed: str) -> None:
    output = tmp_path / "out.onnx"
    command = ["bash", "-c", f"{COMMAND} {closed}", sys.executable, "optimize", str(model), "-o", str(output)]
    assert subprocess.run(command, check=False).returncode == 0 and output.exists()


@pytest.mark.parametrize("name", ["模型.onnx", os.fsdecode(b"\xff.onnx")], ids=["letters", "bytes"])
def test_names_that_the_terminal_has_no_letters_for(model: Path, tmp_path: Path, name: str) -> None:
    source, report = model.rename(tmp_path / name), tmp_path / "report.html"
    command = [sys.executable, "-m", "onnxopt", "optimize", source, "-o", tmp_path / "out.onnx", "--report", report]
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "\\" in done.stdout and "onnx" in report.read_text(encoding="utf-8")


def test_dims_are_sizes_or_bounds() -> None:
    assert cli.parse_dims(["N=1", "S=1..512"]) == {"N": 1, "S": (1, 512)}


def wrong_samples(folder: Path) -> dict[str, str | None]:
    """What --calib may be given by mistake, and what the command says."""
    for name in ("empty", "float64", "narrow", "flat", "other", "broken"):
        (folder / name).mkdir()
    np.savez(folder / "float64" / "a.npz", x=np.ones((2, 8)))
    np.save(folder / "narrow" / "a.npy", np.ones((2, 7), np.float32))
    np.save(folder / "flat" / "a.npy", np.ones(8, np.float32))
    np.savez(folder / "other" / "a.npz", y=np.ones((2, 8), np.float32))
    (folder / "broken" / "a.npz").write_bytes(b"PK\x03\x04")
    (folder / "a.npy").write_bytes((folder / "flat" / "a.npy").read_bytes())
    (folder / "mine.py").write_text(
        "import numpy as np\n"
        "def good(): return [{'x': np.ones((2, 8), np.float32)}] * 2\n"
        "def number(): return 3\n"
        "def stops():\n    yield from good()\n    raise OSError('no disk')\n"
        "def arrays(): return [np.ones((2, 8), np.float32)]\n"
    )
    return {
        "missing": "'missing' is no folder of calibration samples",
        "a.npy": "'a.npy' is no folder of calibration samples",
        "empty": "There is no calibration sample in empty",
        "float64": "'float64/a.npz': 'x' is of type float64 and should be float32",
        "narrow": "'narrow/a.npy': 'x' has the shape [2, 7] and should have [N, 8]",
        "flat": "'x' has 1 dims and should have 2",
        "other": "'other/a.npz' has no array 'x'; it has y",
        "broken": "'broken/a.npz' cannot be read",
        "mine.py:none": "--calib mine.py:none: 'mine.py' has no function 'none'",
        "nobody:none": "--calib nobody:none: 'nobody' cannot be loaded",
        "mine.py:number": "The calibration data are of type int",
        "mine.py:stops": "Calibration sample 2 cannot be had: OSError: no disk",
        "mine.py:arrays": "Calibration sample 0 is of type ndarray",
        "mine.py:good": None,
    }


def test_quantize_says_what_is_wrong_with_samples(
    model: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    for given, sentence in wrong_samples(tmp_path).items():
        output = tmp_path / "out.onnx"
        code, _, err = run(capsys, "quantize", model, "--format", "qdq", "--calib", given, "-o", output)
        assert (code, output.exists()) == ((2, False) if sentence else (0, True)), (given, err)
        assert (sentence or "") in err, given


def test_quantize_writes_a_model_and_says_what_became_integers(model: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run(capsys, "quantize", model, "--weights", "int8", "-o", tmp_path / "out.onnx")
    assert code == 0 and (tmp_path / "out.onnx").exists()
    assert "weights of int8" in out
