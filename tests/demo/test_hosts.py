"""Only who asks for a host that was named is answered: a rebound name of another site is not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from commitcast.demo.app import create_app
from commitcast.demo.hosts import host_name


async def _raw(demo: Any, head: str) -> tuple[int, bytes]:
    """The status and the whole answer to a request written by hand."""
    port = int(demo.address.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write((head + "Connection: close\r\n\r\n").encode("latin-1"))
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    return int(answer.split()[1]), answer


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/", "/api/threads", "/realtime/health", "/static/app.js"])
async def test_a_host_that_nobody_named_gets_nothing(demo: Any, path: str) -> None:
    for host in (
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
    ):
        status, answer = await _raw(demo, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n")
        assert status in {400, 421}, (host, answer)
        assert b"application/problem+json" in answer
    status, answer = await _raw(demo, f"GET {path} HTTP/1.1\r\nHost: evil.example\r\n")
    assert status == 421
    assert b"--allow-host evil.example" in answer


@pytest.mark.anyio
async def test_a_rebound_page_neither_signs_in_nor_reads_a_stream(demo: Any) -> None:
    ada = await demo.person("Ada")
    rebound = {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}
    answer = await ada.http.post("/api/login", json={"name": "Eve"}, headers=rebound)
    assert answer.status_code == 421
    stream = {"stream": f"user:{ada.user_id}"}
    answer = await ada.http.get("/realtime/sse", params=stream, headers=rebound)
    assert answer.status_code == 421


@pytest.mark.anyio
async def test_a_request_without_one_readable_host_is_refused(demo: Any) -> None:
    for hosts in ("", "Host: \r\n", "Host: a b\r\n", "Host: [::1\r\n", "Host: localhost/\r\n"):
        status, _ = await _raw(demo, f"GET / HTTP/1.0\r\n{hosts}")
        assert status == 400, hosts
    two = "Host: localhost\r\nHost: evil.example\r\n"
    assert (await _raw(demo, f"GET / HTTP/1.1\r\n{two}"))[0] == 400


@pytest.mark.anyio
async def test_this_machine_and_the_named_hosts_are_answered(stopped_demo: Any) -> None:
    async with stopped_demo.served(hosts=["Chat.Example", "192.0.2.7", "2001:db8::0:1"]) as demo:
        for host in (
            "localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1:1", "[::1]:8000",
            "chat.example", "chat.example:443", "192.0.2.7:80", "[2001:db8::1]:8000",
        ):  # fmt: skip
            assert (await _raw(demo, f"GET / HTTP/1.1\r\nHost: {host}\r\n"))[0] == 200, host
        for host in ("sub.chat.example", "example", "192.0.2.8", "[2001:db8::2]"):
            assert (await _raw(demo, f"GET / HTTP/1.1\r\nHost: {host}\r\n"))[0] == 421, host


def test_a_websocket_of_another_host_is_closed(database: Any) -> None:
    client = TestClient(create_app(database.url), base_url="http://evil.example")
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/realtime/sse"):
        pass


@pytest.mark.parametrize(
    "text",
    ["http://chat.example", "chat.example:8000", "*", "", "a b", "chat.example/x", "[::1]:80"],
)
def test_what_is_not_a_host_is_refused_with_what_to_give(text: str, database: Any) -> None:
    with pytest.raises(ValueError, match="without scheme and port"):
        host_name(text)
    with pytest.raises(ValueError, match="is not a host"):
        create_app(database.url, hosts=[text])
