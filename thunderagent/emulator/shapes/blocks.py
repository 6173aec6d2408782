"""What the responses and messages APIs share: a reply as a row of blocks."""

from __future__ import annotations

from abc import abstractmethod

from thunderagent.emulator.reply import Reply
from thunderagent.emulator.requests import ParsedRequest
from thunderagent.emulator.shapes.base import ReplyShape

__all__ = ["BlockShape"]


class BlockShape(ReplyShape):
    """Opens, fills and closes a block for the text and one for each tool call.

    A block is -1 for the text, else the index of a tool call; its position is its place in the row.
    """

    def __init__(self, request: ParsedRequest, reply: Reply, request_id: str, created: int) -> None:
        super().__init__(request, reply, request_id, created)
        self._open: int | None = None
        self._blocks = 0

    @abstractmethod
    def _begin(self, block: int, position: int) -> bytes: ...

    @abstractmethod
    def _fill(self, block: int, position: int, text: str) -> bytes: ...

    @abstractmethod
    def _end(self, block: int, position: int) -> bytes: ...

    def token(self, index: int, prompt_tokens: int) -> bytes:
        """Events of a token's deltas, with those that close a block and open the next."""
        parts: list[bytes] = []
        for delta in self.reply.deltas[index]:
            block = -1 if delta.call is None else delta.call
            if self._open != block:
                parts += (self._close_block(), self._begin(block, self._blocks))
                self._open = block
            if delta.text:
                parts.append(self._fill(block, self._blocks, delta.text))
        return b"".join(parts)

    def _close_block(self) -> bytes:
        if self._open is None:
            return b""
        ended = self._end(self._open, self._blocks)
        self._open = None
        self._blocks += 1
        return ended
