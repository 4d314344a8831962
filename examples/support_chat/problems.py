"""Why a request is refused."""

from __future__ import annotations


class TicketUnknown(Exception):
    """There is no such ticket, or not for this user."""


class TicketClosed(Exception):
    """Nothing can be added to it any more."""


class Duplicate(Exception):
    """The user has a ticket with that subject."""
