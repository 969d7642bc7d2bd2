"""A server's life in this process: loading, serving, draining, dying."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from engines import choice as choosing
from engines.cpu.openvino import OpenVinoBackend
from engines.errors import DeviceError
from engines.model import Model
from latentd import AsyncClient, Client, ServerError
from latentd.events import Queued
from pipeline.checkpoint.opened import Checkpoint
from pipeline.errors import LatentdError
from pipeline.samplers import SAMPLERS
from server.app import Server, load_model
from server.errors import Loading
from server.pace.median import Median
from server.settings import Settings, SettingsError
from server.wish import LaneKey, Size
from tests.support import wire
from tests.support.held import Held, raising
from tests.support.patience import PATIENCE
from tests.support.serving import address, serving

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE = "latentd.v1.Images"
OIP = "inference.GRPCInferenceService"


def settings(model: Model, **others: Any) -> Settings:
    return Settings(**{"model": model.checkpoint.path, "http_port": None, "grpc_port": 0, "metrics_port": 0, **others})


def in_time(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, PATIENCE))


@asynccontextmanager
async def opened(model: Model, **others: Any) -> AsyncIterator[Server]:
    server = Server(settings(model, **others))
    await server.open()
    try:
        yield server
    finally:
        await server.close(0)


async def health(server: Server, service: str = "") -> int:
    async with grpc.aio.insecure_channel(address(server)) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return (await health_pb2_grpc.HealthStub(channel).Check(request)).status


def test_health_follows_loading_and_serving(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """And who asks while the model loads is told when to ask again, which its client does by itself."""

    async def life() -> None:
        loading, go_on = threading.Event(), threading.Event()

        def load(_: Settings) -> Model:
            loading.set()
            assert go_on.wait(PATIENCE)
            return model

        async with opened(model) as server, AsyncClient(address(server)) as client:
            load_task = asyncio.create_task(server.load(load))
            await asyncio.to_thread(loading.wait, PATIENCE)
            monkeypatch.setattr(Loading, "retry_after", 0.125)
            for service in ("", SERVICE):
                assert await health(server, service) == NOT_SERVING
            assert await health(server, "live") == SERVING
            for refused in (client.generate("a cat"), client.models()):
                with pytest.raises(ServerError, match="tiny is loading; health says SERVING when it is done") as told:
                    await refused
                assert told.value.code is grpc.StatusCode.UNAVAILABLE and told.value.retry_after == 0.125
            monkeypatch.setattr(Loading, "retry_after", 4.0)  # it is loaded by the next attempt, or the one after
            async with AsyncClient(address(server)) as other:  # the first one's retries are throttled by now
                early = asyncio.create_task(other.generate("a cat", steps=1))
                labels = {"model": server.metrics._model, "door": "grpc", "code": "UNAVAILABLE"}
                while server.metrics.registry.get_sample_value("latentd_requests_total", labels) != 4 + 1:
                    await asyncio.sleep(0.01)
                go_on.set()
                await load_task
                assert len(await early) == 1
            for service in ("", SERVICE):
                assert await health(server, service) == SERVING
            assert await client.generate("a cat", steps=1)
            with pytest.raises(grpc.aio.AioRpcError) as unknown:
                await health(server, "latentd.v1.Sounds")
            assert unknown.value.code() is grpc.StatusCode.NOT_FOUND

    in_time(life())


class Gated(OpenVinoBackend):
    """A backend that takes its time to be made."""

    begun, go_on = threading.Event(), threading.Event()

    def __init__(self, *given: Any) -> None:
        self.begun.set()
        assert self.go_on.wait(PATIENCE)
        super().__init__(*given)


def test_health_answers_while_a_backend_is_made(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `serve` loads it: the event loop is free while the engines are compiled."""
    monkeypatch.setitem(choosing.BACKENDS, "openvino", (__name__, "Gated", "cpu"))

    async def life() -> None:
        async with opened(model, backend="openvino", precision="f32") as server:
            load = asyncio.create_task(server.load(load_model))
            await asyncio.to_thread(Gated.begun.wait, PATIENCE)
            for service in ("", SERVICE):
                assert await health(server, service) == NOT_SERVING
            assert not load.done()
            Gated.go_on.set()
            await load
            assert await health(server) == SERVING

    in_time(life())


def test_serving_follows_a_step_and_a_decode_of_every_size(wired: Model, held: Held, sizes: tuple[Size, ...]) -> None:
    async def life() -> None:
        async with opened(wired, sizes=sizes) as server:
            held.hold()
            load = asyncio.create_task(server.load(lambda _: wired))
            for count in range(len(sizes)):
                for _ in range(2):  # the second is the one whose time is kept
                    await asyncio.to_thread(held.begun)
                    assert held.decoded == count and await health(server) == NOT_SERVING
                    held.let()
            await load
            assert held.decoded == len(sizes) and await health(server) == SERVING

    in_time(life())


def test_draining_ends_what_runs_and_refuses_what_comes(wired: Model, held: Held) -> None:
    async def life() -> None:
        async with opened(wired, seats=1) as server, AsyncClient(address(server)) as client:
            await server.load(lambda _: wired)
            held.hold()
            runs, waits = client.stream("a red apple", steps=2, seed=1), client.stream("a cat", steps=2, seed=2)
            assert isinstance(await anext(runs), Queued) and isinstance(await anext(waits), Queued)
            closing = asyncio.create_task(server.close(PATIENCE))
            while not server.service.draining:
                await asyncio.sleep(0)
            assert await health(server) == NOT_SERVING
            with pytest.raises(ServerError, match="this server is draining; ask another one") as refused:
                await client.generate("a cat")
            assert refused.value.code is grpc.StatusCode.UNAVAILABLE
            assert not closing.done()
            held.release()
            for events in (runs, waits):
                kinds = [type(event).__name__ async for event in events]
                assert kinds[-2:] == ["Image", "Done"]
            await closing
            with pytest.raises(ServerError, match="no latentd server answers"):
                await client.generate("a cat", timeout=PATIENCE)

    in_time(life())


def test_after_the_grace_whoever_runs_or_waits_is_told_though_the_device_is_in_a_step(
    wired: Model, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def life() -> None:
        async with opened(wired) as server, AsyncClient(address(server)) as client:
            await server.load(lambda _: wired)
            device = server.service.device
            assert device
            monkeypatch.setattr(device, "dismiss_late", lambda grace: 0)  # all can be done, says the forecast
            held.hold()
            calls = [client.stream("a red apple", steps=100, images=2) for _ in range(8)]
            for events in calls:
                assert isinstance(await anext(events), Queued)
            await asyncio.to_thread(held.begun)
            closing = asyncio.create_task(server.close(0.01))
            for events in calls:
                with pytest.raises(ServerError) as ended:
                    async for _ in events:
                        pass
                assert ended.value.code == grpc.StatusCode.UNAVAILABLE
                assert "the server stops, and its grace of 0.01 s was over before" in str(ended.value)
            held.release()
            await closing
            assert not device._jobs and not device._thread.is_alive()

    in_time(life())


def test_who_watches_health_sees_the_end_and_does_not_delay_it(model: Model) -> None:
    async def life() -> None:
        async with opened(model) as server, grpc.aio.insecure_channel(address(server)) as channel:
            watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            seen = [(await watching.read()).status]
            await server.load(lambda _: model)
            seen.append((await watching.read()).status)
            closing = asyncio.create_task(server.close(1000 * PATIENCE))
            seen.append((await watching.read()).status)
            assert seen == [NOT_SERVING, SERVING, NOT_SERVING]
            await closing

    in_time(life())


def test_a_failed_device_ends_the_server(wired: Model, held: Held) -> None:
    async def life() -> None:
        async with opened(wired) as server, AsyncClient(address(server)) as client:
            await server.load(lambda _: wired)
            died = asyncio.create_task(server.died())
            assert await client.generate("a cat", steps=1)
            assert not died.done() and await health(server) == SERVING
            held.before_run = raising(DeviceError("the card fell off the bus"))
            with pytest.raises(ServerError, match="the device failed: the card fell off the bus") as failed:
                await client.generate("a cat")
            assert failed.value.code is grpc.StatusCode.UNAVAILABLE
            await died
            assert await health(server) == NOT_SERVING and await health(server, SERVICE) == NOT_SERVING
            with pytest.raises(ServerError) as refused:
                await client.generate("a cat")
            assert refused.value.code is grpc.StatusCode.UNAVAILABLE

    in_time(life())


def test_an_unexpected_error_says_nothing_of_itself(model: Model, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    with serving(model) as server, Client(address(server)) as client:
        monkeypatch.setattr(server.service, "limits", None)
        for failing in (lambda: client.generate("a cat"), client.models):
            with pytest.raises(ServerError) as failed:
                failing()
            assert failed.value.code is grpc.StatusCode.INTERNAL
            assert failed.value.message == "an unexpected error; the server's log has it under this request's id"
        records = [record for record in caplog.records if record.message == "unexpected error"]
        assert len(records) == 2 and all("AttributeError" in str(record.exc_info) for record in records)
        assert len(records[0].request) == 12  # type: ignore[attr-defined]


def test_no_thread_outlives_the_server(model: Model) -> None:
    with serving(model) as server:  # gRPC's own poller stays for the next one
        Client(address(server)).close()
    before = set(threading.enumerate())
    with serving(model) as server, Client(address(server)) as client:
        client.generate("a red apple", images=3, preview_every=1)
        assert len(set(threading.enumerate()) - before) >= 3, "an event loop, a device, metrics"
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_lists_the_services(version: str, server: Server) -> None:
    ask = reflection_pb2.ServerReflectionRequest
    itself = f"grpc.reflection.{version}.ServerReflection"
    requests = [
        ask(list_services=""),
        ask(file_containing_symbol=SERVICE),
        ask(file_containing_symbol=itself),
        ask(file_by_filename="x"),
    ]
    sent = [request.SerializeToString() for request in requests]
    answers = wire.send(address(server), f"/{itself}/ServerReflectionInfo", *sent)
    listed, file, own, missing = map(reflection_pb2.ServerReflectionResponse.FromString, answers)
    names = [service.name for service in listed.list_services_response.service]
    reflections = ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"]
    assert sorted(names) == ["grpc.health.v1.Health", *reflections, OIP, SERVICE]
    assert b"GenerateRequest" in file.file_descriptor_response.file_descriptor_proto[0]
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    (described,) = own.file_descriptor_response.file_descriptor_proto
    told = descriptor_pb2.FileDescriptorProto.FromString(described)
    assert told.package == f"grpc.reflection.{version}" and told.service[0].name == "ServerReflection"
    assert f".grpc.reflection.{version}.ServerReflectionRequest" == told.service[0].method[0].input_type


def test_whatever_reflection_offers_is_there_and_is_no_unexpected_error(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Called without a word in its message: answered, or refused in words, and nothing of it is a traceback."""
    with grpc.insecure_channel(address(server)) as channel:
        offered = ProtoReflectionDescriptorDatabase(channel)
        pool = descriptor_pool.DescriptorPool(offered)
        services = [pool.FindServiceByName(name) for name in offered.get_services()]
        methods = [method for service in services for method in service.methods if not method.client_streaming]
        assert {"GenerateBlocking", "ListModels", "Check", "List", "Watch"} <= {method.name for method in methods}
        codes = {}
        for method in methods:
            kind = channel.unary_stream if method.server_streaming else channel.unary_unary
            call = kind(f"/{method.containing_service.full_name}/{method.name}")
            try:
                answer = call(b"", timeout=PATIENCE)
                codes[method.name] = grpc.StatusCode.OK
                if method.server_streaming:
                    next(answer)
                    answer.cancel()
            except grpc.RpcError as error:
                codes[method.name] = error.code()
    assert not {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN} & {*codes.values()}, codes
    assert not [record for record in caplog.records if record.exc_info]


def test_health_lists_its_services(server: Server) -> None:
    with grpc.insecure_channel(address(server)) as channel:
        listed = health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest(), timeout=PATIENCE)
    assert {name: one.status for name, one in listed.statuses.items()} == dict.fromkeys(
        ("", SERVICE, OIP, "live"), 1
    ), "SERVING"


@pytest.mark.parametrize(("name", "what"), [("max_steps", "steps"), ("max_guidance", "guidance")])
def test_a_limit_below_the_models_own_default_is_refused_at_start(name: str, what: str, model: Model) -> None:
    default = getattr(model.spec.defaults, what)

    async def life() -> None:
        async with opened(model, **{name: default}) as server:
            await server.load(lambda _: model)
        async with opened(model, **{name: default - 1}) as server:
            with pytest.raises(SettingsError, match=f"^{name} is {default - 1:g}, and .* takes {default:g} where"):
                await server.load(lambda _: model)

    asyncio.run(life())


def test_models_tells_what_absent_fields_mean(server: Server, model: Model, sizes) -> None:
    with Client(address(server)) as client:
        (told,) = client.models()
    default = model.spec.defaults
    assert (told.id, told.backend, told.precision, told.seats) == (model.id, "openvino", "f32", 2)
    assert [(size.width, size.height) for size in told.sizes] == list(sizes)
    assert list(told.samplers) == list(SAMPLERS)
    assert (told.width, told.height, told.steps) == (default.width, default.height, default.steps)
    assert (told.guidance, told.sampler, told.max_tokens) == (default.guidance, default.sampler, 14)
    assert told.weights_digest == model.digest == model.checkpoint.weights.digest() and len(model.digest) == 64
    limits = told.limits
    assert (limits.prompt_characters, limits.steps, limits.guidance, limits.images) == (4096, 150, 30, 8)


def test_where_the_models_own_size_is_not_served_the_first_is_the_default(model: Model) -> None:
    with serving(model, sizes=((32, 24),)) as server, Client(address(server)) as client:
        (told,) = client.models()
        (picture,) = client.generate("a cat", steps=1)
    assert (told.width, told.height) == (32, 24) == picture.image.size


def test_doors_that_are_off_are_neither_open_nor_told(model: Model) -> None:
    with serving(model, metrics_port=None) as server:
        assert server.addresses() == [f"gRPC {address(server)}"]
        assert server.metrics_port is None and not server._scrapes._sockets
        with Client(address(server)) as client:
            assert len(client.generate("a cat", steps=1)) == 1


@pytest.mark.parametrize("taken", ["grpc", "metrics"])
def test_a_port_that_another_server_has_is_told(taken: str, server: Server, model: Model) -> None:
    port = {"grpc": server.grpc_port, "metrics": server.metrics_port}[taken]

    async def life() -> None:
        second = Server(settings(model, **{f"{taken}_port": port}))
        with pytest.raises(LatentdError, match=f"{taken} port 127.0.0.1:{port} cannot be opened.*another latentd"):
            await second.open()
        await second.close(0)

    in_time(life())


@pytest.mark.parametrize("size", [(25, 24), (24, 26), (0, 24), (5000, 24)])
def test_a_size_that_the_model_cannot_make_is_refused_before_serving(size, model: Model) -> None:
    async def life() -> None:
        async with opened(model, sizes=(size,)) as server:
            with pytest.raises(SettingsError, match=f"sizes: {size[0]}x{size[1]}; sides of this model"):
                await server.load(lambda _: model)
            assert await health(server) == NOT_SERVING

    in_time(life())


@pytest.mark.parametrize(
    ("setting", "told"),
    [({"sizes": ((25, 24),)}, "sides of this model are multiples of"), ({"max_steps": 1}, "max_steps is 1, and")],
)
def test_what_the_configs_contradict_is_told_before_a_weight_is_read(
    setting: dict[str, Any], told: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> Model:
        raise AssertionError("the weights were read")

    monkeypatch.setattr("server.models.loading.load", read)
    with pytest.raises(SettingsError, match=told):
        load_model(Settings(model=checkpoint.path, **setting))


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_listening_to_everybody_is_said_aloud(host: str, warned: bool, model: Model, caplog) -> None:
    async def life() -> None:
        async with opened(model, host=host, insecure=True):
            pass

    in_time(life())
    assert ("without keys" in caplog.text) == warned


def test_ipv6(model: Model) -> None:
    async def life() -> None:
        async with opened(model, host="::1") as server, AsyncClient(f"[::1]:{server.grpc_port}") as client:
            await server.load(lambda _: model)
            assert await client.generate("a cat", steps=1)

    try:
        in_time(life())
    except LatentdError as error:
        assert "Cannot assign requested address" in str(error) or "not supported" in str(error)
        pytest.skip("this machine has no IPv6")


def test_at_the_beginning_of_the_grace_those_are_told_who_cannot_be_done_in_it(wired: Model, held: Held) -> None:
    async def life() -> None:
        async with opened(wired, seats=1, queue_seconds=86400) as server, AsyncClient(address(server)) as client:
            await server.load(lambda _: wired)
            device = server.service.device
            assert device
            device._pace._rows[LaneKey(*device.sizes[0], 1)] = Median([10.0] * 9)  # seconds
            held.hold()
            held.runs.clear()
            runs = client.stream("a red apple", steps=2)
            assert isinstance(await anext(runs), Queued)
            await asyncio.to_thread(held.begun)
            waits = [client.stream("a red apple", steps=steps) for steps in (150, 1)]
            for events in waits:
                assert isinstance(await anext(events), Queued)
            closing = asyncio.create_task(server.close(1000))
            with pytest.raises(ServerError, match=r"stops in 1000 s, .* would take 30\d\d.\d s; ask") as told:
                async for _ in waits[0]:
                    pass
            assert told.value.code == grpc.StatusCode.UNAVAILABLE
            assert len(held.runs) == 1 and not closing.done()
            held.release()
            for events in (runs, waits[1]):
                assert [type(event).__name__ async for event in events][-1] == "Done"
            await closing
            assert len(held.runs) == 3

    in_time(life())


def test_at_the_beginning_of_the_grace_the_older_of_two_models_is_asked_first(model: Model) -> None:
    """What it has comes before what the younger one has: of the grace the younger has what that leaves."""
    asked: list[str] = []

    class Asked:
        failed = makes_lane = False

        def __init__(self, name: str) -> None:
            self._name = name

        def dismiss_late(self, seconds: float) -> int:
            asked.append(self._name)
            return 0

        def dismiss(self, why: str) -> None: ...

        def stop(self) -> None: ...

    async def life() -> None:
        async with opened(model) as server:
            server.service.device, server.service.before = Asked("new"), Asked("old")  # type: ignore[assignment]
            await server.close(PATIENCE)

    in_time(life())
    assert asked == ["old", "new"]
