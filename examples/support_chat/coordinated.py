"""The same help desk with Commitcast: rows, events and the run's state are one commit.

Nothing here sends. What is emitted leaves with the commit, through the sockets the app has already
(`deliver` in app.py), and what fails is told to its user by Commitcast.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import IntegrityError

from commitcast import Event

from .agent import ToolFailed, draft, moderate, refund
from .desk import STAFF, TicketRepository, run_status, shown
from .problems import Duplicate, TicketUnknown
from .tables import Rating, Run, Status, Ticket

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from commitcast import Coordinator, Operation

logger = logging.getLogger(__name__)


class CoordinatedDesk:
    """What customers and staff can do; the same as `Desk`."""

    def __init__(self, coordinator: Coordinator) -> None:
        """Keep tickets through the coordinator's sessions."""
        self._coordinator = coordinator
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, user: str, subject: str) -> int:
        """Open a ticket; raises `Duplicate`."""
        try:
            async with (
                self._operation("open", user, "The ticket was not opened.") as op,
                op.begin() as session,
            ):
                await TicketRepository(session).remember(user)
                ticket = Ticket(owner=user, subject=subject)
                session.add(ticket)
                tell(
                    op, {user, STAFF},
                    lambda: {"type": "ticket.opened", "ticket": ticket.id, "subject": subject},
                )  # fmt: skip
        except IntegrityError:
            raise Duplicate(subject) from None
        return ticket.id

    async def rename(self, user: str, ticket_id: int, subject: str) -> None:
        """Give a ticket another subject; raises `Duplicate`."""
        try:
            async with (
                self._operation("rename", user, "The subject was not changed.") as op,
                op.begin() as session,
            ):
                ticket = await TicketRepository(session).open_ticket(ticket_id, user)
                ticket.subject = subject
                renamed = {"type": "ticket.renamed", "ticket": ticket_id, "subject": subject}
                tell(op, {ticket.owner, STAFF}, lambda: renamed)
        except IntegrityError:
            raise Duplicate(subject) from None

    async def post(self, user: str, ticket_id: int, text: str) -> int:
        """Say something; raises `agent.Rejected` for what may not be said."""
        async with (
            self._operation("post", user, "Your message was not saved.") as op,
            op.begin() as session,
        ):
            repository = TicketRepository(session)
            ticket = await repository.open_ticket(ticket_id, user)
            message = await repository.add_message(ticket, user, text)
            tell(op, {ticket.owner, STAFF}, lambda: shown(message))
            moderate(text)
        return message.id

    async def close(self, user: str, ticket_id: int) -> None:
        """Close a ticket."""
        async with (
            self._operation("close", user, "The ticket was not closed.") as op,
            op.begin() as session,
        ):
            ticket = await TicketRepository(session).open_ticket(ticket_id, user)
            ticket.open = False
            closed = {"type": "ticket.closed", "ticket": ticket_id}
            tell(op, {ticket.owner, STAFF}, lambda: closed)

    async def rate(self, user: str, ticket_id: int, stars: int) -> bool:
        """Rate a ticket, once."""
        try:
            async with (
                self._operation("rate", user, "Your rating was not saved.") as op,
                op.begin() as session,
            ):
                ticket = await session.get(Ticket, ticket_id)
                if ticket is None or ticket.owner != user:
                    raise TicketUnknown(ticket_id)
                session.add(Rating(ticket_id=ticket_id, stars=stars))
                rated = {"type": "ticket.rated", "ticket": ticket_id, "stars": stars}
                tell(op, {STAFF}, lambda: rated)
        except IntegrityError:
            return False
        return True

    async def ask(self, user: str, ticket_id: int, question: str) -> int:
        """Have the agent answer; returns the run's id at once."""
        async with (
            self._operation("ask", user, "Your question was not saved.") as op,
            op.begin() as session,
        ):
            ticket = await TicketRepository(session).open_ticket(ticket_id, user)
            run = Run(ticket_id=ticket.id)
            session.add(run)
            watchers = {ticket.owner, STAFF}
            tell(op, watchers, lambda: run_status(run.id, Status.RUNNING))
        self._start(self._answer(user, run.id, ticket_id, question, watchers))
        return run.id

    async def _answer(
        self, user: str, run_id: int, ticket_id: int, question: str, watchers: set[str]
    ) -> None:
        text = await draft(question)
        try:
            async with (
                self._operation("answer", user, "The agent's answer was not saved.") as op,
                op.begin() as session,
            ):
                ticket = await session.get_one(Ticket, ticket_id)
                message = await TicketRepository(session).add_message(ticket, "agent", text)
                await refund(question)
                run = await session.get_one(Run, run_id)
                run.status = Status.COMPLETED
                tell(op, watchers, lambda: shown(message))
                tell(op, watchers, lambda: run_status(run_id, Status.COMPLETED))
        except ToolFailed:
            logger.warning("run %s failed", run_id)
            await self._failed(user, run_id, watchers)

    async def _failed(self, user: str, run_id: int, watchers: set[str]) -> None:
        async with (
            self._operation("fail", user, "The agent failed.") as op,
            op.begin() as session,
        ):
            run = await session.get_one(Run, run_id)
            run.status = Status.FAILED
            tell(op, watchers, lambda: run_status(run_id, Status.FAILED))

    async def drain(self) -> None:
        """Wait for the answers that are on their way."""
        await asyncio.gather(*self._tasks)

    def _operation(self, name: str, user: str, user_message: str) -> Operation:
        return self._coordinator.operation(name, user=user, user_message=user_message)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def tell(op: Operation, users: Iterable[str], message: Callable[[], dict[str, Any]]) -> None:
    """Emit a message to users; `message` is called at the commit, when ids are there."""

    def event() -> Event:
        data = dict(message())
        return Event(data.pop("type"), data)

    for user in sorted(users):
        op.emit(event, stream=f"user:{user}")
