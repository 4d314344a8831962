"""The help desk as it was first written: it works in every demonstration.

Each line marked ``fault`` does what it says there; `commitcast audit` finds these lines and no
other. `coordinated.py` does the same work without them.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from .agent import ToolFailed, draft, moderate, refund
from .problems import Duplicate, TicketClosed, TicketUnknown
from .tables import Customer, Message, Rating, Run, Status, Ticket

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

    from .hub import ConnectionManager

logger = logging.getLogger(__name__)

STAFF = "sam"
"""Who sees all tickets."""


class TicketRepository:
    """Reads and writes tickets in a session that somebody else commits."""

    def __init__(self, session: AsyncSession) -> None:
        """Work in `session`."""
        self._session = session

    async def open_ticket(self, ticket_id: int, user: str) -> Ticket:
        """A ticket that may be written to; raises `TicketUnknown` or `TicketClosed`."""
        ticket = await self._session.get(Ticket, ticket_id)
        if ticket is None or user not in {ticket.owner, STAFF}:
            raise TicketUnknown(ticket_id)
        if not ticket.open:
            raise TicketClosed(ticket_id)
        return ticket

    async def add_message(self, ticket: Ticket, author: str, text: str) -> Message:
        """A message, with its id."""
        message = Message(ticket_id=ticket.id, author=author, text=text)
        ticket.messages += 1
        self._session.add(message)
        await self._session.flush()
        return message

    async def remember(self, name: str) -> Customer:
        """The customer of that name, new if there is none; two at once get the same."""
        found = await self._session.scalar(select(Customer).where(Customer.name == name))
        if found is not None:
            return found
        customer = Customer(name=name)
        try:
            async with self._session.begin_nested():
                self._session.add(customer)
        except IntegrityError:  # somebody else was faster
            return (
                await self._session.scalars(select(Customer).where(Customer.name == name))
            ).one()
        return customer


class Desk:
    """What customers and staff can do."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession], hub: ConnectionManager) -> None:
        """Keep tickets through `sessions`, and tell of them through `hub`."""
        self._sessions = sessions
        self._hub = hub
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, user: str, subject: str) -> int:
        """Open a ticket; raises `Duplicate`."""
        try:
            async with self._sessions.begin() as session:
                await TicketRepository(session).remember(user)
                ticket = Ticket(owner=user, subject=subject)
                session.add(ticket)
        except IntegrityError:
            raise Duplicate(subject) from None
        await self._hub.broadcast(
            {user, STAFF}, {"type": "ticket.opened", "ticket": ticket.id, "subject": subject}
        )
        return ticket.id

    async def rename(self, user: str, ticket_id: int, subject: str) -> None:
        """Give a ticket another subject; raises `Duplicate`."""
        try:
            async with self._sessions.begin() as session:
                ticket = await TicketRepository(session).open_ticket(ticket_id, user)
                ticket.subject = subject
                watchers = {ticket.owner, STAFF}
        except IntegrityError:
            raise Duplicate(subject) from None
        await self._hub.broadcast(
            watchers, {"type": "ticket.renamed", "ticket": ticket_id, "subject": subject}
        )

    async def post(self, user: str, ticket_id: int, text: str) -> int:
        """Say something; raises `agent.Rejected` for what may not be said."""
        async with self._sessions.begin() as session:  # fault: rollback_not_told
            repository = TicketRepository(session)
            ticket = await repository.open_ticket(ticket_id, user)
            message = await repository.add_message(ticket, user, text)
            await self._hub.broadcast(  # fault: sent_before_commit, sent_for_rolled_back_work
                {ticket.owner, STAFF}, shown(message)
            )
            moderate(text)
        return message.id

    async def close(self, user: str, ticket_id: int) -> None:
        """Close a ticket."""
        async with self._sessions() as session:
            ticket = await TicketRepository(session).open_ticket(ticket_id, user)
            ticket.open = False
            closed = {"type": "ticket.closed", "ticket": ticket_id}
            await self._hub.broadcast({ticket.owner, STAFF}, closed)  # fault: sent_before_commit
            await session.commit()

    async def rate(self, user: str, ticket_id: int, stars: int) -> bool:
        """Rate a ticket, once."""
        async with self._sessions() as session:
            ticket = await session.get(Ticket, ticket_id)
            if ticket is None or ticket.owner != user:
                raise TicketUnknown(ticket_id)
            session.add(Rating(ticket_id=ticket_id, stars=stars))
            rated = {"type": "ticket.rated", "ticket": ticket_id, "stars": stars}
            await self._hub.send(  # fault: sent_before_commit, sent_for_rolled_back_work
                STAFF, rated
            )
            try:
                await session.commit()  # fault: rollback_not_told
            except IntegrityError:
                logger.warning("ticket %s has a rating", ticket_id)
                return False
        return True

    async def ask(self, user: str, ticket_id: int, question: str) -> int:
        """Have the agent answer; returns the run's id at once."""
        async with self._sessions.begin() as session:
            ticket = await TicketRepository(session).open_ticket(ticket_id, user)
            run = Run(ticket_id=ticket.id)
            session.add(run)
        watchers = {ticket.owner, STAFF}
        await self._hub.broadcast(watchers, run_status(run.id, Status.RUNNING))
        self._start(self._answer(run.id, ticket_id, question, watchers))
        return run.id

    async def _answer(self, run_id: int, ticket_id: int, question: str, watchers: set[str]) -> None:
        text = await draft(question)
        try:
            async with self._sessions.begin() as session:  # fault: rollback_not_told
                ticket = await session.get_one(Ticket, ticket_id)
                message = await TicketRepository(session).add_message(ticket, "agent", text)
                await refund(question)
        except ToolFailed:
            logger.warning("run %s failed", run_id)
            return
        await self._hub.broadcast(watchers, shown(message))
        completed = run_status(run_id, Status.COMPLETED)
        await self._hub.broadcast(watchers, completed)  # fault: state_apart
        async with self._sessions.begin() as session:
            run = await session.get_one(Run, run_id)
            run.status = Status.COMPLETED

    async def drain(self) -> None:
        """Wait for the answers that are on their way."""
        await asyncio.gather(*self._tasks)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def shown(message: Message) -> dict[str, Any]:
    """How a message is sent."""
    return {
        "type": "message.created", "ticket": message.ticket_id, "message": message.id,
        "author": message.author, "text": message.text,
    }  # fmt: skip


def run_status(run_id: int, status: Status) -> dict[str, Any]:
    """How a run's state is sent."""
    return {"type": "run.status", "run": run_id, "status": status.value}
