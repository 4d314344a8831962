"""Whatever SQL a model writes, it can only read the bundled tables, a little, and briefly."""

from __future__ import annotations

import contextlib
import time

import orjson
import pytest

from commitcast.demo.dataset import (
    MAX_CELL_CHARACTERS,
    MAX_MILLISECONDS,
    MAX_ROWS,
    QueryRefused,
    run_query,
)


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM countries",
        "DROP TABLE countries",
        "INSERT INTO planets (name) VALUES ('Pluto')",
        "SELECT 1; SELECT 2",
        "PRAGMA query_only = OFF",
        "EXPLAIN SELECT 1",
        "explain query plan SELECT name FROM planets",
        "/* what is behind it? */ EXPLAIN SELECT 1",
        "SELECT * FROM pragma_table_info('planets')",
        "SELECT * FROM json_each('[1, 2]')",
        "ATTACH 'other.db' AS other",
        "SELECT * FROM sqlite_master",
        "SELECT load_extension('x')",
        "SELECT randomblob(100000000)",
        "SELECT length(zeroblob(1000000000))",
        "SELECT printf('%1000000000d', 1)",
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n",
        "VACUUM INTO 'copy.db'",
        "BEGIN",
        "",
        "nonsense",
        "SELECT * FROM nowhere",
        "SELECT '" + "x" * 5000 + "'",
        "SELECT '\ud800'",
        "SELECT 'a\0b'",
        "SELECT CAST(x'ff' AS TEXT)",
        "SELECT " + ", ".join(["1"] * 100),
    ],
)
def test_anything_but_one_select_is_refused(sql: str) -> None:
    with pytest.raises(QueryRefused):
        run_query(sql)


_NAMES = "(SELECT group_concat(name) AS v FROM countries)"
_LONG = f"(SELECT v || substr(v, 1, 1900) AS v FROM {_NAMES})"
_SAME = "(SELECT group_concat(substr('xxxxxxxxxxxxxxxxxxx', 1, 18), 'x') AS v FROM countries)"
_MANY = "countries a, countries b, countries c"


def _often(expression: str, source: str) -> str:
    """As many of a costly expression in each row as the length of the SQL allows."""
    used = len(f"SELECT  FROM {_MANY}, {source}")
    each = expression.replace("@", "00")
    count = min(59, (4_000 - used) // (len(each) + 1))
    columns = ",".join(expression.replace("@", f"{number:02}") for number in range(count))
    return f"SELECT {columns} FROM {_MANY}, {source}"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM countries a, countries b, countries c, countries d",
        f"SELECT v || a.name || b.name AS x FROM {_MANY}, {_NAMES} ORDER BY x",
        f"SELECT count(DISTINCT v || a.name || b.name || c.name) FROM {_MANY}, {_NAMES}",
        f"SELECT max(v || a.name) OVER (ORDER BY b.name ROWS 50000 PRECEDING) FROM {_MANY}, {_NAMES}",
        _often("rtrim(v,v||'@')", _NAMES),
        _often("trim(v,v||'@')", _LONG),
        _often("instr(v,substr(v,1,1500)||'@')", _SAME),
        _often("replace(v,substr(v,1,1500)||'@','')", _SAME),
        _often("v LIKE '%" + "x" * 40 + "@'", _SAME),
        _often("v LIKE '%a%b%c%d%e%f%g%h%i%j%k%@'", _LONG),
        "SELECT count(*) FROM " + ", ".join(f"countries c{number}" for number in range(60)),
    ],
)
def test_no_query_runs_past_the_limit_whatever_one_step_of_it_costs(sql: str) -> None:
    began, used = time.monotonic(), time.thread_time()
    with contextlib.suppress(QueryRefused):
        run_query(sql)
    spent = min(time.monotonic() - began, time.thread_time() - used)  # a busy machine is no fault
    assert spent < 2 * MAX_MILLISECONDS / 1_000


def test_a_query_that_takes_too_long_says_so() -> None:
    with pytest.raises(QueryRefused, match="longer than"):
        run_query("SELECT count(*) FROM countries a, countries b, countries c, countries d")


def test_what_comes_back_is_small_whatever_was_asked_for() -> None:
    wide = ", ".join(f"'{'y' * 40}' AS '{'n' * 10}{number}'" for number in range(50))
    result = run_query(f"SELECT {wide} FROM countries")
    assert len(orjson.dumps([result.columns, result.rows])) < 200_000
    named = run_query(f"SELECT 1 AS '{'n' * 3_000}'")
    assert len(named.columns[0]) == MAX_CELL_CHARACTERS


def test_a_function_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(QueryRefused, match=r"function: trim; only abs, avg.* are allowed"):
        run_query("SELECT trim(name) FROM planets")


def test_rows_are_limited_and_said_to_be() -> None:
    result = run_query("SELECT name FROM countries")
    assert len(result.rows) == MAX_ROWS
    assert result.truncated
    assert not run_query("SELECT name FROM planets").truncated


def test_values_that_json_cannot_carry_come_as_text() -> None:
    assert run_query("SELECT x'00ff', 1e999, NULL").rows == (("00ff", "inf", None),)
