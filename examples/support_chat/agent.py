"""What stands for a language model, its tools, and the rule for what may be written."""

from __future__ import annotations

import asyncio


class Rejected(Exception):
    """A text breaks a rule of the house."""


class ToolFailed(Exception):
    """The agent's tool did not do what it was asked to."""


def moderate(text: str) -> None:
    """Raise `Rejected` for what may not be said here."""
    if "idiot" in text.lower():
        raise Rejected("please stay polite")


async def draft(question: str) -> str:
    """What the model answers."""
    await asyncio.sleep(0)
    return f"About {question!r}: have you tried turning it off and on again?"


async def refund(question: str) -> None:
    """Pay back, if that is what was asked for; raises `ToolFailed` since the bank is closed."""
    await asyncio.sleep(0)
    if "refund" in question.lower():
        raise ToolFailed("the bank is closed")
