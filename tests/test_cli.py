"""The command line: every subcommand, its JSON, and the documented exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt import cli
from onnxopt.errors import OptionError


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


def test_verify_finds_a_changed_weight(model: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    changed = onnx.load(model)
    bias = next(one for one in changed.graph.initializer if one.name == "b")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, "b"))
    other = tmp_path / "changed.onnx"
    onnx.save(changed, other)
    code, out, _ = run(capsys, "verify", model, other)
    assert code == 1 and "differs" in out


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
    assert code == 0 and json.loads(out)[0]["name"] == "model.onnx"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("optimize", "missing.onnx", "-o", "out.onnx"), 3),
        (("optimize", "{model}", "-o", "{model}"), 2),
        (("optimize", "{model}", "-o", "out.onnx", "--target", "tpu"), 2),
        (("optimize", "{model}", "-o", "out.onnx", "--passes", "no_such_pass"), 2),
        (("optimize", "{model}", "-o", "out.onnx", "--dim", "N=x"), 2),
        (("inspect", "{garbage}"), 3),
    ],
)
def test_bad_input_gets_a_sentence_and_its_exit_code(
    model: Path, tmp_path: Path, capsys, arguments: tuple[str, ...], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"not a model")
    before = model.read_bytes()
    found, _, err = run(capsys, *(one.format(model=model, garbage=garbage) for one in arguments))
    assert found == code
    assert err.startswith("onnxopt: ") and err.rstrip().endswith(".")
    assert model.read_bytes() == before and not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("text", ["N", "N=", "=3", "N=-1", "N=5..2", "N=1..2..3"])
def test_malformed_dims_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="expected NAME=SIZE"):
        cli.parse_dims([text])


def test_dims_are_sizes_or_bounds() -> None:
    assert cli.parse_dims(["N=1", "S=1..512"]) == {"N": 1, "S": (1, 512)}
