"""A device that does not come back is noticed; one that is slow, idle or was stopped is not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import pytest

from engines.model import Model
from server.device import watchdog
from server.device.watchdog import Watchdog, watch
from server.errors import NotServing
from tests.support.held import Held, wrapped
from tests.support.jobs import box_of, running


@pytest.fixture
def held(model: Model) -> Held:
    return Held(model.backend)


class Ticking:
    """A device of which each tick says: what it owes, its pulse."""

    full_step = 0.1

    def __init__(self, ticks: list[tuple[bool, int]]) -> None:
        self._ticks: Iterator[tuple[bool, int]] = iter(ticks)
        self.owes, self.pulse = False, 0
        self.given_up: list[str] = []

    async def sleep(self, seconds: float) -> None:
        try:
            self.owes, self.pulse = next(self._ticks)
        except StopIteration:
            raise asyncio.CancelledError from None

    def give_up(self, why: str) -> None:
        self.given_up.append(why)


def looks(monkeypatch: pytest.MonkeyPatch, ticks: list[tuple[bool, int]], full_step: float = 0.1) -> list[str]:
    device = Ticking(ticks)
    device.full_step = full_step
    monkeypatch.setattr(watchdog.asyncio, "sleep", device.sleep)
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(watch(device, 3.0))  # type: ignore[arg-type]
    return device.given_up


def test_how_long_it_has_been_idle_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    device, told = Ticking([(True, 1), (True, 1), (True, 1), (True, 2), (True, 2), (False, 2)]), []
    monkeypatch.setattr(watchdog.asyncio, "sleep", device.sleep)
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(watch(device, 9.0, stalled=told.append))  # type: ignore[arg-type]
    assert told == [0.0, 1.0, 2.0, 0.0, 1.0, 0.0]


def test_three_ticks_without_a_pulse(monkeypatch: pytest.MonkeyPatch) -> None:
    assert looks(monkeypatch, [(True, 7), (True, 8)] + [(True, 8)] * 3) == ["nothing for 3 s"]
    assert looks(monkeypatch, [(True, 7), (True, 8)] + [(True, 8)] * 2) == []


@pytest.mark.parametrize(
    ("why", "ticks"),
    [
        ("it works", [(True, pulse) for pulse in range(20)]),
        ("now and then", [(True, pulse // 3) for pulse in range(20)]),
        ("nobody asks", [(False, 1)] * 20),
        ("a new job after a pause", [(False, 1)] * 20 + [(True, 1)] * 2),
    ],
)
def test_who_is_left_alone(why: str, ticks: list[tuple[bool, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert looks(monkeypatch, ticks) == [], why


def test_patience_follows_the_measured_times(monkeypatch: pytest.MonkeyPatch) -> None:
    assert looks(monkeypatch, [(True, 1)] * 20, full_step=1.5) == ["nothing for 15 s"]
    assert looks(monkeypatch, [(True, 1)] * 15, full_step=1.5) == []


def test_zero_waits_for_ever() -> None:
    asyncio.run(watch(None, 0))  # type: ignore[arg-type]  returns at once


def test_a_stuck_device_is_given_up(model: Model, held: Held) -> None:
    with running(wrapped(model, held), seats=1, ready=held.hold) as at_work:
        jobs = [at_work.submit(prompt="red apple", steps=2), at_work.submit(prompt="a cat", steps=2)]
        held.begun()  # and never let on
        before = at_work.device.pulse
        asyncio.run(watch(at_work.device, 0.02, tick=0.01))
        assert before == at_work.device.pulse > 0, "a seating"
        for job in jobs:
            code, told = box_of(job).error()
            assert code == "UNAVAILABLE" and told.startswith("the device is stuck: nothing for ")
        assert at_work.deaths == 1 and at_work.device.failed
        with pytest.raises(NotServing, match="the device has failed"):
            at_work.submit(prompt="red apple")
        at_work.device.stop()  # returns, although the thread does not
        assert at_work.device._thread.is_alive()
        held.release()  # should it come back after all, its jobs have ended once
        at_work.device._thread.join(30)
        assert [box_of(job).ends for job in jobs] == [1, 1]


def test_of_two_devices_the_longer_idle_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a model is swapped: the one that works does not hide the one that is stuck, until that has gone."""
    told: list[float] = []

    async def ticks(device: tuple[float, ...], seconds: float, stalled: Callable[[float], object]) -> None:
        for idle in device:
            stalled(idle)
            await asyncio.sleep(0)

    async def life() -> None:
        dog, stuck, at_work = Watchdog(9.0, told.append), (0.0, 1.0, 2.0), (0.0,) * 20
        dog.begin(stuck)  # type: ignore[arg-type]
        dog.begin(at_work)  # type: ignore[arg-type]
        while len(told) < 6:
            await asyncio.sleep(0)
        await dog.end(stuck)  # type: ignore[arg-type]
        while told[-1]:
            await asyncio.sleep(0)
        dog.close()

    monkeypatch.setattr(watchdog, "watch", ticks)
    asyncio.run(life())
    assert told[:6] == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0] and told[-1] == 0.0
