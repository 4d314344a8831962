r"""Users: their ids as an identity provider gives them, and the stream that is a user's own.

An id is any printable text of 1 to 255 characters, such as ``auth0|5f7c`` or ``CORP\ann``. A
stream's name has fewer characters, so those of an id that it has not are escaped: each byte of
their UTF-8 is written as ``~`` and two hexadecimal digits (as in RFC 3986, with ``~`` for ``%``, so
that the name needs no more escaping in a URL). An id without such characters stands as it is.
"""

from __future__ import annotations

import logging
from typing import Final
from urllib.parse import quote, unquote

from commitcast.errors import InvalidEvent
from commitcast.event import check_id

_logger = logging.getLogger("commitcast")
_OWN: Final = "user:"
_PLAIN: Final = ":/@+="  # beside what `quote` leaves: letters, digits and . _ - ~


def user_stream(user: str) -> str:
    """The name of the stream of one user, for nobody else: ``user:`` and the id.

    What `Coordinator` takes unless it is given a ``user_stream`` of your own. Two ids never have
    one stream. Raises `InvalidEvent` for what cannot be an id.
    """
    quoted = quote(check_id("user", user), safe=_PLAIN)
    return _OWN + quoted.replace("~", "~7E").replace("%", "~")


def user_of_stream(stream: str) -> str | None:
    """The id of the user whose `user_stream` this is; None if it is nobody's."""
    if not stream.startswith(_OWN):
        return None
    try:
        user = unquote(stream.removeprefix(_OWN).replace("~", "%"), errors="strict")
        return user if user_stream(user) == stream else None
    except ValueError:  # not UTF-8, or not an id
        return None


def actor_of(user: object) -> str | None:
    """The text of a user's id where there may be none; raises `InvalidEvent` as `check_id`."""
    return None if user is None else check_id("user", user)


def whose(user: object, *, everyone: bool) -> str | None:
    """Whose things are asked for: one user's, or None for everyone's, if that was said.

    An id that is None by mistake must not open what is everyone's (G7).

    Raises:
        InvalidEvent: neither is given, or both, or `user` cannot be an id.
    """
    if everyone == (user is not None):
        raise InvalidEvent(
            "give user= and the id of a user; everyone=True is for operators and for work that "
            "is nobody's own"
        )
    return actor_of(user)


def known_user(answer: object) -> str | None:
    """The id that ``authenticate`` answered with; None, and a line in the log, for no such thing."""
    if answer is None or isinstance(answer, bool) or answer == "":
        return None  # an empty name or a mere yes or no is nobody's id
    try:
        return check_id("user", answer)
    except InvalidEvent:
        _logger.warning(
            "commitcast: authenticate returned a %s that is no user's id (printable, 1 to 255 "
            "characters), so that the client is refused",
            type(answer).__name__,
        )
        return None
