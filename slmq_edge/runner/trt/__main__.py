"""Usage: python3 -m slmq_edge.runner.trt build BUNDLE | report [BUNDLE ...], with --help for each.

What ``slmq-edge build`` and ``slmq-edge trt report`` do, for a Python that cannot run slmq-edge: a
Jetson's tensorrt belongs to the system's Python. Needs numpy, and nothing of slmq-edge but this
package.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Sequence

from slmq_edge.errors import SlmqError
from slmq_edge.runner.trt import build, commands, outcome
from slmq_edge.runner.trt.report import report


def main(arguments: Sequence[str]) -> int:
    """Run a command; return its exit code. An error is one line on stderr."""
    asked = _parser().parse_args(arguments)
    try:
        if asked.command == "build":
            request = build.Request(
                asked.bundle,
                asked.prompt,
                asked.context,
                asked.workspace,
                asked.engines,
                asked.force,
                asked.trtexec,
            )
            engine = build.build(request, _tell)
            text = json.dumps(engine.sidecar, indent=1) if asked.json else outcome.render(engine)
        else:
            text = json.dumps(report(asked.bundles, asked.engines, asked.run), indent=1)
    except SlmqError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing half-done is left\n")
        return 130
    sys.stdout.write(text + "\n")
    return 0


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m slmq_edge.runner.trt")
    verbs = parser.add_subparsers(dest="command", required=True)
    builds = verbs.add_parser("build", help="build, check and keep a bundle's engine")
    builds.add_argument("bundle", type=Path)
    builds.add_argument("--prompt", type=int, help="tokens of a prompt that run together")
    builds.add_argument("--context", type=int, help="positions that an engine has room for")
    builds.add_argument("--workspace", type=int, default=commands.WORKSPACE_MIB, metavar="MiB")
    builds.add_argument("--engines", type=Path, metavar="DIR")
    builds.add_argument("--force", action="store_true")
    builds.add_argument("--trtexec", type=Path, metavar="PROGRAM")
    builds.add_argument("--json", action="store_true")
    reports = verbs.add_parser("report", help="what is here and was built, as JSON")
    reports.add_argument("bundles", type=Path, nargs="*")
    reports.add_argument("--engines", type=Path, metavar="DIR")
    reports.add_argument("--run", type=Path, action="append", default=[], metavar="run.json")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
