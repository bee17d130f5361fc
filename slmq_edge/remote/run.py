"""Work on another machine: send the bundle, start a job that needs no link, bring its journal home.

A job is named by all that decides it, so the same command finds it again: running, ended, or lost
in a reboot. Ctrl-C leaves it running there.
"""

from __future__ import annotations

import datetime
import getpass
import hashlib
import json
import socket
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from slmq_edge import devices
from slmq_edge.errors import Busy, NotFound, SlmqError, as_raised
from slmq_edge.profiles import Board
from slmq_edge.remote.agent import Agent
from slmq_edge.remote.follow import Copy, Progress, follow, note
from slmq_edge.remote.needs import ON_GPU, require
from slmq_edge.remote.target import Target
from slmq_edge.remote.transport import LinkLost, connect
from slmq_edge.remote.upload import push, send
from slmq_edge.results import Device
from slmq_edge.runner import manifest, runtimes
from slmq_edge.runner.work import Work
from slmq_edge.tracks.machines import of_facts

RECONNECT_SECONDS = 15 * 60.0
DEADLINE_SECONDS = 6 * 3600.0
RESTARTS = 3  # of a job that was lost and has taken nothing since
LOST, DONE, BUSY, FAILED = "lost", "done", "busy", "failed"


class Remote:
    """A machine behind a transport: see `tracks.machines.Machine`.

    Args:
        target: which one.
        reconnect_seconds: how long a lost link is put up with.
        deadline_seconds: how long a job may take there, each time it is started.
        say: told, in a line each, of a link that is lost while no job is followed.
    """

    def __init__(
        self,
        target: Target,
        *,
        reconnect_seconds: float = RECONNECT_SECONDS,
        deadline_seconds: float = DEADLINE_SECONDS,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._target, self._deadline, self._say = target, deadline_seconds, say
        self._transport = connect(target)
        self._agent = Agent(
            self._transport, target, reconnect_seconds=reconnect_seconds, note=self._tell
        )
        self._seen: dict[str, Any] | None = None
        self._runs: list[str] = []
        self._started = False
        self._progress: Progress | None = None

    def __enter__(self) -> Remote:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._transport.close()

    @property
    def seen(self) -> Mapping[str, Any]:
        """What the machine says of itself; asked once.

        Raises:
            SlmqError: it cannot be reached, or has no Python that will do.
        """
        if self._seen is None:
            self._seen = self._agent.ask("probe")
        return self._seen

    def cores(self) -> int:
        """Cores that a process may use there: the default of ``--threads``."""
        return int(self.seen["cores"])

    def device(self, place: runtimes.Place) -> tuple[Device, Board]:
        """See `tracks.machines.Machine`."""
        require(self._target, self.seen, place)
        facts = devices.detect(self.seen)
        gpu = self._gpu(facts) if manifest.kind_of(place.bundle) in ON_GPU else None
        return of_facts(facts, gpu)

    def run(self, work: Work, progress: Progress) -> None:
        """See `tracks.machines.Machine`."""
        self._progress = progress
        try:
            places = self._push(work, progress)
            self._runs.append(run_id(work))
            with Copy(work.journal) as copy:
                self._see_through(work, places, copy, progress)
        finally:
            self._progress = None

    def forget(self) -> None:
        """See `tracks.machines.Machine`. What was taken is here: what fails now is a note."""
        try:
            while self._runs:
                self._agent.ask("forget", id=self._runs[-1])
                self._runs.pop()
        except SlmqError as error:
            self._tell(f"{error}; the same command would bring the same figures home once more")

    def stop(self) -> str:
        """End the job that has the device, whoever started it; return its id.

        Raises:
            NotFound: none runs.
        """
        return str(self._agent.ask("stop")["id"])

    def _push(self, work: Work, progress: Progress) -> dict[str, str]:
        """Send the bundle and what else a job needs: fields of its document, with names there."""

        def told(done: int, total: int) -> None:
            progress({"event": "upload", "bytes": done, "total_bytes": total})

        try:
            files = send(self._agent, self._transport, work.files(), told)
            return {**files, "bundle": push(self._agent, self._transport, work.bundle, told)}
        except KeyboardInterrupt:
            name = self._target.name
            progress(note(f"what was sent is kept on {name}: the same command goes on from there"))
            raise

    def _see_through(
        self, work: Work, places: Mapping[str, str], copy: Copy, progress: Progress
    ) -> None:
        """Start the job and follow it; again where it was lost, as long as that gets on."""
        left, first = RESTARTS, True
        while True:
            before = copy.taken
            try:
                self._start(work, places)
                ended = follow(self._agent, run_id(work), copy, progress, first)
                first = False
            except LinkLost as error:
                raise LinkLost(f"{error}; {self._goes_on()}") from error
            except KeyboardInterrupt:
                started = self._started
                said = self._goes_on() + ", --stop ends it" if started else "nothing was started"
                progress(note(said))
                raise
            if ended["state"] == DONE:
                return
            left = RESTARTS if copy.taken > before else left - 1
            if ended["state"] != LOST or left <= 0:
                raise self._failure(work, ended, copy)
            progress(note(f"{self._target.name}: {ended['text']}; starting the job again"))

    def _start(self, work: Work, places: Mapping[str, str]) -> None:
        document = {**work.document(), **places}
        answer = self._agent.ask(
            "start",
            id=run_id(work),
            job=document,
            deadline_seconds=self._deadline,
            label=_who(),
        )
        if answer["state"] == BUSY:
            raise Busy(_busy(self._target.name, answer["holder"]))
        self._started = True
        if answer.get("attached") and self._progress is not None:
            self._progress(note("following the job that runs there"))

    def _goes_on(self) -> str:
        name = self._target.name
        return f"what was started on {name} goes on by itself: the same command follows it"

    def _failure(self, work: Work, ended: Mapping[str, Any], copy: Copy) -> Exception:
        """What ended the job: its own refusal, its device, or our bug."""
        name, refusal = self._target.name, ended.get("refusal")
        if ended["state"] == FAILED and not copy.taken:
            copy.path.unlink()  # nothing was taken: nothing is to be gone on from
            self.forget()
        if ended["state"] == FAILED and refusal is not None:
            return as_raised(refusal["error"], f"{name}: {refusal['text']}")
        if ended["state"] == FAILED and ended["exit_code"] > 0:
            return RuntimeError(f"the runner on {name} failed:\n{ended['words']}")
        doing = work.doing.get(str(ended.get("after")), "starting")
        return SlmqError(
            f"{name}: {ended['state'].replace('_', ' ')} while {doing}: {ended['text']}; "
            f"{copy.counted} {work.unit} are kept: the same command goes on from there"
        )

    def _gpu(self, facts: devices.Facts) -> str | None:
        """What a bundle for a GPU runs on; a Jetson's is the Jetson itself."""
        if facts.kind == "jetson":
            return None
        found = devices.gpus(self.seen)
        if not found:
            raise NotFound(
                f"{self._target.name}: no GPU is seen there: slmq-edge doctor --device says why"
            )
        return found[0][0]

    def _tell(self, text: str) -> None:
        if self._progress is None:
            self._say(text)
        else:
            self._progress(note(text))


def run_id(work: Work) -> str:
    """Name a job by all that decides what is taken: 64 hexadecimal digits."""
    document = work.document()
    del document["journal"]
    document["bundle"] = manifest.sha256(work.bundle / manifest.BUNDLE_FILE)
    document.update({field: manifest.sha256(path) for field, path in work.files().items()})
    text = json.dumps(document, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _busy(name: str, holder: Mapping[str, Any]) -> str:
    since = holder.get("since")
    at = "" if since is None else f" since {datetime.datetime.fromtimestamp(since):%H:%M}"
    who = f" of {holder['label']}" if holder.get("label") else ""
    return f"{name} is busy{at} with a job{who}: try again when it is done, or end it by --stop"


def _who() -> str:
    """Who asks, for whoever finds the device busy."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a user without a name
        return ""
