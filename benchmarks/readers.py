"""Callers that never read beside those that do: `python -m benchmarks.readers`.

32 calls of a picture with a preview of every step are begun on an HTTP/2 window of 0, so that the server cannot send a
byte of what it makes; or, in turn, by readers of everything. Once their pictures are drawn, which costs the same, 32
callers ask for 4-step pictures one after the other: their p95 beside unread calls over that beside read ones is the
figure. Five turns, interleaved.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import sys
import time
from collections.abc import AsyncIterator

import grpc
import grpc.aio

from benchmarks.attack.trial import Trial, request, until
from benchmarks.attack.unread import Unread
from benchmarks.load import Load, Outcome, p95
from benchmarks.memory import memory_of
from benchmarks.rows import Rows
from benchmarks.serving import ROOT, server_process
from latentd.v1.images_pb2_grpc import ImagesStub

CALLERS = 32
STEPS = 4
_PATIENT = ("--queue-seconds", "3600")  # on a busy machine too nobody is refused
OTHERS = {"images": 1, "steps": STEPS, "preview_every": 1}


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


async def turn(server: Trial, seconds: float, *, read: bool) -> float:
    """Return the normal callers' p95, seconds. Errors: SystemExit where one of them got no picture."""
    async with others(server, read=read):
        outcomes = await normal(server.address, seconds)
    if failed := [one.refusal for one in outcomes if not one.delivered]:
        raise SystemExit(f"{len(failed)} of {len(outcomes)} normal requests got no picture: {failed[0]}")
    return p95([one.ended - one.sent for one in outcomes])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.readers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="of each run (default 30)")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="print, and keep no rows")
    options = parser.parse_args(argv)
    p95s: dict[bool, list[float]] = {True: [], False: []}
    memory: dict[bool, list[float]] = {True: [], False: []}
    with server_process(ROOT / "demo" / "small-things", words=("server",), flags=_PATIENT) as (line, _, pid):
        address, metrics = re.findall(r"gRPC (\S+), metrics (\S+)", line)[0]
        server = Trial(address, metrics, pid)
        asyncio.run(turn(server, min(5.0, options.seconds), read=True))
        for number in range(options.turns):
            for read in (True, False) if number % 2 else (False, True):
                p95s[read].append(asyncio.run(turn(server, options.seconds, read=read)))
                seen = memory_of(pid)
                memory[read].append(seen.anonymous + seen.file)
    ratios = [b / a for a, b in zip(p95s[True], p95s[False], strict=True)]
    shape = f"{CALLERS} callers of {STEPS} steps beside {CALLERS} others, {options.seconds:g} s"
    lines = [
        ("p95, others read", "ms", [1e3 * value for value in p95s[True]]),
        ("p95, others never read", "ms", [1e3 * value for value in p95s[False]]),
        ("p95, never read over read", "ratio", ratios),
        ("memory after turns, others read", "MB", memory[True]),
        ("memory after turns, others never read", "MB", memory[False]),
    ]
    rows = None if options.dry else Rows("readers-cpu", ("openvino", "grpcio", "numpy"))
    for what, unit, values in lines:
        if rows:
            rows.add(what, shape, unit, values)
        else:
            print(f"{what:40} {' '.join(f'{value:8.4g}' for value in values)} {unit}", flush=True)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    sys.exit(main())
