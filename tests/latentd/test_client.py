"""Client and AsyncClient against the stand-in server: one set of expectations for both."""

from __future__ import annotations

import asyncio
from io import BytesIO
from typing import Any

import grpc
import pytest
from PIL import Image as PILImage

from latentd import AsyncClient, Client, ServerError
from latentd.events import Done, Event, Image, Preview, Queued, Started, Step
from latentd.v1 import images_pb2 as pb
from tests.support.clients import both
from tests.support.fake import FakeServer
from tests.support.patience import PATIENCE

PNG = b"\x89PNG\r\n\x1a\n" + bytes(300_000)  # no picture: the stand-in does not look


@both
def test_generate_returns_the_pictures(call: Any, server: FakeServer) -> None:
    first, second = call(server.address, "generate", "an apple", seed=7, images=2, width=24, height=8)
    assert (first.seed, first.index, second.seed, second.index) == (7, 0, 8, 1)
    assert (first.width, first.height, first.image.size, first.image.mode) == (24, 8, (24, 8), "RGB")
    assert first.image.getpixel((3, 3)) == (10, 200, 30)
    assert first.png is first.data and first.format == "png"
    assert (first.timings.denoise_ms, first.timings.seats_shared, first.timings.steps) == (1830, 1.5, 4)
    assert (first.timings.decode_wait_ms, first.timings.file_ms, first.timings.delivery_ms) == (7, 5, 2)


@both
def test_absent_options_stay_absent(call: Any, server: FakeServer) -> None:
    call(server.address, "generate", "an apple")
    (request,) = server.images.requests
    for name in ("width", "height", "steps", "guidance", "sampler", "seed", "images"):
        assert not request.HasField(name), name


@both
def test_every_option_reaches_the_server(call: Any, server: FakeServer) -> None:
    options = {
        "negative_prompt": "pear",
        "width": 8,
        "height": 16,
        "steps": 3,
        "guidance": 0.0,
        "sampler": "ddim",
        "seed": 0,
        "images": 1,
        "preview_every": 2,
        "priority": -3,
        "model": "demo",
    }
    call(server.address, "generate", "an apple", format="webp", **options)
    options["progress"] = False  # where nobody sees the events
    assert server.images.requests == [pb.GenerateRequest(prompt="an apple", format=pb.IMAGE_FORMAT_WEBP, **options)]


@both
def test_on_event_sees_the_events_in_order(call: Any, server: FakeServer) -> None:
    seen: list[Event] = []
    call(server.address, "generate", "an apple", steps=2, preview_every=2, on_event=seen.append)
    assert [type(event) for event in seen] == [Queued, Started, Step, Step, Preview, Image, Done]


@both
def test_a_jpeg_can_be_had_as_png(call: Any, server: FakeServer) -> None:
    (picture,) = call(server.address, "generate", "an apple", format="jpeg")
    assert picture.format == "jpeg" and picture.data[:2] == b"\xff\xd8"
    assert PILImage.open(BytesIO(picture.png)).format == "PNG"


@both
def test_models(call: Any, server: FakeServer) -> None:
    (model,) = call(server.address, "models")
    assert (model.id, model.samplers[:], model.limits.images) == ("demo", ["ddim", "euler"], 8)


@both
def test_words_of_the_server_pass_through(call: Any, server: FakeServer) -> None:
    with pytest.raises(ServerError) as caught:
        call(server.address, "generate", "refuse this")
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert str(caught.value) == caught.value.message == "steps 999 is outside 1..150"
    assert caught.value.retry_after is None


@both
def test_a_full_queue_says_when_to_come_back(call: Any, server: FakeServer) -> None:
    with pytest.raises(ServerError, match="the queue is full") as caught:
        call(server.address, "generate", "full house")
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.retry_after == 2.5


@both
def test_who_has_not_begun_to_answer_is_asked_again(call: Any, server: FakeServer) -> None:
    assert call(server.address, "generate", "away for now", seed=7, init_image=PNG)
    first, *others = server.images.requests
    assert others == [first, first] and len(first.init_image) > 2**18, "beyond what gRPC keeps by itself"


@both
@pytest.mark.parametrize(
    ("prompt", "sentence"), [("lost halfway", "the device failed"), ("full house", "the queue is full")]
)
def test_who_has_begun_or_is_full_is_asked_once(call: Any, prompt: str, sentence: str, server: FakeServer) -> None:
    with pytest.raises(ServerError, match=sentence):
        call(server.address, "generate", prompt)
    assert len(server.images.requests) == 1


@both
@pytest.mark.parametrize("method", [("generate", "an apple"), ("models",)])
def test_no_server_is_one_sentence(call: Any, method: tuple[str, ...], nobody: str) -> None:
    with pytest.raises(ServerError) as caught:
        call(nobody, *method)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert caught.value.message == f"no latentd server answers at {nobody}; start one with `make serve`"


@both
def test_another_server_is_named_as_such(call: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    stranger = grpc.server(ThreadPoolExecutor(1))
    address = f"127.0.0.1:{stranger.add_insecure_port('127.0.0.1:0')}"
    stranger.start()
    with pytest.raises(ServerError, match="is not a latentd server"):
        call(address, "generate", "an apple")
    stranger.stop(None).wait()


@both
def test_what_arrived_before_an_error_is_kept(call: Any, server: FakeServer) -> None:
    with pytest.raises(ServerError, match="picture 1 is not a number") as caught:
        call(server.address, "generate", "nan", images=2)
    assert [picture.index for picture in caught.value.pictures] == [0]
    assert caught.value.pictures[0].timings is None
    assert caught.value.request_id == "r1"


@both
def test_timeout_is_a_sentence_and_cancels(call: Any, server: FakeServer) -> None:
    with pytest.raises(ServerError, match="the timeout passed") as caught:
        call(server.address, "generate", "hold", timeout=2.0)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert server.images.cancelled.wait(PATIENCE)


@both
def test_an_exception_of_on_event_cancels(call: Any, server: FakeServer) -> None:
    def stop(event: Event) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        call(server.address, "generate", "hold", on_event=stop)
    assert server.images.cancelled.wait(PATIENCE)


@pytest.mark.parametrize("used", [False, True])
def test_a_closed_client_is_a_server_error(used: bool, server: FakeServer) -> None:
    client = Client(server.address)
    if used:
        client.generate("an apple")
    client.close()
    client.close()
    for method, *arguments in (("generate", "an apple"), ("models",)):
        with pytest.raises(ServerError, match="^this client is closed$") as caught:
            getattr(client, method)(*arguments)
        assert caught.value.code is grpc.StatusCode.CANCELLED

    async def closed() -> None:
        client = AsyncClient(server.address)
        if used:
            await client.generate("an apple")
        await client.close()
        for method, *arguments in (("generate", "an apple"), ("models",)):
            with pytest.raises(ServerError, match="^this client is closed$"):
                await getattr(client, method)(*arguments)

    asyncio.run(closed())


def test_an_unknown_option_is_a_type_error(nobody: str) -> None:
    with Client(nobody) as client, pytest.raises(TypeError, match="colour"):
        client.stream("an apple", colour="red")  # pyright: ignore[reportCallIssue]


def test_closing_the_iterator_cancels(server: FakeServer) -> None:
    with Client(server.address) as client:
        events = client.stream("hold")
        assert isinstance(next(events), Queued)
        events.close()
        assert server.images.cancelled.wait(PATIENCE)


def test_leaving_an_asynchronous_loop_and_closing_cancels(server: FakeServer) -> None:
    async def look() -> None:
        async with AsyncClient(server.address) as client:
            events = client.stream("hold")
            async for event in events:
                assert isinstance(event, Queued)
                break
            await events.aclose()
            assert await asyncio.to_thread(server.images.cancelled.wait, PATIENCE)

    asyncio.run(look())


def test_cancelling_the_task_cancels(server: FakeServer) -> None:
    async def start_and_stop() -> None:
        async with AsyncClient(server.address) as client:
            task = asyncio.create_task(client.generate("hold"))
            assert await asyncio.to_thread(server.images.held.wait, PATIENCE)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(server.images.cancelled.wait, PATIENCE)

    asyncio.run(start_and_stop())


def test_the_address_comes_from_the_environment(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Client().address == AsyncClient().address == "127.0.0.1:8001"
    monkeypatch.setenv("LATENTD_SERVER", server.address)
    assert len(Client().generate("an apple")) == 1
    assert Client("localhost:1").address == "localhost:1"
    with pytest.raises(ValueError, match="is a URL; write host:port"):
        Client("http://localhost:8001")
