"""Structured logs: for people on a terminal, JSON lines otherwise. Never a prompt, a key or a body."""

from __future__ import annotations

import contextlib
import logging
import sys
from io import TextIOBase
from typing import TextIO, cast

import structlog
from aiohttp.http_exceptions import HttpProcessingError

__all__ = ["configure_logging"]


def configure_logging(level: str, log_format: str) -> None:
    """Set up structlog for this process; only the command line calls it.

    ``level`` is a name of the logging module in small letters; ``log_format``: ``auto`` (console on a terminal,
    else JSON), ``console`` or ``json``. Logs go to stderr; warnings that libraries log take the same form. What
    cannot be written there, since the terminal was closed or the disk is full, is lost, and nothing else.
    """
    stream = cast(TextIO, _Lossy(sys.stderr))
    is_console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[structlog.types.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderers = _console() if is_console else _json()
    structlog.configure(
        processors=[*shared, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.addFilter(_without_quoted_request)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


class _Lossy(TextIOBase):
    """Writes to a stream as long as that can be written to. Who logs is amid a turn, which must go on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def _without_quoted_request(record: logging.LogRecord) -> bool:
    """What aiohttp says of a request that is no HTTP quotes its bytes, a key in a broken header line too."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError):
        record.msg, record.args, record.exc_info = f"unreadable request: {type(error).__name__}", (), None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True


def _console() -> list[structlog.types.Processor]:
    # Plain tracebacks: the default shows local variables where rich is installed, and those hold bodies and keys.
    return [
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
    ]


def _json() -> list[structlog.types.Processor]:
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
