"""Who is asking: sign-in by name, bearer tokens, and the cookie that EventSource needs.

There is no password: this is a demo. Tokens are random (32 bytes), and only their SHA-256 digest
is stored, so they survive a restart and a copy of the database gives nobody's token away. The
cookie holds a token of its own that opens streams and nothing else: a request that changes
anything needs the bearer token, which no other site can make a browser send. To sign out deletes
the token and every cookie that it got.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError

from commitcast.demo import names
from commitcast.demo.problem import Problem
from commitcast.demo.tables import Member, Token, User, now

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


async def user_named(session: AsyncSession, name: str) -> User:
    """The user of that name, made if there is none; raises Problem 409 for a look-alike."""
    spelling, shape = names.spelling(name), names.shape(name)
    for _attempt in range(2):
        # databases of an earlier version have the spelling where the shape is now
        known = select(User).where(User.folded_name.in_((spelling, shape)))
        found = list(await session.scalars(known))
        for user in found:
            if names.spelling(user.name) == spelling:
                return user
        if found:
            raise Problem(
                409, "Too like another name",
                f"{name} looks like {found[0].name}, who is here already; choose another name.",
            )  # fmt: skip
        try:
            async with session.begin_nested():
                user = User(name=name, folded_name=shape)
                session.add(user)
        except IntegrityError:
            continue  # someone else made it at the same moment
        return user
    raise Problem(409, "Name taken", "That name was just taken; sign in again.")


@dataclass(frozen=True, slots=True)
class SignIn:
    """One sign-in of one user: what a bearer token stands for."""

    id: str
    user_id: str


def _issue(session: AsyncSession, user_id: str, kind: str, sign_in: str | None = None) -> str:
    """A new token of that kind, stored by its digest; returned once."""
    token = secrets.token_urlsafe(32)
    digest = _digest(token)
    session.add(
        Token(
            digest=digest, sign_in=sign_in or digest, kind=kind, user_id=user_id,
            expires_at=now() + _LIFETIMES[kind],
        )
    )  # fmt: skip
    return token


def sign_in(session: AsyncSession, user_id: str) -> tuple[str, SignIn]:
    """A new bearer token, and the sign-in that it stands for."""
    token = _issue(session, user_id, BEARER)
    return token, SignIn(_digest(token), user_id)


def stream_token(session: AsyncSession, who: SignIn) -> str:
    """A new token for the cookie; it ends with the sign-in."""
    return _issue(session, who.user_id, STREAM, who.id)


async def sign_out(session: AsyncSession, who: SignIn) -> None:
    """Delete the sign-in's bearer token and all that it got."""
    await session.execute(delete(Token).where(Token.sign_in == who.id))


async def forget_expired(session: AsyncSession) -> None:
    """Delete tokens that are no longer good."""
    await session.execute(delete(Token).where(Token.expires_at < now()))


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

    async def _holder(self, token: str, kind: str) -> SignIn | None:
        async with self._database.reading() as session:
            found = await session.execute(
                select(Token.sign_in, Token.user_id).where(
                    Token.digest == _digest(token), Token.kind == kind, Token.expires_at > now()
                )
            )
            row = found.one_or_none()
        return None if row is None else SignIn(row.sign_in, row.user_id)

    async def user_of(self, request: Request) -> str:
        """The id of the user whose bearer token a request carries; raises Problem 401."""
        return (await self.sign_in_of(request)).user_id

    async def sign_in_of(self, request: Request) -> SignIn:
        """The sign-in whose bearer token a request carries; raises Problem 401."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        found = await self._holder(token.strip(), BEARER) if scheme.lower() == "bearer" else None
        if found is None:
            raise Problem(
                401, "Not signed in",
                "Send the token of POST /api/login as Authorization: Bearer, or sign in again.",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        return found

    async def authenticate(self, request: ConnectionRequest) -> str | None:
        """Who opens a stream: by bearer token, or by the cookie of the named user."""
        user = request.query.get("user", [])
        cookie = request.cookies.get(f"{_COOKIE}_{user[0]}" if user else _COOKIE)
        kind, token = (BEARER, request.bearer) if request.bearer else (STREAM, cookie)
        found = await self._holder(token, kind) if token else None
        return None if found is None else found.user_id

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
