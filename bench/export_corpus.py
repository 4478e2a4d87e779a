"""Export the corpus of subgraphs that fusions are tested on, as ONNX text.

    PYTHONPATH=tests python bench/export_corpus.py tests/fusions/corpus [--only TEXT] [--trained FOLDER] [--binary FOLDER]

Needs torch 2.13 and transformers 5.23: the same versions give the same bytes. With `--trained`, a folder of the models that
`bench/models.py` fetches, the cuts of trained models are written as well. `--binary` only turns models that
TensorFlow's and Paddle's environments exported into text. Files that were written by hand stay as they are.
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
import torch
from corpus_cases import load_all
from corpus_cases.cases import CASES, Case, Function
from corpus_cases.files import write
from corpus_cases.text import write_model
from corpus_cases.trained import CUTS, Cut, cut_out
from corpus_cases.trained import EXPORTERS as TRAINED

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


def write_binary(path: Path, folder: Path, seen: set[str]) -> None:
    """Write a model that another environment exported, with its origin in its metadata."""
    model = onnx.load(path)
    origin = {entry.key: entry.value for entry in model.metadata_props}
    body = write_model(model, {})[1]
    if body not in seen:
        seen.add(write(path.stem, model, origin, folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="a regular expression over the names of cases")
    parser.add_argument("--trained", type=Path, help="a folder with the models of bench/models.py")
    parser.add_argument(
        "--binary", type=Path, help="a folder that export_corpus_tensorflow.py or export_corpus_paddle.py wrote"
    )
    options = parser.parse_args()
    if options.binary:
        seen: set[str] = set()
        for path in sorted(options.binary.glob("*.onnx")):
            write_binary(path, options.folder, seen)
        return
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
