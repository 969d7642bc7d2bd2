"""How many calls may be open, and what becomes of those whose clients neither read nor write."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
import pytest
from grpc_health.v1 import health_pb2

from engines.model import Model
from latentd import Client, ServerError
from latentd.v1 import images_pb2 as pb
from server.access.policy import Policy
from server.app import Server
from server.doors.calls import CallBounds, Calls
from server.doors.grpc import ConnectionBounds
from server.doors.handlers import handlers
from server.errors import Stalled
from server.metrics import Metrics
from server.settings import Settings
from tests.support import wire
from tests.support.held import Held, eventually
from tests.support.patience import PATIENCE
from tests.support.serving import address, metric, serving
from tests.support.unread import GOAWAY, HEADERS, Unread


class Asked(NamedTuple):
    """grpc.HandlerCallDetails, of a method."""

    method: str


@contextlib.contextmanager
def watching(server: Server) -> Iterator[None]:
    """A call that is open during the block."""
    with grpc.insecure_channel(address(server)) as channel:
        call = channel.unary_stream(wire.WATCH)(b"", timeout=PATIENCE)
        next(call)
        yield
        call.cancel()


@pytest.mark.parametrize(
    ("limits", "why", "sentence"),
    [
        ({"max_calls": 2}, "calls", "2 calls are open; at most 2 may be"),
        ({"max_calls_caller": 2}, "caller", "2 calls of 127.0.0.1 are open; at most 2 of a caller may be"),
    ],
)
def test_one_call_too_many_is_refused_and_health_is_answered_all_the_same(
    limits: dict[str, int], why: str, sentence: str, model: Model
) -> None:
    with serving(model, **limits) as server, Client(address(server)) as client:
        with watching(server), watching(server):
            assert metric(server, "calls_open") == 2
            with pytest.raises(ServerError) as refused:
                client.generate("a cat", steps=1)
            assert (refused.value.code, refused.value.message) == (grpc.StatusCode.RESOURCE_EXHAUSTED, sentence)
            assert refused.value.retry_after == 1.0
            for method in (wire.MODELS, wire.WATCH, wire.REFLECTION, wire.REFLECTION_V1):
                assert wire.refusal(address(server), method, b"") == ("RESOURCE_EXHAUSTED", sentence)
            (answer,) = wire.send(address(server), wire.CHECK, b"")
            assert health_pb2.HealthCheckResponse.FromString(answer).status == health_pb2.HealthCheckResponse.SERVING
        assert metric(server, "calls_refused_total", why=why) == 5
        eventually(lambda: metric(server, "calls_open"), 0)
        assert client.generate("a cat", steps=1)


def test_a_call_whose_message_does_not_come_counts(model: Model) -> None:
    with serving(model, max_calls=1) as server:
        with Unread(address(server)) as unread:
            unread.call(wire.MODELS, None)
            eventually(lambda: metric(server, "calls_open"), 1)
            assert wire.refusal(address(server), wire.MODELS, b"")[0] == "RESOURCE_EXHAUSTED"
        eventually(lambda: metric(server, "calls_open"), 0)


@pytest.mark.parametrize("method", [wire.GENERATE, wire.BLOCKING, wire.MODELS, wire.CHECK, wire.WATCH])
def test_a_client_that_takes_nothing_is_given_up_and_counts_on(
    method: str, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    message = pb.GenerateRequest(prompt="a cat", steps=1).SerializeToString()
    message = message if "Images" in method else b""
    with serving(model, unread_seconds=0.2) as server:  # else a busy machine has sent no more than the headers
        with Unread(address(server)) as unread:
            unread.begun(method, message)
            eventually(lambda: metric(server, "calls_unread_total"), 1)
            eventually(lambda: server._door._images.idle.is_set(), True)
            assert metric(server, "calls_open") == 1, "gRPC has its message"
            device = server.service.device
            assert device
            eventually(lambda: len(device._jobs), 0)
        eventually(lambda: metric(server, "calls_open"), 0)
        if method == wire.GENERATE:
            assert metric(server, "requests_total", door="grpc", code="ABORTED") == 1
    assert "127.0.0.1: the client did not take a message of " in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


def test_calls_that_nobody_reads_do_not_hold_the_grace(
    wired: Model, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have a third of it to read something, which here is over at once."""
    hurry = Calls.hurry
    asked: list[float] = []

    def at_once(calls: Calls, seconds: float) -> None:
        asked.append(seconds)
        hurry(calls, 0.0)

    monkeypatch.setattr(Calls, "hurry", at_once)
    message = pb.GenerateRequest(prompt="a cat", steps=1).SerializeToString()

    async def life() -> None:
        server = Server(
            Settings(model=wired.checkpoint.path, http_port=None, grpc_port=0, metrics_port=0, unread_seconds=0)
        )
        await server.open()
        try:
            await server.load(lambda _: wired)
            with await asyncio.to_thread(Unread, address(server)) as unread:
                for _ in range(4):
                    await asyncio.to_thread(unread.begun, wire.GENERATE, message)
                await server.close(1000 * PATIENCE)
        finally:
            await server.close(0)

    asyncio.run(asyncio.wait_for(life(), PATIENCE))
    assert asked[0] == 1000 * PATIENCE / 3


class Stuck:
    """gRPC's side of a call whose messages go when `goes` is set."""

    def __init__(self) -> None:
        self.goes = asyncio.Event()

    def peer(self) -> str:
        return "ipv4:10.0.0.7:50412"

    async def send_initial_metadata(self, metadata: Any) -> None:
        assert metadata == ()

    async def write(self, message: Any) -> None:
        await self.goes.wait()


def test_who_is_being_sent_to_when_it_hurries_has_that_long_and_no_longer() -> None:
    async def run() -> None:
        calls, context = Calls(CallBounds(wait=1000.0), Metrics("m"), Policy()), Stuck()
        message = pb.ListModelsResponse()
        sending = [asyncio.ensure_future(calls.write(context, message, first=True)) for _ in range(3)]  # type: ignore[arg-type]
        await asyncio.sleep(0)
        calls.hurry(2000.0)  # longer than it would have anyway
        assert all(timeout.when() < asyncio.get_running_loop().time() + 1001 for timeout in calls._sending)
        calls.hurry(0.0)
        for one in sending:
            with pytest.raises(Stalled, match=r"the client did not take a message of 0 bytes within 0.\d s"):
                await one
        assert not calls._sending
        with pytest.raises(Stalled, match=r"within 0.\d s"):
            await calls.write(context, message, first=True)  # type: ignore[arg-type]
        context.goes.set()

    asyncio.run(asyncio.wait_for(run(), PATIENCE))


def test_a_large_message_has_longer() -> None:
    async def run() -> None:
        calls, context = Calls(CallBounds(wait=1.0), Metrics("m"), Policy()), Stuck()
        message = pb.GenerateEvent(image=pb.Image(data=bytes(320 << 10)))
        sending = asyncio.ensure_future(calls.write(context, message, first=True))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        (timeout,) = calls._sending
        assert timeout.when() > asyncio.get_running_loop().time() + 10
        context.goes.set()
        await sending

    asyncio.run(run())


def test_a_connection_has_so_many_streams_and_ends_when_it_is_idle(model: Model) -> None:
    with serving(model, max_streams=3, idle_seconds=0.2) as server, Unread(address(server), wire.MODELS) as unread:
        assert unread.settings[3] == 3, "SETTINGS_MAX_CONCURRENT_STREAMS"
        assert unread.until(HEADERS) == 1
        unread.until(GOAWAY)
    assert ("grpc.max_connection_idle_ms", 2**31 - 1) in ConnectionBounds(idle=0).options(1), "for ever"


def test_a_connection_too_many_is_closed_and_another_is_taken_when_one_has_gone(model: Model) -> None:
    with serving(model, max_connections=1) as server:
        with Unread(address(server)), pytest.raises((AssertionError, ConnectionError)):
            Unread(address(server))

        def taken() -> bool:
            try:
                Unread(address(server)).close()
            except (AssertionError, ConnectionError):
                return False
            return True

        eventually(taken, True)


def test_a_unary_answer_goes_out_as_one() -> None:
    """Headers, message and status apart would be an answer that has begun: who is killed then leaves a call lost."""

    class Servicer:
        async def Generate(self, request: Any, context: Any) -> None: ...  # noqa: N802

        async def Rank(self, request: Any, context: Any) -> None: ...  # noqa: N802

    generic = handlers(
        pb.DESCRIPTOR.services_by_name["Images"], Servicer(), Calls(CallBounds(), Metrics("m"), Policy())
    )
    found = {name: generic.service(Asked(f"/latentd.v1.Images/{name}")) for name in ("Generate", "Rank")}  # type: ignore[arg-type]
    assert found["Generate"] and found["Generate"].response_streaming
    assert found["Rank"] and not found["Rank"].response_streaming and found["Rank"].stream_unary
