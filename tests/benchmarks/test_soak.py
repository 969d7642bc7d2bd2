"""The soak's judgement, in numbers, and its run, in a second: what it must call bad, and that it runs."""

from __future__ import annotations

import asyncio
import csv
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import soak, trend
from benchmarks.plots import Panel, draw
from benchmarks.soak import Ended, Look, verdicts
from server.app import Server
from tests.support.serving import address

LOOKS = [Look(5.0 * index, 400.0 + (index < 24) * -50, 30, 20) for index in range(120)]


def run(slower: float = 0.0, noise: float = 0.05, code: str = "OK", *, cancelled: bool = False) -> list[Ended]:
    """Ten minutes of a request a second that take 0.2 s, and `slower` of that more at the end."""
    draw = random.Random(1)
    each = [0.2 * (1 + slower * second / 600) * draw.uniform(1 - noise, 1 + noise) for second in range(600)]
    served = [Ended(float(at), seconds, "OK", False, 4, 1, "8x8", "ddim") for at, seconds in enumerate(each)]
    return [*served[:-1], replace(served[-1], code=code, cancelled=cancelled)]


def judged(ended: list[Ended], looks: list[Look] = LOOKS) -> list[bool]:
    return [verdict.good for verdict in verdicts(ended, looks, 60.0, 120.0)]


def test_a_steady_run_is_good() -> None:
    assert judged(run()) == [True, True, True], "memory before minute two does not count"
    assert judged(run(noise=0.3))[1] and judged(run(slower=-0.5))[1]


def test_what_gets_slower_is_bad_and_a_little_is_not() -> None:
    assert judged(run(slower=0.3)) == [True, False, True]
    assert judged(run(slower=0.05))[1]


def test_an_error_is_bad_and_a_client_that_left_is_none() -> None:
    assert judged(run(code="RESOURCE_EXHAUSTED")) == [False, True, True]
    assert not judged(run(code="CANCELLED"))[0], "nobody asked for that"
    assert judged(run(code="CANCELLED", cancelled=True))[0]


def test_memory_that_grows_is_bad() -> None:
    leaking = [replace(look, memory=400 + index * 0.2) for index, look in enumerate(LOOKS)]
    assert judged(run(), leaking) == [True, True, False]
    assert judged(run(), [replace(look, memory=400 + index * 0.1) for index, look in enumerate(LOOKS)])[2]


def test_slopes_and_chances() -> None:
    assert trend.slope([1.0, 2.0, 3.0, 4.0, 500.0]) == 1.0, "an outlier changes nothing"
    assert trend.slope([7.0]) == 0 and trend.rises([1.0, 2.0]) == 1
    assert trend.rises([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) < 0.01 < 0.9 < trend.rises([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    assert trend.rises([2.0, 1.0, 2.0, 1.0, 2.0, 1.0]) > 0.3


def test_a_short_soak_of_a_server(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every request ends, the process is looked at, and what is written is what was seen."""
    monkeypatch.setattr(soak, "IN_FLIGHT", 1)
    monkeypatch.setattr(soak, "PREVIEWED", 0.0)  # the first one has the server compile the encoder
    monkeypatch.setattr(soak, "SIZES", tuple(server.service.ready().sizes))
    capacity, ended, looks = asyncio.run(soak.soak(address(server), os.getpid(), 0.2, 0.2))
    assert capacity > 0 and looks and looks[0].descriptors > 3 and looks[0].threads > 1 and looks[0].memory > 10
    assert ended and not any(one.error for one in ended)
    soak.write(tmp_path / "a" / "requests.csv", ended, Ended)
    rows = list(csv.DictReader((tmp_path / "a" / "requests.csv").open()))
    assert [row["code"] for row in rows] == [one.code for one in ended]
    soak.plot(tmp_path / "soak.png", run(), LOOKS, 60.0)
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "soak.png").stat().st_size < 100_000


def test_a_mix_draws_whatever_a_request_may_be() -> None:
    mix = soak.Mix(None, 3)  # type: ignore[arg-type]
    drawn = [mix.drawn() for _ in range(300)]
    assert {request.sampler for request, _ in drawn} == set(soak.SAMPLERS)
    assert {(request.width, request.height) for request, _ in drawn} == set(soak.SIZES)
    assert 0 < sum(leaves is not None for _, leaves in drawn) < 40 and any(each.preview_every for each, _ in drawn)
    assert len({request.prompt for request, _ in drawn}) == 300


def test_panels_of_one_line_and_of_more(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", [Panel("a", "x", "y", {"one": ([1, 2], [3, 4]), "two": ([1, 2], [4, 3])})])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
