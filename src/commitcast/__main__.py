"""``python -m commitcast``."""

from commitcast.cli import main

main()
