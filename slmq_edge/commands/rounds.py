"""Progress of measurements on stderr: one line with the time left for each machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slmq_edge.reports.format import bytes_text

Event = Mapping[str, Any]

STAGES: dict[str, Callable[[Event], str]] = {  # event -> what is being done from then on
    "device": lambda event: "verifying files",
    "upload": lambda event: f"sending, of {bytes_text(event['total_bytes'])}",
    "begin": lambda event: "probing integers",
    "probe": lambda event: "checking golden prompts",
    "golden": lambda event: "loading",
    "load": lambda event: "warming up",
    "warmup": lambda event: "warming up",
    "repetition": lambda event: f"repetition {event['index'] + 1}",
    "again": lambda event: "not steady: once more",
    "power": lambda event: f"power, {event['phase']}",
    "failed": lambda event: "failed",
    "end": lambda event: "done",
}
COUNTED = ("warmup", "repetition")


class Rounds:
    """A bar for each name, fed by `show` with the events of a journal, from any thread.

    An upload has the bar to itself; then it is that of warm-ups and repetitions.
    """

    def __init__(self, names: Sequence[str], rounds: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._rounds = rounds
        self._several = len(names) > 1
        self._tasks = {
            name: self._progress.add_task(self._text(name, "connecting"), total=rounds)
            for name in names
        }
        self._uploading = dict.fromkeys(names, False)

    def __enter__(self) -> Rounds:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, name: str, event: Event) -> None:
        task, kind = self._tasks[name], event["event"]
        if kind == "note":
            self.say(self._text(name, event["text"]))
            self._progress.update(task, advance=event.get("done", 0))
        if kind not in STAGES:
            return
        if kind == "upload":
            self._uploading[name] = True
            self._progress.update(task, total=event["total_bytes"], completed=event["bytes"])
        elif self._uploading[name]:
            self._uploading[name] = False
            self._progress.reset(task, total=self._rounds)
        if kind == "again":
            self._progress.reset(task, total=self._rounds)
        text = self._text(name, STAGES[kind](event))
        self._progress.update(task, description=text, advance=1 if kind in COUNTED else 0)

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(text, markup=False, highlight=False)

    def _text(self, name: str, text: str) -> str:
        return f"{name}: {text}" if self._several else text
