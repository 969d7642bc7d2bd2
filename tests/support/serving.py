"""A real server in this process: its own event loop in a thread, ports that the system chose, any model."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from engines.model import Model
from server.app import Server
from server.pace.median import Median
from server.settings import Settings
from server.wish import LaneKey
from tests.support.held import eventually


@contextlib.contextmanager
def serving(model: Model, *, stopping: float = 0.0, **settings: Any) -> Iterator[Server]:
    """Serves `model` until the end of the block; `settings` as in server.settings.Settings, without HTTP unless said.

    stopping: seconds that requests have at the end.
    """
    ports: dict[str, Any] = {"grpc_port": 0, "metrics_port": 0, "http_port": None}
    chosen = Settings(**{"model": model.checkpoint.path, **ports, **settings})
    ready, box = threading.Event(), {}

    async def run() -> None:
        server = Server(chosen)
        box["loop"], box["stop"] = asyncio.get_running_loop(), asyncio.Event()
        try:
            await server.open()
            await server.load(lambda _: model)
            box["server"] = server
        except BaseException:
            await server.close(0)
            raise
        finally:
            ready.set()
        await box["stop"].wait()
        await server.close(stopping)

    def start() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            box["error"] = error
            ready.set()

    thread = threading.Thread(target=start, name="serving")
    thread.start()
    ready.wait()
    if "server" not in box:
        thread.join()
        raise box["error"]
    try:
        yield box["server"]
    finally:
        box["loop"].call_soon_threadsafe(box["stop"].set)
        thread.join()
        if "error" in box:
            raise box["error"]


def quick(server: Server, row: float = 1e-6) -> None:
    """A row takes so many seconds, says the pace: how busy this machine is admits and refuses nobody."""
    device = server.service.device
    assert device
    device._pace._rows[LaneKey(*device.sizes[0], 1)] = Median([row] * 9)


def nothing_left(server: Server) -> None:
    """No job, no seat, no latents that wait to be decoded."""
    device = server.service.device
    assert device
    eventually(lambda: len(device._jobs), 0)
    assert not device._decoding.pictures and not device._batcher.waiting
    assert all(tenant is None for lane in device._batcher.lanes.values() for tenant in lane.tenants)


def metric(server: Server, name: str, **labels: str) -> float:
    """What a metric says now; 0 where nothing was counted yet."""
    labels = {"model": server.service.model_id, **labels}
    return server.metrics.registry.get_sample_value(f"latentd_{name}", labels) or 0.0


def http(server: Server) -> str:
    return f"http://127.0.0.1:{server.http_port}"


def address(server: Server) -> str:
    return f"127.0.0.1:{server.grpc_port}"
