"""Pictures to begin with, as a server takes them: refused before anything is drawn, and bounded."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from engines.model import Model
from latentd import Client
from server.app import Server
from server.errors import Busy, NotServing, TooLate
from server.limits import Limits
from server.originals import _WAITING, Originals
from server.request import ImageRequest
from server.settings import Settings
from server.wish import Wish
from tests.support import wire
from tests.support.held import Held
from tests.support.patience import PATIENCE
from tests.support.serving import address, serving
from tests.support.uploads import colours, saved

PICTURE = saved(colours())


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
        ({"mask": PICTURE}, "mask is of a picture to begin with; init_image is missing"),
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
            assert go_on.wait(PATIENCE)
            return model.backend.moments(picture)

    slow = replace(model, backend=Slow())

    async def fill() -> None:
        originals = Originals()
        reading = [asyncio.create_task(originals.of(request, wish, slow)) for _ in range(_WAITING)]
        await asyncio.to_thread(entered.acquire)
        with pytest.raises(Busy, match=f"^{_WAITING} requests wait for their pictures to be read"):
            await originals.of(request, wish, slow)
        for task in reading[2:]:
            task.cancel()
        go_on.set()
        done = await asyncio.gather(*reading, return_exceptions=True)
        assert sum(isinstance(each, asyncio.CancelledError) for each in done) == _WAITING - 2
        assert (await originals.of(request, wish, slow)).moments.shape[0] == 2 * model.spec.vae.latent_channels
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
        go_on.set()
        await closing

    asyncio.run(asyncio.wait_for(life(), PATIENCE))
