"""Reports: JSON with the documented keys, and one HTML file that needs nothing from outside and shows every name as text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

import helpers
import onnxopt
from onnxopt.pipeline import Report
from onnxopt.report import json_text, report_json, write_report
from onnxopt.runtime.bench import Latency

SECTIONS = ["Verification", "Charts", "Ops", "Passes", "Rules", "Near misses"]
VOID = {"meta", "link", "br", "hr", "img", "input"}
HOSTILE = "<script>alert('x')</script>&\"<img src=http://x.example/y>"


def run(proto: onnx.ModelProto | None = None, *, verify: bool = False, latency: bool = False) -> Report:
    """The report of a run with rewrites, near misses and weights."""
    text = "g (float[4, 8] x) => (float[4, 8] y) { i = Identity (x) a = Add (i, w) b = Tanh (a) y = Exp (b) }"
    reports: list[Report] = []
    given = proto or helpers.model(text, w=np.ones(8, np.float32))
    onnxopt.optimize(given, explain=True, verify=verify, report=reports.append)
    if latency:
        reports[0].latency = [Latency("model.onnx", 2.0, 1.9, 2.1, 1.0), Latency("out.onnx", 1.0, 0.9, 1.1, 2.0)]
    return reports[0]


def written(report: Report, folder: Path, suffix: str = ".html") -> str:
    path = folder / f"report{suffix}"
    write_report(path, report, Path("in") / "model.onnx", Path("out") / "out.onnx")
    return path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, headings, texts; unbalanced tags are errors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.texts: list[str] = []
        self.styles: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside == "h2":
            self.headings.append(data)
        (self.styles if inside == "style" else self.texts).append(data)


# --- JSON ---
def documented_keys() -> set[str]:
    """The keys that the doc string names, outside of parentheses."""
    text = (report_json.__doc__ or "").partition("Returns:")[2]
    return set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", text.replace("\n", " "))))


def test_keys_are_the_documented_ones() -> None:
    assert set(report_json(run())) == documented_keys()


def test_keys_of_parts_are_documented() -> None:
    text = report_json.__doc__ or ""
    data = report_json(run(verify=True, latency=True))
    for part in ("rules", "rewrites", "near_misses", "latency"):
        (listed,) = re.findall(rf"`{part}` \((.*?)\)", text.replace("\n", " "))
        names = {name.split()[-1] for name in listed.split(",")}
        assert set(data[part][0]) == names, part
    assert set(data["verification"]) == {"equal", "sentence", "samples"}


def test_json_file_holds_the_report_and_the_names_of_the_files(tmp_path: Path) -> None:
    report = run(verify=True, latency=True)
    data = json.loads(written(report, tmp_path, ".json"))
    assert (data.pop("source"), data.pop("output")) == ("model.onnx", "out.onnx")
    assert data == json.loads(json.dumps(report_json(report), default=str))


def test_figures_are_those_of_the_run() -> None:
    report = run()
    data = report_json(report)
    assert data["nodes"] == {"before": report.nodes_before, "after": report.nodes_after}
    assert data["weight_bytes"] == {"before": 32, "after": 32}
    assert [one["number"] for one in data["rewrites"]] == list(range(1, len(report.patches) + 1))
    assert sum(rule["applied"] for rule in data["rules"]) == len(data["rewrites"])
    assert data["near_misses"] and data["verification"] is None and data["latency"] == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": float("inf"), "b": [float("nan"), 1.5]}, '{"a": null, "b": [null, 1.5]}'),
        (Latency("m", 1.0, float("-inf"), 3.0, 1.0), '{"name": "m", "median_ms": 1.0, "fastest_ms": null, "slowest_ms": 3.0, "speedup": 1.0}'),
        ((np.float32(0.5), np.int64(3), Path("a")), '[0.5, 3, "a"]'),
        ({("p", "r"): None}, '{"(\'p\', \'r\')": null}'),
    ],
)  # fmt: skip
def test_json_is_what_every_parser_reads(value: object, text: str) -> None:
    assert (
        " ".join(json_text(value).split()).replace("{ ", "{").replace(" }", "}").replace("[ ", "[").replace(" ]", "]")
        == text
    )


# --- HTML ---
def test_every_section_is_there(tmp_path: Path) -> None:
    page = Page(written(run(), tmp_path))
    assert page.headings == SECTIONS
    assert page.tags[0] == ("html", {"lang": "en"}) and page.tags[2] == ("meta", {"charset": "utf-8"})


def test_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    text = written(run(latency=True), tmp_path)
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "img", "base", "form"}
        for name, value in attributes.items():
            assert name not in {"src", "href", "xlink:href", "action", "data", "srcset"} and not name.startswith(
                "on"
            ), (tag, name)
            assert "://" not in (value or "") or name.startswith("xmlns")
    assert not any("url(" in style or "@import" in style for style in page.styles)
    assert set(re.findall(r"https?://[^\s\"'<>]*", text)) == {"http://www.w3.org/2000/svg"}


def test_same_report_same_page(tmp_path: Path) -> None:
    report = run()
    assert written(report, tmp_path) == written(report, tmp_path)


@pytest.mark.parametrize(("latency", "titles"), [(False, 3), (True, 4)])
def test_charts_are_well_formed_pictures(latency: bool, titles: int, tmp_path: Path) -> None:
    text = written(run(latency=latency), tmp_path)
    charts = [ElementTree.fromstring(one) for one in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    words = [" ".join(chart.itertext()) for chart in charts]
    assert len(charts) == titles
    assert any("Nodes by op" in one and "Identity" in one for one in words)
    assert any("Time by pass" in one for one in words) and any("Weights" in one for one in words)
    assert any("Latency" in one and "out.onnx" in one for one in words) == latency
    assert len({chart.get("id") for chart in charts}) == titles


def test_tables_hold_what_was_done(tmp_path: Path) -> None:
    report = run()
    texts = " ".join(Page(written(report, tmp_path)).texts)
    for one in report.records:
        assert not one.modified or one.name in texts
    for patch in report.patches:
        assert patch.rule in texts
    for miss in report_json(report)["near_misses"]:
        assert miss["rule"] in texts and miss["reason"] in texts
    assert "model.onnx" in texts and "out.onnx" in texts and onnxopt.__version__ in texts


@pytest.mark.parametrize(("verify", "sentence"), [(True, "Verified: "), (False, "Not asked for: run with")])
def test_verification_is_told(verify: bool, sentence: str, tmp_path: Path) -> None:
    assert sentence in " ".join(Page(written(run(verify=verify), tmp_path)).texts)


def test_warnings_and_defects_are_told(tmp_path: Path) -> None:
    report = run()
    report.warnings.append("It is late.")
    report.defects.append(onnxopt.PassError("Rule r does not fit."))
    texts = Page(written(report, tmp_path)).texts
    assert "Warning: It is late." in texts and "A rewrite was left out: Rule r does not fit." in texts


def test_a_run_that_changed_nothing_has_a_report(tmp_path: Path) -> None:
    report = run(helpers.model("g (float[3] x) => (float[3] y) { y = Abs (x) }"))
    assert not report.patches
    texts = Page(written(report, tmp_path)).texts
    assert "No rule nearly applied without applying." in texts


def hostile_model() -> onnx.ModelProto:
    """Names, doc strings, domains and dims that want to be markup; nodes that are rewritten, that nearly are, and that stay."""
    values = [HOSTILE + str(index) for index in range(4)]
    nodes = [
        onnx.helper.make_node("Identity", ["x"], [values[0]], name=HOSTILE + "n0", doc_string=HOSTILE),
        onnx.helper.make_node("Tanh", [values[0]], [values[1]], name=HOSTILE + "n1"),
        onnx.helper.make_node("Exp", [values[1]], [values[2]], name=HOSTILE + "n2"),
        onnx.helper.make_node(HOSTILE, [values[2]], [values[3]], name=HOSTILE + "n3", domain=HOSTILE),
    ]
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 3])
    y = onnx.helper.make_tensor_value_info(values[3], onnx.TensorProto.FLOAT, [HOSTILE])
    graph = onnx.helper.make_graph(nodes, HOSTILE, [x], [y], doc_string=HOSTILE)
    imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid(HOSTILE, 1)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=8, producer_name=HOSTILE, doc_string=HOSTILE)


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    report = run(hostile_model(), latency=True)
    report.warnings.append(HOSTILE)
    report.latency[0] = Latency(HOSTILE, 1.0, 1.0, 1.0, 1.0)
    path = tmp_path / "report.html"
    write_report(path, report, Path(HOSTILE.replace("/", "_")), Path("out.onnx"))
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert any(HOSTILE in one for one in page.texts), "the names are shown"
    assert any(one["node"].startswith(HOSTILE) for one in report_json(report)["near_misses"])


def test_names_of_any_script_are_kept(tmp_path: Path) -> None:
    proto = helpers.model("g (float[2, 3] x) => (float[2, 3] y) { a = Tanh (x) y = Exp (a) }")
    proto.graph.node[0].name = "слой/層/🙂"
    assert "слой/層/🙂" in written(run(proto), tmp_path)
    assert "слой/層/🙂" in json.loads(written(run(proto), tmp_path, ".json"))["near_misses"][0]["node"]


@pytest.mark.parametrize("suffix", [".html", ".json"])
def test_reports_that_cannot_be_written_are_an_error(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        write_report(tmp_path / "missing" / f"report{suffix}", run(), Path("a.onnx"), Path("b.onnx"))


def test_charts_of_many_ops_stay_readable(tmp_path: Path) -> None:
    report: Any = run()
    report.ops_before = {f"Op{index}": index + 1 for index in range(100)}
    report.ops_after = {}
    text = written(report, tmp_path)
    chart = next(one for one in re.findall(r"<svg.*?</svg>", text, re.DOTALL) if "Nodes by op" in one)
    assert "Op99" in chart and "Op10<" not in chart
    height = {op: float(at) for at, op in re.findall(r'y="([\d.]+)"[^>]*>(Op\d+)<', chart)}
    assert height["Op99"] < height["Op98"] < height["Op90"], "what changed most is at the top"
    assert "<td>Op10</td>" in text
