"""Health, and those who watch it: also one that never reads."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engines.model import Model
from server.app import Server
from server.doors.health import HealthServicer
from server.settings import Settings
from tests.support import wire
from tests.support.patience import PATIENCE
from tests.support.serving import address
from tests.support.unread import Unread

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def test_a_watcher_that_never_reads_holds_up_neither_the_others_nor_the_end(model: Model) -> None:
    async def life() -> None:
        server = Server(Settings(model=model.checkpoint.path, http_port=None, grpc_port=0, metrics_port=0))
        await server.open()
        try:
            with await asyncio.to_thread(Unread, address(server)) as unread:
                for service in (b"", health_pb2.HealthCheckRequest(service="latentd.v1.Images").SerializeToString()):
                    await asyncio.to_thread(unread.begun, wire.WATCH, service)
                await server.load(lambda _: model)
                async with grpc.aio.insecure_channel(address(server)) as channel:
                    watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
                    assert (await watching.read()).status == SERVING
                    closing = asyncio.create_task(server.close(1000 * PATIENCE))
                    assert (await watching.read()).status == NOT_SERVING
                    await closing
        finally:
            await server.close(0)

    asyncio.run(asyncio.wait_for(life(), PATIENCE))


def test_a_watcher_gets_what_is_not_what_was() -> None:
    async def run() -> None:
        health = HealthServicer()
        watching = health.Watch(health_pb2.HealthCheckRequest(service="a"), None)  # type: ignore[arg-type]
        assert (await anext(watching)).status == UNKNOWN
        following = asyncio.ensure_future(anext(watching))
        await asyncio.sleep(0)
        health.set(SERVING, "b")
        await asyncio.sleep(0)
        assert not following.done()
        health.set(SERVING, "", "a")
        assert (await following).status == SERVING
        for status in (NOT_SERVING, SERVING, NOT_SERVING):  # while the reader is busy
            health.set(status, "a")
        assert (await anext(watching)).status == NOT_SERVING
        last = asyncio.ensure_future(anext(watching))
        await asyncio.sleep(0)
        assert not last.done()
        last.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await last

    asyncio.run(run())


@pytest.mark.parametrize("service", ["latentd.v1.Sounds", "\u00e9" * 100])
def test_a_service_that_is_not_here_is_refused_in_words(service: str, server: Server) -> None:
    message = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    code, sentence = wire.refusal(address(server), wire.CHECK, message)
    assert code == "NOT_FOUND"
    names = "latentd.v1.Images, inference.GRPCInferenceService, live"
    assert sentence == f"service is {service[:64]!r}; there are: {names}"
