"""What every door does with a job: its events up to the end, whatever the end is."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.errors import LatentdError
from server.errors import Busy, NotServing
from server.events import Done, Event, Failed, Image, Started, Timings
from server.job import Job
from server.limits import Limits
from server.mailbox import Mailbox, collect
from server.metrics import Metrics
from server.request import ImageRequest
from server.service import Service
from tests.support.jobs import wish

DONE = Done(Timings())


def service() -> Service:
    return Service("m", Limits(), Metrics("m"))


def posted(*events: Event) -> Job:
    job = Job("j", wish(), Mailbox(asyncio.get_running_loop()), 0.0)
    for event in events:
        job.mailbox.post(event)
    return job


def test_events_end_with_done_and_what_comes_after_is_not_told() -> None:
    async def read() -> list[Event]:
        return [event async for event in service().events(posted(Started(0), DONE, Image(0, b"late", 1)))]

    assert asyncio.run(read()) == [Started(0), DONE]


def test_a_failure_is_raised_after_what_came_before_it() -> None:
    async def read() -> list[Event]:
        told: list[Event] = []
        with pytest.raises(Busy, match="later"):
            async for event in service().events(posted(Image(1, b"file", 7), Failed(Busy("later", 2.0)))):
                told.append(event)
        return told

    assert asyncio.run(read()) == [Image(1, b"file", 7)]


def test_a_reader_who_stops_cancels_the_job() -> None:
    async def read() -> bool:
        job = posted(Started(0))
        events = service().events(job)
        await anext(events)
        assert not job.cancelled
        await events.aclose()
        return job.cancelled

    assert asyncio.run(read())


def test_who_sees_an_end_counted_knows_that_the_job_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    async def end() -> list[bool]:
        ending, job, seen = service(), posted(Started(0)), list[bool]()
        monkeypatch.setattr(ending.metrics, "request", lambda *_: seen.append(job.cancelled))
        ending.ended("grpc", asyncio.CancelledError(), job, "id", 0.0)
        return seen

    assert asyncio.run(end()) == [True]


def test_collected_pictures_are_in_order_of_index() -> None:
    async def read() -> tuple[list[Image], Done]:
        return await collect(service().events(posted(Image(1, b"b", 8), Started(0), Image(0, b"a", 7), DONE)))

    pictures, done = asyncio.run(read())
    assert [picture.index for picture in pictures] == [0, 1] and done is DONE


def test_a_failure_beside_pictures_is_the_answer() -> None:
    async def read() -> None:
        await collect(service().events(posted(Image(0, b"a", 7), Failed(LatentdError("no")))))

    with pytest.raises(LatentdError, match="no"):
        asyncio.run(read())


def test_nothing_is_taken_before_the_model_is_there() -> None:
    with pytest.raises(NotServing, match="m is loading"):
        asyncio.run(service().submit(ImageRequest(), "id", None))
