"""One progress bar with the time left, on stderr, for work that reports a share and a name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from slmq_edge.quantization import Progress


@contextlib.contextmanager
def bar(what: str) -> Iterator[Progress]:
    """Yield a callback (share 0..1, text) that moves the bar; every new text restarts it."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=1.0)
        stage = what

        def update(share: float, text: str) -> None:
            nonlocal stage
            name = text.split(",")[0]
            if name != stage:
                stage = name
                shown.reset(task, total=1.0)
            shown.update(task, completed=share, description=text)

        yield update
