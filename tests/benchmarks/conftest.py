from __future__ import annotations

from collections.abc import Iterator

import pytest

from engines.model import Model
from server.app import Server
from tests.support.serving import serving


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Server]:
    """One for all tests of a file."""
    with serving(model, seats=2) as server:
        yield server
