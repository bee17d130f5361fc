"""Reports as a real Chromium lays them out: on a phone and a desk, by day and by night."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slmq_edge.analysis.distributions import to_json
from slmq_edge.analysis.observing import observe
from slmq_edge.quantize import Request
from slmq_edge.reports.analyze_plot import svg as sensitivity
from slmq_edge.reports.plots import STYLE, Point, bars, distributions, pareto
from slmq_edge.reports.study.html import html
from slmq_edge.scheme import in_words
from slmq_edge.study.collect import collect
from slmq_edge.study.document import document
from tests.chromium import Chromium
from tests.studies import full, renamed, save, timed
from tests.test_analyze import small
from tests.test_methods import ignore

pytestmark = pytest.mark.browser

PROBE = Path(__file__).with_name("page_probe.js").read_text(encoding="utf-8")
METHODS = ("none", "gptq", "smoothquant", "omniquant", "spinquant")
PHONE, DESK = (360, 740), (1280, 900)
# A page of plots and nothing else: what a report has around them is the report's.
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>Plots</title>
<style>{style}
body {{ margin: 0 auto; padding: 16px; max-width: 1200px; font: 16px system-ui;
  background: var(--paper); color: var(--ink); }}
.wide {{ overflow-x: auto; }}
.several {{ display: grid; gap: 24px;
  grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); }}
</style></head><body><h1>Plots</h1><p>Every kind of them.</p>{wide}
<div class="several">{several}</div></body></html>
"""


def points(count: int) -> list[Point]:
    """Crowded: sizes and accuracies of neighbours are nearly the same."""
    found = []
    for n in range(count):
        method, scheme = METHODS[n % 5], ("w8a8", "w4a8", "w4a8-g32", "w8a16")[n % 4]
        y = 45 + 5 * math.sin(n)
        note = "drifted while measured" if n % 7 == 3 else ""
        found.append(Point(80 + 3 * n, y, f"{method} {scheme}", method, y - 0.5, y + 0.5, note))
    return found


def page_of_plots(folder: Path) -> Path:
    """All kinds of plots, of few and of many figures, and of none."""
    request = Request(in_words({"name": "w8a8"}), "smoothquant", windows=8, length=64)
    found = observe("demo-qwen2", request, 2, ignore, lambda line: None)
    other = dataclasses.replace(found, model="<b>a model with a long name</b>")
    scores = [
        (method, 90 + 3.0 * n, 88 + 3.0 * n, 93 + 3.0 * n) for n, method in enumerate(METHODS)
    ]
    several = [
        pareto(points(20), title="Accuracy against size", x="size, MB", y="accuracy, %"),
        pareto(points(4), title="Against <i>speed</i>", x="decode, tok/s", y="accuracy, %",
               x_log=True, smaller_is_better_x=False),
        pareto(points(1), title="One", x="J/token", y="accuracy, %"),
        pareto([], title="None", x="J/token", y="accuracy, %"),
        bars([("SLMQ_perf", scores), ("SLMQ_infer", scores[:3])], title="Scores", unit="score",
             baseline=100.0),
        bars([("", [("lost", -3.0, -4.0, -2.0), ("won", 1.0, 0.5, 1.5)])], title="Gap", unit="%"),
        bars([], title="No bars", unit="%"),
        distributions(found),
    ]  # fmt: skip
    wide = [sensitivity(small(*(1e-3 * (n + 1) for n in range(24)))), distributions(found, other)]
    text = PAGE.format(
        style=STYLE,
        wide="".join(f'<div class="wide">{svg}</div>' for svg in wide),
        several="".join(f"<div>{svg}</div>" for svg in several),
    )
    path = folder / "plots.html"
    path.write_text(text, encoding="utf-8")
    return path


def page_of_a_study(folder: Path) -> Path:
    """A report on two devices, with everything in it and a caveat opened."""
    root = full(folder / "results")
    request = Request(in_words({"name": "w8a8"}), "smoothquant", windows=8, length=64)
    for model in ("demo-llama", "demo-qwen2"):
        observed = observe(model, request, 2, ignore, lambda line: None)
        (root / f"{model}.json").write_text(to_json(observed), encoding="utf-8")
    doubted = renamed(timed("none", "fp32", 4.0), "a <b>long</b> name of a model " * 3)
    save(root / "odd", doubted)
    path = folder / "study.html"
    text = html(document(collect([root])))
    path.write_text(text.replace("<details>", "<details open>"), encoding="utf-8")
    return path


PAGES: dict[str, Callable[[Path], Path]] = {"plots": page_of_plots, "study": page_of_a_study}


@pytest.fixture(scope="module", params=PAGES)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return PAGES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_a_page_is_whole_and_can_be_read(
    browser: Chromium, page: Path, size: tuple[int, int], dark: bool
) -> None:
    with browser.page(page, *size, dark) as opened:
        seen: dict[str, Any] = opened.evaluate(PROBE)
        assert opened.errors == []
        assert opened.requests == []
    assert seen["dark"] == dark
    assert (seen["paper"] < 0.2) == dark
    assert seen["wide"] <= size[0], "the page itself is scrolled sideways"
    for wrong in ("faint", "small", "loose", "dangling", "fetched"):
        assert seen[wrong] == [], wrong
    assert seen["words"] > 0
    assert seen["plots"]
    for plot in seen["plots"]:
        assert not plot["empty"], plot["name"]
        for wrong in ("invisible", "untitled", "outside", "meet", "faint"):
            assert plot[wrong] == [], (plot["name"], wrong)
        assert plot["smallest"] >= 11, plot["name"]
    assert sum(plot["marks"] for plot in seen["plots"]) > 0


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ("<p style='color: #999'>faint</p>", "faint"),
        ("<p style='font-size: 9px'>small</p>", "small"),
        ("<table><tr><td>loose</table>", "loose"),
        ("<a href='#nowhere'>dangling</a>", "dangling"),
        ("<img alt='' src='missing.png'>", "fetched"),
    ],
)
def test_the_probe_finds_what_is_wrong(
    browser: Chromium, body: str, wrong: str, tmp_path: Path
) -> None:
    file = tmp_path / "wrong.html"
    file.write_text(f"<!doctype html><meta charset=utf-8><title>t</title>{body}", encoding="utf-8")
    with browser.page(file, *PHONE, dark=False) as opened:
        seen = opened.evaluate(PROBE)
        is_fetched = bool(opened.requests) and bool(opened.errors)
    assert len(seen[wrong]) == 1
    assert is_fetched == (wrong == "fetched")


def test_the_probe_finds_errors_and_plots_that_are_wrong(browser: Chromium, tmp_path: Path) -> None:
    good = pareto(points(3), title="t", x="x", y="y")
    hidden = good.replace('class="plot-mark"', 'class="plot-mark" style="display: none"')
    outside = good.replace("<circle ", '<circle transform="translate(900 0)" ')
    script = "<script>throw new Error('mine')</script><div style='width: 900px'>wide</div>"
    file = tmp_path / "wrong.html"
    several = f"{hidden}{outside}{script}"
    file.write_text(PAGE.format(style=STYLE, wide="", several=several), encoding="utf-8")
    with browser.page(file, *PHONE, dark=False) as opened:
        seen = opened.evaluate(PROBE)
        assert any("mine" in error for error in opened.errors)
    first, second = seen["plots"]
    assert len(first["invisible"]) == 3
    assert second["outside"]
    assert seen["wide"] > PHONE[0]
