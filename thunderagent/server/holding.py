"""Waiting for a place, with bytes that keep the client's connection alive where the operator wants that."""

from __future__ import annotations

import asyncio

from aiohttp import web
from attrs import define

from thunderagent.core.ids import BackendId
from thunderagent.errors import RouterError
from thunderagent.gateway import Ticket
from thunderagent.server.middleware import error_response
from thunderagent.upstream.errors import body_as_event
from thunderagent.upstream.usage import Api

__all__ = ["HeldAnswer"]


@define(eq=False)
class HeldAnswer:
    """The answer of a turn that may have to wait.

    ``keepalive_seconds`` 0: nothing is sent before the backend answers. Otherwise a wait longer than that commits
    a 200 and sends comments (streams) or white space (whole bodies); a later failure is told in the body.
    """

    request: web.Request
    api: Api
    is_stream: bool
    keepalive_seconds: float
    started: web.StreamResponse | None = None

    async def place(self, ticket: Ticket) -> BackendId:
        """Wait for the turn's backend; raises as ``Ticket.place``."""
        if self.keepalive_seconds <= 0:
            return await ticket.place()
        placing = asyncio.ensure_future(ticket.place())
        try:
            while True:
                done, _ = await asyncio.wait((placing,), timeout=self.keepalive_seconds)
                if done:
                    return placing.result()
                await self._send_keepalive()
        finally:
            placing.cancel()

    async def _send_keepalive(self) -> None:
        if self.started is None:
            content_type = "text/event-stream" if self.is_stream else "application/json"
            self.started = web.StreamResponse(headers={"Content-Type": content_type, "Cache-Control": "no-cache"})
            await self.started.prepare(self.request)
        await self.started.write(b": waiting for a place\n\n" if self.is_stream else b" ")

    async def fail(self, error: RouterError) -> web.StreamResponse:
        """Answer with an error, in the body where the answer has begun."""
        response = error_response(error, self.request.path)
        if self.started is None:
            return response
        body = response.body
        assert isinstance(body, bytes)
        await self.started.write(body_as_event(self.api, body) if self.is_stream else body)
        await self.started.write_eof()
        return self.started
