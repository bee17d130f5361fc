"""The report of a study in every format: whole, escaped, and true to its rows."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from slmq_edge.caveats import IMPLAUSIBLE, Caveat
from slmq_edge.commands.report import app
from slmq_edge.errors import NotFound, SlmqError, UsageError
from slmq_edge.reports.study import WRITERS, evidence, figures
from slmq_edge.reports.study.contents import contents
from slmq_edge.reports.study.html import html
from slmq_edge.reports.study.layout import NOTHING, Cell, Table, line, tidied
from slmq_edge.reports.study.plain import terminal
from slmq_edge.results import Counts
from slmq_edge.study.collect import Filed, Study, collect
from slmq_edge.study.document import Document, document
from slmq_edge.tracks.accuracy.results import Evaluation, Window
from tests.studies import (
    ORIN,
    full,
    held_against,
    renamed,
    save,
    save_bench,
    save_engine,
    scored,
    timed,
)
from tests.test_compare import with_artifact

HOSTILE = '<script>alert("1")</script>&amp;\'|`*\x1b[31m\x00 {x} ]]> <!-- \u202e'
# Of elements that have no end.
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """What a browser would make of a page, and what is wrong with it."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if tag == "a" and name == "href":
                self.links.append(value or "")
            elif name in ("src", "href", "data", "action", "srcset", "poster"):
                self.fetched.append(value or "")
            assert not name.startswith("on"), f"<{tag} {name}> would run"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Document:
    folder = full(tmp_path_factory.mktemp("study"))
    simulated = scored("smoothquant", "w8a8", runtime="simulated", bundle_sha256="c" * 64)
    save(folder / "simulated", simulated)
    return document(collect([folder]))


def check(text: str) -> Page:
    """Hold a page to all that any page promises."""
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    doubled = [name for name, count in Counter(page.ids).items() if count > 1]
    assert not doubled
    for link in page.links:
        assert link.startswith("#")
        assert link[1:] in page.ids
    assert page.fetched == []
    assert page.tags["script"] == 0
    style = "".join(re.findall(r"<style>(.*?)</style>", text, re.S))
    assert "url(" not in style
    assert "@import" not in style
    for drawing in re.findall(r"<svg.*?</svg>", text, re.S):
        ElementTree.fromstring(drawing)
    return page


# --- HTML --------------------------------------------------------------------------------


def test_a_page_is_whole_and_fetches_nothing(found: Document) -> None:
    page = check(html(found))
    assert page.tags["h1"] == page.tags["main"] == page.tags["nav"] == 1
    assert page.tags["section"] == page.tags["h2"] == len(page.links) - 1 - page.tags["h2"]
    assert page.tags["svg"] >= 6


def test_every_table_scrolls_by_itself_and_is_rectangular(found: Document) -> None:
    text = html(found)
    tables = re.findall(r"<table>.*?</table>", text, re.S)
    assert len(tables) == len(re.findall(r'<div class="scroll"[^>]*><table>', text))
    for table in tables:
        widths = {len(re.findall(r"<t[hd][ >]", row)) for row in table.split("<tr")[1:]}
        assert len(widths) == 1
        assert len(re.findall('scope="row"', table)) == table.count("<tr") - 1


def test_the_answer_comes_first(found: Document) -> None:
    text = check(html(found)).text
    assert re.search(
        r"Take smoothquant w8a8: it decodes fastest, 31\.\d tok/s, 2\.00\N{MULTIPLICATION SIGN}"
        r" \[1\.9\d, 2\.0\d\] of none fp32, SLMQ_perf 100\.0 \[100\.0, 100\.0\]\.",
        text,
    )
    assert text.index("Take smoothquant") < text.rindex("All candidates")


def test_what_is_alike_in_all_runs_is_said_once(found: Document) -> None:
    common, *each = evidence.measured(found).folds[: len(found.study.runs) + 1]
    assert common.title == f"All {len(each)} runs"
    assert common.pairs
    names = [name for name, _ in common.pairs]
    for fold in each:
        assert not set(fold.pairs) & set(common.pairs)
        assert len(dict([*fold.pairs, *common.pairs])) == len(fold.pairs) + len(names)
    assert {"file", "bundle"} <= set(dict(each[0].pairs))


def test_the_papers_figures_stand_beside_ours(found: Document) -> None:
    text = html(found)
    rows = re.findall(r'<tr class="paper">.*?</tr>', text, re.S)
    words = [Page(f"<table>{row}</table>").text for row in rows]
    perf = [row for row in words if row.startswith("smoothquant w8a8 paper 99.32")]
    infer = [row for row in words if row.startswith("spinquant w8a8 paper") and "290.1" in row]
    assert perf
    assert infer
    # Cells that no source quotes are empty, not made up.
    assert perf[0].count(NOTHING) == 6


def test_other_models_have_no_figures_of_the_paper(tmp_path: Path) -> None:
    runs = [
        dataclasses.replace(one, artifact=dataclasses.replace(one.artifact, model="demo-llama"))
        for one in (timed("none", "fp32", 4.0), timed("smoothquant", "w8a8", 2.0))
    ]
    text = html(document(collect([save(tmp_path, *runs)])))
    assert "99.32" not in text
    assert 'class="paper"' not in text


def test_memory_of_unlike_kinds_never_stands_in_one_column(found: Document) -> None:
    tables = {table.caption: table for section in contents(found) for table in section.tables}
    convention = tables[
        "SmolLM-135M by the paper's convention, beside workbench (ort), Example CPU"
    ]
    memory = [row.cells[1].flat for row in convention.lines]
    assert "264.5" in memory  # the paper's, of its GPU
    assert {*memory} == {"264.5", NOTHING}
    ours = tables["SmolLM-135M: cpu (Example CPU), cpu_peak_rss"]
    theirs = tables["SmolLM-135M, as the paper prints it"]
    assert [row.cells[1].flat for row in ours.lines] == ["400 MB", "500 MB"]
    assert [row.cells[1].flat for row in theirs.lines] == [NOTHING, "2770 MB", NOTHING]


def test_devices_stand_beside_each_other(found: Document) -> None:
    text = check(html(found)).text
    assert "Device beside device" in text
    assert "does the ranking transfer?" in text
    assert "largest cpu_peak_rss over prefill and decode" in text


def test_unequal_baselines_are_set_beside_each_other_on_demand_only(tmp_path: Path) -> None:
    half = {"linears": 16, "lm_head": 16, "embedding": 16}
    runs = [
        timed("none", "fp32", 4.0),
        timed("smoothquant", "w8a8", 2.0),
        timed("none", "fp32", 9.0, ORIN, bundle_sha256="e" * 64, weight_storage_bits=half),
        timed("smoothquant", "w8a8", 6.0, ORIN),
    ]
    study = collect([save(tmp_path, *runs)])
    apart, beside = (terminal(document(study, mixed=mixed)) for mixed in (False, True))
    assert "is not set beside itself: the baselines differ in precision" in apart
    assert "does the ranking transfer?" not in apart
    assert "does the ranking transfer?" in beside
    assert "the baselines differ in precision" in beside


# --- what is missing ---------------------------------------------------------------------


def test_failed_cells_are_shown_with_what_they_said(found: Document) -> None:
    for name in ("html", "md", "terminal"):
        text = WRITERS[name](found)
        assert "out of memory" in text
        assert re.search(r"profile\\?-b", text)
    unfinished = json.loads(WRITERS["json"](found))["unfinished"]
    assert [one["state"] for one in unfinished] == ["failed", "waiting"]


@pytest.mark.parametrize("kind", ["runs", "evaluations", "bench", "no baseline"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_part_of_a_study_is_reported_in_every_format(
    tmp_path: Path, kind: str, name: str
) -> None:
    if kind == "runs":
        save(tmp_path, timed("none", "fp32", 4.0), timed("smoothquant", "w8a8", 2.0))
    elif kind == "evaluations":
        save(tmp_path, scored("none", "fp32"), scored("gptq", "w4a8", wrong=50))
    elif kind == "no baseline":
        save(tmp_path, timed("smoothquant", "w8a8", 2.0), scored("gptq", "w4a8", wrong=50))
    else:
        save_bench(tmp_path, "nothing ran")
    text = WRITERS[name](document(collect([tmp_path])))
    assert text.endswith("\n")
    if name == "html":
        check(text)
    if kind == "bench" and name == "terminal":
        assert "there is no answer yet" in text
    if kind == "no baseline" and name == "terminal":
        assert "no float run of this model" in text
        assert "full precision was not scored" in text


def test_next_tokens_and_engines_are_in_every_format(tmp_path: Path) -> None:
    base = scored("none", "fp32")
    other = held_against(scored("gptq", "w4a8", wrong=9), base, Window(90, 1.8, 9), Window(9, 1, 0))
    folder = save(tmp_path, base, other, timed("gptq", "w4a8", 2.0))
    save_engine(folder / "engines")
    told = document(collect([folder]))
    for name in ("html", "md", "terminal"):
        words = " ".join(re.sub(r"<[^>]*>|\|", " ", WRITERS[name](told)).split())
        assert "2.8e-02 [2.0e-02, 1.1e-01]" in words
        assert "9.09 % [0.00, 10.00]" in words
        assert "75.0 s 640 MB" in words
    found = json.loads(WRITERS["json"](told))
    assert found["next_tokens"][0]["kl"] == pytest.approx(2.8 / 99)
    assert found["costs"]["prepared"][0]["seconds"] == 75.0


def test_a_figure_that_nobody_checked_or_counted_is_not_said_to_be(tmp_path: Path) -> None:
    counts = Counts(0, 0, 0)
    runs = [
        dataclasses.replace(with_artifact(one, counts=counts), golden={}, origin="published")
        for one in (timed("none", "fp32", 4.0), timed("smoothquant", "w8a8", 2.0))
    ]
    told = check(html(document(collect([save(tmp_path, *runs)])))).text
    assert "golden check not checked" in told
    assert "passed" not in told
    assert "0.000 G" not in told


def test_what_leaves_nothing_to_choose_is_said(tmp_path: Path) -> None:
    wrong = Caveat(IMPLAUSIBLE, "more than memory allows", {})
    runs = timed("none", "fp32", 4.0), timed("gptq", "w8a8", 2.0)
    odd = [dataclasses.replace(one, caveats=(wrong,)) for one in runs]
    told = " ".join(terminal(document(collect([save(tmp_path, *odd)]))).split())
    assert "Nothing to choose: none fp32 and gptq w8a8 cannot be" in told
    assert "lose more than the margin." not in told


def test_every_artifact_has_its_place_in_the_plot_of_sizes(tmp_path: Path) -> None:
    """Though it was timed on the second device alone."""
    save(
        tmp_path,
        timed("none", "fp32", 4.0),
        timed("none", "fp32", 4.0, ORIN),
        timed("smoothquant", "w8a8", 2.0),
        timed("gptq", "w4a8", 2.0, ORIN),
        *(scored(*one) for one in (("none", "fp32"), ("smoothquant", "w8a8"), ("gptq", "w4a8"))),
    )
    first, *_ = figures.trade_offs(document(collect([tmp_path])))
    titles = re.findall(r"<title>([^:<]+): x", first.svg)
    assert sorted(titles) == [
        "gptq w4a8, gptq", "none fp32, none", "smoothquant w8a8, smoothquant"
    ]  # fmt: skip


# --- what files say is words -------------------------------------------------------------


def hostile(words: str) -> Document:
    """A study in which everything is called so."""
    runs = [renamed(timed("none", "fp32", 4.0), words), renamed(timed("gptq", "w8a8", 2.0), words)]
    who = {"name": words}
    answers = [
        scored("none", "fp32", model=who, device=words),
        scored("gptq", "w8a8", model=who, device=words),
    ]
    study = Study(
        runs=tuple(Filed(f"{words}/{place}", one) for place, one in enumerate(runs)),
        evaluations=tuple(Filed(f"{words}/{place}", one) for place, one in enumerate(answers)),
        analyses=(Filed(words, {"model": words, "parts": [{"name": words, "damage": words}]}),),
        benches=(Filed(words, {"title": words, "plan": words}),),
    )
    return document(study)


def test_hostile_names_are_words_in_html() -> None:
    found = hostile(HOSTILE)
    text = html(found)
    page = check(text)
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\x00" not in text
    assert 'alert("1")' in page.text
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, re.S))
    assert "<script" not in drawings


def test_hostile_names_command_no_terminal_and_end_no_cell() -> None:
    found = hostile(HOSTILE)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f]", terminal(found))
    for row in WRITERS["md"](found).splitlines():
        if row.startswith("|"):
            assert "<script" not in row.replace("\\<", "")
    rows = [*csv.DictReader(io.StringIO(WRITERS["csv"](found)))]
    assert {row["model"] for row in rows} == {HOSTILE}
    assert json.loads(WRITERS["json"](found))["title"] == HOSTILE


@settings(max_examples=20, deadline=None)
@given(st.text(min_size=1, max_size=40).filter(lambda text: text.strip()))
def test_any_name_makes_a_whole_page(words: str) -> None:
    study = Study(
        evaluations=(Filed(words, small(words)),),
        benches=(Filed(words, {"title": words, "plan": words}),),
        analyses=(Filed(words, {"model": words, "scheme": words, "parts": words}),),
    )
    check(html(document(study)))


def small(words: str) -> Evaluation:
    found = scored("none", "fp32", model={"name": words})
    return dataclasses.replace(found, tasks=found.tasks[:1])


# --- figures -----------------------------------------------------------------------------


def test_csv_has_a_line_for_every_run_with_its_accuracy(found: Document) -> None:
    rows = [*csv.DictReader(io.StringIO(WRITERS["csv"](found)))]
    fast = [row for row in rows if row["method"] == "gptq"]
    assert len(fast) == 2
    for row in fast:
        assert float(row["decode_ratio"]) == pytest.approx(4 / 1.5)
        assert row["verdict"] == "loses"
        assert float(row["piqa acc"]) == pytest.approx(0.45)
        assert float(row["quantizing_seconds"]) == 20.0
    (simulated,) = [row for row in rows if row["runtime"] == "simulated"]
    assert simulated["decode_ratio"] == ""


def test_json_has_the_choices_and_their_doubts(found: Document) -> None:
    told = json.loads(WRITERS["json"](found))
    assert told["format"] == "slmq-edge-study"
    picks = told["answers"][0]["picks"]
    assert [pick["what"] for pick in picks] == ["fastest", "smallest", "most accurate"]
    assert {pick["artifact"]["method"] for pick in picks} == {"smoothquant"}
    assert {gap["kind"] for gap in told["gaps"]} == {"loss", "deployment"}


def test_a_table_drops_empty_columns_and_says_common_conditions_once() -> None:
    table = Table(
        "caption",
        ("name", "nothing", "memory", "speed"),
        (
            line("a", NOTHING, Cell("1 MB", "rss"), Cell("2", "[1, 3]")),
            line("b", "", Cell("2 MB", "rss"), Cell("2", "[1, 3]")),
        ),
        1,
    )
    found = tidied(table)
    assert found.headings == ("name", "memory (rss)", "speed")
    assert [cell.flat for cell in found.lines[0].cells] == ["a", "1 MB", "2 [1, 3]"]


# --- the verb ----------------------------------------------------------------------------


def invoke(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["study", *map(str, words)])


def test_the_verb_writes_the_format_that_is_asked_for(tmp_path: Path) -> None:
    folder = save(tmp_path / "results", timed("none", "fp32", 4.0), timed("gptq", "w8a8", 2.0))
    page = tmp_path / "report.html"
    told = invoke(folder, "--format", "html", "-o", page, "--title", "A & B")
    assert told.exit_code == 0, told.output
    assert "<h1>A &amp; B</h1>" in page.read_text(encoding="utf-8")
    assert json.loads(invoke(folder, "--json").stdout)["title"].endswith("SmolLM-135M")


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (("--format", "htm"), UsageError, "did you mean html"),
        (("--within", "100"), UsageError, "--within 100"),
        (("--baseline", "fp16"), NotFound, "float schemes here: fp32"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, words: tuple[str, ...], error: type[SlmqError], said: str
) -> None:
    folder = save(tmp_path / "results", timed("none", "fp32", 4.0))
    told = invoke(folder, *words)
    assert isinstance(told.exception, error)
    assert said in str(told.exception)


def test_a_result_is_never_overwritten_by_a_report(tmp_path: Path) -> None:
    folder = save(tmp_path / "results", timed("none", "fp32", 4.0))
    told = invoke(folder, "-o", folder / "00.json", "--json", "--force")
    assert isinstance(told.exception, UsageError)
    assert "is a result itself" in str(told.exception)
    report = tmp_path / "report.json"
    assert invoke(folder, "--json", "-o", report).exit_code == 0
    assert invoke(folder, "--json", "-o", report, "--force").exit_code == 0
