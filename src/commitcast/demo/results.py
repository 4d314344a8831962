"""What `run_sql` hands back to a model, and to the page."""

from __future__ import annotations

from pydantic import BaseModel

from commitcast.demo.catalog import Cell  # noqa: TC001  (pydantic reads it)


class QueryRows(BaseModel):
    """Column names and rows of a result; `truncated` when there were more."""

    columns: list[str]
    rows: list[list[Cell]]
    truncated: bool
