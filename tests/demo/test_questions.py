"""The offline agent answers from the data, whatever the question, or says that it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from commitcast.demo.agent import ask, build_agent, choose_model
from commitcast.demo.catalog import load_catalog, rows_of
from commitcast.demo.conditions import NotUnderstood
from commitcast.demo.dataset import run_query
from commitcast.demo.query import write_sql
from commitcast.demo.question import understand

if TYPE_CHECKING:
    from collections.abc import Callable

COUNTRIES: tuple[Any, ...] = rows_of("countries")
ELEMENTS: tuple[Any, ...] = rows_of("elements")
PLANETS: tuple[Any, ...] = rows_of("planets")

Row = dict[str, Any]


def _found(question: str) -> list[tuple[Any, ...]]:
    catalog = load_catalog()
    query = understand(question, catalog)
    return list(run_query(write_sql(query, catalog.table(query.table))).rows)


def _names(rows: tuple[Row, ...], keep: Callable[[Row], bool]) -> list[str]:
    return sorted(row["name"] for row in rows if keep(row))


def _top(rows: tuple[Row, ...], column: str, n: int = 1, *, most: bool = True) -> list[str]:
    known = [row for row in rows if row[column] is not None]
    known.sort(key=lambda row: row["name"])
    known.sort(key=lambda row: row[column], reverse=most)
    return [row["name"] for row in known[:n]]


def _of(rows: tuple[Row, ...], name: str) -> Row:
    return next(row for row in rows if row["name"] == name)


AFRICA = tuple(row for row in COUNTRIES if row["continent"] == "Africa")


@pytest.mark.parametrize(
    ("question", "names"),
    [
        ("Which country has the largest population?", _top(COUNTRIES, "population")),
        ("Which country in Africa has the most people?", _top(AFRICA, "population")),
        ("smallest country", _top(COUNTRIES, "area_km2", most=False)),
        ("top 5 countries by population", _top(COUNTRIES, "population", 5)),
        ("the 3 heaviest elements", _top(ELEMENTS, "atomic_mass", 3)),
        ("What are the lightest elements?", _top(ELEMENTS, "atomic_mass", 5, most=False)),
        ("second largest country in Africa", _top(AFRICA, "area_km2", 2)[1:]),
        ("Which planet has the fewest moons?", _top(PLANETS, "moons", most=False)),
        ("which planet is closest to the sun", _top(PLANETS, "distance_million_km", most=False)),
        ("Which is larger, France or Germany?", ["France"]),
        (
            "Which countries in Europe have more than 50 million people?",
            _names(COUNTRIES, lambda r: r["continent"] == "Europe" and r["population"] > 50e6),
        ),
        (
            "Which countries are larger than Brazil?",
            _names(COUNTRIES, lambda r: r["area_km2"] > _of(COUNTRIES, "Brazil")["area_km2"]),
        ),
        (
            "countries with population over 10 million and under 12 million",
            _names(COUNTRIES, lambda r: 10e6 < r["population"] < 12e6),
        ),
        (
            "countries not in Europe that use the euro",
            _names(COUNTRIES, lambda r: r["continent"] != "Europe" and r["currency"] == "Euro"),
        ),
        (
            "elements discovered between 1890 and 1900",
            _names(ELEMENTS, lambda r: r["discovered"] and 1890 <= r["discovered"] <= 1900),
        ),
        (
            "Which elements are noble gases?",
            _names(ELEMENTS, lambda r: r["category"] == "noble gas"),
        ),
        ("Which element has the symbol Fe?", ["Iron"]),
        ("which element has atomic number 79", ["Gold"]),
        ("planets without moons", _names(PLANETS, lambda r: r["moons"] == 0)),
        ("planets with rings", _names(PLANETS, lambda r: r["rings"] == "yes")),
        ("countries starting with Z", ["Zambia", "Zimbabwe"]),
        (
            "planets farther than 1000 million km from the sun",
            _names(PLANETS, lambda r: r["distance_million_km"] > 1000),
        ),
    ],
)
def test_a_question_finds_the_rows_it_asks_for(question: str, names: list[str]) -> None:
    assert [row[0] for row in _found(question)] == names


@pytest.mark.parametrize(
    ("question", "value"),
    [
        ("How many countries are in Europe?", sum(r["continent"] == "Europe" for r in COUNTRIES)),
        ("how many elements are liquid", sum(r["state"] == "liquid" for r in ELEMENTS)),
        ("How many continents are there?", len({r["continent"] for r in COUNTRIES})),
        (
            "How many people live in Oceania?",
            sum(r["population"] for r in COUNTRIES if r["continent"] == "Oceania"),
        ),
        ("total population of Africa", sum(r["population"] for r in AFRICA)),
        ("average moons of planets", sum(r["moons"] for r in PLANETS) / len(PLANETS)),
    ],
)
def test_a_question_computes_the_number_it_asks_for(question: str, value: float) -> None:
    assert _found(question) == [(pytest.approx(value, abs=0.01),)]


@pytest.mark.parametrize(
    ("question", "row"),
    [
        ("What is the capital of France?", ("France", "Paris")),
        ("what's Japan's currency", ("Japan", "Yen")),
        ("How many moons does Jupiter have?", ("Jupiter", _of(PLANETS, "Jupiter")["moons"])),
        ("How hot is Venus?", ("Venus", 464)),
        ("What is the symbol of gold?", ("Gold", "Au")),
        ("capital of the USA", ("United States", "Washington, D.C.")),
        ("capital of São Tomé and Príncipe", ("São Tomé and Príncipe", "São Tomé")),
        ("Where is Chad?", ("Chad", "Africa")),
    ],
)
def test_a_question_looks_one_fact_up(question: str, row: tuple[Any, ...]) -> None:
    assert _found(question) == [row]


def test_rows_are_counted_added_and_averaged_by_group() -> None:
    sizes: dict[str, int] = {}
    for row in COUNTRIES:
        sizes[str(row["continent"])] = sizes.get(str(row["continent"]), 0) + 1
    assert dict(_found("How many countries per continent?")) == sizes
    assert dict(_found("Which continents have more than 40 countries?")) == {
        name: size for name, size in sizes.items() if size > 40
    }
    assert _found("Which continent has the most countries?") == [
        max(sizes.items(), key=lambda one: one[1])
    ]
    best = {continent: name for continent, name, _ in _found("largest country on each continent")}
    assert best["Africa"] == _top(AFRICA, "area_km2")[0]
    assert set(best) == set(sizes)


@pytest.mark.parametrize(
    ("question", "why"),
    [
        ("What is the GDP of France?", "GDP"),
        ("Who discovered radium?", "Who"),
        ("What is 2+2", "+"),
        ("Tell me about Mercury", "which of them"),
        ("total temperature of the planets", "no sense"),
        ("moons of France", "one table at a time"),
        ("what is the capitel of Germany", "Did you mean “capital”"),
        ("countries with more than 5", "what the number 5 counts"),
        ("the largest 1000 countries", "between 1 and 50"),
        ("hello", "countries, elements and planets"),
        ("'; DROP TABLE countries; --", "DROP"),
    ],
)
def test_what_is_not_understood_is_not_answered(question: str, why: str) -> None:
    with pytest.raises(NotUnderstood, match=why.replace("+", r"\+")):
        understand(question, load_catalog())


class _Journal:
    def __init__(self) -> None:
        self.steps: list[tuple[str, Any]] = []

    async def thinking(self, text: str | None) -> None:
        self.steps.append(("thinking", text))

    async def tool_executing(self, _call_id: str, tool: str, arguments: dict[str, Any]) -> None:
        self.steps.append((f"{tool} executing", arguments))

    async def tool_completed(self, _call_id: str, tool: str, outcome: dict[str, Any]) -> None:
        self.steps.append((f"{tool} completed", outcome))


@pytest.mark.anyio
async def test_the_agent_calls_its_tools_and_words_the_answer() -> None:
    journal = _Journal()
    agent = build_agent(choose_model("local"))
    answer = await ask(agent, "Which planet is the hottest?", [], journal)
    assert answer == "Venus has the highest average temperature of all planets: 464 °C."
    assert [name for name, _ in journal.steps if name != "thinking"] == [
        "describe_schema executing",
        "describe_schema completed",
        "run_sql executing",
        "run_sql completed",
    ]
    sql = next(step for name, step in journal.steps if name == "run_sql executing")["sql"]
    assert sql.startswith("SELECT name, temperature_c")


@pytest.mark.anyio
async def test_the_agent_refuses_honestly_and_gives_examples() -> None:
    agent = build_agent(choose_model("local"))
    answer = await ask(agent, "Who is the president of France?", [], _Journal())
    assert "I do not know what “Who” and “president” mean" in answer
    assert "You could ask:" in answer


@pytest.mark.anyio
async def test_every_example_on_the_page_is_answered() -> None:
    from commitcast.demo.wording import EXAMPLES

    agent = build_agent(choose_model("local"))
    for example in EXAMPLES:
        assert "cannot" not in await ask(agent, example, [], _Journal())


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Is France larger than Germany?", "Yes: France fulfils it (area over that of Germany)."),
        ("Is Germany larger than France?", "No: Germany does not (area over that of France)."),
        (
            "How many elements are liquid?",
            "There are 2 elements with state at room temperature liquid.",
        ),
        ("capital of Kenya", "Kenya: capital is Nairobi."),
        ("when was radium discovered", "Radium: year of discovery is 1898."),
        ("countries in Africa with more than 900 million people", "No country"),
    ],
)
async def test_answers_read_well(question: str, answer: str) -> None:
    agent = build_agent(choose_model("local"))
    assert (await ask(agent, question, [], _Journal())).startswith(answer)
