"""A wire that can be cut: passes TCP on to another port of this machine, and counts."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType

BLOCK_BYTES = 1 << 14
HOST = "127.0.0.1"


class Relay:
    """``port`` leads to ``target_port``, until the wire is cut.

    Attributes:
        sent: bytes passed on to the target, of all connections so far.
        connections: how many there were.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._limit: int | None = None
        self._then = self.cut
        self._passing = threading.Event()
        self._passing.set()
        self._accepting = True
        self.sent = self.connections = 0
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._accepting = False
        self._passing.set()
        # shutdown wakes the thread that waits in accept; close alone would leave it there
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    @property
    def open(self) -> int:
        """How many connections pass bytes now."""
        with self._lock:
            return len(self._open) // 2

    def cut_after(self, count: int) -> None:
        """Cut every connection as soon as ``count`` more bytes have been sent, once."""
        with self._lock:
            self._limit = self.sent + count

    def hold_after(self, count: int, seconds: float) -> None:
        """Pass nothing on as soon as ``count`` more bytes have been sent, for so long."""

        def hold() -> None:
            self.hold()
            threading.Timer(seconds, self.release).start()

        self._then = hold
        self.cut_after(count)

    def cut(self) -> None:
        """Cut every connection now; new ones are accepted."""
        with self._lock:
            ends, self._open = self._open, set()
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def refuse(self, refused: bool = True) -> None:
        """Take no new connections, as a machine that is starting up, or take them again."""
        self._accepting = not refused

    def hold(self) -> None:
        """Pass nothing on, and say nothing of it: a wire pulled out."""
        self._passing.clear()

    def release(self) -> None:
        self._passing.set()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            if not self._accepting:
                here.close()
                continue
            there = socket.create_connection((HOST, self._target_port))
            with self._lock:
                self._open |= {here, there}
                self.connections += 1
            for source, sink, counted in ((here, there, True), (there, here, False)):
                arguments = (source, sink, counted)
                threading.Thread(target=self._pump, args=arguments, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(BLOCK_BYTES):
                self._passing.wait()
                if counted and self._is_over(len(block)):
                    then, self._then = self._then, self.cut
                    then()
                    self._passing.wait()
                sink.sendall(block)
            sink.shutdown(socket.SHUT_WR)
            if not counted:  # the target has ended it
                self._forget(source, sink)

    def _forget(self, *ends: socket.socket) -> None:
        with self._lock:
            self._open -= set(ends)
        for end in ends:
            end.close()

    def _is_over(self, count: int) -> bool:
        with self._lock:
            self.sent += count
            over = self._limit is not None and self.sent >= self._limit
            if over:
                self._limit = None
            return over
