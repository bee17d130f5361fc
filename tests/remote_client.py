"""Usage: python -m tests.remote_client BUNDLE HOME OUTPUT REPETITIONS, a client that can be killed.

It measures on this machine as on another, and prints the name of every event.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slmq_edge.remote import follow
from slmq_edge.remote.run import Remote
from slmq_edge.remote.target import Target
from slmq_edge.runner.measure import Workload
from slmq_edge.tracks import inference

WORK = Workload(prompt_tokens=6, new_tokens=5, repetitions=3, warmups=1, threads=1)
LONG = WORK._replace(new_tokens=400, repetitions=60)
ENDLESS = LONG._replace(repetitions=100_000)
OPTIONS = inference.Options(power_seconds=0.0, again=False)


def local(home: Path, name: str = "here") -> Target:
    return Target(name, "local", python=sys.executable, home=str(home))


def main(bundle: str, home: str, output: str, repetitions: str) -> None:
    def tell(event: Mapping[str, Any]) -> None:
        sys.stdout.write(event["event"] + "\n")
        sys.stdout.flush()

    follow.WAITS = ()
    follow.LONGEST_WAIT = 0.1
    work = LONG._replace(repetitions=int(repetitions))
    with Remote(local(Path(home))) as machine:
        inference.profile(Path(bundle), work, Path(output), tell, OPTIONS, machine=machine)


if __name__ == "__main__":
    main(*sys.argv[1:])
