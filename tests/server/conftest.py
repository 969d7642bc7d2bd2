from __future__ import annotations

from collections.abc import Iterator

import pytest

from engines.model import Model
from server.app import Server
from server.wish import Size
from tests.support.held import Held, wrapped
from tests.support.serving import serving


@pytest.fixture(scope="session")
def sizes(model: Model) -> tuple[Size, ...]:
    """The model's own size and two others."""
    width, height, unit = model.spec.defaults.width, model.spec.defaults.height, model.spec.size_multiple
    return (width, height), (width + 2 * unit, height), (width, height + unit)


@pytest.fixture
def held(model: Model) -> Held:
    """The model's backend, which a test can hold, count and break."""
    return Held(model.backend)


@pytest.fixture
def wired(model: Model, held: Held) -> Model:
    return wrapped(model, held)


@pytest.fixture(scope="module")
def server(model: Model, sizes: tuple[Size, ...]) -> Iterator[Server]:
    """One for all tests of a file: of three sizes, with two seats each."""
    with serving(model, seats=2, sizes=sizes) as server:
        yield server
