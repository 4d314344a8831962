"""Names that people can tell apart: one script, nothing invisible, and none that looks like another.

Whoever says a name is that person here, so a name that only looks like another's would make two
people one to the eye and two to the database. Names are therefore written in Latin letters, which
keeps out every look-alike of another script, and two names of the same shape cannot both be taken.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

MAX_CHARACTERS: Final = 40
_MARKS: Final = " .'_-"
_LETTERS: Final = frozenset("ßẞæÆœŒøØłŁđĐðÐþÞı")
"""Latin letters that are not an ASCII letter with accents."""
_SAME_TO_THE_EYE: Final = str.maketrans(
    {
        "0": "o",
        "1": "l",
        "i": "l",
        "\N{LATIN SMALL LETTER DOTLESS I}": "l",
        "ł": "l",
        "ø": "o",
        "đ": "d",
        "ð": "d",
        "þ": "p",
        "æ": "ae",
        "œ": "oe",
    }
)


def readable(name: str) -> str:
    """The name as it is shown; raises ValueError for one that people could not read or tell apart.

    Forms of one character become that character (NFKC), runs of spaces become one.
    """
    shown = " ".join(unicodedata.normalize("NFKC", name).replace("\u2019", "'").split())
    for character in shown:
        if not _allowed(character):
            called = unicodedata.name(character, f"U+{ord(character):04X}")
            raise ValueError(
                f"{called} cannot be part of a name; use Latin letters, digits, spaces and . ' _ -"
            )
    if len(shown) > MAX_CHARACTERS:
        raise ValueError(f"a name has at most {MAX_CHARACTERS} characters, not {len(shown)}")
    if not shape(shown):
        raise ValueError("a name needs a letter or a digit")
    return shown


def _allowed(character: str) -> bool:
    base = unicodedata.normalize("NFD", character)[0]
    return character in _LETTERS or (base.isascii() and (base.isalnum() or base in _MARKS))


def spelling(name: str) -> str:
    """The form in which two spellings of a name are the same person: case does not matter."""
    return unicodedata.normalize("NFKC", name).casefold()


def shape(name: str) -> str:
    """What is left of a name for a hasty eye: no case, accents or marks; l, i and 1 are one."""
    letters = unicodedata.normalize("NFD", spelling(name))
    bare = "".join(letter for letter in letters if not unicodedata.combining(letter))
    alike = re.sub(f"[{re.escape(_MARKS)}]", "", bare).translate(_SAME_TO_THE_EYE)
    return alike.replace("rn", "m").replace("vv", "w")
