"""Usage: python -m slmq_edge.runner JOB.json, or WORD ...

A job checks its bundle, then measures it or scores sequences with it (its ``task``).

Events go to the job's journal and, line by line, to stdout. Exit code 0, or 1 after one
line on stderr; a traceback there is our bug. The words are what a board is asked over ssh.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Sequence

from slmq_edge.errors import SlmqError, Unsupported, UsageError, unknown

MEASURE = "--measure"  # the second process; see job.py
# Word -> the module whose ``main`` takes the rest of the line. They need no numpy to be imported.
WORDS = {
    "agent": "slmq_edge.runner.agent",
    "supervise": "slmq_edge.runner.agent.supervise",
    "doctor": "slmq_edge.runner.doctor",
}


def main(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in WORDS:
        module = importlib.import_module(WORDS[arguments[0]])
        return int(module.main(arguments[1:]))
    return _job(arguments)


def _job(arguments: Sequence[str]) -> int:
    from slmq_edge.runner import work

    try:
        measuring = bool(arguments) and arguments[0] == MEASURE
        names = arguments[1:] if measuring else arguments
        if len(names) != 1:
            raise UsageError("usage: python -m slmq_edge.runner JOB.json")
        job_file = Path(names[0])
        task = str(work.read(job_file).get(work.TASK, work.MEASURE))
        if task not in TASKS:
            raise Unsupported(unknown("task", task, tuple(TASKS)))
        TASKS[task](job_file, measuring)
        return 0
    except SlmqError as error:
        _echo(json.dumps({"error": type(error).__name__, "text": str(error)}))
        sys.stderr.write(f"error: {error}\n")
        return 1


def _measure(job_file: Path, measuring: bool) -> None:
    from slmq_edge.runner import job as jobs

    job = jobs.read(job_file)
    if measuring:
        jobs.measure_job(job, _echo)
    elif jobs.check(job, _echo):
        jobs.replace_process(job_file)


def _score(job_file: Path, measuring: bool) -> None:
    from slmq_edge.runner import scoring

    scoring.run(scoring.read(job_file), _echo)


TASKS = {"measure": _measure, "score": _score}


def _echo(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
