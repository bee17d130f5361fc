"""The scores against the paper's Tables 1 to 4, and against what they promise.

``slmq_edge/study/slmquant_tables.json`` holds every cell of the tables that we have, each row with
its source. Of the 24 scored rows NONE has all its inputs there: the accuracies and perplexities of
the quantized models (Tables 1, 2, but for two perplexities), the GPU memory (Table 3) and 8 of
12 memories and times (Table 4) are missing, and null. For Tables 1 and 2 the tests therefore
compare only the printed with the recomputed scores. What is tested of the formulas is

* rows whose cells are complete, by recomputing them (``test_complete_row``: it picks a row up
  as soon as its cells are filled in; until then pytest reports one empty parameter set, and
  ``test_row_check_*`` keep the check itself honest on made-up rows);
* Table 3, where the memory alone is missing: it is solved for, has to be a possible memory,
  and has to give the one difference between two rows that we know;
* Table 4, where the scores alone over-determine the missing cells of SmolLM-135M;
* MACs, parameter counts and the fp16 footprint, from the models' configurations.

Tolerance: a cell printed with k decimals stands for the interval +-0.5 10^-k. Every score is
monotone in every cell, so the corners give the interval of the score, and the printed score's
own interval must meet it. One row of the paper does not: Qwen2.5-0.5B SpinQuant W8A8.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmq_edge import study
from slmq_edge.metrics import (
    PAPER_TOKENS,
    Cost,
    Macs,
    Scores,
    decoder_macs,
    paper_infer,
    paper_macs,
    slmq_infer,
    slmq_perf,
    slmq_quant,
)

TABLES = json.loads((Path(study.__file__).parent / "slmquant_tables.json").read_text())
TASKS = tuple(field.name for field in fields(Scores))
LESS_IS_BETTER = {"wikitext2_perplexity", "memory", "size", "macs", "time"}
CAPPED = ("Qwen2.5-0.5B", "SpinQuant", "W8A8", 2)


# --- reading the tables ------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    lo: float
    hi: float

    @property
    def middle(self) -> float:
        return (self.lo + self.hi) / 2

    def meets(self, other: Interval) -> bool:
        return self.lo <= other.hi and other.lo <= self.hi

    def __contains__(self, value: float) -> bool:
        return self.lo <= value <= self.hi


def rounding(printed: str | list[str]) -> Interval:
    """Everything that prints like this; a list is a range that holds the cell."""
    first, last = (printed, printed) if isinstance(printed, str) else printed
    half = 0.5 * 10 ** -len(first.partition(".")[2])
    return Interval(float(first) - half, float(last) + half)


@dataclass(frozen=True)
class Row:
    table: int
    model: str
    method: str
    scheme: str
    cells: dict[str, str | list[str] | None]
    source: str
    printed: str = ""
    recomputed: str = ""

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.model, self.method, self.scheme, self.table

    @property
    def complete(self) -> bool:
        return all(cell is not None for cell in self.cells.values())

    def cell(self, name: str) -> Interval:
        printed = self.cells[name]
        assert printed is not None, f"{self.key} has no {name}"
        return rounding(printed)

    def corner(self, *, best: bool) -> dict[str, float]:
        """The best or the worst that the cells can mean."""
        low = {name for name in self.cells if best == (name in LESS_IS_BETTER)}
        return {n: self.cell(n).lo if n in low else self.cell(n).hi for n in self.cells}


ROWS = [Row(**row) for row in TABLES["rows"]]
SCORED = [row for row in ROWS if row.printed]


def row_id(row: Row) -> str:
    return f"{row.table}-{row.model}-{row.method}-{row.scheme}"


def find(table: int, model: str, method: str, rows: list[Row] = ROWS) -> Row:
    (row,) = [r for r in rows if (r.table, r.model, r.method) == (table, model, method)]
    return row


def companions(row: Row, rows: list[Row]) -> list[Row]:
    """The rows this one is scored against: the full model, or the other methods."""
    same = [r for r in rows if (r.table, r.model) == (row.table, row.model)]
    if row.table == 4:
        return [r for r in same if r.method != row.method]
    return [r for r in same if r.method == "full"]


def score(table: int, own: dict[str, float], others: list[dict[str, float]]) -> float:
    match table:
        case 1 | 2:
            return slmq_perf(Scores(**own), Scores(**others[0]))
        case 3:
            ratios = {name: others[0][name] / own[name] for name in own}
            return slmq_infer(ratios["memory"], ratios["macs"], ratios["size"])
        case _:
            costs = [Cost(c["memory"], c["time"]) for c in (own, *others)]
            return slmq_quant({str(i): cost for i, cost in enumerate(costs)})["0"]


def score_interval(row: Row, rows: list[Row]) -> Interval:
    others = companions(row, rows)
    worst, best = (
        score(row.table, row.corner(best=b), [o.corner(best=not b) for o in others])
        for b in (False, True)
    )
    return Interval(worst, best)


def can_be_checked(row: Row) -> bool:
    return row.complete and all(other.complete for other in companions(row, ROWS))


@pytest.mark.parametrize("row", [row for row in SCORED if can_be_checked(row)], ids=row_id)
def test_complete_row(row: Row) -> None:
    interval = score_interval(row, ROWS)
    assert interval.meets(rounding(row.recomputed))
    if row.key == CAPPED:
        assert not interval.meets(rounding(row.printed))
    else:
        assert interval.meets(rounding(row.printed))


def made_up(table: int, cells: dict[str, dict[str, str]]) -> list[Row]:
    return [Row(table, "toy", name, "", dict(row), "made up") for name, row in cells.items()]


FIFTY = dict.fromkeys(TASKS, "50.00")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (made_up(1, {"full": FIFTY, "x": {**FIFTY, "mmlu": "25.00"}}), math.sqrt(5.25 / 6)),
        (
            made_up(1, {"full": FIFTY, "x": {**FIFTY, "wikitext2_perplexity": "100.00"}}),
            math.sqrt(5.25 / 6),
        ),
        (
            made_up(
                3,
                {
                    "full": {"memory": "400.0", "size": "100.00", "macs": "6.000"},
                    "x": {"memory": "200.0", "size": "100.00", "macs": "2.000"},
                },
            ),
            math.sqrt(14 / 3),
        ),
        (
            made_up(
                4,
                {
                    "x": {"memory": "100", "time": "10.00"},
                    "y": {"memory": "300", "time": "5.00"},
                    "z": {"memory": "200", "time": "40.00"},
                },
            ),
            math.sqrt((9 + 16) / 2),
        ),
    ],
)
def test_row_check_accepts_the_right_score_and_no_other(rows: list[Row], expected: float) -> None:
    interval = score_interval(find(rows[0].table, "toy", "x", rows), rows)
    assert interval.meets(rounding(f"{100 * expected:.2f}"))
    assert not interval.meets(rounding(f"{102 * expected:.2f}"))
    assert not interval.meets(rounding(f"{98 * expected:.2f}"))


# --- what is known of the tables ---------------------------------------------------------


def test_tables_name_every_scored_row_once() -> None:
    assert len(SCORED) == len({row.key for row in SCORED}) == 24
    assert all(row.source for row in ROWS)


@pytest.mark.parametrize("row", SCORED, ids=row_id)
def test_printed_score_is_the_recomputed_one(row: Row) -> None:
    """Up to 0.1, the most that the rounding of the inputs was found to allow."""
    difference = abs(float(row.printed) - float(row.recomputed))
    assert (difference > 0.1) == (row.key == CAPPED)


def test_the_one_row_that_cannot_be_reproduced() -> None:
    """Printed 100.0, recomputed 100.35 in [100.32, 100.38]: not rounding; we do not cap."""
    (row,) = [row for row in SCORED if row.key == CAPPED]
    recomputed = Interval(100.32, 100.38)
    assert float(row.recomputed) in recomputed
    assert not recomputed.meets(rounding(row.printed))
    full = scores()
    assert slmq_perf(replace(full, piqa=full.piqa * 1.02), full) > 100


# --- Table 3: MACs, parameters and the memory that the scores imply ------------------------

# The published configurations, under the names decoder_macs uses.
SHAPES = {
    "SmolLM-135M": {
        "hidden": 576, "intermediate": 1536, "layers": 30,
        "heads": 9, "kv_heads": 3, "head_dim": 64, "vocabulary": 49152,
    },
    "Qwen2.5-0.5B": {
        "hidden": 896, "intermediate": 4864, "layers": 24,
        "heads": 14, "kv_heads": 2, "head_dim": 64, "vocabulary": 151936,
    },
}  # fmt: skip
MODELS = tuple(SHAPES)
PARAMETERS = {"SmolLM-135M": 134_515_008, "Qwen2.5-0.5B": 494_032_768}


@pytest.mark.parametrize("model", MODELS)
def test_full_macs_are_linears_and_head_at_128_tokens(model: str) -> None:
    full = paper_macs(decoder_macs(**SHAPES[model]), quantized=False) / 1e9
    assert full in find(3, model, "full").cell("macs")


@pytest.mark.parametrize(("model", "head"), [("SmolLM-135M", 3.62), ("Qwen2.5-0.5B", 17.43)])
def test_quantized_macs_are_the_head_alone(model: str, head: float) -> None:
    """The printed 3.64 and 17.43 to 17.45 are up to 0.5 % above the head: unexplained."""
    macs = decoder_macs(**SHAPES[model])
    computed = paper_macs(macs, quantized=True) / 1e9
    assert round(computed, 2) == head
    printed = find(3, model, "SmoothQuant").cell("macs")
    assert computed <= printed.hi
    assert printed.lo <= computed * 1.005
    assert paper_macs(macs, quantized=False) / 1e9 > 3.5 * printed.hi


@pytest.mark.parametrize("model", MODELS)
def test_size_column_counts_parameters(model: str) -> None:
    shape = SHAPES[model]
    macs = decoder_macs(**shape)
    norms = (2 * shape["layers"] + 1) * shape["hidden"]
    biases = (shape["heads"] + 2 * shape["kv_heads"]) * shape["head_dim"] * shape["layers"]
    tied = macs.linears + macs.head + norms + (biases if model.startswith("Qwen") else 0)
    assert tied == PARAMETERS[model]
    assert tied / 1e6 in find(3, model, "full").cell("size")
    assert find(3, model, "SmoothQuant").cells["size"] == find(3, model, "full").cells["size"]


@pytest.mark.parametrize("model", MODELS)
def test_full_memory_is_the_fp16_weights(model: str) -> None:
    memory = find(3, model, "full").cell("memory")
    assert 1 < memory.lo / (2 * PARAMETERS[model] / 2**20) < 1.04


def implied_memory(row: Row, speed_ratio: Interval) -> Interval:
    """Solve SLMQ_infer for the GPU memory, the one cell of a row of Table 3 we do not have."""
    full, printed = find(3, row.model, "full"), rounding(row.printed)
    memory, size, own_size = full.cell("memory"), full.cell("size"), row.cell("size")
    most = 3 * (printed.hi / 100) ** 2 - speed_ratio.lo**2 - (size.lo / own_size.hi) ** 2
    least = 3 * (printed.lo / 100) ** 2 - speed_ratio.hi**2 - (size.hi / own_size.lo) ** 2
    return Interval(memory.lo / math.sqrt(most), memory.hi / math.sqrt(least))


def macs_ratio(row: Row) -> Interval:
    full, own = find(3, row.model, "full").cell("macs"), row.cell("macs")
    return Interval(full.lo / own.hi, full.hi / own.lo)


TABLE_3 = [row for row in SCORED if row.table == 3]


@pytest.mark.parametrize("row", TABLE_3, ids=row_id)
def test_table_3_is_explained_by_macs_in_the_place_of_speed(row: Row) -> None:
    """With the MACs ratio the memory is a possible one, with no speed-up it is not.

    Eight-bit linears beside a 16-bit table leave well over half of the fp16 footprint.
    """
    full = find(3, row.model, "full").cell("memory")
    implied = implied_memory(row, macs_ratio(row))
    assert 0.5 * full.hi < implied.lo
    assert implied.middle < full.lo
    assert implied_memory(row, Interval(1, 1)).hi < 0.5 * full.lo


@pytest.mark.parametrize("row", TABLE_3, ids=row_id)
def test_table_3_score_returns_from_its_implied_memory(row: Row) -> None:
    implied, ratio = implied_memory(row, macs_ratio(row)), macs_ratio(row)
    full, printed = find(3, row.model, "full"), float(row.printed)
    memory_ratio = full.cell("memory").middle / implied.middle
    size_ratio = full.cell("size").middle / row.cell("size").middle
    score = slmq_infer(memory_ratio, ratio.middle, size_ratio)
    assert score == pytest.approx(printed, abs=0.1)
    # The computed MACs of the head are up to 0.5 % below the printed ones.
    score = paper_infer(memory_ratio, decoder_macs(**SHAPES[row.model]), size_ratio)
    assert score == pytest.approx(printed, rel=0.006)


def test_table_3_memories_differ_as_the_table_says_and_not_as_the_text_says() -> None:
    """OmniQuant on Qwen2.5-0.5B saves 278.75 MB over SmoothQuant; the text has 247."""
    smooth, omni = (
        implied_memory(row, macs_ratio(row))
        for row in (find(3, "Qwen2.5-0.5B", m) for m in ("SmoothQuant", "OmniQuant"))
    )
    saved = Interval(smooth.lo - omni.hi, smooth.hi - omni.lo)
    assert 278.75 in saved
    assert 247 not in saved


# --- Table 4: maxima per model -----------------------------------------------------------


def test_table_4_maxima_are_per_model() -> None:
    """SmolLM-135M's scores fix its missing cells; global maxima then predict a known number.

    OmniQuant (memory 2770) holds the larger memory and SpinQuant the longer time. With maxima
    over both models (3713 for memory, OmniQuant on Qwen) METHODS 5.1 has 134 for OmniQuant,
    from which follows SpinQuant's 189.
    """
    omni, spin = (
        float(find(4, "SmolLM-135M", m).recomputed) / 100 for m in ("OmniQuant", "SpinQuant")
    )
    memory, global_memory = (find(4, model, "OmniQuant").cell("memory").middle for model in MODELS)
    spin_time = math.sqrt(2 * omni**2 - 1)  # OmniQuant's time is 1
    spin_memory = memory / math.sqrt(2 * spin**2 - 1)
    costs = {"OmniQuant": Cost(memory, 1), "SpinQuant": Cost(spin_memory, spin_time)}
    per_model = slmq_quant(costs)
    assert per_model == pytest.approx({"OmniQuant": 100 * omni, "SpinQuant": 100 * spin})

    predicted = []
    for printed in (133.5, 134.5):
        slowest = math.sqrt(2 * (printed / 100) ** 2 - (global_memory / memory) ** 2)
        both = slmq_quant({**costs, "OmniQuant on Qwen": Cost(global_memory, slowest)})
        assert both["OmniQuant on Qwen"] == 100
        predicted.append(both["SpinQuant"])
    assert Interval(*predicted).meets(rounding("189"))


def test_method_that_is_dearest_in_both_scores_exactly_100() -> None:
    """OmniQuant on Qwen2.5-0.5B, printed 100.0."""
    assert float(find(4, "Qwen2.5-0.5B", "OmniQuant").printed) == 100
    costs = {"a": Cost(3713, 13.7), "b": Cost(700, 2.2), "c": Cost(3000, 13)}
    result = slmq_quant(costs)
    assert result["a"] == 100
    assert result["b"] > result["c"] > 100


# --- promises ----------------------------------------------------------------------------

SENSIBLE = st.floats(min_value=1e-3, max_value=1e6)
SCORES = st.builds(Scores, **dict.fromkeys(TASKS, SENSIBLE))
COSTS = st.dictionaries(
    st.sampled_from("abcde"), st.builds(Cost, SENSIBLE, SENSIBLE), min_size=1, max_size=5
)
GAINS = st.floats(min_value=1, max_value=1e3)
BAD = (0.0, -1.0, math.nan, math.inf, -math.inf)

quick = settings(deadline=None, max_examples=60)


def scores() -> Scores:
    return Scores(31.0, 61.0, 29.0, 69.0, 42.0, 15.0)


def test_perf_by_hand() -> None:
    full = scores()
    half = Scores(15.5, 30.5, 14.5, 34.5, 21.0, 30.0)
    assert slmq_perf(half, full) == 50
    assert slmq_perf(full, half) == 200
    # A root mean square: not the mean (91.67), nor the geometric mean (89.09).
    mixed = replace(full, mmlu=15.5)
    assert slmq_perf(mixed, full) == pytest.approx(100 * math.sqrt((0.25 + 5) / 6))


def test_perf_does_not_explode_with_the_perplexity() -> None:
    """Rejected convention: not inverted, a collapsed model scores in the thousands."""
    full = scores()
    collapsed = replace(full, wikitext2_perplexity=1614)
    assert 91 < slmq_perf(collapsed, full) < 91.3


def test_infer_by_hand() -> None:
    assert slmq_infer(1, 1, 1) == 100
    assert slmq_infer(2, 2, 2) == 200
    assert slmq_infer(1, 5, 1) == pytest.approx(300)


@quick
@given(SCORES)
def test_equal_models_score_exactly_100(model: Scores) -> None:
    assert slmq_perf(model, model) == 100


@quick
@given(SCORES, SCORES, st.sampled_from((0.01, 100.0)), st.floats(min_value=0.5, max_value=2))
def test_perf_does_not_depend_on_units(a: Scores, b: Scores, percent: float, k: float) -> None:
    def rescaled(model: Scores) -> Scores:
        units = {task: k if task in LESS_IS_BETTER else percent for task in TASKS}
        return Scores(**{task: getattr(model, task) * unit for task, unit in units.items()})

    assert slmq_perf(rescaled(a), rescaled(b)) == pytest.approx(slmq_perf(a, b), rel=1e-12)


@quick
@given(SCORES, SCORES, st.sampled_from(TASKS), GAINS)
def test_improving_one_task_never_lowers_perf(
    model: Scores, full: Scores, task: str, gain: float
) -> None:
    value: float = getattr(model, task)
    better = value / gain if task in LESS_IS_BETTER else value * gain
    changed: dict[str, Any] = {task: better}
    assert slmq_perf(replace(model, **changed), full) >= slmq_perf(model, full)


@quick
@given(st.tuples(SENSIBLE, SENSIBLE, SENSIBLE), st.integers(0, 2), GAINS)
def test_improving_one_ratio_never_lowers_infer(
    ratios: tuple[float, float, float], which: int, gain: float
) -> None:
    better = [r * gain if i == which else r for i, r in enumerate(ratios)]
    assert slmq_infer(*better) >= slmq_infer(*ratios)
    lowest, highest = min(ratios), max(ratios)
    assert 100 * lowest * (1 - 1e-12) <= slmq_infer(*ratios) <= 100 * highest * (1 + 1e-12)


@quick
@given(COSTS)
def test_quant_never_falls_below_100_and_keeps_its_names(costs: dict[str, Cost]) -> None:
    result = slmq_quant(costs)
    assert list(result) == list(costs)
    assert min(result.values()) >= 100


@quick
@given(COSTS, SENSIBLE, SENSIBLE)
def test_quant_does_not_depend_on_units(costs: dict[str, Cost], mb: float, s: float) -> None:
    rescaled = {m: Cost(c.peak_memory_bytes * mb, c.seconds * s) for m, c in costs.items()}
    assert slmq_quant(rescaled) == pytest.approx(slmq_quant(costs), rel=1e-12)


@quick
@given(COSTS, st.data())
def test_a_dominating_method_scores_exactly_100(costs: dict[str, Cost], data: Any) -> None:
    memory = max(c.peak_memory_bytes for c in costs.values()) * data.draw(GAINS)
    seconds = max(c.seconds for c in costs.values()) * data.draw(GAINS)
    assert slmq_quant({**costs, "dearest": Cost(memory, seconds)})["dearest"] == 100


@quick
@given(COSTS, st.data(), GAINS)
def test_a_cheaper_method_never_scores_lower(
    costs: dict[str, Cost], data: Any, gain: float
) -> None:
    """As long as the maxima stay, that is: they are held by one more method here."""
    costs = {**costs, "dearest": Cost(1e6, 1e6)}
    method = data.draw(st.sampled_from([m for m in costs if m != "dearest"] or ["dearest"]))
    was = costs[method]
    cheaper = {**costs, method: replace(was, seconds=was.seconds / gain)}
    assert slmq_quant(cheaper)[method] >= slmq_quant(costs)[method]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("field", TASKS)
def test_bad_score_is_refused_by_name(field: str, bad: float) -> None:
    changed: dict[str, Any] = {field: bad}
    with pytest.raises(ValueError, match=rf"Scores\.{field} must be positive and finite"):
        replace(scores(), **changed)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("which", range(3))
def test_bad_ratio_is_refused_by_name(which: int, bad: float) -> None:
    ratios = [1.0, 1.0, 1.0]
    ratios[which] = bad
    name = ("memory_ratio", "speed_ratio", "size_ratio")[which]
    with pytest.raises(ValueError, match=f"{name} must be positive and finite"):
        slmq_infer(*ratios)


@pytest.mark.parametrize("bad", BAD)
def test_bad_cost_is_refused_by_name(bad: float) -> None:
    with pytest.raises(ValueError, match=r"Cost\.peak_memory_bytes must be"):
        Cost(bad, 1)
    with pytest.raises(ValueError, match=r"Cost\.seconds must be"):
        Cost(1, bad)


def test_other_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one method"):
        slmq_quant({})
    with pytest.raises(ValueError, match=r"Macs\.head must be"):
        Macs(1, 0)
    with pytest.raises(ValueError, match="tokens must be positive"):
        paper_macs(Macs(1, 1), quantized=True, tokens=0)
    with pytest.raises(ValueError, match=r"the ratio 1e\+300 / 1e-300 must be"):
        slmq_quant({"a": Cost(1e300, 1), "b": Cost(1e-300, 1)})


def test_paper_speed_ratio_is_the_same_for_every_method() -> None:
    macs = Macs(linears=300, head=100)
    assert paper_macs(macs, quantized=False) == PAPER_TOKENS * 400
    assert paper_macs(macs, quantized=True, tokens=1) == 100
    assert paper_infer(1.5, macs, 1) == slmq_infer(1.5, 4, 1)
