"""What is read of a request before anybody is known: as browsers mean it, and in linear time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import create_async_engine

from commitcast import ConnectionRequest, Coordinator
from commitcast.origin import Origins, normal

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

Headers = list[tuple[bytes, bytes]]


def request(headers: Headers | None = None, **scope: Any) -> ConnectionRequest:
    return ConnectionRequest({"type": "http", "headers": headers or [], "path": "/sse", **scope})


@pytest.mark.parametrize(
    "others",
    [
        'g_state={"i_l":0}',
        "a[b]=1",
        'prefs={"a": 1, "b": "x"}',
        "no equals sign",
        "=nameless",
        'open="quote',
        "\xe9t\xe9=1",
        "a=b=c",
        "a=\x01",
        "; ;;",
        "__Host-x=1; $Version=1; path=/; expires=Thu, 01 Jan 1970 00:00:00 GMT",
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_cookie_is_found_whatever_another_application_put_beside_it(
    others: str, first: bool
) -> None:
    pairs = ["token=abc", others] if first else [others, "token=abc"]
    cookies = request([(b"cookie", "; ".join(pairs).encode("latin-1"))]).cookies
    assert cookies["token"] == "abc"


@pytest.mark.parametrize(
    ("header", "value"),
    [
        (b"t=a=b==", "a=b=="),
        (b"t=", ""),
        (b't="a b"', "a b"),
        (b't="a\\"b\\\\c\\054d"', 'a"b\\c,d'),
        (b't="', '"'),
        (b't="{\\"i_l\\":0}"', '{"i_l":0}'),
        (b"t=longer path; t=shorter path", "longer path"),
        (b"  t =\ta ; u=1", "a"),
    ],
)
def test_a_cookies_value_is_what_starlette_and_browsers_mean(header: bytes, value: str) -> None:
    assert request([(b"cookie", header)]).cookies["t"] == value


def test_cookies_in_several_lines_as_http_2_has_them_are_one_header() -> None:
    assert request([(b"cookie", b"a=1"), (b"Cookie", b"b=2")]).cookies == {"a": "1", "b": "2"}


READERS: dict[str, Callable[[int], object]] = {
    "backslashes in a cookie": lambda n: request([(b"cookie", b't="' + b"\\" * n + b'"')]).cookies,
    "octals in a cookie": lambda n: request([(b"cookie", b't="' + b"\\101" * n + b'"')]).cookies,
    "quotes in a cookie": lambda n: request([(b"cookie", b't="' + b'\\"' * n + b'"')]).cookies,
    "many cookies": lambda n: request([(b"cookie", b"a=b;" * n)]).cookies,
    "semicolons": lambda n: request([(b"cookie", b";" * n)]).cookies,
    "lines of one header": lambda n: request([(b"x-a", b"bbbbbbbb")] * n).headers,
    "lines of many headers": lambda n: request([(b"x-%d" % i, b"b") for i in range(n)]).headers,
    "lines of cookies": lambda n: request([(b"cookie", b"a=b")] * n).cookies,
    "query fields": lambda n: request(query_string=b"a=b&" * n).query,
    "percents in a query": lambda n: request(query_string=b"a=" + b"%41" * n).query,
    "pluses in a query": lambda n: request(query_string=b"a=" + b"+" * n).query,
    "origin": lambda n: Origins([]).admit(request([(b"origin", b"http://" + b"[" * n)])),
    "origin's dots": lambda n: Origins([]).admit(request([(b"origin", b"a." * n)])),
    "host": lambda n: Origins([]).admit(request([(b"origin", b"http://a"), (b"host", b"a:" * n)])),
    "asked headers": lambda n: Origins([]).preflight(
        request([(b"access-control-request-headers", b"a," * n)])
    ),
    "bearer": lambda n: request([(b"authorization", b" Bearer " * n)]).bearer,
    "slashes": lambda n: request(path="/" * n + "sse", root_path="/" * n).route,
}


@pytest.mark.parametrize("what", READERS)
def test_g10_reading_what_anybody_may_send_takes_linear_time(what: str) -> None:
    def cost(n: int) -> float:
        def once() -> float:
            before = time.process_time()
            READERS[what](n)
            return time.process_time() - before

        return min(once() for _ in range(5))

    # 8 times as much: 8 where the time is linear, 64 where it is quadratic
    assert cost(32_000) < 24 * max(cost(4_000), 1e-4)


@pytest.mark.parametrize(
    ("path", "root_path", "route"),
    [
        ("/sse", "", "/sse"),
        ("/sse/", "", "/sse"),
        ("/realtime/sse", "/realtime", "/sse"),
        ("/realtime/sse", "/api/realtime", "/sse"),  # a proxy stripped /api
        ("/sse", "/api/realtime", "/sse"),  # the framework stripped all
        ("/api/realtime/sse", "/api/realtime", "/sse"),
        ("/api/realtime/sse", "/api/realtime/", "/sse"),
        ("/sse/sse", "/sse", "/sse"),
        ("/realtime", "/realtime", "/realtime"),
        ("/time/sse", "/realtime", None),
        ("/else/sse", "/realtime", None),
        ("/realtime/deeper/sse", "/realtime", None),
        ("/realtime//sse", "/realtime", None),
        ("", "", ""),
        ("*", "", "*"),
    ],
)
def test_a_route_is_found_below_where_the_app_is_mounted_and_nowhere_else(
    path: str, root_path: str, route: str | None
) -> None:
    assert request(path=path, root_path=root_path).route == route


@pytest.mark.parametrize(
    ("origin", "host", "scheme", "admitted"),
    [
        ("http://here", "here", "http", True),
        ("http://here:80", "here", "http", True),
        ("http://here", "here:80", "http", True),
        ("HTTP://Here", "hERE", "http", True),
        ("http://here:8000", "here:8000", "http", True),
        ("http://here:8000", "here", "http", False),
        ("http://[::1]:8000", "[::1]:8000", "http", True),
        ("https://here", "here", "https", True),
        ("https://here", "here:443", "https", True),
        ("https://here", "here", "http", True),  # a proxy that ends TLS, and does not say so
        ("http://here", "here", "https", False),  # anyone on the way may have written that page
        ("http://here:443", "here", "https", False),
        ("ws://here", "here", "http", False),
        ("https://other", "here", "https", False),
        ("https://here.other", "here", "https", False),
        ("null", "null", "http", False),
        ("http://[", "[", "http", False),
        ("http://[", "here", "http", False),
        ("http://[::1", "here", "http", False),
        ("http://a]b", "here", "http", False),
        ("http://", "", "http", False),
        ("", "", "http", False),
        ("http://here/", "here", "http", False),
        ("http://user@here", "user@here", "http", False),
        ("http://here:99999999", "here", "http", False),
        ("http://here, http://here", "here", "http", False),
        ("\xff", "\xff", "http", False),
        ("https://friend.example", "here", "http", True),
        ("HTTPS://Friend.example:443", "here", "http", True),
        ("http://friend.example", "here", "http", False),
        ("https://friend.example.other", "here", "http", False),
        ("capacitor://localhost", "here", "http", True),
    ],
)
def test_g7_a_page_is_admitted_if_it_is_the_sites_own_or_named(
    origin: str, host: str, scheme: str, admitted: bool
) -> None:
    origins = Origins(["https://friend.example:443", "capacitor://localhost"])
    found = request(
        [(b"origin", origin.encode("latin-1")), (b"host", host.encode("latin-1"))], scheme=scheme
    )
    assert origins.admit(found) is admitted


@pytest.mark.parametrize(
    "origin", ["*", "https://a.example/", "a.example", "https://*", "", "http://["]
)
def test_an_allowed_origin_that_could_never_match_is_refused_when_it_is_given(origin: str) -> None:
    if origin == "https://*":  # a host may be written so, and no browser sends it
        assert normal(origin) == origin
        return
    with pytest.raises(ValueError, match=r"allowed_origins has .*scheme://host"):
        Origins([origin])


def test_allowed_origins_as_one_string_are_refused() -> None:
    with pytest.raises(ValueError, match="must be a collection"):
        Origins("https://a.example")


# --- whatever comes ---------------------------------------------------------------------------


def door() -> Any:
    """A mounted app whose coordinator was never entered: nothing here opens a database."""
    engine = create_async_engine("sqlite+aiosqlite:///never-opened.db")
    coordinator = Coordinator(engine)
    coordinator.detach()
    return coordinator.asgi(
        authenticate=lambda request: request.bearer or request.cookies.get("t") or "ann",
        authorize=lambda user, stream: bool(user) and bool(stream),
        operators=lambda request: "x" in request.query,
        allowed_origins=["https://friend.example"],
    )


DOOR = door()


async def answer_to(scope: dict[str, Any]) -> list[Any]:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await DOOR(scope, receive, send)
    return sent


ANY_BYTES = st.binary(max_size=200)
NAMES = st.sampled_from(
    [b"cookie", b"origin", b"host", b"accept", b"authorization", b"last-event-id",
     b"access-control-request-headers", b"access-control-request-method", b"Cookie", b"x-a"]
)  # fmt: skip
VALUES = st.one_of(
    ANY_BYTES,
    st.sampled_from(
        [b"https://friend.example", b"http://here", b"here", b"text/event-stream", b"a:1"]
    ),
)
PATHS = st.one_of(
    st.text(max_size=50),
    st.sampled_from(["/sse", "/rt/sse", "/livez", "/readyz", "/health", "/metrics", "*", "", "/"]),
)
SCOPES = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["http", "http", "http", "websocket", "lifespan", "else"]),
        "method": st.sampled_from(["GET", "HEAD", "OPTIONS", "POST", "get", "TRACE", "\xff", ""]),
        "path": PATHS,
        "query_string": st.one_of(
            ANY_BYTES, ANY_BYTES.map(lambda rest: b"stream=a&cursor=" + rest)
        ),
        "headers": st.lists(st.tuples(NAMES, VALUES), max_size=8),
        "scheme": st.sampled_from(["http", "https", "else"]),
    },
    optional={"root_path": st.one_of(PATHS, st.just("/rt"), st.none())},
)


@settings(max_examples=60)
@given(SCOPES)
async def test_g10_whatever_comes_gets_an_answer_and_never_a_fault(scope: dict[str, Any]) -> None:
    sent = await answer_to(scope)
    if scope["type"] != "http":
        assert [message["type"] for message in sent] in ([], ["websocket.close"])
        return
    start, *rest = sent
    assert start["status"] < 500 or start["status"] == 503, (start, rest)
    headers = dict(start["headers"])
    assert b"no-store" in headers[b"cache-control"]
    assert headers[b"x-content-type-options"] == b"nosniff"
    for name, value in start["headers"]:  # what every server lets through (RFC 9110, 5.5)
        assert name == name.lower()
        assert not any(byte < 0x20 or byte == 0x7F for byte in value)


@pytest.mark.parametrize(
    ("scope", "status"),
    [
        ({"headers": [(b"x-a", b"b")] * 100}, 404),
        ({"headers": [(b"x-a", b"b")] * 101}, 431),
        ({"headers": [(b"x-%d" % n, b"b") for n in range(101)]}, 431),
        ({"headers": [(b"x-a", b"b" * (64 * 1024 - 3))]}, 404),
        ({"headers": [(b"x-a", b"b" * (64 * 1024 - 2))]}, 431),
        ({"headers": [(b"cookie", b"\\" * 4000)] * 20}, 431),
        ({"query_string": b"a" * (16 * 1024 - 4)}, 404),
        ({"query_string": b"a" * (16 * 1024 - 3)}, 414),
        ({"path": "/" + "a" * 16 * 1024}, 414),
        ({"query_string": b"a=b&" * 49}, 404),
        ({"query_string": b"a=b&" * 50}, 400),
        ({"query_string": b"&" * 50}, 400),
    ],
)
@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
async def test_g10_a_request_past_the_limits_is_refused_before_anything_of_it_is_read(
    scope: dict[str, Any], status: int, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {
        "type": "http", "method": method, "path": "/els", "headers": [], "query_string": b"", **scope
    }  # fmt: skip
    if status != 404:
        monkeypatch.setattr("commitcast.asgi.ConnectionRequest", None)
    start, _ = await answer_to(whole)
    assert start["status"] == (405 if method == "OPTIONS" and status == 404 else status)
