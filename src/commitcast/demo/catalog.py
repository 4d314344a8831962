"""What the bundled data set contains, in the words people use for it.

The catalog is what `describe_schema` returns to a model: tables, columns, units, the words that
mean a column and the values its text columns hold. The local model knows nothing else.
"""

from __future__ import annotations

import csv
import json
from functools import cache
from importlib.resources import files
from typing import Literal

from pydantic import BaseModel, ConfigDict

Cell = str | int | float | None
"""One value of the data set; None where it is not recorded."""


class Column(BaseModel):
    """A column: its SQL name, what its numbers count, and the words that mean it."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: Literal["text", "integer", "real", "flag"]
    """A flag is a text column of "yes" and "no"."""
    title: str = "name"
    unit: str = ""
    preposition: str = ""
    """How a value of it is said of a row: "in Europe"; else "with continent Europe"."""
    scale: float = 1
    """A number a person writes out in full ("500 million km") is divided by this."""
    additive: bool = False
    """Adding its numbers up makes sense (people do, temperatures do not)."""
    year: bool = False
    category: bool = False
    """Few values, each shared by many rows: rows can be grouped by it."""
    exact_case: bool = False
    """Its values mean something only in their own upper and lower case ("Fe")."""
    computed: str = ""
    """The SQL it is computed by, for a column that is not in the file."""
    words: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    less: tuple[str, ...] = ()
    spellings: dict[str, tuple[str, ...]] = {}
    values: tuple[str, ...] = ()

    @property
    def numeric(self) -> bool:
        """Whether it can be compared, ranked and averaged."""
        return self.kind in ("integer", "real")


class Table(BaseModel):
    """A table: what one of its rows is called, and its columns."""

    model_config = ConfigDict(frozen=True)

    name: str
    about: str
    singular: str
    plural: str
    nouns: tuple[str, ...]
    label: str
    columns: tuple[Column, ...]
    spellings: dict[str, tuple[str, ...]]

    def column(self, name: str) -> Column:
        """The column of that name; KeyError when there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)


class Catalog(BaseModel):
    """All tables of the data set."""

    model_config = ConfigDict(frozen=True)

    tables: tuple[Table, ...]

    def table(self, name: str) -> Table:
        """The table of that name; KeyError when there is none."""
        for table in self.tables:
            if table.name == name:
                return table
        raise KeyError(name)


def _cell(text: str, column: Column) -> Cell:
    if text == "":
        return None
    if column.kind == "integer":
        return int(text)
    return float(text) if column.kind == "real" else text


@cache
def rows_of(table_name: str) -> tuple[dict[str, Cell], ...]:
    """The rows of a bundled table, as typed values."""
    table = next(table for table in _described().tables if table.name == table_name)
    text = (files(__package__) / "data" / f"{table_name}.csv").read_text("utf-8")
    stored = [column for column in table.columns if not column.computed]
    return tuple(
        {column.name: _cell(row[column.name], column) for column in stored}
        for row in csv.DictReader(text.splitlines())
    )


@cache
def _described() -> Catalog:
    return Catalog.model_validate_json((files(__package__) / "data" / "schema.json").read_bytes())


@cache
def load_catalog() -> Catalog:
    """The description of the bundled tables, with the values of their text columns."""
    described = json.loads(_described().model_dump_json())
    for table in described["tables"]:
        for column in table["columns"]:
            if column["kind"] == "text":
                found = {row[column["name"]] for row in rows_of(table["name"])}
                column["values"] = sorted(value for value in found if isinstance(value, str))
    return Catalog.model_validate(described)
