"""Names that tell apart what would be called the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slmq_edge.labels import distinct

INT8, FLOAT = {"head": "int8", "bundle": "a"}, {"head": "float", "bundle": "b"}


def test_what_is_distinct_keeps_its_name() -> None:
    assert distinct(["x", "y"], [INT8, INT8]) == ["x", "y"]


def test_the_first_fact_that_differs_tells_apart() -> None:
    assert distinct(["x", "x", "y"], [INT8, FLOAT, INT8]) == [
        "x [head int8]",
        "x [head float]",
        "y",
    ]
    other = {"head": "int8", "bundle": None}
    assert distinct(["x", "x"], [INT8, other]) == ["x [bundle a]", "x [bundle unknown]"]
    assert distinct(["x", "x"], [INT8, INT8]) == ["x", "x [number 2]"]


def test_like_things_of_other_groups_stay_alike() -> None:
    names = distinct(["x", "x", "x"], [INT8, FLOAT, FLOAT], ["gpu", "gpu", "edge"])
    assert names == ["x [head int8]", "x [head float]", "x [head float]"]
    assert distinct(["x", "x"], [INT8, FLOAT], ["gpu", "edge"]) == ["x", "x"]


facts = st.fixed_dictionaries({"head": st.integers(0, 1), "bundle": st.integers(0, 2)})


@given(st.lists(st.tuples(st.sampled_from("xy"), facts, st.sampled_from("ab")), max_size=9))
def test_names_are_distinct_in_their_groups(things: list[tuple[str, dict[str, int], str]]) -> None:
    names, found, groups = ([one[i] for one in things] for i in range(3))
    labels = distinct(names, found, groups)  # type: ignore[arg-type]
    assert len(set(zip(labels, groups, strict=True))) == len(things)
    assert all(label.startswith(str(name)) for label, name in zip(labels, names, strict=True))
