"""The agent: what it is told, the two tools it has, and who hears of each step it takes.

A step is written down (`Journal`), and so committed and shown, before the next one begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from pydantic_ai import Agent, ModelRetry, RunContext
from pydantic_ai.messages import ModelMessage, ThinkingPart
from pydantic_ai.models import Model, infer_model
from pydantic_ai.usage import UsageLimits

from commitcast.demo.catalog import Catalog, load_catalog
from commitcast.demo.dataset import QueryRefused, run_query
from commitcast.demo.local_model import local_model
from commitcast.demo.results import QueryRows

if TYPE_CHECKING:
    from collections.abc import Sequence

LOCAL = "local"
"""The model name that means the offline one."""

_MAX_MODEL_REQUESTS = 10
_SHOWN_ROWS = 12

_INSTRUCTIONS = """\
You answer questions about a small bundled data set: countries, chemical elements and planets.
Call describe_schema to see the tables, then run_sql with one SQLite SELECT that answers the
question, then answer briefly from the rows. Plain text, no Markdown. If the data cannot answer the
question, say so honestly and give two examples of what it can answer."""


class Journal(Protocol):
    """Hears of each step, and returns when it is committed."""

    async def thinking(self, text: str | None) -> None:
        """The model works; `text` is what it says of its plan, if it does."""

    async def tool_executing(self, call_id: str, tool: str, arguments: dict[str, Any]) -> None:
        """A tool is about to run."""

    async def tool_completed(self, call_id: str, tool: str, outcome: dict[str, Any]) -> None:
        """A tool has run; `outcome` is what to show of its result."""


@dataclass(frozen=True)
class Desk:
    """What the tools have at hand."""

    journal: Journal


def choose_model(name: str) -> Model:
    """The offline model for "local", else any model that pydantic-ai knows by that name.

    Raises what pydantic-ai raises for an unknown name or a missing package or key.
    """
    return local_model() if name == LOCAL else infer_model(name)


def build_agent(model: Model) -> Agent[Desk, str]:
    """An agent with the demo's tools."""
    agent: Agent[Desk, str] = Agent(
        model, deps_type=Desk, output_type=str, instructions=_INSTRUCTIONS, retries=2
    )

    @agent.tool(sequential=True)
    async def describe_schema(ctx: RunContext[Desk]) -> Catalog:
        """Describe the tables: columns, types, units, and the values of text columns."""
        call_id = ctx.tool_call_id or ""
        await ctx.deps.journal.tool_executing(call_id, "describe_schema", {})
        catalog = load_catalog()
        tables = [
            {"name": table.name, "columns": [column.name for column in table.columns]}
            for table in catalog.tables
        ]
        await ctx.deps.journal.tool_completed(call_id, "describe_schema", {"tables": tables})
        return catalog

    @agent.tool(sequential=True)
    async def run_sql(ctx: RunContext[Desk], sql: str) -> QueryRows:
        """Run one read-only SQLite SELECT over the bundled tables.

        Args:
            ctx: the run.
            sql: one SELECT statement; at most 50 rows come back.
        """
        call_id = ctx.tool_call_id or ""
        await ctx.deps.journal.tool_executing(call_id, "run_sql", {"sql": sql[:4_000]})
        try:
            result = await anyio.to_thread.run_sync(run_query, sql)
        except QueryRefused as refused:
            await ctx.deps.journal.tool_completed(call_id, "run_sql", {"error": str(refused)})
            raise ModelRetry(str(refused)) from refused
        rows = [list(row) for row in result.rows]
        shown = {
            "columns": list(result.columns)[:_SHOWN_ROWS],
            "rows": [row[:_SHOWN_ROWS] for row in rows[:_SHOWN_ROWS]],
            "row_count": len(rows),
            "truncated": result.truncated,
        }
        await ctx.deps.journal.tool_completed(call_id, "run_sql", shown)
        return QueryRows(columns=list(result.columns), rows=rows, truncated=result.truncated)

    return agent


async def ask(
    agent: Agent[Desk, str], question: str, history: Sequence[ModelMessage], journal: Journal
) -> str:
    """The agent's answer; each step is in the journal before the next begins.

    Raises what the model or the journal raises.
    """
    async with agent.iter(
        question,
        deps=Desk(journal),
        message_history=list(history),
        usage_limits=UsageLimits(request_limit=_MAX_MODEL_REQUESTS),
    ) as run:
        async for node in run:
            if Agent.is_model_request_node(node):
                await journal.thinking(None)
            elif Agent.is_call_tools_node(node):
                parts = node.model_response.parts
                thoughts = [part.content for part in parts if isinstance(part, ThinkingPart)]
                if any(thoughts):
                    await journal.thinking("\n".join(thoughts)[:2_000])
        if run.result is None:
            raise RuntimeError("the model ended without an answer")
        return run.result.output
