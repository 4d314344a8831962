"""The command line: ``commitcast``. Each command imports what it needs when it is called."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        import typer  # noqa: F401 - the extra may be missing
    except ImportError:
        sys.exit("commitcast: the command line needs more: pip install 'commitcast[cli]'")
    from commitcast.commands import app

    app()
