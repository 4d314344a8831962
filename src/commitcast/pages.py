"""Where a page of the log ends: after so many events, or so many bytes of data.

Events are walked one by one from the first, each by its primary key, so that what lies behind the
end is never read. A sum over a range would read the whole range: where events are large, a
hundred times what the page has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, LargeBinary, and_, bindparam, cast, func, select

if TYPE_CHECKING:
    from commitcast.schema import Tables

NO_LIMIT: Final = 2**62
"""More bytes than any page has."""


def last_of_page(tables: Tables, after: Any, *, postgresql: bool) -> Any:
    """The last offset of a page of the stream ``:name``; null if nothing follows `after`.

    The page has ``:limit`` events at most, and its data is ``:max_bytes`` at most unless its
    first event alone has more.
    """
    streams, events = tables.streams, tables.events
    limit, max_bytes = (bindparam(name, type_=BigInteger) for name in ("limit", "max_bytes"))
    # octet_length does not fetch what PostgreSQL keeps out of line; SQLite has it since 3.43 only
    size = (
        func.octet_length(events.c.data)
        if postgresql
        else func.length(cast(events.c.data, LargeBinary))
    )
    later = events.alias("later")
    first = (
        select(func.min(later.c.offset))
        .where(later.c.stream_id == streams.c.id, later.c.offset > after)
        .correlate(streams)
        .scalar_subquery()
    )
    walk = (
        select(events.c.stream_id, events.c.offset, cast(size, BigInteger).label("bytes"))
        .join(streams, events.c.stream_id == streams.c.id)
        .where(streams.c.name == bindparam("name"), events.c.offset == first, limit > 0)
        .cte("walk", recursive=True)
    )
    total = walk.c.bytes + size
    following = select(events.c.stream_id, events.c.offset, total).join(
        walk,
        and_(events.c.stream_id == walk.c.stream_id, events.c.offset == walk.c.offset + 1),
    )
    walk = walk.union_all(following.where(total <= max_bytes, walk.c.offset < after + limit))
    return select(func.max(walk.c.offset)).scalar_subquery()
