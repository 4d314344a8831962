"""The coordinator: the whole program, what it is made of and what runs.

Made, it attaches to an engine, so that `commitcast.emit` works (a worker or script needs no
more). Entered, it runs delivery: polling, trimming and the relay, in one task group.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy.engine import Engine

from commitcast.admission import Admission
from commitcast.attachment import Attachment
from commitcast.attempt import announced_id
from commitcast.coordinated import execute, refuse_later
from commitcast.delivery import Delivery
from commitcast.dispatch import Dispatcher, total
from commitcast.drain import close_gently, on_signals
from commitcast.erasure import Eraser
from commitcast.errors import NotRunning
from commitcast.event import CommittedEvent, Position, check_id, check_stream
from commitcast.forked import forget_in_child
from commitcast.handover import Handover
from commitcast.health import CoordinationHealthMonitor, HealthLevel
from commitcast.health_report import report
from commitcast.hooks import attach, detach
from commitcast.invariants import Invariants, Prover, watch
from commitcast.log import Log
from commitcast.migrations import mark_restored, schema_there
from commitcast.notifier import InProcessNotifier, Notifier
from commitcast.operations import Operations
from commitcast.outcome import Outcomes
from commitcast.outlast import end
from commitcast.relay import Relay
from commitcast.retention import Trimmer
from commitcast.schema import Naming, Tables
from commitcast.settings import Settings
from commitcast.sqlite import READ_ONLY_OPTION
from commitcast.steps import Steps
from commitcast.subscription import Reset, Subscription
from commitcast.users import user_stream, whose
from commitcast.visible import check_visible
from commitcast.writer import check_primary, shares_connection, turns_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
    from types import TracebackType

    from sqlalchemy.ext.asyncio import (
        AsyncEngine,
        AsyncSession,
    )  # need greenlet, which base has not

    from commitcast.asgi import RealtimeApp
    from commitcast.attempt import Attempt
    from commitcast.auth import Authenticate, Authorize, Operators
    from commitcast.flags import Mode, Modes
    from commitcast.operation import Operation
    from commitcast.telemetry import Observer, Tracing
    from commitcast.turns import Turns


class Coordinator:
    """Ties an engine's commits to the streams that clients read."""

    def __init__(  # noqa: PLR0913 - one place where a program is put together
        self,
        engine: AsyncEngine | Engine,
        *,
        deliver: Callable[[CommittedEvent], Any] | None = None,
        relay_name: str = "default",
        health: CoordinationHealthMonitor | HealthLevel | str | None = None,
        reader: AsyncEngine | None = None,
        notifier: Notifier | None = None,
        sessions: Callable[[], AsyncSession] | None = None,
        user_stream: Callable[[str], str] = user_stream,
        tracing: Tracing | None = None,
        schema: str | None = None,
        prefix: str | None = None,
        settings: Settings | None = None,
        drain_on_signals: bool = True,
        **options: Any,
    ) -> None:
        """Attach to `engine`; no I/O.

        Args:
            engine: the engine whose commits carry events, async or sync; the primary.
            deliver: a function, sync or async, that takes each `CommittedEvent` after its
                commit, in stream order, at least once (see `commitcast.relay`).
            relay_name: coordinators of one name share the work of `deliver`.
            health: how the layers move together is recorded in it (`commitcast.health`); a
                monitor, or only its level: ``full`` (the default), ``basic`` or ``off``.
            reader: the engine that delivery reads with; default is `engine`. Needed where
                `engine` is sync, or its pool is too small to share.
            notifier: carries hints to other nodes; without one they find events by polling.
            sessions: makes the sessions of `Operation.begin`, such as your ``async_sessionmaker``;
                default are plain ones of `engine` that do not expire on commit.
            user_stream: names the stream of a user's own, which is told when an operation of
                theirs fails; default `commitcast.user_stream`. Two users never have one.
            tracing: a `commitcast.tracing.OpenTelemetry` (extra ``opentelemetry``); without one
                nothing is traced.
            schema: the schema of Commitcast's tables on PostgreSQL; default ``commitcast``.
            prefix: the prefix of their names; default none, on SQLite ``commitcast_``.
            settings: limits and intervals; or give them one by one as `options`.
            drain_on_signals: close clients gently on SIGTERM and SIGINT. Servers such as
                uvicorn wait for open responses before they end the lifespan, so that nothing
                else would close them. The handler that was there is called as well.
            options: fields of `Settings`, such as ``poll_interval_s=0.5``.

        Raises:
            ValueError: the engine has a coordinator, an option is out of range, or there is no
                such level.
            EmitRefused: the database is neither PostgreSQL nor SQLite.
        """
        if settings is not None and options:
            raise ValueError("give either settings or single options, not both")
        try:
            self.settings = settings if settings is not None else Settings(**options)
        except TypeError as error:
            known = ", ".join(Settings.__dataclass_fields__)
            raise ValueError(f"{error}; the options are {known}") from error
        self.health = (
            health
            if isinstance(health, CoordinationHealthMonitor)
            else CoordinationHealthMonitor(level=HealthLevel.FULL if health is None else health)
        )
        self._steps = Steps(self.health)
        self._prover: Prover | None = None
        self._proven: Invariants | None = None
        self._engine = engine if isinstance(engine, Engine) else engine.sync_engine
        read_with = reader if reader is not None else engine
        self._turns = turns_for(self._engine, read_with)
        if self._turns is not None:
            read_with = self._turns.engine
        self._writer = None if isinstance(read_with, Engine) else read_with
        self._reader = (
            None
            if self._writer is None
            else self._writer.execution_options(**{READ_ONLY_OPTION: True})
        )
        self._schema, self._prefix = schema, prefix
        self.tables = Tables(Naming.of(self._engine.dialect.name, schema, prefix))
        self.log = Log(self.tables, self._engine.dialect)
        self._notifier = notifier if notifier is not None else InProcessNotifier().endpoint()
        self._sessions = sessions
        self._user_stream = user_stream
        self._tracing = tracing
        self.admission = Admission(self.settings)
        self._dispatchers: weakref.WeakSet[Dispatcher] = weakref.WeakSet()
        self._observers: list[Observer] = []
        self._handover = Handover(self._steps, self._observers)
        self._operations: Operations | None = None
        self._deliver = deliver
        self._relay_name = relay_name
        self._relay: Relay | None = None
        self._drain_on_signals = drain_on_signals
        self._delivery: Delivery | None = None
        self._stack: contextlib.AsyncExitStack | None = None
        self._drain: asyncio.Task[None] | None = None
        self._attached: list[Engine] = []
        forget_in_child(self)
        if tracing is not None:
            tracing.watch(self)  # which may refuse, and then nothing is attached
        self.attach(self._engine)
        if reader is not None and self._writer is not None and reader is not engine:
            self.attach(reader)  # for Operation.begin

    # --- engines --------------------------------------------------------------------------

    def attach(self, engine: AsyncEngine | Engine) -> None:
        """Attach another engine of the same database, such as a sync one for worker threads."""
        sync = engine if isinstance(engine, Engine) else engine.sync_engine
        turns_for(self._engine, sync)  # which may refuse
        log = self.log if sync is self._engine else Log(self.tables, sync.dialect)
        attach(sync, Attachment(log, self._handover, self.settings.max_event_bytes, self._tracing))
        self._attached.append(sync)

    @property
    def attached(self) -> bool:
        """Whether it has an engine; not after `detach`."""
        return bool(self._attached)

    def detach(self) -> None:
        """Let go of the engines; emits on them are refused from now on."""
        if self._turns is not None:
            self._turns.detach()
        while self._attached:
            detach(self._attached.pop())

    # --- lifespan -------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Start delivery. Raises `SchemaMissing` where ``commitcast migrate`` has not run."""
        if self._reader is None or self._writer is None:
            raise NotRunning(
                "delivery needs an async engine: Coordinator(engine, reader=create_async_engine(…))"
            )
        if self._handover.loop_closed:  # and it was not left
            self._abandon()
        if self._delivery is not None:
            raise NotRunning("the coordinator is running already; leave it where it was entered")
        async with contextlib.AsyncExitStack() as stack:
            delivery = Delivery(
                self._reader, self.log, self.settings, self._notifier, self._steps, self._tracing,
                self._turns,
            )  # fmt: skip
            with schema_there():
                await delivery.poll()
                await check_visible(self._reader, self.tables)
            await check_primary(self._engine, self.log)
            await delivery.open()
            stack.push_async_callback(delivery.close)
            stack.callback(self._handover.close)
            operations = await self._open_operations(delivery)
            if operations is not None:
                stack.push_async_callback(operations.close)
            prover = self._make_prover(delivery, with_operations=operations is not None)
            loops = [delivery.run(), *(operations.loops() if operations is not None else ())]
            if self.health.level is not HealthLevel.OFF:
                loops.append(watch(self.health, self.settings.health_check_every_s))
                if self.settings.invariants_every_s > 0:
                    loops.append(prover.run(self.settings.invariants_every_s))
            if self.settings.retention.every_s > 0:
                loops.append(self._trimmer().run())
            if self._deliver is not None:
                relay = await self._open_relay(self._deliver, self._writer)
                delivery.on_events = relay.hint
                delivery.on_committed = relay.committed
                loops.append(relay.run())
            await stack.enter_async_context(_running(loops, self._turns))
            if self._drain_on_signals:
                stack.enter_context(on_signals(self.begin_drain))
            self.admission.open()
            self._handover.open(delivery)
            self._delivery = delivery
            self._operations = operations
            self._prover = prover
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop delivery: clients are closed, loops end. `emit` goes on working."""
        if self._handover.loop_closed:
            self._abandon()
        elif self._stack is not None:
            self._handover.check_loop()
        stack, self._stack = self._stack, None
        if stack is not None:
            self.admission.drain()
            if self._drain is not None:
                self._drain.cancel()
                self._drain = None
            self._delivery = self._operations = self._prover = self._relay = None
            await stack.aclose()

    async def _open_relay(self, deliver: Callable[..., Any], engine: AsyncEngine) -> Relay:
        settings = self.settings
        self._relay = Relay(
            engine, self.log, deliver, name=self._relay_name, lease_s=settings.relay_lease_s,
            limit_s=settings.deliver_limit_s, poll_interval_s=settings.poll_interval_s,
            page_events=settings.page_events, steps=self._steps, tracing=self._tracing,
        )  # fmt: skip
        await self._relay.open()
        return self._relay

    def _abandon(self) -> None:
        """Forget what ran in an event loop that is closed, or in the process that forked this one.

        Nothing of it can be ended any more; what it left open the reaper finds.
        """
        if self._operations is not None:
            self._operations.node.abandon()
        self._handover.close()
        self._stack = self._drain = None
        self._delivery = self._operations = self._prover = self._relay = None

    forked = _abandon

    def _make_prover(self, delivery: Delivery, *, with_operations: bool) -> Prover:
        def keep(proven: Invariants) -> None:
            self._proven = proven

        return Prover(
            delivery, self.health, self.settings, keep=keep, with_operations=with_operations,
            relay=None if self._deliver is None else self._relay_name,
        )  # fmt: skip

    async def _open_operations(self, delivery: Delivery) -> Operations | None:
        engine = self._writer
        if engine is None or shares_connection(engine.sync_engine):
            return None
        make = self._sessions
        if make is None:
            from sqlalchemy.ext.asyncio import async_sessionmaker

            make = async_sessionmaker(engine, expire_on_commit=False)
        operations = Operations(
            engine, self.tables, self.settings, session=make, deliver=delivery.publish,
            hint=delivery.changed, observers=self._observers, steps=self._steps,
            tracing=self._tracing,
        )  # fmt: skip
        with schema_there():
            await operations.open()
        return operations

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: object) -> AsyncIterator[None]:
        """For ``FastAPI(lifespan=coordinator.lifespan)``. A mounted app's own never runs."""
        async with self:
            yield

    async def migrate(self) -> None:
        """Create or update Commitcast's tables (extra ``migrate``); safe to run at each start."""
        from commitcast.migrations import migrate

        if self._writer is None:
            with self._engine.connect() as conn:
                migrate(conn, schema=self._schema, prefix=self._prefix)
            return
        async with self._writer.connect() as aconn:
            await aconn.run_sync(migrate, schema=self._schema, prefix=self._prefix)

    # --- operations -----------------------------------------------------------------------

    def operation(
        self,
        name: str,
        *,
        user: str | None = None,
        everyone: bool = False,
        stream: str | None = None,
        id: str | None = None,  # noqa: A002 - the word of DESIGN §3
        request: object = None,
        user_message: str | None = None,
        deadline_s: float | None = None,
    ) -> Operation:
        """One unit of work that succeeds or fails as a whole: ``async with``, see `Operation`.

        Args:
            name: what is done, such as ``answer``.
            user: whose doing it is: a printable id of 1 to 255 characters. If it fails, they are
                told on their own stream.
            everyone: needed for an `id` without a `user`: a key that all callers share.
            stream: where its events go unless `Operation.emit` says otherwise.
            id: an idempotency key of the user's; the same again is the same operation. It belongs
                to `user` and `name`, so others may use the same.
            request: what was asked, anything an event's data may be; the same id with another is
                refused.
            user_message: what the user is told if it fails.
            deadline_s: seconds after which it is rolled back; default ``operation_deadline_s``.

        Raises:
            InvalidEvent: a name, user, key or stream that cannot be one.
            ValueError: neither `user` nor `stream` is given, so nobody could be told.
            NotRunning: the coordinator is not entered, or its SQLite database is in memory.
        """
        operations = self._operations
        if operations is None:
            raise NotRunning(
                "operations need a coordinator that is running (async with coordinator, or its "
                "lifespan) on a database that more than one connection can open"
            )
        return operations.make(
            name, user=user, everyone=everyone, told=None if user is None else self.stream_of(user),
            stream=stream, key=id, request=request, user_message=user_message,
            deadline_s=deadline_s,
        )  # fmt: skip

    def stream_of(self, user: str) -> str:
        """The stream of `user`'s own, by ``user_stream``; raises `InvalidEvent` for a bad name."""
        return check_stream(self._user_stream(check_id("user", user)))

    async def execute_coordinated_operation(
        self,
        operation_name: str,
        db_operation: Callable[[AsyncSession], Any],
        events: Sequence[object] | Callable[[Any], Sequence[object]] = (),
        agent_state_updates: Sequence[object] = (),
        cache: Sequence[object] = (),
        user: str | None = None,
        result: Callable[[Any], object] | None = None,
        **options: Any,
    ) -> Any:
        """Work that is a function, as one operation: rows, events and outcome in one commit.

        Args:
            operation_name: as `operation`; so with `user` and `options`.
            db_operation: takes the session, sync or async; what it returns is returned.
            result: makes of that what is stored, and answers a retry; called in the commit, as in
                ``result=lambda row: {"id": row.id}``. Without it, and with an `id`, what
                `db_operation` returned is stored; a row of yours cannot be, then nothing commits.
            events: what to emit: events for the operation's stream, pairs (stream, event), or a
                function that takes the result and returns these.
            agent_state_updates: not in this version; refused.
            cache: likewise.
            options: `everyone`, `stream`, `id`, `request`, `user_message`, `deadline_s`.

        Raises what `operation`, entering and leaving it raise, and what `db_operation` raised.
        """
        refuse_later(agent_state_updates=agent_state_updates, cache=cache)
        operation = self.operation(operation_name, user=user, **options)
        return await execute(operation, db_operation, events, result)

    def dispatcher(self, send: Callable[[str, Any], Any], *, modes: Modes) -> Dispatcher:
        """A function that sends an event the app's own way or by `emit`, as the user's mode says.

        Make it once, at start: ``await dispatch(session, stream, event, user=user)``, see
        `Dispatcher`.

        Args:
            send: the app's own sending, sync or async; takes the stream and the event.
            modes: a `Rollout`, an `OpenFeatureModes`, or your own `Modes`.
        """
        made = Dispatcher(send, modes)
        self._dispatchers.add(made)
        return made

    def dispatched(self) -> dict[Mode, int]:
        """How many events went each way, by the dispatchers that are in use; empty without any."""
        return total(self._dispatchers)

    async def find_operation(
        self,
        name: str | None = None,
        *,
        id: str | None = None,  # noqa: A002 - as in `operation`
        operation_id: str | None = None,
        user: str | None = None,
        everyone: bool = False,
    ) -> Attempt | None:
        """The newest attempt at an operation; None if there is none that is the user's (G7).

        Give what it was announced with, `name`, `id` and `user`; or `Operation.id` and `user`.
        `everyone` instead of `user` is for a key that all share, and for operators.

        Raises:
            InvalidEvent: neither `user` nor `everyone`, or something that cannot be an id.
            NotRunning: the coordinator is not entered.
        """
        actor = whose(user, everyone=everyone)
        of = announced_id(name, id, operation_id, actor)
        if self._operations is None:
            raise NotRunning("find_operation needs a coordinator that is running")
        found = await self._operations.latest(of)
        return found if found is not None and (everyone or found.actor == actor) else None

    async def operations(
        self, state: str, *, user: str | None = None, everyone: bool = False, limit: int = 100
    ) -> list[Attempt]:
        """A user's newest attempts that are ``open``, ``unknown``, ``committed``, ``rolled_back``.

        With `everyone` instead of `user`, those of all: for operators.
        """
        actor = whose(user, everyone=everyone)
        if self._writer is None:
            raise NotRunning("operations need an async engine: Coordinator(engine, reader=…)")
        outcomes = Outcomes(Log(self.tables, self._writer.sync_engine.dialect))
        async with self._writer.connect() as conn:
            return await conn.run_sync(
                lambda sync: outcomes.newest(sync, state, limit, actor=actor)
            )

    def observe(self, observer: Observer) -> None:
        """Have `observer` called with every `CoordinationEvent` of this node; it must not block."""
        self._observers.append(observer)

    def on_rollback(self, hook: Callable[[tuple[str, ...]], Any]) -> None:
        """Call `hook` with the streams when a transaction that had emitted was rolled back.

        For plain sessions and connections, whose rollback is told to nobody; an operation's has
        `Operation.on_rollback`. Called in the thread that rolls back; it must not block.
        """
        self._handover.rollback_hooks.append(hook)

    @property
    def rollbacks(self) -> int:
        """How many transactions that had emitted were rolled back since the coordinator was made."""
        return self._handover.rollbacks

    # --- reading --------------------------------------------------------------------------

    def subscribe(
        self,
        stream: str,
        *,
        after: Position | str | None = None,
        on_reset: Callable[[Reset], object] | None = None,
        authorize: Callable[[], Awaitable[bool]] | None = None,
    ) -> Subscription:
        """Read the committed events of `stream`, in order, each once: ``async for``.

        Args:
            stream: its name; it need not have events yet.
            after: the position up to which everything was seen (`Position` or its text), from
                there on nothing is left out; ``"earliest"`` for all that is kept; None for what
                comes from now on.
            on_reset: called with a `Reset` when events after the position are gone; without it
                `PositionLost` is raised.
            authorize: asked before the first read, on every page of the log, and denied access
                raises `AccessDenied`. The caller answers for who is reading.

        Raises:
            InvalidEvent: the stream's name or the position is not one.
            NotRunning: the coordinator is not entered.
        """
        self._handover.check_loop()
        if self._delivery is None:  # pragma: no cover - it is open as long as the handover
            raise NotRunning("the coordinator is not running")
        return Subscription(
            self._delivery,
            check_stream(stream),
            after,
            steps=self._steps,
            on_reset=on_reset,
            authorize=authorize,
            chunk_bytes=self.settings.chunk_bytes,
        )

    def asgi(
        self,
        *,
        authenticate: Authenticate | None = None,
        authorize: Authorize | None = None,
        allowed_origins: Collection[str] = (),
        operators: Operators | None = None,
    ) -> RealtimeApp:
        """An ASGI app, to mount where you like.

        ``/sse`` is for clients, ``/livez`` and ``/readyz`` for probes, ``/health`` (JSON) and
        ``/metrics`` (Prometheus, extra ``metrics``) for operators.

        Args:
            authenticate: takes a `ConnectionRequest` and returns the user's id, or None; sync or
                async. Without it every client is refused.
            authorize: takes the user's id and a stream's name, returns True to allow; asked on
                subscribe, on every page of a replay, and with every keep-alive. A parameter
                ``position`` is given the `Position` it is about, None for "from now on".
            allowed_origins: other sites whose pages may connect, as ``https://example.org``.
            operators: takes a `ConnectionRequest`, returns True for who may read ``/health`` and
                ``/metrics``; sync or async. Without it nobody may.
        """
        from commitcast import asgi

        return asgi.RealtimeApp(
            self, authenticate=authenticate, authorize=authorize, operators=operators,
            allowed_origins=allowed_origins)  # fmt: skip

    @property
    def connections(self) -> int:
        """How many clients are connected to the apps that `asgi` made."""
        return self.admission.connections

    # --- health and drain -----------------------------------------------------------------

    @property
    def accepting(self) -> bool:
        """Whether new clients are taken."""
        return self._delivery is not None and not self.admission.draining

    def readiness(self) -> dict[str, bool]:
        """The checks behind ``/readyz``: running, not draining, the log read of late, places left."""
        age_s = None if self._delivery is None else self._delivery.last_read_age_s
        fresh_s = max(3 * self.settings.poll_interval_s, 3.0)
        return {
            "running": self._delivery is not None and not self._handover.loop_closed,
            "accepting": self.accepting,
            "database": age_s is not None and age_s < fresh_s,
            **({} if self._relay is None else {"deliver": not self._relay.stuck}),
            "places": self.admission.has_places,
        }

    @property
    def invariants(self) -> Invariants | None:
        """What the database last said about what must hold; None before it was first asked."""
        return self._proven

    async def check_invariants(self) -> Invariants:
        """Ask the database now; what ``invariants_every_s`` does by itself. Sends alerts as well.

        Raises `NotRunning` where the coordinator is not entered; a database that cannot be asked
        is named in the answer.
        """
        if self._prover is None:
            raise NotRunning("check_invariants needs a coordinator that is running")
        return await self._prover.look()

    def counts(self) -> dict[str, int]:
        """What there is now, and what only grows since the coordinator was made, on this node.

        Now: ``subscriptions``, ``operations_open`` and `Admission.counts`. Growing: ``events_committed``
        (COMMIT was seen to return), ``events_handed_over`` (from memory, to this node's readers),
        ``frames_written`` (each client counted), ``rollbacks`` (of plain transactions).
        """
        delivery, operations, steps = self._delivery, self._operations, self._steps
        return {
            "subscriptions": 0 if delivery is None else delivery.count_readers(),
            **self.admission.counts(),
            "operations_open": 0 if operations is None else len(operations.live),
            "deliver_overdue": 0 if self._relay is None else len(self._relay.overdue),
            "events_committed": steps.events_committed,
            "events_handed_over": steps.events_handed_over,
            "frames_written": steps.frames_written,
            "rollbacks": self._handover.rollbacks,
        }

    def health_report(self) -> dict[str, Any]:
        """All that operators may see of this node's health, as JSON may hold it.

        No user's id and no stream's name is in it.
        """
        return report(self.health, self._proven, self.readiness(), self.counts())

    def begin_drain(self) -> None:
        """Take no more clients and close those there are, spread over ``drain_s`` seconds.

        They come back with their positions, to another node.
        """
        if not self.accepting or self._delivery is None:
            return
        self.admission.drain()
        self._drain = asyncio.get_running_loop().create_task(
            close_gently(self._delivery, self.settings.drain_s)
        )

    # --- data -----------------------------------------------------------------------------

    async def erase(self, *, stream: str | None = None, user: str | None = None) -> int:
        """Remove a person's data; returns how many streams, events and attempts were erased.

        Args:
            stream: delete this stream whole. Its readers are told; made again it has another
                epoch, so that no old position is mistaken for a new one.
            user: empty every event whose actor is this user (offsets stay, so that other readers
                miss nothing), roll back and remove their operations, delete the stream that
                `stream_of` has for them.

        May be repeated. Nodes forget within ``poll_interval_s`` s, a page just being read in 15 s.
        """
        if (stream is None) == (user is None):
            raise ValueError("give either stream= or user=")
        if self._writer is None:
            raise NotRunning("erase needs an async engine: Coordinator(engine, reader=…)")
        eraser = Eraser(self._writer, self.tables)
        try:
            if stream is not None:
                return await eraser.erase_stream(check_stream(stream))
            actor = check_id("user", user)
            return await eraser.erase_user(actor, self.stream_of(actor))
        finally:
            if self._delivery is not None:
                await self._delivery.poll()

    async def trim(self) -> int:
        """Apply the retention now; returns how many events went."""
        return await self._trimmer().trim()

    async def mark_restored(self) -> None:
        """Say that the database was restored from a copy: every old position becomes invalid.

        After a restore offsets are given out again; without this a client's position would be
        taken for one in the new history. ``commitcast restored`` calls it.
        """
        if self._writer is None:
            raise NotRunning("mark_restored needs an async engine: Coordinator(engine, reader=…)")
        async with self._writer.begin() as conn:
            await conn.run_sync(mark_restored, self.tables)
        if self._delivery is not None:
            await self._delivery.poll()

    def _trimmer(self) -> Trimmer:
        if self._writer is None:
            raise NotRunning("trimming needs an async engine: Coordinator(engine, reader=…)")
        return Trimmer(self._writer, self.tables, self.settings.retention)


@contextlib.asynccontextmanager
async def _running(loops: list[Any], turns: Turns | None) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        yield
    finally:
        if turns is not None:
            await turns.still()
        await end(tasks)
