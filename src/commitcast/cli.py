"""The command line: ``commitcast``. Each command imports what it needs when it is called."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        import typer  # noqa: F401, PLC0415 - the extra may be missing
    except ImportError:
        sys.exit("commitcast: the command line needs more: pip install 'commitcast[cli]'")
    from commitcast.commands import app  # noqa: PLC0415 - needs typer

    app()
