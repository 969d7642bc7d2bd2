"""Both clients behind one call."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from latentd import AsyncClient, Client


def plain(address: str, method: str, *args: Any, **options: Any) -> Any:
    with Client(address) as client:
        return getattr(client, method)(*args, **options)


def from_asyncio(address: str, method: str, *args: Any, **options: Any) -> Any:
    async def call() -> Any:
        async with AsyncClient(address) as client:
            return await getattr(client, method)(*args, **options)

    return asyncio.run(call())


both = pytest.mark.parametrize("call", [plain, from_asyncio])
