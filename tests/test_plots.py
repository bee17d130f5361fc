"""Plots: what is drawn, where, and that any numbers and any names are drawn."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmq_edge.reports.plots import STYLE, Point, as_file, bars, pareto
from slmq_edge.reports.plots.axes import around, decades, steps, tick_text
from slmq_edge.reports.plots.bars import Bar
from slmq_edge.reports.plots.labels import Rect, put
from slmq_edge.reports.plots.pareto import front
from slmq_edge.reports.plots.style import DARK, LIGHT, SERIES
from slmq_edge.reports.plots.svg import shortened, width_of, wrapped

SVG = "{http://www.w3.org/2000/svg}"
METHODS = ("none", "gptq", "smoothquant", "omniquant", "spinquant")
NUMBERS = st.floats(-1e12, 1e12)


def drawn(svg: str) -> ET.Element:
    """The root of a drawing that is well formed, has a name, and fetches and runs nothing."""
    root = ET.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert root.get("aria-label")
    assert svg.count("http") == 1
    assert "nan" not in re.sub("<title>.*?</title>", "", svg).lower().replace("unknown", "")
    for word in ("<script", "@import", "url(", "href", "onload"):
        assert word not in svg
    return root


def marks(root: ET.Element) -> list[ET.Element]:
    return [group for group in root.iter(f"{SVG}g") if group.get("class") == "plot-mark"]


def titles(root: ET.Element) -> list[str]:
    return [str(mark.findtext(f"{SVG}title")) for mark in marks(root)]


def of_class(root: ET.Element, name: str) -> Iterator[ET.Element]:
    for element in root.iter():
        if name in (element.get("class") or "").split():
            yield element


def scatter(points: Sequence[Point], **words: bool) -> ET.Element:
    return drawn(pareto(points, title="t", x="size, MB", y="accuracy, %", **words))


def some(count: int = 20) -> list[Point]:
    return [
        Point(100 + 7 * (n % 6), 40 + n / 3, f"{METHODS[n % 5]} w{n}a8", METHODS[n % 5])
        for n in range(count)
    ]


# --- the scatter ----------------------------------------------------------------------------------


def test_the_front_is_what_nothing_beats() -> None:
    points = [Point(x, y, f"{x} {y}", "s") for x, y in ((1, 1), (2, 5), (3, 4), (4, 9), (1, 0))]
    assert [(p.x, p.y) for p in front(points)] == [(1, 1), (2, 5), (4, 9)]
    assert [(p.x, p.y) for p in front(points, smaller_x=False)] == [(4, 9)]
    assert [(p.x, p.y) for p in front(points, higher_y=False)] == [(1, 0)]
    assert [(p.x, p.y) for p in front(points, False, False)] == [(1, 0), (3, 4), (4, 9)]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12), st.booleans())
def test_no_point_of_a_front_is_beaten_and_every_other_is(
    places: list[tuple[int, int]], smaller: bool
) -> None:
    points = [Point(x, y, str(n), "s") for n, (x, y) in enumerate(places)]
    sign = 1 if smaller else -1
    found = front(points, smaller_x=smaller)

    def is_as_good(a: Point, b: Point) -> bool:
        return sign * a.x <= sign * b.x and a.y >= b.y

    for one, other in itertools.permutations(found, 2):
        assert not is_as_good(one, other)
    assert all(any(is_as_good(best, point) for best in found) for point in points)


def test_every_point_has_a_mark_with_its_figures() -> None:
    points = [*some(), Point(90, 50, "doubtful", "gptq", 49.5, 51, "clocks were unsteady")]
    root = scatter(points)
    told = titles(root)
    assert len(told) == 21
    assert told[-1] == "doubtful, gptq: x 90, y 50 [49.5, 51]; clocks were unsteady"
    assert len(list(of_class(root, "plot-hollow"))) == 1
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert "hollow: clocks were unsteady" in texts
    assert {"← size, MB", "accuracy, % ↑"} <= set(texts)
    assert len(list(of_class(root, "plot-front"))) == 1
    other = scatter(points, smaller_is_better_x=False, higher_is_better_y=False)
    assert {"size, MB →", "accuracy, % ↓"} <= {e.text for e in other.iter(f"{SVG}text")}


def test_every_point_is_named_beside_it_or_in_the_key() -> None:
    points = some(30)
    root = scatter(points)
    beside = {str(element.text) for element in of_class(root, "plot-label")}
    numbers = {str(element.text) for element in of_class(root, "plot-number")}
    texts = [str(element.text) for element in root.iter(f"{SVG}text")]
    key = {words.split(" ", 1)[1] for words in texts if re.match(r"\d+ \w+ w\d", words)}
    assert beside
    assert numbers
    assert beside | key == {point.label for point in points}
    assert len(beside) + len(numbers) == len(points)


def test_series_differ_in_shape_as_well_as_in_colour() -> None:
    points = [Point(n, n, "", f"series {n}") for n in range(1, SERIES + 1)]
    root = scatter(points)
    shapes = {mark[1].tag + re.sub("[^A-Z]", "", mark[1].get("d") or "") for mark in marks(root)}
    colours = {mark[1].get("class") for mark in marks(root)}
    assert len(colours) == SERIES
    assert len(shapes) >= 6


def test_marks_lie_inside_and_the_better_ones_higher() -> None:
    root = scatter(some())
    wide, high = map(float, str(root.get("viewBox")).split()[2:])
    for circle in root.iter(f"{SVG}circle"):
        assert 0 < float(circle.get("cx", "")) < wide
        assert 0 < float(circle.get("cy", "")) < high
    low, top = (
        next(e for e in mark.iter() if e.get("cy")) for mark in (marks(root)[0], marks(root)[15])
    )
    assert float(top.get("cy", "")) < float(low.get("cy", ""))


@pytest.mark.parametrize("x_log", [False, True])
def test_nothing_one_point_and_equal_points_are_drawn(x_log: bool) -> None:
    assert "no figures" in ET.tostring(scatter([], x_log=x_log), encoding="unicode")
    one = Point(5.0, 0.0, "only", "s")
    for points in ([one], [one, one]):
        root = scatter(points, x_log=x_log)
        assert len(marks(root)) == len(points)
        assert not list(of_class(root, "plot-front"))
    nowhere = [Point(math.nan, 1, "a", "s"), Point(1, math.inf, "b", "s"), Point(0, 1, "c", "s")]
    root = scatter([one, *nowhere], x_log=x_log)
    assert len(marks(root)) == 1 + (not x_log)
    counted = f"{3 if x_log else 2} without a figure to draw"
    assert counted in [element.text for element in root.iter(f"{SVG}text")]


@settings(max_examples=60)
@given(
    st.lists(
        st.builds(
            Point,
            st.floats(),
            st.floats(-1e12, 1e12),
            st.text(max_size=40),
            st.text(max_size=9),
            st.none() | NUMBERS,
            st.none() | st.floats(),
            st.text(max_size=9),
        ),
        max_size=9,
    ),
    st.text(max_size=60),
    st.booleans(),
)
def test_any_numbers_and_any_words_are_drawn(points: list[Point], words: str, log: bool) -> None:
    ET.fromstring(pareto(points, title=words, x=words, y=words, x_log=log))


# --- bars -----------------------------------------------------------------------------------------


def test_bars_are_as_long_as_their_values() -> None:
    groups: list[tuple[str, list[Bar]]] = [
        ("perf", [("gptq", 50.0, 40.0, 60.0), ("none", 100.0, None, None)]),
        ("infer", [("gptq", 200.0, None, None)]),
    ]
    root = drawn(bars(groups, title="scores", unit="%", baseline=100.0))
    assert titles(root) == ["gptq: 50 [40, 60]", "none: 100", "gptq: 200"]
    boxes = [mark.find(f"{SVG}rect") for mark in marks(root)]
    lengths = [float(box.get("width", "")) for box in boxes if box is not None]
    assert lengths[1] == pytest.approx(2 * lengths[0], abs=0.2)
    assert lengths[2] == pytest.approx(4 * lengths[0], abs=0.2)
    colours = [box.get("class") for box in boxes if box is not None]
    assert colours[0] == colours[2] != colours[1]
    (rule,) = of_class(root, "plot-rule")
    box = boxes[1]
    assert box is not None
    end = float(box.get("x", "")) + float(box.get("width", ""))
    assert float(rule.get("x1", "")) == pytest.approx(end, abs=0.2)
    interval = marks(root)[0].findall(f"{SVG}line")[0]
    start = float(box.get("x", ""))
    assert (float(interval.get("x1", "")) - start) / lengths[1] == pytest.approx(0.4, abs=0.01)


def test_values_below_zero_grow_to_the_left_and_what_is_no_number_has_no_bar() -> None:
    listed = [("a", -3.0, -4.0, -1.0), ("b", 2.0, None, None), ("c", math.nan, None, None)]
    root = drawn(bars([("", listed)], title="t", unit="%"))
    below, above = (mark.find(f"{SVG}rect") for mark in marks(root))
    assert below is not None
    assert above is not None
    end = float(below.get("x", "")) + float(below.get("width", ""))
    assert end == pytest.approx(float(above.get("x", "")), abs=0.2)
    assert "no figure" in [element.text for element in root.iter(f"{SVG}text")]


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.text(max_size=20),
            st.lists(
                st.tuples(st.text(max_size=40), st.floats(), st.none() | NUMBERS, st.none()),
                max_size=4,
            ),
        ),
        max_size=3,
    ),
    st.text(max_size=60),
    st.none() | NUMBERS,
)
def test_any_bars_are_drawn(
    groups: list[tuple[str, list[tuple[str, float, float | None, None]]]],
    words: str,
    baseline: float | None,
) -> None:
    ET.fromstring(bars(groups, title=words, unit=words, baseline=baseline))


# --- what they are made of ------------------------------------------------------------------------


@given(NUMBERS, st.floats(1e-6, 1e12))
def test_ticks_are_few_round_and_inside(low: float, span: float) -> None:
    high = low + max(span, abs(low) * 1e-6)
    found = steps(low, high)
    assert 1 <= len(found) <= 6
    reach = (high - low) * 1e-6
    assert all(low - reach <= tick <= high + reach for tick in found)
    assert found == sorted(set(found))


@given(st.floats(-200, 200), st.floats(0.05, 90))
def test_ticks_of_powers_are_few_and_inside(low: float, span: float) -> None:
    found = decades(10**low, 10 ** (low + span))
    assert 1 <= len(found) <= 6
    assert all(10**low * 0.999 <= tick <= 10 ** (low + span) * 1.001 for tick in found)


def test_ticks_as_one_would_write_them() -> None:
    assert steps(0, 100) == [0, 20, 40, 60, 80, 100]
    assert decades(1, 1000) == [1, 10, 100, 1000]
    assert decades(90, 1100) == [100, 200, 500, 1000]
    assert decades(80, 140) == [80, 100, 120, 140]
    assert [tick_text(value) for value in (0.25, 1500, 2e4, 3e6, 1e-5, -2e9, 0)] == [
        "0.25", "1500", "20 k", "3 M", "1e-05", "-2 G", "0",
    ]  # fmt: skip


def test_an_axis_has_room_for_all() -> None:
    axis = around([1, 10, 100], 0, 300, log=True)
    assert 0 < axis.place(1) < axis.place(10) < axis.place(100) < 300
    assert axis.place(10) == pytest.approx(150)


@given(
    st.lists(st.tuples(st.floats(60, 380), st.floats(20, 240)), min_size=1, max_size=15),
    st.text("ab ", min_size=1, max_size=25),
)
def test_labels_lie_on_nothing(points: list[tuple[float, float]], words: str) -> None:
    inside = Rect(50, 10, 340, 240)
    placed = put(points, [words] * len(points), inside, range(len(points)))
    assert sorted(label.place for label in placed) == list(range(len(points)))
    whole = [label.rect for label in placed if not label.is_number]
    assert all(inside.holds(label.rect) for label in placed)
    assert not any(one.meets(other) for one, other in itertools.combinations(whole, 2))
    numbers = [label.words for label in placed if label.is_number]
    assert numbers == [str(n) for n in range(1, len(numbers) + 1)]


@given(st.text(max_size=200), st.floats(30, 400))
def test_lines_fit_and_lose_no_word_that_fits(words: str, width: float) -> None:
    lines = wrapped(words, width)
    assert all(width_of(one) <= width for one in lines)
    if all(width_of(word) <= width for word in words.split()):
        assert " ".join(lines).split() == words.split()
    assert shortened(words, width) == words or width_of(shortened(words, width)) <= width


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_stand_out_from_their_paper(theme: dict[str, str]) -> None:
    """4.5 to 1, by WCAG's formula: what holds of small text."""
    paper = _luminance(theme["paper"])
    for name in ("ink", "soft", *(f"s{n}" for n in range(1, SERIES + 1))):
        bright, faint = sorted((paper, _luminance(theme[name])), reverse=True)
        assert (bright + 0.05) / (faint + 0.05) >= 4.5, name
    assert len(set(theme.values())) == len(theme)


def test_a_file_has_its_own_style_and_a_page_has_it_once() -> None:
    one = pareto(some(), title='<b>&"', x="x", y="y")
    assert "<style" not in one
    assert "&lt;b&gt;&amp;&quot;" in one
    file = as_file(one)
    root = drawn(file)
    assert root.findtext(f"{SVG}style") == STYLE
    assert len(marks(root)) == len(marks(drawn(one)))
    light, dark = STYLE.split("prefers-color-scheme: dark")
    assert all(f"--{name}: {colour};" in light for name, colour in LIGHT.items())
    assert all(f"--{name}: {colour};" in dark for name, colour in DARK.items())


def test_type_is_legible_on_a_phone() -> None:
    """11 px and more of a page that is 360 px wide and keeps 30 px free on each side."""
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: ([\d.]+)px", STYLE)]
    assert sizes
    for svg in (pareto(some(), title="t", x="x", y="y"), bars([], title="t", unit="")):
        wide = float(str(drawn(svg).get("viewBox")).split()[2])
        assert min(sizes) * min(1.0, (360 - 60) / wide) >= 11
