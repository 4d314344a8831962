"""The savepoints of a connection's transaction, and what is open in it.

They are kept on the `Connection`: what SQLAlchemy hands out of a savepoint reaches its connection,
which a map with weak keys would then keep for ever.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from commitcast.savepoints import Savepoints

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, RootTransaction

_ATTRIBUTE: Final = "commitcast_audit"


@dataclass(slots=True)
class _Nested:
    root: weakref.ref[RootTransaction]
    savepoints: Savepoints


def savepoints_on(conn: Connection, *, begins: bool = False) -> Savepoints | None:
    """Those of the connection's transaction; None where it has had none that matters."""
    root = conn.get_transaction()
    if root is None:
        return None
    known: _Nested | None = vars(conn).get(_ATTRIBUTE)
    if known is None or known.root() is not root:
        if not begins and not conn.in_nested_transaction():
            return None
        known = vars(conn)[_ATTRIBUTE] = _Nested(weakref.ref(root), Savepoints())
    return known.savepoints


def names(savepoints: Savepoints | None) -> list[str]:
    """What `commitcast.audit.work` calls those that are open, oldest first: when they began."""
    return [] if savepoints is None else [str(begun) for begun in dict.fromkeys(savepoints.begun)]
