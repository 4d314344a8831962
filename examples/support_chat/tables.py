"""What the support chat keeps."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Status(StrEnum):
    """Of a run of the agent."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


class Base(DeclarativeBase):
    """Of the app's own tables."""


class Customer(Base):
    """Who has written to us before."""

    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


class Ticket(Base):
    """One conversation."""

    __tablename__ = "tickets"
    __table_args__ = (UniqueConstraint("owner", "subject"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]
    subject: Mapped[str]
    open: Mapped[bool] = mapped_column(default=True)
    messages: Mapped[int] = mapped_column(default=0)


class Message(Base):
    """What somebody said."""

    __tablename__ = "messages"

    id: Mapped[int] = mapped_column(primary_key=True)
    ticket_id: Mapped[int] = mapped_column(ForeignKey("tickets.id"))
    author: Mapped[str]
    text: Mapped[str]


class Rating(Base):
    """How it went; one for each ticket."""

    __tablename__ = "ratings"

    id: Mapped[int] = mapped_column(primary_key=True)
    ticket_id: Mapped[int] = mapped_column(ForeignKey("tickets.id"), unique=True)
    stars: Mapped[int]


class Run(Base):
    """One answer of the agent."""

    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    ticket_id: Mapped[int] = mapped_column(ForeignKey("tickets.id"))
    status: Mapped[Status] = mapped_column(default=Status.RUNNING)
