"""Request, commit and delivery are one trace, whichever node and thread each is in."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import Column, ForeignKey, Integer, MetaData, Table, create_engine, select
from sqlalchemy import event as sa_event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from commitcast import AlreadyCommitted, Event, emit, sqlite
from commitcast.attempt import Announcement

from .live import listening, serving
from .spans import COMMIT, DELIVER, PATIENCE_S, Spans, attribute, ids, parent, text

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from sqlalchemy.ext.asyncio import AsyncEngine

    from commitcast import CommittedEvent, Coordinator
    from conftest import Database

pytestmark = pytest.mark.anyio
SECRET = "4111 1111 1111 1111"


async def say(engine: AsyncEngine, *streams: str, **options: Any) -> None:
    async with AsyncSession(engine) as session:
        for stream in streams:
            emit(session, stream, Event("said", {"card": SECRET}), **options)
        await session.commit()


async def stored(coordinator: Coordinator, engine: AsyncEngine) -> list[str | None]:
    events = coordinator.tables.events
    async with engine.connect() as conn:
        rows = await conn.scalars(select(events.c.trace_parent).order_by(events.c.stream_id))
        return list(rows)


def assert_nothing_told(spans: Spans) -> None:
    """No event data, parameter or message of an exception."""
    for span in spans.get_finished_spans():
        assert SECRET not in span.to_json()
        assert not span.events
        json.loads(span.to_json())


async def test_request_commit_and_delivery_are_one_trace_with_one_delivery_for_all_clients(
    database: Database,
) -> None:
    spans, engine = Spans(), database.engine()
    coordinator = database.coordinator(engine, drain_s=0, tracing=spans.tracing())
    async with (
        serving(coordinator) as client,
        listening(client, "thread:7") as one,
        listening(client, "thread:7") as two,
    ):
        with spans.tracer.start_as_current_span("POST /messages") as request:
            await say(engine, "thread:7")
        frames = [await anext(one), await anext(two)]
        (commit,) = await spans.wait(COMMIT)
        (deliver,) = await spans.wait(DELIVER)
    assert parent(commit) == ids(request)
    assert parent(deliver) == ids(commit)
    assert await stored(coordinator, engine) == [text(commit)]
    assert commit.kind is SpanKind.PRODUCER
    assert deliver.kind is SpanKind.CONSUMER
    assert commit.status.status_code is StatusCode.UNSET
    assert deliver.attributes == {
        "messaging.system": "commitcast",
        "messaging.operation.name": "deliver",
        "messaging.operation.type": "process",
        "messaging.destination.name": "thread:7",
        "messaging.message.id": frames[0]["id"],
    }
    assert attribute(commit, "messaging.message.id") == frames[0]["id"]
    assert (deliver.end_time or 0) >= (commit.end_time or 1)
    assert "trace" not in json.dumps(frames)
    assert len(spans.of(DELIVER)) == 1
    assert_nothing_told(spans)


async def test_a_reconnecting_client_is_no_new_delivery(database: Database) -> None:
    spans, engine = Spans(), database.engine()
    coordinator = database.coordinator(engine, drain_s=0, tracing=spans.tracing())
    async with serving(coordinator) as client:
        await say(engine, "thread:7")
        await spans.wait(DELIVER)  # nobody reads: it is over when it is handed over
        async with listening(client, "thread:7", "earliest") as frames:
            await anext(frames)
            await say(engine, "thread:7")
            await anext(frames)
        await spans.wait(DELIVER, 2)


@pytest.mark.parametrize("says_so", [True, False])
async def test_a_delivery_to_own_code_ends_when_it_says_so_or_asks_for_more(
    database: Database, says_so: bool
) -> None:
    spans, engine = Spans(), database.engine()
    coordinator = database.coordinator(engine, tracing=spans.tracing())
    async with (
        coordinator,
        coordinator.subscribe("thread:7") as events,
        coordinator.subscribe("thread:7") as slower,
    ):
        await say(engine, "thread:7", "thread:7")
        async with asyncio.timeout(PATIENCE_S):
            event = await anext(events)
            assert not spans.of(DELIVER)
            if says_so:
                events.frame_written(event)
            else:
                await anext(events)
            (deliver,) = spans.of(DELIVER)
            await anext(slower)
            slower.frame_written(event)
        assert attribute(deliver, "messaging.message.id") == event.id
        assert spans.of(DELIVER) == [deliver]


async def test_a_delivery_ends_with_the_copy_that_a_reader_has_from_the_log(
    database: Database,
) -> None:
    spans, engine = Spans(), database.engine()
    coordinator = database.coordinator(engine, tracing=spans.tracing())
    async with coordinator:
        await say(engine, "thread:7")
        await spans.wait(DELIVER)  # nobody read it
        async with (
            coordinator.subscribe("thread:7"),  # keeps the next one in memory, and does not read
            coordinator.subscribe("thread:7", after="earliest") as behind,
        ):
            await say(engine, "thread:7")
            async with asyncio.timeout(PATIENCE_S):
                await anext(behind)
                event = await anext(behind)
            assert len(spans.of(DELIVER)) == 1
            behind.frame_written(event)
            _, deliver = spans.of(DELIVER)
            assert attribute(deliver, "messaging.message.id") == event.id
    assert len(spans.of(DELIVER)) == 2


async def test_a_delivery_that_nobody_waits_for_any_more_is_over(database: Database) -> None:
    spans, engine = Spans(), database.engine()
    coordinator = database.coordinator(
        engine, poll_interval_s=0.05, buffer_age_s=0.05, tracing=spans.tracing()
    )
    async with coordinator:
        async with coordinator.subscribe("thread:7"):
            await say(engine, "thread:7")
            await spans.wait(DELIVER)  # memory has let go of it
        async with coordinator.subscribe("thread:8"):
            await say(engine, "thread:8")
        await spans.wait(DELIVER, 2)  # its only reader has left


async def test_the_trace_goes_on_in_another_node(database: Database) -> None:
    here, there = Spans("here"), Spans("there")
    engine, other = database.engine(), database.engine()
    sender = database.coordinator(engine, tracing=here.tracing())
    reader = database.coordinator(other, drain_s=0, poll_interval_s=0.05, tracing=there.tracing())
    async with sender, serving(reader) as client, listening(client, "thread:7") as frames:
        with here.tracer.start_as_current_span("POST /messages") as request:
            await say(engine, "thread:7")
        await anext(frames)
        (commit,) = await here.wait(COMMIT)
        (unread,) = await here.wait(DELIVER)
        (deliver,) = await there.wait(DELIVER)
    assert parent(commit) == ids(request)
    assert parent(unread) == parent(deliver) == ids(commit)
    assert there.get_finished_spans() == (deliver,)


async def test_an_emit_in_a_thread_belongs_to_the_request(database: Database) -> None:
    spans, engine = Spans(), database.engine()
    driver = "sqlite" if database.kind == "sqlite" else "postgresql+psycopg"
    sync = create_engine(database.url.set(drivername=driver))
    if database.kind == "sqlite":
        sqlite.configure(sync)
    coordinator = database.coordinator(engine, drain_s=0, tracing=spans.tracing())
    coordinator.attach(sync)

    def work() -> None:
        with Session(sync) as session:
            emit(session, "thread:7", Event("said"))
            session.commit()

    try:
        async with serving(coordinator) as client, listening(client, "thread:7") as frames:
            with spans.tracer.start_as_current_span("POST /messages") as request:
                await asyncio.to_thread(work)
            await anext(frames)
            (deliver,) = await spans.wait(DELIVER)
    finally:
        sync.dispose()
    (commit,) = spans.of(COMMIT)
    assert parent(commit) == ids(request)
    assert parent(deliver) == ids(commit)


async def test_a_commit_outside_of_the_request_belongs_to_where_its_event_was_emitted(
    database: Database,
) -> None:
    spans, engine = Spans(), database.engine()
    database.coordinator(engine, tracing=spans.tracing())
    async with AsyncSession(engine) as session:
        with spans.tracer.start_as_current_span("POST /messages") as request:
            emit(session, "thread:7", Event("said"))
        await session.commit()
    (commit,) = spans.of(COMMIT)
    assert parent(commit) == ids(request)


async def test_events_of_two_traces_in_one_commit_keep_their_own(database: Database) -> None:
    spans, engine = Spans(), database.engine()
    coordinator = database.coordinator(engine, tracing=spans.tracing())
    with spans.tracer.start_as_current_span("earlier") as earlier:
        pass
    async with coordinator, AsyncSession(engine) as session:
        emit(session, "a", Event("said"), trace_parent=text(earlier))
        with spans.tracer.start_as_current_span("POST /messages") as request:
            emit(session, "b", Event("said"))
            await session.commit()
        delivered = await spans.wait(DELIVER, 2)
    (commit,) = spans.of(COMMIT)
    assert parent(commit) == ids(request)
    assert [ids_of_link(link) for link in commit.links] == [ids(earlier)]
    assert await stored(coordinator, engine) == [text(earlier), text(commit)]
    assert [parent(span) for span in delivered] == [ids(earlier), ids(commit)]
    assert attribute(commit, "messaging.batch.message_count") == 2


def ids_of_link(link: Any) -> tuple[int, int]:
    return link.context.trace_id, link.context.span_id


@pytest.mark.parametrize("given", ["nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
async def test_a_traceparent_that_cannot_be_read_is_kept_and_begins_a_trace(
    database: Database, given: str
) -> None:
    spans, engine = Spans(), database.engine()
    coordinator = database.coordinator(engine, tracing=spans.tracing())
    async with coordinator:
        with spans.tracer.start_as_current_span("POST /messages"):
            await say(engine, "thread:7", trace_parent=given)
        (deliver,) = await spans.wait(DELIVER)
    assert parent(deliver) is None
    assert await stored(coordinator, engine) == [given]


async def test_what_is_rolled_back_is_not_delivered(database: Database) -> None:
    spans, engine = Spans(), database.engine()
    coordinator = database.coordinator(engine, tracing=spans.tracing())
    tables = MetaData()
    Table("owners", tables, Column("id", Integer, primary_key=True))
    reference = ForeignKey("owners.id", deferrable=True, initially="DEFERRED")
    things = Table("things", tables, Column("owner", reference))
    async with engine.begin() as conn:
        await conn.run_sync(tables.create_all)
    async with coordinator:
        async with AsyncSession(engine) as session:
            emit(session, "thread:7", Event("said"))
            await session.connection()
            await session.rollback()
        assert not spans.get_finished_spans()
        for _ in ("of a session", "of a connection"):
            with pytest.raises(IntegrityError):  # by COMMIT, after our statement ran
                async with AsyncSession(engine) as session:
                    await session.execute(things.insert().values(owner=1))
                    emit(session, "thread:7", Event("said", {"card": SECRET}))
                    await session.commit()
        with pytest.raises(IntegrityError):
            async with engine.begin() as conn:
                await conn.execute(things.insert().values(owner=1))
                emit(conn, "thread:7", Event("said", {"card": SECRET}))
        await say(engine, "thread:7")
        await spans.wait(DELIVER)
    *failed, _ = spans.of(COMMIT)
    for span in failed[:2]:
        assert span.status.status_code is StatusCode.ERROR
        assert attribute(span, "error.type") in {"IntegrityError", "ForeignKeyViolationError"}
        assert span.status.description == attribute(span, "error.type")
    assert_nothing_told(spans)


async def test_a_commit_that_its_own_hook_refuses_is_an_error(database: Database) -> None:
    spans, engine = Spans(), database.engine()
    database.coordinator(engine, tracing=spans.tracing())
    async with AsyncSession(engine) as session:
        emit(session, "thread:7", lambda: Event("said", object()))
        with pytest.raises(ValueError, match="JSON"):
            await session.commit()
    assert not spans.of(DELIVER)


async def test_a_cancelled_commit_ends_its_span(database: Database) -> None:
    spans, engine = Spans(), database.engine()
    coordinator = database.coordinator(engine, poll_interval_s=0.1, tracing=spans.tracing())
    started: list[ReadableSpan] = []

    class Started(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:  # noqa: ARG002
            started.append(span)

    spans.provider.add_span_processor(Started())
    async with coordinator:
        for n in range(12):
            task = asyncio.create_task(say(engine, "thread:7"))
            for _ in range(n):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await say(engine, "thread:8")
        commits = [span for span in started if span.name == COMMIT]
        await spans.wait(COMMIT, len(commits))


async def test_a_commit_whose_return_nobody_told_ends_its_span(database: Database) -> None:
    def raises(_session: Session) -> None:
        raise RuntimeError("the team's own listener, which comes before ours")

    spans, engine = Spans(), database.engine()
    coordinator = database.coordinator(engine, tracing=spans.tracing())
    sa_event.listen(Session, "after_commit", raises, insert=True)
    try:
        async with coordinator, coordinator.subscribe("thread:7") as events:
            with pytest.raises(RuntimeError):
                await say(engine, "thread:7")
            async with asyncio.timeout(PATIENCE_S):
                await anext(events)
            await spans.wait(COMMIT)
    finally:
        sa_event.remove(Session, "after_commit", raises)


async def test_a_connections_own_commit_is_traced_as_well(database: Database) -> None:
    spans, engine = Spans(), database.engine()
    coordinator = database.coordinator(engine, tracing=spans.tracing())
    async with coordinator:
        with spans.tracer.start_as_current_span("work") as work:
            async with engine.begin() as conn:
                emit(conn, "thread:7", Event("said"))
            async with engine.connect() as conn, conn.begin():
                mode: Any = "create_savepoint"
                async with AsyncSession(conn, join_transaction_mode=mode) as session:
                    emit(session, "thread:7", Event("said"))
                    await session.commit()
        assert [parent(s) for s in spans.of(COMMIT)] == [ids(work), ids(work)]
    assert await stored(coordinator, engine) == [text(s) for s in spans.of(COMMIT)]


async def test_an_operation_is_a_span_around_its_commit(database: Database) -> None:
    spans, engine = Spans(), database.engine()
    coordinator = database.coordinator(engine, tracing=spans.tracing())
    async with coordinator:
        with spans.tracer.start_as_current_span("POST /answers") as request:
            work = coordinator.operation("answer", user="ann", stream="thread:7")
            async with work as op, op.begin():
                op.emit(Event("answered", {"card": SECRET}))
            with spans.tracer.start_as_current_span("after"):
                pass
        (operation,) = await spans.wait("commitcast operation answer")
        (after,) = spans.of("after")
        (deliver,) = await spans.wait(DELIVER)
    (commit,) = spans.of(COMMIT)
    assert parent(operation) == parent(after) == ids(request)
    assert parent(commit) == ids(operation)
    assert parent(deliver) == ids(commit)
    assert operation.attributes == {
        "commitcast.operation.id": op.id,
        "commitcast.operation.attempt": 1,
        "commitcast.operation.outcome": "committed",
    }
    assert operation.status.status_code is StatusCode.UNSET
    assert_nothing_told(spans)


async def test_the_notice_of_a_failed_operation_belongs_to_its_trace(database: Database) -> None:
    spans, engine = Spans(), database.engine()
    coordinator = database.coordinator(engine, drain_s=0, tracing=spans.tracing())
    async with serving(coordinator) as client, listening(client, "user:ann") as frames:
        with pytest.raises(ZeroDivisionError):
            async with coordinator.operation("answer", user="ann"):
                raise ZeroDivisionError(SECRET)
        assert (await anext(frames))["type"] == "transaction_rolled_back"
        (operation,) = await spans.wait("commitcast operation answer")
        (deliver,) = await spans.wait(DELIVER)
    assert parent(operation) is None
    assert parent(deliver) == ids(operation)
    assert operation.status.status_code is StatusCode.ERROR
    assert attribute(operation, "error.type") == "ZeroDivisionError"
    assert attribute(operation, "commitcast.operation.outcome") == "rolled_back"
    assert_nothing_told(spans)


async def test_a_notice_by_another_node_is_not_of_the_trace_of_that_nodes_start(
    database: Database,
) -> None:
    spans, engine = Spans(), database.engine()
    coordinator = database.coordinator(
        engine, lease_s=0.5, operation_deadline_s=0.01, tracing=spans.tracing()
    )
    announced = Announcement(
        id="1" * 32, name="answer", node="gone", term=1, deadline_s=0.01, streams=("thread:7",)
    )
    with spans.tracer.start_as_current_span("start"):
        async with coordinator, coordinator.subscribe("thread:7") as events:
            operations = coordinator._operations
            assert operations is not None
            await operations._announcer.announce(announced)
            async with asyncio.timeout(PATIENCE_S):
                notice = await anext(events)
    assert notice.type == "transaction_rolled_back"
    assert notice.trace_parent is None


async def test_an_operation_that_cannot_be_entered_is_an_error(database: Database) -> None:
    spans, engine = Spans(), database.engine()
    coordinator = database.coordinator(engine, tracing=spans.tracing())
    async with coordinator:
        async with coordinator.operation("answer", user="ann", id="key") as op, op.begin():
            pass
        with pytest.raises(AlreadyCommitted):
            async with coordinator.operation("answer", user="ann", id="key"):
                pass
        found = await spans.wait("commitcast operation answer", 2)
        with spans.tracer.start_as_current_span("next"):
            pass
    assert [attribute(span, "error.type") for span in found] == [None, "AlreadyCommitted"]
    assert [parent(span) for span in spans.of("next")] == [None]


async def test_spans_of_a_deliver_callable_are_children_also_after_a_restart(
    database: Database,
) -> None:
    spans, engine = Spans(), database.engine()
    sent = asyncio.Event()
    failures: list[Exception] = []

    async def deliver(_event: CommittedEvent) -> None:
        with spans.tracer.start_as_current_span("socket"):
            if failures:
                raise failures.pop()
        sent.set()

    async def until_sent() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await sent.wait()
        sent.clear()

    first = database.coordinator(engine, deliver=deliver, tracing=spans.tracing())
    async with first:
        await say(engine, "thread:7")
        await until_sent()
        await spans.wait(DELIVER)
    spans.clear()
    failures.append(ConnectionError(SECRET))
    with spans.tracer.start_as_current_span("POST /messages"):
        await say(engine, "thread:7")  # while nothing runs
    first.detach()
    second = database.coordinator(engine, deliver=deliver, tracing=spans.tracing())
    async with second:
        await until_sent()
        failed, delivered = await spans.wait(DELIVER, 2)
    (commit,) = spans.of(COMMIT)
    assert parent(failed) == parent(delivered) == ids(commit)
    assert [parent(span) for span in spans.of("socket")] == [ids(failed), ids(delivered)]
    assert attribute(failed, "error.type") == "ConnectionError"
    assert delivered.status.status_code is StatusCode.UNSET


async def test_a_tracer_that_breaks_breaks_no_commit(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    breaks = set[str]()

    class Broken(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:  # noqa: ARG002
            if span.name in breaks:
                raise RuntimeError("on_start")

        def on_end(self, span: Any) -> None:  # noqa: ARG002
            raise RuntimeError("on_end")

    spans, engine = Spans(), database.engine()
    spans.provider.add_span_processor(Broken())
    coordinator = database.coordinator(engine, tracing=spans.tracing())
    with caplog.at_level(logging.CRITICAL + 1, logger="commitcast"):
        async with coordinator, coordinator.subscribe("thread:7") as events:
            for broken in ("", COMMIT, DELIVER):
                breaks.add(broken)
                await say(engine, "thread:7")
                async with asyncio.timeout(PATIENCE_S):
                    await anext(events)


async def test_without_tracing_nothing_is_kept_of_a_trace(database: Database) -> None:
    spans, engine = Spans(), database.engine()
    coordinator = database.coordinator(engine)
    with spans.tracer.start_as_current_span("POST /messages"):
        await say(engine, "thread:7")
    assert await stored(coordinator, engine) == [None]


async def test_a_trace_that_is_not_sampled_is_not_sampled_at_delivery(database: Database) -> None:
    spans, engine = Spans(), database.engine()
    coordinator = database.coordinator(engine, tracing=spans.tracing())
    given = f"00-{'a' * 32}-{'b' * 16}-00"
    async with coordinator, coordinator.subscribe("thread:7") as events:
        await say(engine, "thread:7", trace_parent=given)
        async with asyncio.timeout(PATIENCE_S):
            event = await anext(events)
    assert event.trace_parent is not None
    assert event.trace_parent.startswith(f"00-{'a' * 32}-")
    assert event.trace_parent.endswith("-00")
    assert not spans.get_finished_spans()
