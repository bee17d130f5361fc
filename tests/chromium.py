"""A headless Chromium by its DevTools protocol, over two pipes: JSON messages that a NUL ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Chromium reads at descriptor 3 and writes at 4.
_START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
    "--no-first-run", "--disable-extensions", "--disable-component-update", "--disable-sync",
    "--disable-background-networking", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip
PATIENCE_SECONDS = 60.0


def executable() -> str:
    """The browser that is installed; skips the test, with the reason, where there is none."""
    for name in NAMES:
        found = shutil.which(name)
        if found:
            return found
    pytest.skip(f"none of {', '.join(NAMES)} is installed")


class Chromium:
    """One process with a profile of its own; ``page`` opens one file in it."""

    def __init__(self, profile: Path) -> None:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        # Above 4, so that neither is overwritten while they are put in place.
        theirs = [fcntl.fcntl(one, fcntl.F_DUPFD, 10) for one in (theirs_in, theirs_out)]
        start = [sys.executable, "-c", _START, *map(str, theirs), executable()]
        self._process = subprocess.Popen(
            [*start, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=theirs,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for one in (theirs_in, theirs_out, *theirs):
            os.close(one)
        self._in, self._out = ours_in, ours_out
        self._read = b""
        self._asked = 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Chromium:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._send("Browser.close", {}, None)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result of a call; events that come before it are kept."""
        number = self._send(method, parameters, session)
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            message = self._message(until, method)
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])
            self.events.append(message)

    def wait_for(self, event: str, session: str) -> None:
        """Until a session has told of an event."""
        until = time.monotonic() + PATIENCE_SECONDS
        while not any(
            one.get("method") == event and one.get("sessionId") == session for one in self.events
        ):
            self.events.append(self._message(until, event))

    @contextlib.contextmanager
    def page(self, file: Path, width: int, height: int, dark: bool) -> Iterator[Page]:
        """A file, loaded, in a window of so many CSS pixels."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        session = str(attached["sessionId"])
        self.events.clear()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable", session)
        self.ask("Emulation.setDeviceMetricsOverride", session, width=width, height=height,
                 deviceScaleFactor=1, mobile=True)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", session, features=[scheme])
        self.ask("Page.navigate", session, url=file.as_uri())
        self.wait_for("Page.loadEventFired", session)
        try:
            yield Page(self, session, file)
        finally:
            self.ask("Target.closeTarget", targetId=target)

    def _send(self, method: str, parameters: dict[str, Any], session: str | None) -> int:
        self._asked += 1
        message = {"id": self._asked, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        unsent = json.dumps(message).encode() + b"\0"
        while unsent:
            unsent = unsent[os.write(self._out, unsent) :]
        return self._asked

    def _message(self, until: float, awaited: str) -> dict[str, Any]:
        while b"\0" not in self._read:
            left = max(0.0, until - time.monotonic())
            ready, _, _ = select.select([self._in], [], [], left)
            assert ready, f"Chromium did not answer in {PATIENCE_SECONDS:.0f} s: {awaited}"
            read = os.read(self._in, 2**16)
            assert read, f"Chromium went away: {awaited}"
            self._read += read
        message, _, self._read = self._read.partition(b"\0")
        return dict(json.loads(message))


class Page:
    """What a loaded page says of itself, and what the browser has to say of it."""

    def __init__(self, browser: Chromium, session: str, file: Path) -> None:
        self._browser, self._session, self._file = browser, session, file

    def evaluate(self, script: str) -> Any:
        """The value of an expression, as JSON."""
        answer = self._browser.ask(
            "Runtime.evaluate", self._session, expression=script, returnByValue=True,
            awaitPromise=True,
        )  # fmt: skip
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    @property
    def errors(self) -> list[str]:
        """Exceptions of scripts, and errors and warnings in the console."""
        found = []
        for method, event in self._told():
            if method == "Runtime.exceptionThrown":
                found.append(str(event["exceptionDetails"]))
            elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning"):
                found.append(str(event["args"]))
            elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
                found.append(str(event["entry"]["text"]))
        return found

    @property
    def requests(self) -> list[str]:
        """What was asked for besides the file itself."""
        asked = [
            str(event["request"]["url"])
            for method, event in self._told()
            if method == "Network.requestWillBeSent"
        ]
        return [url for url in asked if url != self._file.as_uri() and not url.startswith("data:")]

    def _told(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for event in self._browser.events:
            if event.get("sessionId") == self._session:
                yield str(event["method"]), event["params"]
