"""Previews and files on their way, with a pool that is put in order by hand."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from engines.backend import Ready
from engines.preview import ColourMap
from engines.preview import Preview as PreviewMap
from server.device import pictures
from server.device.delivery import Delivery
from server.errors import Cancelled, PictureFailed
from server.events import Done, Failed, Image, Preview
from server.job import Job, Picture
from server.metrics import Metrics
from server.pace.pace import Pace
from tests.support.jobs import box_of, idle_job, wish


class Fitted(PreviewMap):
    """A map that is known."""

    def __init__(self, map: ColourMap | None) -> None:
        self._map = map


MAP = ColourMap(np.full((3, 2 * 9 + 1), 0.1, np.float32), spread=1.0)  # of two latent channels
LATENTS = np.zeros((2, 4, 4), np.float32)
PIXELS = np.zeros((8, 8, 3), np.uint8)


@contextlib.contextmanager
def delivering(workers: int = 2, map: ColourMap | None = MAP) -> Iterator[tuple[Delivery, list[Job], Metrics]]:
    ended: list[Job] = []
    metrics = Metrics("m")
    delivery = Delivery(workers, Fitted(map), Pace({}), metrics, ended.append)
    try:
        yield delivery, ended, metrics
    finally:
        delivery.close()


def test_the_last_picture_ends_the_job() -> None:
    job = idle_job(wish(images=2, seed=7))
    with delivering() as (delivery, ended, metrics):
        for index in (1, 0):
            assert ended == []
            delivery.picture(Picture(job, index), PIXELS)
            if index:
                delivery.close()
                delivery._pool = type(delivery._pool)(1)
        box_of(job).end()
    assert [event.seed for event in box_of(job).events if isinstance(event, Image)] == [8, 7]
    assert isinstance(box_of(job).events[-1], Done) and ended == [job] and job.over
    assert metrics.registry.get_sample_value("latentd_images_total", {"model": "m"}) == 2


def test_several_failed_pictures_are_all_named_and_the_others_delivered() -> None:
    job = idle_job(wish(images=3))
    with delivering() as (delivery, ended, _):
        delivery.settle(Picture(job, 0), PictureFailed("image 0 is bad"))
        delivery.settle(Picture(job, 1), Image(1, b"file", 1))
        assert ended == []
        delivery.settle(Picture(job, 2), PictureFailed("image 2 is bad"))
    assert box_of(job).error() == ("INTERNAL", "image 0 is bad; image 2 is bad")
    assert [type(event) for event in box_of(job).events] == [Image, Failed]


def test_a_job_ends_once_and_nothing_comes_after() -> None:
    job = idle_job(wish(images=1))
    with delivering() as (delivery, ended, metrics):
        delivery.end(job, Cancelled("gone"))
        delivery.settle(Picture(job, 0), Image(0, b"file", 1))
        delivery.end(job, None)
    assert [type(event) for event in box_of(job).events] == [Failed] and ended == [job]
    assert metrics.registry.get_sample_value("latentd_images_total", {"model": "m"}) == 0


def test_a_file_that_cannot_be_written_fails_its_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError("some inner words")

    monkeypatch.setattr(pictures, "encode", fail)
    job = idle_job(wish())
    with delivering() as (delivery, _, _):
        delivery.picture(Picture(job, 0), PIXELS)
        assert box_of(job).error() == ("INTERNAL", "image 0 cannot be written as png")


def test_an_older_preview_does_not_follow_a_newer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    newer_is_out = threading.Event()

    def slow_first(latents: np.ndarray, *_: object) -> bytes:
        if latents[0, 0, 0] == 1:
            assert newer_is_out.wait(30)
        return b"jpeg"

    monkeypatch.setattr(pictures, "preview", slow_first)
    job = idle_job(wish())
    picture = Picture(job, 0)
    posted = box_of(job).post

    def post(event: object) -> None:
        posted(event)  # type: ignore[arg-type]
        newer_is_out.set()

    job.mailbox.post = post  # type: ignore[method-assign]
    with delivering() as (delivery, _, metrics):
        delivery.preview(picture, 1, Ready(LATENTS + 1))
        delivery.preview(picture, 2, Ready(LATENTS + 2))
    assert box_of(job).events == [Preview(0, 2, b"jpeg")] and picture.previews_under_way == 0
    assert metrics.registry.get_sample_value("latentd_preview_first_seconds_count", {"model": "m"}) == 1


def test_without_a_map_there_is_no_preview() -> None:
    job = idle_job(wish())
    picture = Picture(job, 0)
    with delivering(map=None) as (delivery, _, _):
        delivery.preview(picture, 1, Ready(LATENTS))
    assert box_of(job).events == [] and picture.previews_under_way == 0


def test_no_preview_follows_its_picture() -> None:
    job = idle_job(wish(images=2))
    picture = Picture(job, 0)
    with delivering() as (delivery, _, _):
        delivery.settle(picture, Image(0, b"file", 1))
        delivery.preview(picture, 3, Ready(LATENTS))
    assert [type(event) for event in box_of(job).events] == [Image] and picture.previews_under_way == 0


def test_a_preview_that_fails_is_lost_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError("some inner words")

    monkeypatch.setattr(pictures, "preview", fail)
    job = idle_job(wish())
    picture = Picture(job, 0)
    with delivering() as (delivery, ended, _):
        delivery.preview(picture, 1, Ready(LATENTS))
    assert box_of(job).events == [] and ended == [] and picture.previews_under_way == 0
