"""The chat's own tables. Commitcast's live beside them and know nothing of these."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

ID_CHARACTERS = 36


def new_id() -> str:
    """A random identifier, as text."""
    return str(uuid.uuid4())


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


class UtcTime(TypeDecorator[datetime]):
    """A time in UTC; SQLite keeps no zone, so it is put back when read."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Read a stored time as UTC."""
        del dialect
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


class Base(DeclarativeBase):
    """Holds the demo's metadata."""


class User(Base):
    """Someone who signed in, or was invited, by name."""

    __tablename__ = "demo_users"

    id: Mapped[str] = mapped_column(String(ID_CHARACTERS), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(100))
    folded_name: Mapped[str] = mapped_column(String(200), unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcTime, default=now)


class Token(Base):
    """A token of a signed-in browser: only its digest is kept.

    `sign_in` is the digest of the bearer token that the sign-in gave: all that came of it ends with it.
    """

    __tablename__ = "demo_tokens"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    sign_in: Mapped[str] = mapped_column(String(64), index=True)
    kind: Mapped[str] = mapped_column(String(10))
    user_id: Mapped[str] = mapped_column(ForeignKey(User.id), index=True)
    expires_at: Mapped[datetime] = mapped_column(UtcTime, index=True)


class Thread(Base):
    """A conversation; `last_number` counts its messages."""

    __tablename__ = "demo_threads"

    id: Mapped[str] = mapped_column(String(ID_CHARACTERS), primary_key=True, default=new_id)
    title: Mapped[str] = mapped_column(String(200))
    last_number: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(UtcTime, default=now)


class Member(Base):
    """Who may read and write a thread."""

    __tablename__ = "demo_members"

    thread_id: Mapped[str] = mapped_column(ForeignKey(Thread.id), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey(User.id), primary_key=True, index=True)


class Message(Base):
    """What a person or the agent (no user) said, in the order of `number`."""

    __tablename__ = "demo_messages"
    __table_args__ = (UniqueConstraint("thread_id", "number"),)

    id: Mapped[str] = mapped_column(String(ID_CHARACTERS), primary_key=True, default=new_id)
    thread_id: Mapped[str] = mapped_column(ForeignKey(Thread.id))
    number: Mapped[int]
    user_id: Mapped[str | None] = mapped_column(ForeignKey(User.id))
    run_id: Mapped[str] = mapped_column(String(ID_CHARACTERS))
    text: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcTime, default=now)


QUEUED, RUNNING, COMPLETED, FAILED = "queued", "running", "completed", "failed"
OPEN_STATES = (QUEUED, RUNNING)


class Run(Base):
    """One answer of the agent to one message: its state and the steps it took.

    `operation_id` is the operation of the answer, not that of the message.
    """

    __tablename__ = "demo_runs"

    id: Mapped[str] = mapped_column(String(ID_CHARACTERS), primary_key=True, default=new_id)
    operation_id: Mapped[str] = mapped_column(String(ID_CHARACTERS), default=new_id)
    thread_id: Mapped[str] = mapped_column(ForeignKey(Thread.id), index=True)
    user_id: Mapped[str] = mapped_column(ForeignKey(User.id))
    message_id: Mapped[str] = mapped_column(String(ID_CHARACTERS))
    state: Mapped[str] = mapped_column(String(10), default=QUEUED, index=True)
    steps: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcTime, default=now)
    finished_at: Mapped[datetime | None] = mapped_column(UtcTime)


class BrokenPromise(Base):
    """Never has a row: one is written to make COMMIT fail, where its user is looked for."""

    __tablename__ = "demo_broken_promises"

    id: Mapped[str] = mapped_column(String(ID_CHARACTERS), primary_key=True, default=new_id)
    user_id: Mapped[str] = mapped_column(ForeignKey(User.id, deferrable=True, initially="DEFERRED"))
