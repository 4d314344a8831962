"""Who is asking: sign-in by name, bearer tokens, and the cookie that EventSource needs.

There is no password: this is a demo. Tokens are random (32 bytes), and only their SHA-256 digest
is stored, so they survive a restart and a copy of the database gives nobody's token away. The
cookie holds a token of its own that opens streams and nothing else: a request that changes
anything needs the bearer token, which no other site can make a browser send.
"""

from __future__ import annotations

import hashlib
import secrets
import unicodedata
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError

from commitcast.demo.problem import Problem
from commitcast.demo.tables import Member, Session, User, now

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from starlette.requests import Request
    from starlette.responses import Response

    from commitcast.demo.database import Database
    from commitcast.request import ConnectionRequest

BEARER, STREAM = "bearer", "stream"
_LIFETIMES = {BEARER: timedelta(days=30), STREAM: timedelta(minutes=15)}
_COOKIE = "commitcast_demo"
_COOKIE_PATH = "/realtime"
_THIS_MACHINE = frozenset({"127.0.0.1", "::1"})


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def fold_name(name: str) -> str:
    """The form in which two spellings of a name are the same person."""
    return unicodedata.normalize("NFKC", name).casefold()


async def user_named(session: AsyncSession, name: str) -> User:
    """The user of that name, made if there is none."""
    folded = fold_name(name)
    for _attempt in range(2):
        user = await session.scalar(select(User).where(User.folded_name == folded))
        if user is not None:
            return user
        try:
            async with session.begin_nested():
                user = User(name=name, folded_name=folded)
                session.add(user)
        except IntegrityError:
            continue  # someone else made it at the same moment
        return user
    raise Problem(409, "Name taken", "That name was just taken; sign in again.")


def issue(session: AsyncSession, user_id: str, kind: str) -> str:
    """A new token of that kind, stored by its digest; returned once."""
    token = secrets.token_urlsafe(32)
    session.add(
        Session(
            digest=_digest(token), kind=kind, user_id=user_id, expires_at=now() + _LIFETIMES[kind]
        )
    )
    return token


async def forget_expired(session: AsyncSession) -> None:
    """Delete tokens that are no longer good."""
    await session.execute(delete(Session).where(Session.expires_at < now()))


def set_cookies(response: Response, request: Request, user_id: str, token: str) -> None:
    """Give the browser the stream token, under the user's own name and as the last to sign in.

    Two tabs of one browser may be two people: a page says `?user=` whose cookie it means.
    """
    for name in (_COOKIE, f"{_COOKIE}_{user_id}"):
        response.set_cookie(
            name, token, max_age=int(_LIFETIMES[STREAM].total_seconds()), path=_COOKIE_PATH,
            httponly=True, samesite="strict", secure=request.url.scheme == "https",
        )  # fmt: skip


class Gate:
    """Answers who someone is and what they may read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def _holder(self, token: str, kinds: tuple[str, ...]) -> str | None:
        async with self._database.reading() as session:
            return await session.scalar(
                select(Session.user_id).where(
                    Session.digest == _digest(token),
                    Session.kind.in_(kinds),
                    Session.expires_at > now(),
                )
            )

    async def user_of(self, request: Request) -> str:
        """The id of the user whose bearer token a request carries; raises Problem 401."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        user = await self._holder(token.strip(), (BEARER,)) if scheme.lower() == "bearer" else None
        if user is None:
            raise Problem(
                401, "Not signed in",
                "Send the token of POST /api/login as Authorization: Bearer, or sign in again.",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        return user

    async def authenticate(self, request: ConnectionRequest) -> str | None:
        """Who opens a stream: by bearer token, or by the cookie of the named user."""
        if request.bearer:
            return await self._holder(request.bearer, (BEARER,))
        names = request.query.get("user", [])
        cookie = request.cookies.get(f"{_COOKIE}_{names[0]}" if names else _COOKIE)
        return await self._holder(cookie, (STREAM,)) if cookie else None

    async def is_operator(self, request: ConnectionRequest) -> bool:
        """Who may see the demo's health and metrics: whoever is signed in, or on this machine."""
        client = request.scope.get("client")
        on_this_machine = client is not None and client[0] in _THIS_MACHINE
        return on_this_machine or await self.authenticate(request) is not None

    async def may_read(self, user: str, stream: str) -> bool:
        """Members read their threads, everyone their own stream, nobody anything else."""
        kind, _, identifier = stream.partition(":")
        if kind == "user":
            return identifier == user
        if kind != "thread":
            return False
        async with self._database.reading() as session:
            return await is_member(session, identifier, user)


async def is_member(session: AsyncSession, thread_id: str, user_id: str) -> bool:
    """Whether a user belongs to a thread."""
    return await session.get(Member, (thread_id, user_id)) is not None
