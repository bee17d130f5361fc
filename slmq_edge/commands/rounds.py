"""Progress of measurements on stderr: one line with the time left for each machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slmq_edge.reports.format import bytes_text
from slmq_edge.runner.journal import TIMED

Event = Mapping[str, Any]

WARMING = ("warmup", "forward_warmup")

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
    "forward_warmup": lambda event: "forward pass, warming up",
    "forward": lambda event: f"forward pass {event['index'] + 1}",
    "power": lambda event: f"power, {event['phase']}",
    "failed": lambda event: "failed",
    "end": lambda event: "done",
}


class Rounds:
    """A bar for each name, fed by `show` with the events of a journal, from any thread.

    An upload has the bar to itself; then it is that of warm-ups and repetitions. Every process
    warms up anew, and a second try begins with none. Where stderr is no terminal there are no bars
    but a line for every stage, and for every tenth of the repetitions.
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
        self._warmed, self._taken = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
        self._said = dict.fromkeys(names, "")

    def __enter__(self) -> Rounds:
        if self._progress.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress.console.is_terminal:
            self._progress.stop()

    def show(self, name: str, event: Event) -> None:
        task, kind = self._tasks[name], event["event"]
        if kind == "note":
            self.say(self._text(name, event["text"]))
        if kind == "upload":
            self._uploading[name] = True
            self._progress.update(task, total=event["total_bytes"], completed=event["bytes"])
        elif self._uploading[name] and kind in STAGES:
            self._uploading[name] = False
            self._progress.reset(task, total=self._rounds)
        self._count(name, event)
        if not self._uploading[name]:
            done = self._warmed[name] + self._taken[name]
            self._progress.update(task, completed=min(done, self._rounds))
        if kind in STAGES:
            text = self._text(name, STAGES[kind](event))
            self._progress.update(task, description=text)
            if not self._progress.console.is_terminal:
                self._tell(name, kind, text)

    def _tell(self, name: str, kind: str, text: str) -> None:
        """A line where something new begins."""
        tenth = max(self._rounds // 10, 1)
        if kind == "failed" or (kind in TIMED and self._taken[name] % tenth):
            return
        if text != self._said[name]:
            self._said[name] = text
            self.say(text)

    def _count(self, name: str, event: Event) -> None:
        kind = event["event"]
        if kind in ("begin", "again"):
            self._warmed[name] = 0
        if kind == "again":
            self._taken[name] = 0
        self._warmed[name] += kind in WARMING
        counted = kind in ("note", "kept")
        self._taken[name] += event.get("done", 0) if counted else kind in TIMED

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _text(self, name: str, text: str) -> str:
        return f"{name}: {text.removeprefix(f'{name}: ')}" if self._several else text
