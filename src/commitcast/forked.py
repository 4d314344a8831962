"""`forget_in_child`: what a forked child must let go of, since it belongs to its parent.

A child has a copy of everything, also of what works for the parent: an event loop that does not run
in the child, a lock on a file that would outlive the parent.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forgetful(Protocol):
    """Has something of its process."""

    def forked(self) -> None:
        """Called in a forked child, before anything else runs there; must neither wait nor raise."""


def forget_in_child(holder: Forgetful) -> None:
    """Call ``holder.forked()`` in every child that is forked while `holder` lives."""
    _holders.add(holder)


def _forked() -> None:
    for holder in list(_holders):
        holder.forked()


_holders: weakref.WeakSet[Forgetful] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_forked)
