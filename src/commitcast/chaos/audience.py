"""The readers of a campaign: some stay, some leave and come back, some come only at the end."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from commitcast.chaos.reader import Reader
from commitcast.chaos.waits import within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from commitcast.chaos.record import ReaderRecord

_BEGINNING: Final = "new:0"
_LEAVES_S: Final = 1.5
_CATCH_UP_S: Final = 30.0


class Audience:
    """Readers of `streams` on the servers at `ports`, in turn; `errors` takes what they raise."""

    def __init__(
        self,
        streams: Sequence[str],
        ports: Sequence[int],
        rng: random.Random,
        errors: list[str],
    ) -> None:
        self.readers: list[Reader] = []
        self.records: list[ReaderRecord] = []
        """Of those who had the time to catch up."""
        self._streams = streams
        self._ports = ports
        self._rng = rng
        self._errors = errors

    def across(self) -> int:
        """Events that were committed before a kill and received after it, so far."""
        return sum(reader.across for reader in self.readers)

    def first(self) -> list[Reader]:
        """Three of each stream: with and without a first position, and one that comes and goes."""
        readers = []
        for stream in self._streams:
            readers += [
                self._reader(f"steady {stream}", stream, cursor=_BEGINNING),
                self._reader(f"from now {stream}", stream),
                self._reader(f"leaving {stream}", stream, cursor=_BEGINNING, leaves_s=_LEAVES_S),
            ]
        return readers

    def newcomers(self) -> list[Reader]:
        """One of each stream, that reads it from the beginning."""
        return [self._reader(f"newcomer {s}", s, cursor=_BEGINNING) for s in self._streams]

    def _reader(
        self, name: str, stream: str, *, cursor: str | None = None, leaves_s: float | None = None
    ) -> Reader:
        rng = random.Random(self._rng.getrandbits(64))
        address = ("127.0.0.1", rng.choice(self._ports))
        return Reader(name, stream, address, rng, cursor=cursor, leaves_s=leaves_s)

    @asynccontextmanager
    async def reading(self, readers: Sequence[Reader]) -> AsyncIterator[None]:
        """Let `readers` read while the block runs."""
        self.readers += readers
        tasks = [asyncio.create_task(reader.run()) for reader in readers]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if not isinstance(result, asyncio.CancelledError):
                    self._errors.append(f"a reader failed: {result!r}")

    @asynccontextmanager
    async def catching_up(self, heads: Mapping[str, int]) -> AsyncIterator[None]:
        """Let all read up to `heads`, within limits; what is missing then, the checker says."""
        # First those who hear of events only as they happen: who comes wakes up the others.
        await self._catch_up([reader for reader in self.readers if not reader.leaves], heads)
        leaving = [reader for reader in self.readers if reader.leaves]
        for reader in leaving:
            reader.may_connect.set()
        newcomers = self.newcomers()
        async with self.reading(newcomers):
            await self._catch_up([*leaving, *newcomers], heads)
            yield

    async def _catch_up(self, readers: Sequence[Reader], heads: Mapping[str, int]) -> None:
        waits = (reader.reached(heads.get(reader.stream, 0)) for reader in readers)
        await within(_CATCH_UP_S, asyncio.gather(*waits))
        self.records += [reader.record for reader in readers]

    def send_away(self) -> None:
        """Those who leave do not come back before the end."""
        for reader in self.readers:
            if reader.leaves:
                reader.may_connect.clear()
