"""The host's side of a conversation with a device; the other is ``slmq_edge.runner.agent``."""

from __future__ import annotations

import base64
import inspect
import json
import signal
from collections.abc import Callable, Sequence
from typing import Any

from slmq_edge.errors import SlmqError, Unsupported, as_raised
from slmq_edge.remote import package
from slmq_edge.remote.patience import Patience
from slmq_edge.remote.target import Target
from slmq_edge.remote.transport import NOT_FOUND, OF_SIGNAL, Done, LinkLost, Transport
from slmq_edge.runner import agent, bootstrap

SECONDS = 120.0  # an answer takes a second or so; a board that swaps, longer
UNHURRIED = ("place", "assemble", "gc")  # gigabytes are read: no limit
RECONNECT_SECONDS = 60.0
# A system that goes down, or runs out of memory, ends what answers before it ends the link.
FROM_OUTSIDE = (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM)
LAST_WORDS = 3  # lines of stderr that are worth repeating
# Whatever the login's locale: names of files and text are UTF-8. -I: nothing of the folder we
# happen to be in, of PYTHONPATH or of the user's site-packages is imported.
UTF8, ISOLATED = ("-X", "utf8"), "-I"


class Agent:
    """Asks; brings the runner there first, once.

    Args:
        transport: the way there.
        target: the machine.
        reconnect_seconds: how long a lost link is put up with.
        note: told, in a line each, of tries to reach it again.
    """

    def __init__(
        self,
        transport: Transport,
        target: Target,
        *,
        reconnect_seconds: float = RECONNECT_SECONDS,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._transport, self._target = transport, target
        self._limit, self._note = reconnect_seconds, note
        self._home: str | None = None

    @property
    def home(self) -> str:
        """Our folder on the device, absolute; the runner is there."""
        if self._home is None:
            self._home = self._bootstrap()
        return self._home

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Return the answer to a word of ``slmq_edge.runner.agent.DO``.

        Raises:
            SlmqError: as it was raised there; LinkLost: the link stayed away.
        """
        timeout = None if do in UNHURRIED else SECONDS
        patience = self.patience()
        while True:
            done = self._runner([ISOLATED], ["agent"], timeout, lambda: {"do": do, **request})
            answer = _answer(done)
            if answer is not None:
                break
            name = self._target.name
            if done.code - OF_SIGNAL not in FROM_OUTSIDE:
                raise RuntimeError(f"the agent on {name} failed:\n{done.stderr}")
            patience.again(LinkLost(f"{name}: what answers there was ended by a signal"))
        if set(answer) == {"error", "text"}:
            raise as_raised(answer["error"], f"{self._target.name}: {answer['text']}")
        return answer

    def python(self, words: Sequence[str], timeout: float | None = None) -> Done:
        """Run the runner with these words, with the user's own packages.

        Raises:
            LinkLost: the link stayed away, or the timeout (seconds) has passed.
        """
        return self._runner([], words, timeout, lambda: None)

    def patience(self) -> Patience:
        """Return what waits out a lost link of this device."""
        return Patience(self._limit, self._note)

    def _runner(
        self,
        flags: Sequence[str],
        words: Sequence[str],
        timeout: float | None,
        request: Callable[[], dict[str, Any] | None],
    ) -> Done:
        """Run the archive; where somebody has removed it, bring it once more."""
        for last in (False, True):
            archive = f"{self.home}/{bootstrap.RUNNERS}/{package.runner()[0]}.pyz"
            asked = request()
            stdin = b"" if asked is None else json.dumps({**asked, "home": self.home}).encode()
            done = self._run([self._target.python, *flags, *UTF8, archive, *words], stdin, timeout)
            if done.code != CANNOT_OPEN or last or f"'{archive}'" not in done.stderr:
                break
            self._home = None
        return done

    def _bootstrap(self) -> str:
        """Bring the runner where it is not; return our folder.

        Raises:
            Unsupported: no Python there, or too old a one. SlmqError: it cannot be written.
        """
        digest, content = package.runner()
        for payload in ("", base64.b64encode(content).decode()):
            call = f"\n\nmain({self._target.home!r}, {digest!r}, {payload!r})\n"
            program = (inspect.getsource(bootstrap) + call).encode()
            done = self._run([self._target.python, ISOLATED, *UTF8, "-"], program, SECONDS)
            found = self._checked(done)
            if found.get("runner"):
                return str(found["home"])
        raise SlmqError(f"{self._target.name}: the runner arrived damaged: try again")

    def _checked(self, done: Done) -> dict[str, Any]:
        name, python = self._target.name, self._target.python
        found = _answer(done)
        if found is None and done.code == NOT_FOUND:
            raise Unsupported(
                f"{name}: no {python} there: install Python 3.8 or later, or name it in an "
                f'inventory (python = "...")'
            )
        if found is None:
            last = " | ".join(done.stderr.strip().splitlines()[-LAST_WORDS:]) or "it said nothing"
            raise SlmqError(f"{name}: {python} failed there with exit code {done.code}: {last}")
        version = tuple(found["python"])
        if version < bootstrap.OLDEST:
            raise Unsupported(
                f"{name}: {python} there is {'.'.join(map(str, version))} (JetPack 4 has no newer "
                "one), and the runner needs 3.8 or later: install one beside it, and name it in "
                'an inventory (python = "python3.8")'
            )
        if "text" in found:
            raise SlmqError(f"{name}: {found['text']}; choose another home in an inventory")
        return found

    def _run(self, command: Sequence[str], stdin: bytes, timeout: float | None) -> Done:
        patience = self.patience()
        while True:
            try:
                return self._transport.run(command, stdin, timeout)
            except LinkLost as error:
                patience.again(error)


CANNOT_OPEN = 2  # Python's code where its program is not there


def _answer(done: Done) -> dict[str, Any] | None:
    """Return the last line that is marked as ours."""
    for line in reversed(done.stdout.splitlines()):
        if line.startswith(agent.MARK):
            answer: dict[str, Any] = json.loads(line[len(agent.MARK) :])
            return answer
    return None
