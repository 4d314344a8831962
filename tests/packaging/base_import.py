"""Run by a Python that has Commitcast and its two base dependencies, and nothing else."""

import importlib.metadata
import sys

import commitcast  # noqa: F401 - this is what is tried

EXPECTED = {"commitcast", "sqlalchemy", "orjson", "typing-extensions", "greenlet"}
UNWANTED = {
    "aiosqlite", "alembic", "asyncpg", "fastapi", "greenlet", "psycopg", "pydantic",
    "pydantic_ai", "starlette", "typer", "uvicorn",
}  # fmt: skip

installed = {
    d.metadata["Name"].lower().replace("_", "-") for d in importlib.metadata.distributions()
}
if not installed <= EXPECTED:
    sys.exit(f"installed beside the base dependencies: {sorted(installed - EXPECTED)}")
loaded = UNWANTED & {name.partition(".")[0] for name in sys.modules}
if loaded - {"greenlet"}:
    sys.exit(f"`import commitcast` loads {sorted(loaded)}")
sys.stdout.write(f"commitcast {importlib.metadata.version('commitcast')} imports alone\n")
