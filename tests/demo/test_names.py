"""A name is one person's: no other may be written so that people read the same."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import insert

from commitcast.demo import names
from commitcast.demo.tables import User


@pytest.mark.parametrize(
    "name",
    [
        "Ada\u200b",  # zero width space
        "A\u200dda",  # zero width joiner
        "\u202eadA",  # right-to-left override
        "\u2066Ada\u2069",  # isolates
        "Ada\u00ad",  # soft hyphen
        "Ada\ufeff",  # byte order mark
        "Ada\u3164",  # Hangul filler: a letter that is not seen
        "Ada\u2800",  # Braille blank
        "Ada\ufe0f",  # variation selector
        "Ada\U000e0041",  # tag
        "Ada\u034f",  # combining grapheme joiner
        "A" + "\u0323\u0331\u032d" * 9 + "da",  # a pile of marks
        "\u0410da",  # Cyrillic A
        "Ad\u03b1",  # Greek alpha
        "\u13aada",  # Cherokee go
        "\u1d00da",  # small capital a
        "Ad\u0251",  # Latin alpha
        "\u01c0da",  # Latin letter dental click
        "\U0001f600",  # no letter at all
        "Ada\nLovelace\x00",
        "Ada\x7f",
        "Ada/Grace",
        "<b>Ada</b>",
        "...",
        "\u5c71\u7530",
    ],
)
def test_what_people_cannot_read_or_tell_apart_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        names.readable(name)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Ada", "Ada"),
        ("\uff21\uff44\uff41", "Ada"),  # full width
        ("\U0001d400da", "Ada"),  # mathematical bold
        ("Jose\u0301", "Jos\u00e9"),
        ("O\u2019Brien-Smith Jr.", "O'Brien-Smith Jr."),
        ("\u0141ukasz \u00d8degaard_2", "\u0141ukasz \u00d8degaard_2"),
        (" Ada \u00a0  Lovelace ", "Ada Lovelace"),
    ],
)
def test_a_name_is_shown_in_one_form(name: str, shown: str) -> None:
    assert names.readable(name) == shown


@pytest.mark.parametrize(
    ("name", "alike"),
    [
        ("Ian", "lan"),
        ("Alice", "A1ice"),
        ("Bob", "B0b"),
        ("Jose", "Jos\u00e9"),
        ("Ada", "\u1ea0da"),
        ("Arne", "Ame"),
        ("Ada", "Ada."),
        ("Ada Lovelace", "AdaLovelace"),
        ("Lukasz", "\u0141ukasz"),
    ],
)
def test_names_that_look_alike_have_one_shape(name: str, alike: str) -> None:
    assert names.spelling(name) != names.spelling(alike)
    assert names.shape(name) == names.shape(alike)


@pytest.mark.anyio
async def test_nobody_signs_in_or_is_invited_under_a_look_alike(demo: Any) -> None:
    ian = await demo.person("Ian")
    assert (await demo.person("IAN")).user_id == ian.user_id
    for name in ("lan", "I\u00e4n", "1an"):
        answer = await demo.anyone().http.post("/api/login", json={"name": name})
        assert answer.status_code == 409
        assert "looks like Ian" in answer.json()["detail"]
        body = {"title": "Space", "members": [name]}
        assert (await ian.http.post("/api/threads", json=body)).status_code == 409
    for name in ("\u200bIan", "\u202enaI", "\u0406an"):
        answer = await demo.anyone().http.post("/api/login", json={"name": name})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "#/name"
    for name in ("Agent", "\u00e4gent", "A.g.e.n.t"):
        answer = await demo.anyone().http.post("/api/login", json={"name": name})
        assert "belongs to the agent" in answer.json()["detail"]


@pytest.mark.anyio
async def test_who_signed_in_before_names_had_shapes_is_known(demo: Any, database: Any) -> None:
    engine = database.engine()
    async with engine.begin() as connection:
        values = {"id": "1" * 36, "name": "Alice", "folded_name": "alice"}
        await connection.execute(insert(User).values(**values))
    assert (await demo.person("alice")).user_id == "1" * 36
