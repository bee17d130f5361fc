"""Progress of a bench on stderr: one line that stands, and above it what has ended."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from slmq_edge.reports.bench import span

if TYPE_CHECKING:
    from slmq_edge.bench.run import News


class Line:
    """Shows news. Where stderr is no terminal, a line for each cell that ends.

    It has no thread: cells are started by this process while it shows.
    """

    def __init__(self, chosen: Sequence[str]) -> None:
        self._chosen = chosen
        self._is_terminal = sys.stderr.isatty()

    def show(self, news: News) -> None:
        if news.event == "end" and news.cell is not None and news.status is not None:
            self._say(f"{self._counts(news)} {news.cell.id}: {self._ended(news)}")
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\x1b[K{self._now(news)[:width]}")
            sys.stderr.flush()

    def close(self) -> None:
        if self._is_terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _say(self, text: str) -> None:
        self.close()
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def _counts(self, news: News) -> str:
        settled = sum(news.states.get(name, "running") != "running" for name in self._chosen)
        return f"[{settled}/{len(self._chosen)}]"

    def _ended(self, news: News) -> str:
        status = news.status
        assert status is not None, "of an end"
        took = "" if status.seconds is None else f" in {status.seconds:.1f} s"
        said = "" if status.error is None else f": {status.error}"
        ahead = f", about {span(news.left)} left" if news.left and not self._is_terminal else ""
        return f"{status.state}{took}{said}{ahead}"

    def _now(self, news: News) -> str:
        states = [news.states.get(name) for name in self._chosen]
        counts = [f"{states.count('done')}/{len(states)} done"]
        for name, spoken in (("failed", "failed"), ("waiting", "wait"), ("skipped", "skipped")):
            counts += [f"{states.count(name)} {spoken}"] if states.count(name) else []
        running = [f"{name} ({span(seconds)})" for name, seconds in news.running.items()]
        return "; ".join([", ".join(counts), f"about {span(news.left)} left", *running])
