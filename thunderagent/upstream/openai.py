"""Any server of the OpenAI API: nothing is asked beyond /v1/models, which a hosted one has too."""

from __future__ import annotations

from thunderagent.upstream.reading import Fetch, Reader, Reading

__all__ = ["OpenaiReader"]


class OpenaiReader(Reader):
    """A server without metrics, or with others than are read here: llama.cpp, TGI, a hosted API."""

    name = "openai"
    health_path = "/v1/models"
    tells_capacity = False

    async def read(self, fetch: Fetch) -> Reading:
        return Reading()
