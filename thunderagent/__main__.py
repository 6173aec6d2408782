"""``python -m thunderagent``: with a sub-command the same as ``thunderagent``, without one the same as ``serve``."""

from __future__ import annotations

import sys

from thunderagent.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments and arguments[0].startswith("-") and arguments[0] not in ("--help", "-h", "--version"):
        arguments = ["serve", *arguments]
    main(arguments)
