"""Clients who go while what they asked for is not even queued."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from starlette.requests import Request

from server.doors.http.call import Call
from server.errors import Cancelled
from server.request import ImageRequest
from tests.support.patience import PATIENCE


class Reads:
    """Stands for a service whose threads are busy with others' pictures and LoRAs."""

    tracing = None

    def holding(self, model: str | None) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    async def submit(self, *asked: Any) -> None:
        await asyncio.Event().wait()


async def gone() -> dict[str, str]:
    return {"type": "http.disconnect"}


@pytest.mark.parametrize(
    "read", [{"init_image": b"a"}, {"style_image": b"a"}, {"loras": [("a", 1.0)]}], ids=lambda read: next(iter(read))
)
def test_who_goes_while_files_are_read_for_him_waits_for_them_no_longer(read: dict[str, Any]) -> None:
    state = {"request_id": "r", "caller": "c", "address": "c"}
    scope = {"type": "http", "method": "POST", "path": "/api/generate", "headers": [], "state": state}

    async def ask() -> None:
        call = Call(Reads(), Request(scope, gone))  # type: ignore[arg-type]
        with pytest.raises(Cancelled):
            await asyncio.wait_for(call.submit(ImageRequest(prompt="", **read)), PATIENCE)

    asyncio.run(ask())
