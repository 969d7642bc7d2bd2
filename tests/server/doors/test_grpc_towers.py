"""style_image, keep and Rank through gRPC: pictures bit for bit, scores, and refusals in words."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import threading
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from PIL import Image

from engines.generate import generate
from engines.model import Model
from latentd import AsyncClient, Client, ServerError
from latentd.v1 import images_pb2 as pb
from latentd.v1.images_pb2_grpc import ImagesStub
from pipeline.arrays import Pixels
from server.app import Server
from tests.support.clips import pixels_of
from tests.support.held import Held, eventually, wrapped
from tests.support.patience import PATIENCE
from tests.support.serving import address, serving

ASKED = {"prompt": "the red apple", "seed": 7, "steps": 3, "guidance": 3.0}


def file_of(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def served(towers: Model) -> Iterator[Server]:
    with serving(towers, seats=3) as server:
        yield server


def test_a_style_is_drawn_in_any_company(towers: Model, served: Server) -> None:
    """Pictures with and without one share steps; each is what generate draws of it."""
    assert towers.styles is not None
    pixels = [pixels_of(40, 33), pixels_of(20, 60)]
    asked = [
        {**ASKED, "prompt": f"photo of the {word}", **style}
        for word, style in (
            ("cat", {}),
            ("cat", {"style_image": file_of(pixels[0])}),
            ("apple", {"style_image": file_of(pixels[1]), "style_weight": 0.45}),
            ("cat", {"style_image": Image.fromarray(pixels[0]), "style_weight": 0.0}),
            ("blue", {"guidance": 1.0, "style_image": file_of(pixels[0])}),
        )
    ]

    async def together() -> list[Pixels]:
        async with AsyncClient(address(served)) as client:
            got = await asyncio.gather(*(client.generate(**each) for each in asked))
        return [np.asarray(picture.image) for (picture,) in got]

    pictures = asyncio.run(together())
    of = towers.styles.of
    styles = [None, of(pixels[0], 1.0), of(pixels[1], 0.45), of(pixels[0], 0.0), of(pixels[0], 1.0)]
    for picture, style, each in zip(pictures, styles, asked, strict=True):
        plain = {name: value for name, value in each.items() if not name.startswith("style")}
        assert (picture == generate(towers, **plain, style=style)).all()
    assert (pictures[0] == pictures[3]).all(), "no weight is no style"
    assert (pictures[0] != pictures[1]).any()


def test_those_nearest_to_the_prompt_are_kept(towers: Model, served: Server) -> None:
    judge = towers.judge
    assert judge is not None
    with Client(address(served)) as client:
        everything = client.generate(**ASKED, images=6)
        kept = client.generate(**ASKED, images=6, keep=2, format="webp")
    text = judge.text(ASKED["prompt"])
    scores = [float(judge.scores([judge.picture(np.asarray(each.image))], [text])[0, 0]) for each in everything]
    nearest = sorted(sorted(range(6), key=lambda index: -scores[index])[:2])
    assert [each.index for each in kept] == nearest
    assert [each.seed for each in kept] == [7 + index for index in nearest]
    assert [each.score for each in kept] == pytest.approx([scores[index] for index in nearest], abs=1e-5)
    assert len(set(scores)) > 1 and all(each.score is None for each in everything)


def test_brackets_that_weigh_are_not_the_judges(towers: Model, served: Server) -> None:
    judge = towers.judge
    assert judge is not None
    with Client(address(served)) as client:
        options = {**ASKED, "prompt": "the (red apple:1.3)", "prompt_weights": True}
        (kept,) = client.generate(**options, images=1, keep=1)
    wanted = judge.scores([judge.picture(np.asarray(kept.image))], [judge.text("the red apple")])[0, 0]
    assert kept.score == pytest.approx(float(wanted), abs=1e-5)


def test_one_answer_has_those_that_are_kept(served: Server) -> None:
    with grpc.insecure_channel(address(served)) as channel:
        request = pb.GenerateRequest(**ASKED, images=4, keep=1)
        (image,) = ImagesStub(channel).GenerateBlocking(request).images
    assert image.HasField("score")


@pytest.mark.parametrize("spoilt", [[1], [0, 1, 2]])
def test_pictures_that_are_no_numbers_are_not_judged(towers: Model, spoilt: list[int]) -> None:
    """Those that are left are kept, and the call ends with the ones that failed."""
    held, decoded = Held(towers.backend), []

    def after(picture: np.ndarray) -> np.ndarray:
        decoded.append(picture)
        return picture * np.float32(np.nan) if len(decoded) - 1 in spoilt else picture

    held.after_decode = after
    with serving(wrapped(towers, held), seats=1) as server, Client(address(server)) as client:
        decoded.clear()
        with pytest.raises(ServerError, match="came out as not a number") as raised:
            client.generate(**ASKED, images=3, keep=2)
    assert len(raised.value.pictures) == 3 - len(spoilt)


def test_a_judge_that_fails_fails_its_picture_alone(towers: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = towers.judge
    assert judge is not None
    theirs, calls = judge.picture, []

    def picture(pixels: Pixels) -> np.ndarray:
        calls.append(pixels)
        if len(calls) == 2:
            raise RuntimeError("of a test")
        return theirs(pixels)

    monkeypatch.setattr(judge, "picture", picture)
    with serving(towers, seats=1) as server, Client(address(server)) as client:
        with pytest.raises(ServerError, match="image . cannot be judged") as raised:
            client.generate(**ASKED, images=3, keep=1)
        assert len(raised.value.pictures) == 1
        assert len(client.generate(**ASKED)) == 1


def test_others_do_not_wait_for_a_judge(towers: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it looks at one picture, seats, steps, decodes and files of others go on."""
    judge = towers.judge
    assert judge is not None
    theirs, looks, go = judge.picture, threading.Event(), threading.Event()

    def picture(pixels: Pixels) -> np.ndarray:
        looks.set()
        assert go.wait(PATIENCE)
        return theirs(pixels)

    monkeypatch.setattr(judge, "picture", picture)

    async def both(server: Server) -> tuple[int, int]:
        async with AsyncClient(address(server)) as client:
            judged = asyncio.create_task(client.generate(**ASKED, images=3, keep=1))
            assert await asyncio.to_thread(looks.wait, PATIENCE)
            others = await asyncio.gather(*(client.generate(**ASKED, images=2, preview_every=1) for _ in range(3)))
            assert not judged.done()
            backlog = "latentd_judge_backlog", {"model": towers.id}
            await asyncio.to_thread(eventually, lambda: server.metrics.registry.get_sample_value(*backlog), 3)
            go.set()
            (kept,) = await judged
            assert kept.timings is not None and kept.timings.judge_ms > 0
            assert server.metrics.registry.get_sample_value(*backlog) == 0
            assert server.service.ready()._pace.judge > 0
            return sum(map(len, others)), 1

    with serving(towers, seats=2) as server:
        assert asyncio.run(both(server)) == (6, 1)


def test_no_picture_is_ranked_for_who_has_gone(towers: Model, served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = towers.judge
    assert judge is not None
    theirs, looks, go, seen = judge.picture, threading.Event(), threading.Event(), []

    def picture(pixels: Pixels) -> np.ndarray:
        seen.append(pixels)
        looks.set()
        assert go.wait(PATIENCE)
        return theirs(pixels)

    monkeypatch.setattr(judge, "picture", picture)
    request = pb.RankRequest(pictures=[PICTURE] * 8, texts=["a"])
    with grpc.insecure_channel(address(served)) as channel:
        call = ImagesStub(channel).Rank.future(request)  # pyright: ignore
        assert looks.wait(PATIENCE)
        own = {"model": towers.id}
        assert served.metrics.registry.get_sample_value("latentd_judge_backlog", own) == 8
        assert served.service.ready()._pace.unjudged == 8, "in the forecast of who has pictures judged"
        call.cancel()
    eventually(lambda: served.metrics.registry.get_sample_value("latentd_calls_open", own), 0)
    go.set()
    eventually(lambda: served.service.reads, False)
    assert len(seen) == 1 and served.service.ready()._pace.unjudged == 0


def test_ranks_are_the_judges_scores(towers: Model, served: Server) -> None:
    judge = towers.judge
    assert judge is not None
    pictures, texts = [pixels_of(30, 30), pixels_of(50, 20)], ["the cat", "photo of the blue apple", "cat " * 30]
    wanted = judge.scores([judge.picture(each) for each in pictures], [judge.text(each) for each in texts])
    files = [file_of(each) for each in pictures]
    with Client(address(served)) as client:
        np.testing.assert_allclose(client.rank(files, texts), wanted, atol=1e-5)
        np.testing.assert_allclose(client.rank(files[:1], texts), wanted[:1], atol=1e-5)
        np.testing.assert_allclose(client.rank(files, texts[1:2]), wanted[:, 1:2], atol=1e-5)
    with grpc.insecure_channel(address(served)) as channel:
        answer = ImagesStub(channel).Rank(pb.RankRequest(pictures=files, texts=texts))
    assert list(answer.texts_cut) == [False, False, True]

    async def beside() -> list[list[float]]:
        async with AsyncClient(address(served)) as client:
            return await client.rank(files, texts)

    np.testing.assert_allclose(asyncio.run(beside()), wanted, atol=1e-5)


PICTURE = file_of(pixels_of(8, 8))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"style_image": b"GIF89a"}, "style_image is none of PNG, JPEG and WebP, by its first bytes"),
        ({"style_image": PICTURE, "style_weight": 2.5}, "style_weight is 2.5; it must be 0 to 2"),
        ({"style_image": PICTURE, "style_weight": float("nan")}, "style_weight is nan; it must be 0 to 2"),
        ({"style_weight": 0.5}, "style_weight needs a picture to take a style from; style_image is missing"),
        ({"keep": 0}, "keep is 0; it must be 1 to images, which is 1"),
        ({"images": 2, "keep": 3}, "keep is 3; it must be 1 to images, which is 2"),
    ],
)
def test_refusals_of_a_request(served: Server, fields: dict[str, object], words: str) -> None:
    with Client(address(served)) as client, pytest.raises(ServerError) as raised:
        client.generate(**{**ASKED, **fields})
    assert raised.value.code is grpc.StatusCode.INVALID_ARGUMENT and raised.value.message == words


@pytest.mark.parametrize(
    ("pictures", "texts", "words"),
    [
        ([], ["a"], "pictures are 0; they must be 1 to 8"),
        ([PICTURE] * 9, ["a"], "pictures are 9; they must be 1 to 8"),
        ([PICTURE], [], "texts are 0; they must be 1 to 16"),
        ([PICTURE], ["a", "b" * 5000], "texts[1] has 5000 characters; at most 4096 are taken"),
        ([PICTURE, PICTURE[:40]], ["a"], "pictures[1] "),
    ],
)
def test_refusals_of_a_ranking(served: Server, pictures: list[bytes], texts: list[str], words: str) -> None:
    with Client(address(served)) as client, pytest.raises(ServerError) as raised:
        client.rank(pictures, texts)
    assert raised.value.code is grpc.StatusCode.INVALID_ARGUMENT and raised.value.message.startswith(words)


def test_a_model_without_them_says_so(towers: Model, served: Server) -> None:
    bare = dataclasses.replace(towers, styles=None, judge=None)
    with serving(bare, seats=1) as server, Client(address(server)) as client:
        for fields, words in (
            (
                {"style_image": PICTURE},
                "style_image: towers has no style adapter; the server's setting --style-adapter",
            ),
            ({"keep": 1}, "keep: towers has no judge; the server's setting --judge names one"),
        ):
            with pytest.raises(ServerError, match=words):
                client.generate(**{**ASKED, **fields})
        with pytest.raises(ServerError, match="towers has no judge to rank by"):
            client.rank([PICTURE], ["a"])
        assert not client.models()[0].features
    with Client(address(served)) as client:
        assert client.models()[0].features == ["style", "judge"]
