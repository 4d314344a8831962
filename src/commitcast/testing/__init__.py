"""For a team's own tests: see what a session would send, without sending it."""

from commitcast.testing.capture import CapturedEvent, capture

__all__ = ["CapturedEvent", "capture"]
