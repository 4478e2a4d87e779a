"""Which variants CUDA devices run, under ONNXOPT_MAX_SM."""

from __future__ import annotations

import pytest

native = pytest.importorskip("onnxopt._native", reason="the native module is not built")

OPS = [op["op"] for op in native.ops() if any(one["device"] == "cuda" for one in op["variants"])]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("sm", [80, 86, 90, 120])
@pytest.mark.parametrize("most", ["", "80", "sm_90", "999"])
def test_a_variant_for_every_device(op: str, sm: int, most: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chosen one needs neither more than the device has nor than is allowed, and none before it does."""
    monkeypatch.setenv("ONNXOPT_MAX_SM", most)
    cap = min(sm, int(most.removeprefix("sm_") or 999))
    (variants,) = [one["variants"] for one in native.ops() if one["op"] == op]
    of_device = [one for one in variants if one["device"] == "cuda"]
    needed = {one["name"]: 80 if one["isa"] == "cuda" else int(one["isa"].removeprefix("sm_")) for one in of_device}
    assert native.cuda_choice(op, sm) == next(name for name, least in needed.items() if least <= cap)


@pytest.mark.parametrize(
    ("op", "sm", "most", "sentence"),
    [
        ("FusedElementwise", 75, "", "It has no CUDA kernel for the architecture sm_75."),
        ("FusedElementwise", 90, "75", "architecture sm_75, to which ONNXOPT_MAX_SM limits it."),
        ("FusedElementwise", 90, "fast", "ONNXOPT_MAX_SM is 'fast' and should be an architecture such as 80 or sm_90."),
        ("FusedElementwise", 90, "-80", "ONNXOPT_MAX_SM is '-80'"),
        ("FusedPool", 90, "", "It has no CUDA kernel."),
    ],
)
def test_says_why_there_is_none(op: str, sm: int, most: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXOPT_MAX_SM", most)
    with pytest.raises(ValueError) as error:
        native.cuda_choice(op, sm)
    assert sentence in str(error.value)


def test_processors_are_not_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXOPT_MAX_SM", "75")
    for op in native.ops():
        assert sum(one["chosen"] for one in op["variants"] if one["device"] == "cpu") == 1
