"""Traffic for the support chat: two customers and one of the staff, over HTTP and WebSockets."""

from __future__ import annotations

import asyncio
import json
import secrets
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import httpx
from websockets.asyncio.client import connect

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

PATIENCE_S = 20.0


class Person:
    """One user: a socket that keeps what it is sent, and a client for requests."""

    def __init__(self, name: str, client: httpx.AsyncClient, socket: ClientConnection) -> None:
        """Speak as `name`."""
        self.name = name
        self.seen: list[dict[str, Any]] = []
        self._client = client
        self._socket = socket
        self._changed = asyncio.Event()

    async def listen(self) -> None:
        """Keep what arrives, until the socket is closed."""
        async for frame in self._socket:
            self.seen.append(json.loads(frame))
            self._changed.set()

    async def say(self, **message: Any) -> None:
        """Send a message over the socket."""
        await self._socket.send(json.dumps(message))

    async def until(self, type_: str, **fields: Any) -> None:
        """Wait for a message; raises TimeoutError."""

        def there(message: dict[str, Any]) -> bool:
            return message["type"] == type_ and fields.items() <= message.items()

        async with asyncio.timeout(PATIENCE_S):
            while not any(there(message) for message in self.seen):
                self._changed.clear()
                await self._changed.wait()

    async def ask(self, method: str, path: str, status: int, **body: Any) -> Any:
        """Make a request; raises RuntimeError if it is not answered with `status`."""
        answer = await self._client.request(
            method, path, json=body or None, headers={"X-User": self.name}
        )
        if answer.status_code != status:
            raise RuntimeError(f"{method} {path} was answered {answer.status_code}: {answer.text}")
        return answer.json() if answer.content else None


async def traffic(
    base_url: str, *, failures_are_told: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """Do all that the chat can do, right and wrong; returns what each user was sent.

    With `failures_are_told` it waits for what the agent's failure is to send, too.
    """
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=base_url, timeout=PATIENCE_S)
        )
        people: list[Person] = []
        for name in ("ann", "bob", "sam"):
            url = f"{base_url.replace('http', 'ws', 1)}/ws?user={name}"
            socket = await stack.enter_async_context(connect(url))
            people.append(Person(name, client, socket))
        ann, bob, sam = people
        listening = [asyncio.create_task(person.listen()) for person in people]
        try:
            tickets = await asyncio.gather(*(customer(person, sam) for person in (ann, bob)))
            await strangers(ann, bob, tickets)
            for person in (ann, bob) if failures_are_told else ():
                await person.until("run.status", status="failed")
                await person.until("transaction_rolled_back", failed_operation="answer")
                await person.until("transaction_rolled_back", failed_operation="post")
                await person.until("transaction_rolled_back", failed_operation="rate")
        finally:
            await stack.aclose()
            await asyncio.gather(*listening)
        return {person.name: person.seen for person in people}


async def customer(me: Person, staff: Person) -> int:
    """One customer's day; returns the ticket."""
    await me.say(type="ping")
    await me.until("pong")
    await me.say(type="typing")
    await staff.until("typing", user=me.name)

    word = secrets.token_hex(4)  # another round on the same database has other subjects
    invoice, printer = f"invoice {word}", f"printer {word}"
    other = (await me.ask("POST", "/tickets", 201, subject=invoice))["ticket"]
    ticket: int = (await me.ask("POST", "/tickets", 201, subject=printer))["ticket"]
    await me.ask("POST", "/tickets", 409, subject=printer)
    await me.ask("PUT", f"/tickets/{other}/subject", 409, subject=printer)
    await me.ask("PUT", f"/tickets/{other}/subject", 204, subject=f"the {invoice}")
    await me.until("ticket.renamed", ticket=other)

    path = f"/tickets/{ticket}"
    await me.ask("POST", f"{path}/messages", 201, text="It does not print.")
    await staff.ask("POST", f"{path}/messages", 201, text="Is it plugged in?")
    await me.until("message.created", author="sam", ticket=ticket)
    await me.ask("POST", f"{path}/messages", 422, text="You idiot")

    run = (await me.ask("POST", f"{path}/questions", 202, text="What now?"))["run"]
    await me.until("run.status", run=run, status="completed")
    await me.ask("POST", f"{path}/questions", 202, text="I want a refund.")

    await me.ask("GET", f"{path}/messages", 200)
    await me.ask("POST", f"{path}/rating", 200, stars=5)
    await me.ask("POST", f"{path}/rating", 200, stars=1)
    await me.ask("POST", f"{path}/close", 204)
    await me.until("ticket.closed", ticket=ticket)
    await me.ask("POST", f"{path}/messages", 409, text="One more thing")
    return ticket


async def strangers(ann: Person, bob: Person, tickets: list[int]) -> None:
    """Nobody reads or writes what is somebody else's."""
    await bob.ask("GET", f"/tickets/{tickets[0]}/messages", 404)
    await ann.ask("POST", f"/tickets/{tickets[1]}/rating", 404, stars=1)
    await ann.ask("GET", "/tickets/0/messages", 404)
