"""The demo's HTTP endpoints: who asks, what is asked, and what is answered."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from commitcast.demo import auth, chat
from commitcast.demo.bodies import (
    BreakBody,
    LoginBody,
    MessageBody,
    ThreadBody,
    idempotency_key,
)
from commitcast.demo.faults import EXPLAINED
from commitcast.demo.problem import Problem, read_body
from commitcast.demo.wording import EXAMPLES

if TYPE_CHECKING:
    from starlette.requests import Request

    from commitcast.demo.connections import Connections
    from commitcast.demo.database import Database
    from commitcast.demo.faults import Faults
    from commitcast.demo.operations import OwnOperations
    from commitcast.demo.posting import Posting

_ID = re.compile(r"[0-9a-f-]{36}")


class Api:
    """The endpoints."""

    def __init__(
        self,
        database: Database,
        gate: auth.Gate,
        posting: Posting,
        operations: OwnOperations,
        faults: Faults,
        connections: Connections,
    ) -> None:
        self._database, self._gate, self._connections = database, gate, connections
        self._posting, self._operations, self._faults = posting, operations, faults

    async def login(self, request: Request) -> Response:
        """POST /api/login: who says a name is that person."""
        body = await read_body(request, LoginBody)
        async with self._database.writing() as session:
            await auth.forget_expired(session)
            user = await auth.user_named(session, body.name)
            await session.flush()
            token, signed_in = auth.sign_in(session, user.id)
            stream_token = auth.stream_token(session, signed_in)
        response = JSONResponse({"user_id": user.id, "name": user.name, "token": token})
        auth.set_cookies(response, request, user.id, stream_token)
        return response

    async def session(self, request: Request) -> Response:
        """POST /api/session: a new cookie to open streams with."""
        signed_in = await self._gate.sign_in_of(request)
        async with self._database.writing() as session:
            await auth.forget_expired(session)
            stream_token = auth.stream_token(session, signed_in)
        response = JSONResponse({"user_id": signed_in.user_id})
        auth.set_cookies(response, request, signed_in.user_id, stream_token)
        return response

    async def logout(self, request: Request) -> Response:
        """POST /api/logout: the token and its cookies are good no more, its streams end."""
        signed_in = await self._gate.sign_in_of(request)
        async with self._database.writing() as session:
            await auth.sign_out(session, signed_in)
        # all of the user's: those of another sign-in come back at once, with their positions
        self._connections.cut(signed_in.user_id)
        return Response(status_code=204)

    async def create_thread(self, request: Request) -> Response:
        """POST /api/threads."""
        user_id = await self._gate.user_of(request)
        body = await read_body(request, ThreadBody)
        async with self._database.writing() as session:
            thread_id = await chat.create_thread(session, user_id, body.title, body.members)
        return JSONResponse({"id": thread_id}, 201)

    async def threads(self, request: Request) -> Response:
        """GET /api/threads: those of the user, newest first."""
        user_id = await self._gate.user_of(request)
        async with self._database.reading() as session:
            return JSONResponse(await chat.threads_of(session, user_id))

    async def post_message(self, request: Request) -> Response:
        """POST /api/threads/{thread}/messages: see `Posting.post`."""
        user_id = await self._gate.user_of(request)
        thread_id = _thread_id(request)
        key = idempotency_key(request)
        body = await read_body(request, MessageBody)
        # before anything is announced: who is not in a thread must not be heard in it either
        async with self._database.reading() as session:
            await chat.require_member(session, thread_id, user_id)
        posted = await self._posting.post(user_id, thread_id, body.text, key)
        headers = {"Idempotency-Replayed": "true"} if posted.replayed else None
        return JSONResponse(posted.body, 202, headers)

    async def messages(self, request: Request) -> Response:
        """GET /api/threads/{thread}/messages: the newest, oldest first."""
        user_id = await self._gate.user_of(request)
        thread_id = _thread_id(request)
        async with self._database.reading() as session:
            await chat.require_member(session, thread_id, user_id)
            return JSONResponse(await chat.messages_of(session, thread_id))

    async def runs(self, request: Request) -> Response:
        """GET /api/threads/{thread}/runs: the newest, with their steps."""
        user_id = await self._gate.user_of(request)
        thread_id = _thread_id(request)
        async with self._database.reading() as session:
            await chat.require_member(session, thread_id, user_id)
            return JSONResponse(await chat.runs_of(session, thread_id))

    async def operations(self, request: Request) -> Response:
        """GET /api/operations: the newest of the user."""
        user_id = await self._gate.user_of(request)
        return JSONResponse(await self._operations.newest(user_id))

    async def operation(self, request: Request) -> Response:
        """GET /api/operations/{operation}: one of the user."""
        user_id = await self._gate.user_of(request)
        operation_id = str(request.path_params["operation"])
        return JSONResponse(await self._operations.find(operation_id, user_id))

    async def faults(self, request: Request) -> Response:
        """GET /api/break: what can be broken, and what is armed."""
        user_id = await self._gate.user_of(request)
        faults = [
            {"fault": fault, "does": does, "available": self._faults.may_arm(fault)}
            for fault, does in EXPLAINED.items()
        ]
        armed = self._faults.armed(user_id)
        shown = {"armed": armed and armed.fault, "operation": armed and armed.operation}
        return JSONResponse({**shown, "faults": faults})

    async def arm(self, request: Request) -> Response:
        """POST /api/break: one fault for the user's next operation."""
        user_id = await self._gate.user_of(request)
        body = await read_body(request, BreakBody)
        self._faults.arm(user_id, body.fault, body.operation)
        return JSONResponse({"armed": body.fault})

    async def disarm(self, request: Request) -> Response:
        """DELETE /api/break: none after all."""
        self._faults.disarm(await self._gate.user_of(request))
        return JSONResponse({"armed": None})

    def routes(self) -> list[Route]:
        """Under /api."""
        return [
            Route("/login", self.login, methods=["POST"]),
            Route("/session", self.session, methods=["POST"]),
            Route("/logout", self.logout, methods=["POST"]),
            Route("/threads", self.threads, methods=["GET"]),
            Route("/threads", self.create_thread, methods=["POST"]),
            Route("/threads/{thread}/messages", self.messages, methods=["GET"]),
            Route("/threads/{thread}/messages", self.post_message, methods=["POST"]),
            Route("/threads/{thread}/runs", self.runs, methods=["GET"]),
            Route("/operations", self.operations, methods=["GET"]),
            Route("/operations/{operation}", self.operation, methods=["GET"]),
            Route("/break", self.faults, methods=["GET"]),
            Route("/break", self.arm, methods=["POST"]),
            Route("/break", self.disarm, methods=["DELETE"]),
            Route("/examples", _examples, methods=["GET"]),
        ]


def _thread_id(request: Request) -> str:
    thread_id = str(request.path_params["thread"])
    if not _ID.fullmatch(thread_id):
        raise Problem(404, "No such thread", "You have no thread of this id; see GET /api/threads.")
    return thread_id


async def _examples(_request: Request) -> Response:
    return JSONResponse(list(EXAMPLES))
