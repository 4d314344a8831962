"""Starts the load server as a process of its own and kills or stops it, by its pid alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Final

from commitcast.chaos.record import Answer, Said

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

LOAD_SERVER: Final = (sys.executable, "-m", "commitcast.chaos.server")
_PORTS: Final = (20_000, 32_000)  # not ephemeral, or a reader may connect to itself
_GRACE_S: Final = 20.0


@dataclass(frozen=True)
class ServerOptions:
    """What each server life is started with; the same for all but `life`."""

    database_url: str
    port: int
    seed: int
    writers: int
    streams: Sequence[str]
    sink: Path | None
    program: Sequence[str] = LOAD_SERVER
    operation_writers: int = 4
    users: Sequence[str] = ("chaos",)
    lease_s: float = 1.0

    def arguments(self, life: int) -> list[str]:
        """The command line of one life."""
        given = {
            "database-url": self.database_url,
            "port": self.port,
            "seed": self.seed,
            "life": life,
            "writers": self.writers,
            "operation-writers": self.operation_writers,
            "streams": ",".join(self.streams),
            "users": ",".join(self.users),
            "lease-s": self.lease_s,
        } | ({} if self.sink is None else {"sink": self.sink})
        options = [f"--{name}={value}" for name, value in given.items()]
        return [*self.program, *options]


@dataclass(frozen=True, slots=True)
class _Aim:
    """Shoot `later_s` seconds after so many more marks."""

    marks: int
    later_s: float
    shoot: Callable[[], None]


class ServerDied(Exception):
    """The server ended although nobody killed it."""


class ServerProcess:
    """One life of the server.

    A thread reads its marks, so that a kill aimed at a commit is sent from right there and
    does not wait for the event loop's turn.
    """

    def __init__(self, options: ServerOptions, life: int, stderr: IO[bytes]) -> None:
        self.acknowledged: list[str] = []
        self.commits = 0
        self.rollbacks = 0
        self.announced: list[tuple[str, int]] = []
        self.said: list[Said] = []
        self.answers: list[Answer] = []
        self.errors: list[str] = []
        self.killed = False
        self.up = asyncio.Event()
        self.stopped = asyncio.Event()
        self.ended = asyncio.Event()
        self.halted = asyncio.Event()
        """SIGSTOP was sent."""
        self._aim: _Aim | None = None
        self._loop = asyncio.get_running_loop()
        self._process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            options.arguments(life),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # a Ctrl-C is for the campaign, which then ends the server
        )
        self._marks = threading.Thread(target=self._read_marks, name="chaos-marks", daemon=True)
        self._marks.start()

    def order(self, line: str) -> None:
        """Send ``go`` or ``stop``; a server that is gone does not mind."""
        with contextlib.suppress(OSError):
            os.write(self._pipe(self._process.stdin), f"{line}\n".encode())

    def kill(self) -> None:
        """Send SIGKILL now. The pid is ours: the process has not been waited for yet."""
        self.killed = True
        self._process.send_signal(signal.SIGKILL)

    def kill_at_commit(self, marks: int, later_s: float) -> None:
        """Send SIGKILL `later_s` seconds after `marks` more marks of commits and operations."""
        self._aim = _Aim(marks, later_s, self.kill)

    def halt(self) -> None:
        """Send SIGSTOP now: nothing of it runs until `resume`, and it knows nothing of that."""
        self._aim = None
        self._process.send_signal(signal.SIGSTOP)
        self._loop.call_soon_threadsafe(self.halted.set)

    def halt_at_commit(self, marks: int, later_s: float) -> None:
        """Send SIGSTOP likewise."""
        self._aim = _Aim(marks, later_s, self.halt)

    def resume(self) -> None:
        """Send SIGCONT."""
        self.halted.clear()
        self._process.send_signal(signal.SIGCONT)

    async def end(self) -> None:
        """Wait for the killed process; raises `ServerDied` if it had ended by itself."""
        await self.ended.wait()
        await asyncio.to_thread(self._close)
        if not self.killed or self._process.returncode != -signal.SIGKILL:
            raise ServerDied(f"the server ended with status {self._process.returncode}")

    async def terminate(self) -> int:
        """Ask it to end (SIGTERM) and wait, then kill it; its exit status."""
        with contextlib.suppress(OSError):
            self._process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), _GRACE_S)
        self._process.kill()
        await asyncio.to_thread(self._close)
        return self._process.returncode

    def _close(self) -> None:
        self._process.wait()
        self._marks.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _read_marks(self) -> None:
        with os.fdopen(os.dup(self._pipe(self._process.stdout)), "rb") as marks:
            for line in marks:
                self._mark(line.decode().rstrip("\n"))
        self._loop.call_soon_threadsafe(self.ended.set)

    def _mark(self, line: str) -> None:
        kind, _, rest = line.partition(" ")
        aim = self._aim
        if kind in {"b", "w", "c", "a", "o"} and aim is not None:
            self._aim = replace(aim, marks=aim.marks - 1) if aim.marks > 1 else None
            if self._aim is None:
                time.sleep(aim.later_s)
                aim.shoot()
        if kind == "c":
            self.commits += 1
            self.acknowledged += rest.split()
        elif kind == "r":
            self.rollbacks += 1
        elif kind == "a":
            operation, attempt = rest.split()
            self.announced.append((operation, int(attempt)))
        elif kind == "o":
            operation, attempt, outcome = rest.split()
            self.said.append(Said(operation, int(attempt), outcome))
        elif kind == "k":
            operation, _, result = rest.partition(" ")
            self.answers.append(Answer(operation, result))
        elif kind == "error":
            self.errors.append(json.loads(rest))
        elif kind in {"up", "stopped"}:
            signalled = self.up if kind == "up" else self.stopped
            self._loop.call_soon_threadsafe(signalled.set)

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> int:
        if pipe is None:  # pragma: no cover - all pipes were asked for
            raise ValueError("the process has no such pipe")
        return pipe.fileno()


def free_port() -> int:
    """A port that nobody listens on, below those that clients are given."""
    while True:
        port = random.randint(*_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
