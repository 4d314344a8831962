"""What people do in the chat: each function is one change, its rows and events in one commit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select, update

from commitcast import Event, emit
from commitcast.demo.auth import is_member, user_named
from commitcast.demo.problem import Problem
from commitcast.demo.tables import FAILED, OPEN_STATES, Member, Message, Run, Thread, User, new_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncSession

AGENT = "agent"
MAX_MEMBERS = 20
MAX_THREADS_OF_USER = 500
MAX_OPEN_RUNS_OF_USER = 100
MAX_MESSAGES_SHOWN = 500


def thread_stream(thread_id: str) -> str:
    """The stream of a thread, for its members."""
    return f"thread:{thread_id}"


def user_stream(user_id: str) -> str:
    """The stream of one user, for nobody else."""
    return f"user:{user_id}"


async def create_thread(
    session: AsyncSession, creator_id: str, title: str, members: Sequence[str]
) -> str:
    """Make a thread; tell each member on their own stream. Returns its id."""
    creator = await session.get_one(User, creator_id)
    found: dict[str, User] = {creator.id: creator}
    # always in the same order, so that two requests never wait for each other's new users
    for name in sorted(set(members)):
        user = await session.get(User, name) or await user_named(session, name)
        found[user.id] = user
    threads = await session.scalar(
        select(func.count()).select_from(Member).where(Member.user_id == creator_id)
    )
    if (threads or 0) >= MAX_THREADS_OF_USER:
        raise Problem(409, "Too many threads", f"You are in {threads} threads; use one of them.")
    thread = Thread(id=new_id(), title=title)
    session.add(thread)
    await session.flush()
    session.add_all(Member(thread_id=thread.id, user_id=user_id) for user_id in found)
    shown = thread_shown(thread, list(found.values()))
    for user_id in found:
        data = {**shown, "thread_id": thread.id, "user_id": creator_id, "run_id": None}
        emit(session, user_stream(user_id), Event("thread.created", data), actor=creator_id)
    return thread.id


def thread_shown(thread: Thread, members: Sequence[User]) -> dict[str, Any]:
    """A thread as the API and the event show it."""
    people = sorted(members, key=lambda user: user.folded_name)
    return {
        "id": thread.id,
        "title": thread.title,
        "members": [{"id": user.id, "name": user.name} for user in people],
        "created_at": thread.created_at.isoformat(),
    }


async def threads_of(session: AsyncSession, user_id: str) -> list[dict[str, Any]]:
    """The threads of a user, newest first."""
    mine = select(Member.thread_id).where(Member.user_id == user_id)
    rows = await session.execute(
        select(Thread, User)
        .join(Member, Member.thread_id == Thread.id)
        .join(User, User.id == Member.user_id)
        .where(Thread.id.in_(mine))
        .order_by(Thread.created_at.desc(), Thread.id)
    )
    threads: dict[str, tuple[Thread, list[User]]] = {}
    for thread, user in rows:
        threads.setdefault(thread.id, (thread, []))[1].append(user)
    return [thread_shown(thread, members) for thread, members in threads.values()]


async def require_member(session: AsyncSession, thread_id: str, user_id: str) -> None:
    """Refuse who is not in a thread, the same whether it exists or not."""
    if not await is_member(session, thread_id, user_id):
        raise Problem(404, "No such thread", "You have no thread of this id; see GET /api/threads.")


async def add_message(
    session: AsyncSession, run: Run, *, author: User | None, text: str, operation_id: str
) -> Message:
    """Add a message at the end of the run's thread and emit it, as done by an operation."""
    # the counter's row lock puts concurrent messages in the order of their commits
    number = await session.scalar(
        update(Thread)
        .where(Thread.id == run.thread_id)
        .values(last_number=Thread.last_number + 1)
        .returning(Thread.last_number)
    )
    message = Message(
        id=new_id(), thread_id=run.thread_id, number=number, run_id=run.id, text=text,
        user_id=author.id if author is not None else None,
    )  # fmt: skip
    session.add(message)
    await session.flush()
    data = {**message_shown(message, author), "user_id": run.user_id, "thread_id": run.thread_id}
    emit(
        session, thread_stream(run.thread_id), Event("message.created", data),
        actor=author.id if author is not None else None, operation=operation_id,
    )  # fmt: skip
    return message


def message_shown(message: Message, author: User | None) -> dict[str, Any]:
    """A message as the API and the event show it."""
    return {
        "id": message.id,
        "message_id": message.id,
        "number": message.number,
        "author": author.name if author is not None else AGENT,
        "author_id": author.id if author is not None else None,
        "run_id": message.run_id,
        "text": message.text,
        "created_at": message.created_at.isoformat(),
    }


async def post_message(
    session: AsyncSession, user_id: str, thread_id: str, text: str, operation_id: str
) -> Run:
    """Add a person's message, as done by an operation, and the run that will answer it."""
    await require_member(session, thread_id, user_id)
    waiting = await session.scalar(
        select(func.count())
        .select_from(Run)
        .where(Run.user_id == user_id, Run.state.in_(OPEN_STATES))
    )
    if (waiting or 0) >= MAX_OPEN_RUNS_OF_USER:
        raise Problem(
            429, "Too many open questions", "Wait for some of your answers, then ask again.",
            headers={"Retry-After": "2"},
        )  # fmt: skip
    run = Run(
        id=new_id(), operation_id=new_id(), thread_id=thread_id, user_id=user_id,
        message_id="", steps=[],
    )  # fmt: skip
    author = await session.get_one(User, user_id)
    message = await add_message(session, run, author=author, text=text, operation_id=operation_id)
    run.message_id = message.id
    session.add(run)
    return run


async def messages_of(session: AsyncSession, thread_id: str) -> list[dict[str, Any]]:
    """The newest messages of a thread, oldest first."""
    rows = await session.execute(
        select(Message, User)
        .outerjoin(User, User.id == Message.user_id)
        .where(Message.thread_id == thread_id)
        .order_by(Message.number.desc())
        .limit(MAX_MESSAGES_SHOWN)
    )
    return [message_shown(message, author) for message, author in reversed(rows.all())]


async def runs_of(session: AsyncSession, thread_id: str) -> list[dict[str, Any]]:
    """The newest runs of a thread, with their steps, so that a page can be rebuilt."""
    runs = await session.scalars(
        select(Run)
        .where(Run.thread_id == thread_id)
        .order_by(Run.created_at.desc(), Run.id)
        .limit(MAX_MESSAGES_SHOWN)
    )
    return [run_shown(run) for run in reversed(runs.all())]


def run_shown(run: Run) -> dict[str, Any]:
    """A run as the API shows it; the steps of one that failed were taken back."""
    failed = run.state == FAILED
    return {
        "run_id": run.id, "operation_id": run.operation_id, "message_id": run.message_id,
        "user_id": run.user_id, "thread_id": run.thread_id, "state": run.state,
        "steps": [] if failed else run.steps,
        "steps_taken_back": len(run.steps) if failed else 0, "error": run.error,
    }  # fmt: skip
