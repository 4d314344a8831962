"""The model that runs offline: it decides from the conversation alone which tool to call next.

It is a pydantic-ai FunctionModel and plays by a model's rules: it sees messages and tools, looks
at the schema through `describe_schema`, writes SQL from the question for `run_sql`, and words its
answer from the rows that came back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    RetryPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel

from commitcast.demo.catalog import Catalog
from commitcast.demo.conditions import NotUnderstood
from commitcast.demo.query import write_sql
from commitcast.demo.question import understand
from commitcast.demo.results import QueryRows
from commitcast.demo.wording import answer, refusal

if TYPE_CHECKING:
    from commitcast.demo.catalog import Table
    from commitcast.demo.query import Query

_SHAPES = {
    "list": "list {plural}", "lookup": "look up one {singular}", "rank": "rank {plural} by {column}",
    "count": "count {plural}", "number": "compute over the {column} of {plural}",
    "group": "group {plural} by {group}", "best_of_group": "find the best {singular} of each {group}",
}  # fmt: skip


def local_model() -> FunctionModel:
    """The offline model; needs no key, no network, and no downloaded weights."""
    return FunctionModel(_decide, model_name="commitcast-demo-local")


async def _decide(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    question = ""
    catalog: Catalog | None = None
    found: QueryRows | None = None
    error = ""
    for message in messages:
        for part in message.parts:
            match part:
                case UserPromptPart(content=str(text)):
                    question, catalog, found, error = text, None, None, ""
                case ToolReturnPart(outcome="success", tool_name="describe_schema"):
                    catalog = Catalog.model_validate(part.model_response_object())
                case ToolReturnPart(outcome="success", tool_name="run_sql"):
                    found = QueryRows.model_validate(part.model_response_object())
                case ToolReturnPart() | RetryPromptPart():
                    error = str(part.content)
                case _:
                    pass
    if error:
        return _say(refusal(f"The data could not be read: {error}"))
    if catalog is None:
        return _call("I look up which tables and columns there are.", "describe_schema", {})
    return _answer(question, catalog, found)


def _answer(question: str, catalog: Catalog, found: QueryRows | None) -> ModelResponse:
    try:
        query = understand(question, catalog)
    except NotUnderstood as reason:
        return _say(refusal(str(reason)))
    table = catalog.table(query.table)
    if found is None:
        return _call(_thought(query, table), "run_sql", {"sql": write_sql(query, table)})
    return _say(answer(query, table, found.rows, truncated=found.truncated))


def _thought(query: Query, table: Table) -> str:
    column = table.column(query.columns[0]).title if query.columns else ""
    group = table.column(query.group).title if query.group else ""
    plan = _SHAPES[query.shape].format(
        singular=table.singular, plural=table.plural, column=column, group=group
    )
    narrowed = f", narrowed by {len(query.conditions)} condition(s)" if query.conditions else ""
    return f"This asks to {plan}{narrowed}. I write that as SQL."


def _say(text: str) -> ModelResponse:
    return ModelResponse(parts=[TextPart(text)])


def _call(thought: str, tool: str, arguments: dict[str, str]) -> ModelResponse:
    return ModelResponse(parts=[ThinkingPart(thought), ToolCallPart(tool, arguments)])
