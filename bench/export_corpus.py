"""Export the corpus of subgraphs that fusions are tested on, as ONNX text.

    PYTHONPATH=tests python bench/export_corpus.py tests/fusions/corpus [--only TEXT] [--trained FOLDER]

Needs torch 2.13 and transformers 5.23: the same versions give the same bytes. With `--trained`, a folder of the models that
`bench/models.py` fetches, the cuts of trained models are written as well. Files that were written by hand stay as they are.
"""

from __future__ import annotations

import argparse
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime
import torch
from corpus_cases import load_all
from corpus_cases.cases import CASES, SIZES, Case, Function
from corpus_cases.text import write_model
from corpus_cases.trained import CUTS, Cut, cut_out
from corpus_cases.trained import EXPORTERS as TRAINED

import corpus

VARIADIC = inspect.Parameter.VAR_POSITIONAL
EXPORTERS = {"ts": "torchscript", "dyn": "dynamo"}


def variants(one: Case) -> Iterator[tuple[str, str, int, bool]]:
    """File stem, exporter, opset and whether dims are dynamic, for every variant of a case."""
    for word in one.variants:
        found = re.fullmatch(r"(ts|dyn)(\d+)(s?)", word)
        assert found, word
        exporter, opset, static = EXPORTERS[found[1]], int(found[2]), bool(found[3])
        yield f"{one.name}_{exporter}{opset}{'_static' if static else ''}", exporter, opset, not static


def randomize(module: torch.nn.Module) -> None:
    """Values that no exporter can fold away, such as biases of zero, and that are short as text."""
    for name, parameter in [*module.named_parameters(), *module.named_buffers()]:
        if name.endswith("running_var"):
            parameter.data = torch.rand_like(parameter).add(0.5).mul(100).round() / 100
        elif isinstance(parameter, torch.nn.Parameter) or name.endswith("running_mean"):
            parameter.data = torch.randn_like(parameter).mul(20).round() / 100


def export(one: Case, exporter: str, opset: int, dynamic: bool) -> onnx.ModelProto:
    torch.manual_seed(0)
    made, inputs = one.make()
    module = made if isinstance(made, torch.nn.Module) else Function(made)
    randomize(module)
    module.eval()
    names, tensors = list(inputs), tuple(value.tensor for value in inputs.values())
    options: dict[str, object] = {"input_names": names, "opset_version": opset}
    axes = {name: value.dynamic_axes() for name, value in inputs.items()} if dynamic else {}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "torchscript":
            buffer = io.BytesIO()
            torch.onnx.export(module, tensors, buffer, dynamo=False, dynamic_axes=axes, **options)
            return onnx.load_from_string(buffer.getvalue())
        shapes: object = None
        if dynamic:
            shapes = tuple(axes[name] for name in names)
            if [one.kind for one in inspect.signature(module.forward).parameters.values()] == [VARIADIC]:
                shapes = (shapes,)
        program = torch.onnx.export(
            module, tensors, dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False, **options
        )
        assert program is not None
        return program.model_proto


def describe(one: Case, exporter: str, dynamic: bool) -> dict[str, str]:
    return {
        "exporter": f"torch.onnx {torch.__version__.split('+')[0]} ({exporter})",
        "module": one.module,
        "options": ", ".join(filter(None, [one.options, "dynamic dims" if dynamic else "static dims"])),
    }


def sizes_of(model: onnx.ModelProto) -> str:
    """The sizes that a test gives to dynamic dims, twice: `N=2 S=7, N=1 S=4`."""
    names = {dim.dim_param: 0 for value in model.graph.input for dim in value.type.tensor_type.shape.dim}
    names.pop("", None)
    return ", ".join(" ".join(f"{name}={SIZES[name][k]}" for name in names) for k in range(2)) if names else ""


def write(stem: str, model: onnx.ModelProto, origin: dict[str, str], folder: Path) -> str:
    """Write a model with the sizes of dynamic dims at which onnxruntime runs it; the text of its graph."""
    path = folder / f"{stem}.onnxtxt"
    header, body = write_model(model, origin | {"sizes": sizes_of(model)})
    path.write_text(header + body)
    loaded = corpus.load_file(path)
    runs = [
        text for text, feeds in zip(sizes_of(model).split(", "), corpus.draw_inputs(loaded)) if runs_with(loaded, feeds)
    ]
    if not runs:
        path.unlink()
        raise ValueError("onnxruntime does not run it")
    origin["sizes"] = ", ".join(runs)
    if origin["sizes"] != sizes_of(model):
        origin["options"] += ", sizes of the example fixed by the exporter"
        path.write_text(write_model(model, origin)[0] + body)
    print(f"{stem:60s} {len(model.graph.node)} nodes, {origin['sizes']}", flush=True)
    return body


def runs_with(model: onnx.ModelProto, feeds: dict[str, corpus.Array]) -> bool:
    """Whether onnxruntime runs a model on these inputs; what an exporter writes need not run at other sizes than its example's."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        session.run(None, feeds)
    except Exception:
        return False
    return True


def write_case(one: Case, folder: Path) -> None:
    """Write every variant that is not node for node what another variant of the case already is."""
    seen: set[str] = set()
    for stem, exporter, opset, dynamic in variants(one):
        try:
            model = export(one, exporter, opset, dynamic)
            if write_model(model, {})[1] in seen:
                (folder / f"{stem}.onnxtxt").unlink(missing_ok=True)
                print(f"{stem:60s} as before")
            else:
                seen.add(write(stem, model, describe(one, exporter, dynamic), folder))
        except Exception as error:
            print(
                f"{stem:60s} FAILED {type(error).__name__}: {str(error.__cause__ or error).strip().splitlines()[-1][-300:]}"
            )


def write_cut(cut: Cut, models: Path, folder: Path) -> None:
    """Write one part of a trained model."""
    exporter, module = TRAINED[cut.model]
    model = cut_out(cut, onnx.load(models / f"{cut.model}.onnx"))
    origin = {
        "exporter": exporter,
        "module": f"{module}: {cut.what}",
        "options": "cut out; constants of weights as initializers",
    }
    write(cut.stem, model, origin, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="a regular expression over the names of cases")
    parser.add_argument("--trained", type=Path, help="a folder with the models of bench/models.py")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    load_all()
    for one in CASES:
        if re.search(options.only, one.name):
            write_case(one, options.folder)
    for cut in CUTS if options.trained else ():
        if re.search(options.only, cut.stem):
            write_cut(cut, options.trained, options.folder)


if __name__ == "__main__":
    main()
