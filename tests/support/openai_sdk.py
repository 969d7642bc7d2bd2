"""OpenAI's own client. It takes half a second to import, so that only who needs it does."""

from __future__ import annotations

import openai

from server.app import Server
from tests.support.serving import http


def openai_client(server: Server) -> openai.OpenAI:
    """Return one that asks once."""
    return openai.OpenAI(base_url=f"{http(server)}/v1", api_key="any", max_retries=0)
