"""For all tests: tracebacks in logs are plain. structlog's default shows local variables where rich is installed,
which for a daemon's object graph takes minutes."""

from __future__ import annotations

import structlog

structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)
