from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from engines.model import Model
from server.app import Server
from tests.support.openai_sdk import openai_client
from tests.support.serving import serving


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Server]:
    """One for all tests of a file."""
    with serving(model, seats=2, http_port=0) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai_client(server) as client:
        yield client
