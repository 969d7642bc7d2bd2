"""Events to a slow reader: what is lost, what never is."""

from __future__ import annotations

import asyncio
import threading

from server.events import Done, Event, Image, Preview, Started, Step, Timings
from server.mailbox import Mailbox, is_last

DONE = Done(Timings())


def read_after(*events: Event) -> list[Event]:
    """What a reader finds who comes after all of these."""

    async def read() -> list[Event]:
        mailbox = Mailbox(asyncio.get_running_loop())
        for event in events:
            mailbox.post(event)
        return await mailbox.take()

    return asyncio.run(read())


def test_a_slow_reader_gets_the_latest_step_and_preview_of_each_picture() -> None:
    images = [Image(index, b"file", 7 + index) for index in (0, 1)]
    told = [Started(0), Started(1)]
    for step in range(1, 21):
        for index in (0, 1):
            told += [Step(index, step, 20), Preview(index, step, b"jpeg")]
    kept = read_after(*told, *images, DONE)
    assert kept == [
        Started(0),
        Started(1),
        Step(0, 20, 20),
        Preview(0, 20, b"jpeg"),
        Step(1, 20, 20),
        Preview(1, 20, b"jpeg"),
        *images,
        DONE,
    ]


def test_a_fast_reader_gets_everything_in_order() -> None:
    told = [Started(0), Preview(0, 1, b"a"), Preview(0, 2, b"b"), Image(0, b"file", 1), DONE]

    async def read() -> list[Event]:
        mailbox, got = Mailbox(asyncio.get_running_loop()), []
        for event in told:
            mailbox.post(event)
            got += await mailbox.take()
        return got

    assert asyncio.run(read()) == told


def test_a_step_that_does_not_wake_the_reader_travels_with_the_next_event() -> None:
    async def read() -> list[Event]:
        mailbox = Mailbox(asyncio.get_running_loop())
        mailbox.post(Started(0))
        assert await mailbox.take() == [Started(0)]
        mailbox.post(Step(0, 1, 2))  # within a tenth of a second of the last
        mailbox.post(Step(0, 2, 2))
        mailbox.post(Image(0, b"file", 1))
        return await mailbox.take()

    assert asyncio.run(read()) == [Step(0, 2, 2), Image(0, b"file", 1)]


def test_who_shows_no_progress_hears_of_none() -> None:
    async def read() -> tuple[bool, list[Event]]:
        mailbox = Mailbox(asyncio.get_running_loop(), progress=False)
        taking = asyncio.ensure_future(mailbox.take())
        mailbox.post(Started(0))
        mailbox.post(Step(0, 1, 2))
        asleep = not mailbox._woken
        mailbox.post(Preview(0, 1, b"jpeg"))
        mailbox.post(Image(0, b"file", 1))
        return asleep, await taking

    assert asyncio.run(read()) == (True, [Preview(0, 1, b"jpeg"), Image(0, b"file", 1)])


def test_posted_from_other_threads_every_image_arrives() -> None:
    count = 200

    async def read() -> list[int]:
        mailbox, got = Mailbox(asyncio.get_running_loop()), []

        def post(first: int) -> None:
            for index in range(first, count, 2):
                mailbox.post(Step(0, index, count))
                mailbox.post(Image(index, b"", 0))

        threads = [threading.Thread(target=post, args=(first,)) for first in (0, 1)]
        for thread in threads:
            thread.start()
        while len(got) < count:
            got += [event.index for event in await mailbox.take() if isinstance(event, Image)]
        for thread in threads:
            thread.join()
        return got

    assert sorted(asyncio.run(asyncio.wait_for(read(), 30))) == list(range(count))


def test_posting_after_the_loop_is_closed_is_harmless() -> None:
    async def make() -> Mailbox:
        return Mailbox(asyncio.get_running_loop())

    asyncio.run(make()).post(DONE)


def test_last_events() -> None:
    assert is_last(DONE) and not is_last(Started(0))
