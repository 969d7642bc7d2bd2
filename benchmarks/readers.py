"""Callers that never read beside those that do: `python -m benchmarks.readers`.

32 calls of a picture with a preview of every step are begun on an HTTP/2 window of 0, so that the server cannot send a
byte of what it makes; or, in turn, by readers of everything. Once their pictures are drawn, which costs the same, 32
callers ask for 4-step pictures one after the other: their p95 beside unread calls over that beside read ones is the
figure. Five turns of read, never read, never read, read, so that a machine that slows down counts for both.

How far two runs of the same differ is a row too: where read over read is as far from 1 as never over read, the machine
was too busy for this, and nothing is shown. What others do to the clock they do not do to the processor time that the
server itself takes for a picture, of which there is a ratio as well.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import grpc
import grpc.aio

from benchmarks.attack.trial import Trial, request, until
from benchmarks.attack.unread import Unread
from benchmarks.load import Load, Outcome, p95
from benchmarks.memory import memory_of
from benchmarks.rows import Figures, Rows
from benchmarks.serving import ROOT, cpu_seconds, server_process
from latentd.v1.images_pb2_grpc import ImagesStub

CALLERS = 32
STEPS = 4
_PATIENT = ("--queue-seconds", "3600")  # on a busy machine too nobody is refused
OTHERS = {"images": 1, "steps": STEPS, "preview_every": 1}


class Run(NamedTuple):
    """Holds what one run showed of the normal callers."""

    p95: float  # seconds
    cpu: float  # seconds of the server's, for a picture
    memory: float  # MB of the server's, after it


@contextlib.asynccontextmanager
async def others(server: Trial, *, read: bool) -> AsyncIterator[None]:
    """Begin the other callers' calls, whose pictures are drawn then; those that are left are given up at the end."""

    wanted = (server.gauge("images_total") or 0.0) + CALLERS

    def drawn() -> bool:
        return (server.gauge("images_total") or 0.0) >= wanted

    if not read:
        with Unread(server.address) as caller:
            for _ in range(CALLERS):
                caller.call(request(**OTHERS))
            await asyncio.to_thread(until, drawn)
            yield
        return

    async def one(stub: ImagesStub) -> None:
        async for _ in stub.Generate(request(**OTHERS)):  # pyright: ignore
            pass

    async with grpc.aio.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        calls = [asyncio.ensure_future(one(ImagesStub(channel))) for _ in range(CALLERS)]
        await asyncio.to_thread(until, drawn)
        yield
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def normal(address: str, seconds: float) -> list[Outcome]:
    """Ask one after the other, from each caller, for so many seconds."""
    async with grpc.aio.insecure_channel(address) as channel:
        load, outcomes, end = Load(ImagesStub(channel)), [], time.monotonic() + seconds

        async def one_after_another() -> None:
            while time.monotonic() < end:
                outcomes.append(await load.one(steps=STEPS))

        await asyncio.gather(*(one_after_another() for _ in range(CALLERS)))
    return outcomes


async def turn(server: Trial, seconds: float, *, read: bool) -> Run:
    """Measure the normal callers. Errors: SystemExit where one of them got no picture."""
    async with others(server, read=read):
        busy = cpu_seconds(server.pid)
        outcomes = await normal(server.address, seconds)
        busy = cpu_seconds(server.pid) - busy
    if failed := [one.refusal for one in outcomes if not one.delivered]:
        raise SystemExit(f"{len(failed)} of {len(outcomes)} normal requests got no picture: {failed[0]}")
    memory = memory_of(server.pid)
    took = p95([one.ended - one.sent for one in outcomes])
    return Run(took, busy / len(outcomes), memory.anonymous + memory.file)


def ratios(runs: dict[bool, list[Run]], value: Callable[[Run], float]) -> list[float]:
    """Return, of each turn, the mean of both runs beside unread calls over that of both beside read ones."""
    sums = {
        read: [value(a) + value(b) for a, b in zip(each[::2], each[1::2], strict=True)] for read, each in runs.items()
    }
    return [never / read for never, read in zip(sums[False], sums[True], strict=True)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.readers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="of each run (default 30)")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="print, and keep no rows")
    options = parser.parse_args(argv)
    runs: dict[bool, list[Run]] = {True: [], False: []}
    with server_process(ROOT / "demo" / "small-things", words=("server",), flags=_PATIENT) as (line, _, pid):
        address, metrics = re.findall(r"gRPC (\S+), metrics (\S+)", line)[0]
        server = Trial(address, metrics, pid)
        asyncio.run(turn(server, min(5.0, options.seconds), read=True))
        for _ in range(options.turns):
            for read in (True, False, False, True):
                runs[read].append(asyncio.run(turn(server, options.seconds, read=read)))
    shape = f"{CALLERS} callers of {STEPS} steps beside {CALLERS} others, {options.seconds:g} s"
    figures: Figures = {}
    for read, name in ((True, "others read"), (False, "others never read")):
        figures[f"p95, {name}", shape, "ms"] = [1e3 * run.p95 for run in runs[read]]
        figures[f"server's processor time of a picture, {name}", shape, "ms"] = [1e3 * run.cpu for run in runs[read]]
        figures[f"memory after turns, {name}", shape, "MB"] = [run.memory for run in runs[read]]
    for what, value in (("p95", lambda run: run.p95), ("processor time", lambda run: run.cpu)):
        figures[f"{what}, never read over read", shape, "ratio"] = ratios(runs, value)
        same = [value(b) / value(a) for a, b in zip(runs[True][::2], runs[True][1::2], strict=True)]
        figures[f"{what}, read over read", shape, "ratio"] = same
    Rows("readers-cpu", ("openvino", "grpcio", "numpy"), keep=not options.dry).add_all(figures)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    sys.exit(main())
