"""Where server-sent events end in a stream of bytes, under any chunking and in bounded memory."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["MAX_EVENT_BYTES", "EventSplitter", "event_data", "event_size", "split_events"]

MAX_EVENT_BYTES = 8 * 1024 * 1024

# An event ends at an empty line; a line ends with CRLF, LF or CR (WHATWG HTML, section 9.2.5).
_BOUNDARY = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
_LINE_ENDS = b"\r\n"
# The longest boundary is four bytes, so three of them may lie in earlier chunks.
_EDGE_BYTES = 3
# An empty line before an event (two bytes at most) and an unfinished boundary (three) may count towards what is held.
_SLACK_BYTES = 5


class EventSplitter:
    """Cuts a stream into blocks of whole events.

    ``feed`` costs no copy where a chunk ends with an event, as nearly all of vLLM's do. An event over
    ``max_event_bytes`` is not collected: its bytes go to ``released`` as they come.
    """

    __slots__ = ("_edge", "_held_bytes", "_max_held_bytes", "_parts", "_skipping", "released")

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._parts: list[bytes] = []
        self._held_bytes = 0
        self._edge = b""
        self._skipping = False
        self._max_held_bytes = max_event_bytes + _SLACK_BYTES
        self.released = b""
        """Bytes of an oversized event that the last call gave up; they lie before what it returned."""

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes and return the whole events that they complete, b"" for none.

        Bytes of an unfinished event are held; over the bound by no more than one chunk.
        """
        if not self._edge and not self._skipping:
            self.released = b""
            if chunk.endswith(b"\n\n"):
                return chunk
            return self._take(chunk)
        return self._feed_held(chunk)

    def finish(self) -> bytes:
        """What is held at the end of the stream: an event without its empty line, or b""."""
        tail = b"".join(self._parts)
        self._clear()
        return tail

    def _feed_held(self, chunk: bytes) -> bytes:
        self.released = b""
        if self._held_bytes > self._max_held_bytes:
            self.released = b"".join(self._parts)
            self._parts.clear()
            self._held_bytes = 0
            self._skipping = True
        if not self._skipping:
            return self._take(chunk)
        window = self._edge + chunk
        found = _BOUNDARY.search(window)
        if found is None:
            self.released += chunk
            self._edge = window[-_EDGE_BYTES:]
            return b""
        cut = found.end() - len(self._edge)
        self.released += chunk[:cut]
        self._skipping = False
        self._edge = b""
        return self._take(chunk[cut:])

    def _take(self, chunk: bytes) -> bytes:
        window = self._edge + chunk if self._edge else chunk
        end = _last_boundary_end(window)
        if end < 0:
            if chunk:
                self._parts.append(chunk)
                self._held_bytes += len(chunk)
                self._edge = window[-_EDGE_BYTES:]
            return b""
        cut = end - len(self._edge)
        self._parts.append(chunk[:cut])
        block = b"".join(self._parts)
        self._clear()
        rest = chunk[cut:]
        if rest:
            self._parts.append(rest)
            self._held_bytes = len(rest)
            self._edge = rest[-_EDGE_BYTES:]
        return block

    def _clear(self) -> None:
        self._parts.clear()
        self._held_bytes = 0
        self._edge = b""


def split_events(block: bytes) -> Iterator[bytes]:
    """The events of a block from :meth:`EventSplitter.feed`, each with its ending; together they are the block."""
    start = 0
    if b"\r" in block:
        for found in _BOUNDARY.finditer(block):
            yield block[start : found.end()]
            start = found.end()
    else:
        while (end := block.find(b"\n\n", start)) >= 0:
            yield block[start : end + 2]
            start = end + 2
    if start < len(block):
        yield block[start:]


def event_size(event: bytes) -> int:
    """The bytes of an event without the line ends around it: the same under any chunking."""
    return len(event.strip(_LINE_ENDS))


def event_data(event: bytes) -> bytes:
    """The data of one event, its lines joined with LF; b"" where it has none (a comment)."""
    lines = [
        line[6:] if line.startswith(b"data: ") else line[5:]
        for line in event.splitlines()
        if line.startswith(b"data:")
    ]
    return lines[0] if len(lines) == 1 else b"\n".join(lines)


def _last_boundary_end(window: bytes) -> int:
    """Where the last whole event of a window ends; -1 for none. JSON escapes CR, so the plain search is the rule."""
    if b"\r" not in window:
        found = window.rfind(b"\n\n")
        return found + 2 if found >= 0 else -1
    end = -1
    for match in _BOUNDARY.finditer(window):
        end = match.end()
    return end
