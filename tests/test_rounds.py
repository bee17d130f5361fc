"""The bars of measurements: they move as the work does, and say no more than was done."""

from __future__ import annotations

from typing import Any

from rich.progress import Task

from slmq_edge.commands.rounds import Rounds


def _bar(*events: dict[str, Any]) -> Task:
    bars = Rounds(["here"], rounds=5)  # two warm-ups, three repetitions
    for event in events:
        bars.show("here", event)
    (task,) = bars._progress.tasks
    return task


def _rounds(warmups: int, repetitions: int) -> list[dict[str, Any]]:
    words = ["warmup"] * warmups + ["repetition"] * repetitions
    return [{"event": word, "index": index} for index, word in enumerate(words)]


BEGIN = {"event": "begin"}


def _note(done: int) -> dict[str, Any]:
    return {"event": "note", "text": "something", "done": done}


def test_warmups_and_repetitions_move_it() -> None:
    task = _bar(BEGIN, *_rounds(2, 1))
    assert (task.completed, task.total) == (3, 5)


def test_a_job_that_was_lost_warms_up_anew_and_is_not_done_for_that() -> None:
    assert _bar(BEGIN, *_rounds(2, 1), BEGIN, *_rounds(2, 1)).completed == 4


def test_repetitions_that_are_here_count_until_they_turn_out_to_be_of_another_run() -> None:
    assert _bar(_note(2)).completed == 2
    assert _bar(_note(2), _note(-2), BEGIN, *_rounds(1, 0)).completed == 1


def test_a_second_try_begins_with_none() -> None:
    again = {"event": "again", "drift": {}}
    assert _bar(BEGIN, *_rounds(2, 3), again, *_rounds(1, 0)).completed == 1


def test_an_upload_has_the_bar_to_itself() -> None:
    sent = {"event": "upload", "bytes": 70, "total_bytes": 100}
    task = _bar(sent)
    assert (task.completed, task.total) == (70, 100)
    task = _bar(sent, _note(2), BEGIN, *_rounds(1, 0))
    assert (task.completed, task.total) == (3, 5)


def test_a_board_is_named_once(capsys: Any) -> None:
    bars = Rounds(["a", "b"], rounds=1)
    for text in ("a: the link is lost", "the link is back"):
        bars.show("a", {"event": "note", "text": text, "done": 0})
    assert capsys.readouterr().err == "a: the link is lost\na: the link is back\n"


def test_a_long_line_is_one_line(capsys: Any) -> None:
    Rounds(["here"], rounds=1).say("a word " * 40)
    assert capsys.readouterr().err.count("\n") == 1
