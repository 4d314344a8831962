"""Whatever SQL a model writes, it can only read the bundled tables, a little, and briefly."""

from __future__ import annotations

import time

import pytest

from commitcast.demo.dataset import MAX_ROWS, QueryRefused, run_query


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM countries",
        "DROP TABLE countries",
        "INSERT INTO planets (name) VALUES ('Pluto')",
        "SELECT 1; SELECT 2",
        "PRAGMA query_only = OFF",
        "ATTACH 'other.db' AS other",
        "SELECT * FROM sqlite_master",
        "SELECT load_extension('x')",
        "SELECT randomblob(100000000)",
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n",
        "VACUUM INTO 'copy.db'",
        "BEGIN",
        "",
        "nonsense",
        "SELECT * FROM nowhere",
        "SELECT '" + "x" * 5000 + "'",
    ],
)
def test_anything_but_one_select_is_refused(sql: str) -> None:
    with pytest.raises(QueryRefused):
        run_query(sql)


def test_a_query_that_takes_too_long_is_stopped() -> None:
    began = time.monotonic()
    with pytest.raises(QueryRefused, match="longer than"):
        run_query("SELECT count(*) FROM countries a, countries b, countries c, countries d")
    assert time.monotonic() - began < 30


def test_rows_are_limited_and_said_to_be() -> None:
    result = run_query("SELECT name FROM countries")
    assert len(result.rows) == MAX_ROWS
    assert result.truncated
    assert not run_query("SELECT name FROM planets").truncated


def test_values_that_json_cannot_carry_come_as_text() -> None:
    assert run_query("SELECT x'00ff', 1e999, NULL").rows == (("00ff", "inf", None),)
