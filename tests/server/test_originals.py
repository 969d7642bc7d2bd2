"""Pictures to begin with, as a server takes them: refused before anything is drawn, and bounded."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from engines.model import Model
from latentd import Client
from server import service
from server.app import Server
from server.device import loop
from server.errors import Busy, NotServing, TooLate
from server.limits import Limits
from server.metrics import Metrics
from server.originals import _AT_ONCE, _WAITING, Kind, Originals, Stay, _Entry
from server.pace.median import Median
from server.request import ImageRequest
from server.settings import Settings
from server.wish import Wish
from tests.support import wire
from tests.support.held import Held, eventually
from tests.support.patience import PATIENCE
from tests.support.serving import address, serving
from tests.support.uploads import colours, saved

PICTURE = saved(colours())
A, B, C = "a", "b", "c"  # callers


@pytest.fixture(scope="module")
def server(model: Model):
    with serving(model, seats=2) as running:
        yield running


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"init_image": b"GIF89a"}, "init_image is none of PNG, JPEG and WebP, by its first bytes"),
        ({"init_image": PICTURE[:-20]}, "init_image ends within a chunk; send the whole file"),
        ({"init_image": PICTURE, "mask": b"x"}, "mask is none of PNG, JPEG and WebP, by its first bytes"),
        ({"init_image": PICTURE, "strength": 2.0}, "strength is 2; it must be 0 to 1"),
        ({"mask": PICTURE}, "mask needs a picture to begin with; init_image is missing"),
        ({"guidance_start": 0.5, "guidance_end": 0.25}, "guidance_start is 0.5; it must be less than guidance_end, "),
    ],
)
def test_refusals_over_the_wire(server: Server, fields: dict, words: str) -> None:
    code, sentence = wire.refused(address(server), **fields)
    assert code == "INVALID_ARGUMENT" and sentence.startswith(words)


def test_every_pixel_outside_the_mask_is_the_originals(server: Server) -> None:
    mask = Image.new("L", (40, 30))
    mask.paste(255, (12, 8, 30, 22))
    with Client(address(server)) as client:
        pictures = client.generate("a red apple", init_image=colours(), mask=mask, fit="resize", images=3, seed=4)
    kept = np.asarray(colours().resize((24, 24), Image.Resampling.LANCZOS))
    outside = np.asarray(mask.resize((24, 24), Image.Resampling.BILINEAR)) < 128
    drawn = [np.asarray(picture.image) for picture in pictures]
    assert len(drawn) == 3 and all(np.array_equal(each[outside], kept[outside]) for each in drawn)
    assert not np.array_equal(drawn[0], drawn[1]) and pictures[0].timings and pictures[0].timings.steps == 3


def test_a_bounded_number_waits(model: Model) -> None:
    size = model.spec.defaults.width, model.spec.defaults.height
    request = ImageRequest(init_image=PICTURE)
    wish = Wish.of(request, model, [size], Limits())
    entered, go_on = threading.Semaphore(0), threading.Event()

    class Slow:
        def moments(self, picture: np.ndarray) -> np.ndarray:
            entered.release()
            read.append(picture)
            assert go_on.wait(PATIENCE)
            return model.backend.moments(picture)

    slow = replace(model, backend=Slow())

    read = []

    async def fill() -> None:
        originals = Originals(Metrics("m"))
        reading = [asyncio.create_task(originals.of(A, request, wish, slow)) for _ in range(_WAITING)]
        await asyncio.to_thread(entered.acquire)
        with pytest.raises(Busy, match=f"^{_WAITING} requests wait for their pictures to be read"):
            await originals.of(A, request, wish, slow)
        for task in reading[2:]:
            task.cancel()
        await asyncio.wait(reading[2:])
        go_on.set()
        done = await asyncio.gather(*reading, return_exceptions=True)
        assert sum(isinstance(each, asyncio.CancelledError) for each in done) == _WAITING - 2
        assert len(read) == 2, "of who went away while it waited nothing is read"
        assert (await originals.of(A, request, wish, slow)).moments.shape[0] == 2 * model.spec.vae.latent_channels
        originals.close()

    asyncio.run(fill())


def test_who_waits_for_a_picture_to_be_read_hears_of_the_deadline_and_of_the_servers_end(
    wired: Model, held: Held
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def gate() -> None:
        entered.set()
        assert go_on.wait(PATIENCE)

    held.before_moments = gate
    request = ImageRequest(init_image=PICTURE)

    async def life() -> None:
        server = Server(Settings(model=wired.checkpoint.path, grpc_port=0, metrics_port=0, http_port=None))
        await server.open()
        await server.load(lambda _: wired)
        with pytest.raises(TooLate, match="^the deadline passed before the pictures were read$"):
            await server.service.submit(request, "a", 0.01)
        waiting = asyncio.create_task(server.service.submit(request, "b", None))
        await asyncio.to_thread(entered.wait, PATIENCE)
        closing = asyncio.create_task(server.close(0.01))
        with pytest.raises(NotServing, match="the server stops, and its grace of 0.01 s was over before"):
            await waiting
        await closing
        assert server.leaves_threads, "it does not wait for what is being read"
        go_on.set()
        await asyncio.to_thread(eventually, lambda: server.leaves_threads, False)

    asyncio.run(asyncio.wait_for(life(), PATIENCE))


def test_work_ends_when_its_client_has_gone(model: Model) -> None:
    """The thread is free for others then: it does what it is within, and no more."""
    entered, go_on, ended, done = threading.Event(), threading.Event(), threading.Event(), []

    def work(stay: Stay, pictures: int) -> None:
        try:
            for number in range(pictures):
                stay()
                done.append(number)
                entered.set()
                assert go_on.wait(PATIENCE)
        finally:
            ended.set()

    async def leave() -> None:
        originals = Originals(Metrics("m"))
        working = asyncio.create_task(originals.apart(A, Kind("many", 8), work, 8))
        await asyncio.to_thread(entered.wait, PATIENCE)
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        go_on.set()
        assert await asyncio.to_thread(ended.wait, PATIENCE)
        assert done == [0] and originals.expected(A, [Kind("many")]).takes == 0, "what was not finished tells no pace"
        originals.close()

    asyncio.run(leave())


class Turns(set[_Entry]):
    """The entries that are begun, which Originals guards with its lock: whose each was, in their order."""

    def __init__(self) -> None:
        self.callers: list[str] = []

    def add(self, entry: _Entry) -> None:
        self.callers.append(entry.caller)
        super().add(entry)


def test_callers_take_turns_and_none_keeps_the_others_out() -> None:
    """However many pictures one sends: another waits for one of them and for those that are begun."""
    begun, go_on, done, turns = threading.Semaphore(0), threading.Event(), list[str](), Turns()

    def read(stay: Stay, name: str) -> None:
        begun.release()
        assert go_on.wait(PATIENCE)
        done.append(name)

    async def compete() -> None:
        originals = Originals(Metrics("m"))
        originals._took["x"], originals._begun = Median([1.0]), turns

        def send(caller: str, name: str) -> asyncio.Task[None]:
            return asyncio.create_task(originals.apart(caller, Kind("x"), read, name))

        reading = [send(A, f"a{number}") for number in range(_WAITING)]
        for _ in range(_AT_ONCE):
            await asyncio.to_thread(begun.acquire)
        with pytest.raises(Busy, match=f"^{_WAITING} requests wait for their pictures to be read; at most {_WAITING} "):
            await send(A, "one more")
        assert originals.expected(A, [Kind("x")]) == (_WAITING / 2, 1.0)
        assert originals.expected(B, [Kind("x")]) == ((_AT_ONCE + 1) / 2, 1.0)
        reading += [send(caller, f"{caller}{number}") for number in range(2) for caller in (B, C)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match=f"^{_WAITING + 4} .* may, and beyond them {_WAITING // 3} of a caller$"):
            await send(A, "one more")
        reading[-1].cancel()
        await asyncio.wait(reading[-1:])
        go_on.set()
        await asyncio.gather(*reading, return_exceptions=True)
        assert Counter(turns.callers[: _AT_ONCE + 6]) >= Counter({B: 2, C: 1}) and len(turns.callers) == _WAITING + 3
        assert sorted(done) == sorted([*(f"a{number}" for number in range(_WAITING)), "b0", "b1", "c0"])
        originals.close()

    asyncio.run(compete())


def test_what_waits_to_be_read_is_counted_with_what_it_took_before() -> None:
    metrics, go_on = Metrics("m"), threading.Event()
    two = Kind("x", 2)

    async def count() -> None:
        originals = Originals(metrics)
        await originals.apart(A, two, lambda stay: None)
        originals._took["x"] = Median([1.5])
        assert originals.expected(A, [Kind("x"), two]) == (0.0, 4.5) and not originals.at_work
        reading = [asyncio.create_task(originals.apart(A, two, lambda stay: go_on.wait(PATIENCE))) for _ in range(3)]
        await asyncio.sleep(0)
        assert originals.expected(A, [Kind("new")]) == (4.5, 0.0), "two threads read"
        assert originals.at_work and gauge(metrics) == 3
        go_on.set()
        await asyncio.gather(*reading)
        await asyncio.to_thread(eventually, lambda: gauge(metrics), 0)
        originals.close()

    asyncio.run(count())


def gauge(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("latentd_reading_backlog", {"model": "m"})


def test_who_cannot_be_done_with_its_pictures_is_refused_before_they_are_read(wired: Model, held: Held) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def gate() -> None:
        entered.set()
        assert go_on.wait(PATIENCE)

    held.before_moments = gate
    request = ImageRequest(init_image=PICTURE)

    async def life() -> None:
        server = Server(Settings(model=wired.checkpoint.path, grpc_port=0, metrics_port=0, http_port=None))
        await server.open()
        await server.load(lambda _: wired)
        originals = server.service._originals
        originals._took["original", (24, 24)] = Median([30.0])
        first = asyncio.create_task(server.service.submit(request, "a", 40.0))
        await asyncio.to_thread(entered.wait, PATIENCE)
        now = time.monotonic()
        with pytest.MonkeyPatch.context() as patch:
            for module in (service, loop):  # by whose clocks time stands still between them
                patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
            for seconds, error, words in (
                (20.0, TooLate, "^the request takes about 30.[0-9]+ s by itself; its deadline is in 20.00 s$"),
                (40.0, Busy, "^the request would finish in about 45.[0-9]+ s; its deadline is in 40.00 s$"),
            ):
                with pytest.raises(error, match=words):
                    await server.service.submit(request, "b", seconds)
        assert gauge_of(server) == 1, "the only one that is read"
        go_on.set()
        job = (await first).job
        assert job.timings.read > job.arrived and job.wish.start is not None
        originals._took["original", (24, 24)] = Median([3000.0])
        await asyncio.to_thread(eventually, lambda: originals.at_work, False)
        await asyncio.to_thread(eventually, lambda: job.over, True)
        assert (await server.service.submit(request, "c", 40.0)).job, "only a try can show that it is wrong"
        await server.close(PATIENCE)

    asyncio.run(asyncio.wait_for(life(), 2 * PATIENCE))


def gauge_of(server: Server) -> float | None:
    registry = server.metrics.registry
    return registry.get_sample_value("latentd_reading_backlog", {"model": server.service.model_id})
