"""A server for a long time at 80% of what it can do: `python -m benchmarks.soak [--hours H]` (make soak).

A process of its own serves the embedded model in two sizes. A closed loop over a random mix is its capacity; then
Poisson arrivals of the same mix at 0.8 of that for ten minutes, or so many hours: steps, samplers, guidance, sizes and
pictures at random, one in ten with previews, one in twenty cancelled by its client. Every request's latency, and the
process's memory, threads and descriptors each five seconds, are rows in build/soak/; a plot in docs is drawn of
them. Exit code 1 where a verdict fails.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import itertools
import os
import random
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from benchmarks import trend
from benchmarks.memory import memory_of
from benchmarks.plots import Panel, draw
from benchmarks.rows import Rows
from benchmarks.serving import IN_FLIGHT, ROOT, server_process
from latentd.v1 import images_pb2 as pb
from latentd.v1.images_pb2_grpc import ImagesStub

LOAD = 0.8  # of the capacity
SIZES = ((64, 64), (96, 64))
SAMPLERS = ("ddim", "euler", "euler_a", "dpmpp_2m", "unipc")
PREVIEWED, LEAVING = 0.1, 0.05  # shares of the requests
SECONDS = 600.0
FIRST = 120.0  # seconds after which memory has settled
MORE_MEMORY = 16.0  # MB
MORE_LATENCY = 0.1  # of the median, over the whole run
CHANCE = 0.05  # of a trend where there is none
_EVERY = 5.0  # seconds between looks at the process


@dataclass(frozen=True)
class Ended:
    """Holds one request: seconds since the run's begin, and what became of it."""

    sent: float
    seconds: float
    code: str
    cancelled: bool  # by its client, on purpose
    steps: int
    images: int
    size: str
    sampler: str

    @property
    def error(self) -> bool:
        return self.code != "OK" and not (self.cancelled and self.code == "CANCELLED")


@dataclass(frozen=True)
class Look:
    """Holds one look at the process, at seconds since the run's begin. Memory in MB."""

    at: float
    memory: float
    threads: int
    descriptors: int


def look(pid: int, at: float) -> Look:
    """Look at a process of this machine."""
    seen, process = memory_of(pid), Path(f"/proc/{pid}")
    return Look(
        at, seen.anonymous + seen.file, len(list((process / "task").iterdir())), len(os.listdir(process / "fd"))
    )


class Mix:
    """Sends requests that are drawn at random, each with another prompt."""

    def __init__(self, stub: ImagesStub, seed: int) -> None:
        self._stub, self._draw, self._numbers = stub, random.Random(seed), itertools.count()

    def drawn(self) -> tuple[pb.GenerateRequest, float | None]:
        """Draw a request, and after how many seconds its client leaves; None: it stays."""
        draw, number = self._draw, next(self._numbers)
        width, height = draw.choice(SIZES)
        request = pb.GenerateRequest(
            prompt=f"red apple number {number}, color style",
            seed=number,
            width=width,
            height=height,
            steps=draw.randint(1, 20),
            sampler=draw.choice(SAMPLERS),
            guidance=draw.choice((1.0, 3.0, 3.0)),
            images=draw.choice((1, 1, 1, 2)),
            preview_every=2 if draw.random() < PREVIEWED else 0,
        )
        return request, draw.uniform(0.0, 0.5) if draw.random() < LEAVING else None

    async def one(self, begun: float) -> Ended:
        request, leaves = self.drawn()
        call, start, code, cancelled = self._stub.Generate(request), time.monotonic(), "OK", False

        async def read() -> None:
            async for _ in call:  # pyright: ignore
                pass

        try:
            await asyncio.wait_for(read(), leaves)
        except TimeoutError:
            cancelled, code = True, "CANCELLED"
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        what = (request.steps, request.images, f"{request.width}x{request.height}", request.sampler)
        return Ended(start - begun, time.monotonic() - start, code, cancelled, *what)

    async def loop(self, seconds: float) -> float:
        """Keep twice as many requests under way as there are seats; returns those that ended a second."""
        begun, count = time.monotonic(), 0

        async def one_after_another() -> None:
            nonlocal count
            while time.monotonic() < begun + seconds:
                await self.one(begun)
                count += 1

        await asyncio.gather(*(one_after_another() for _ in range(2 * IN_FLIGHT)))
        return count / (time.monotonic() - begun)

    async def arrivals(self, rate: float, seconds: float) -> list[Ended]:
        """Send so many a second, Poisson, whatever becomes of them."""
        draw, tasks = random.Random(17), []
        begun = due = time.monotonic()
        while due < begun + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.ensure_future(self.one(begun)))
            due += draw.expovariate(rate)
        return list(await asyncio.gather(*tasks))


async def watch(pid: int, looks: list[Look], every: float) -> None:
    """Look at a process again and again, until cancelled."""
    begun = time.monotonic()
    while True:
        looks.append(look(pid, time.monotonic() - begun))
        await asyncio.sleep(every)


async def soak(address: str, pid: int, warm: float, seconds: float) -> tuple[float, list[Ended], list[Look]]:
    """Measure the capacity for `warm` seconds, then load the server; returns capacity, requests and looks."""
    async with grpc.aio.insecure_channel(address) as channel:
        mix = Mix(ImagesStub(channel), 13)
        await mix.loop(min(5.0, warm))
        capacity = await mix.loop(warm)
        looks: list[Look] = []
        watching = asyncio.create_task(watch(pid, looks, min(_EVERY, seconds / 20)))
        ended = await mix.arrivals(LOAD * capacity, seconds)
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    return capacity, ended, looks


@dataclass(frozen=True)
class Verdict:
    """Holds one line of the verdict."""

    good: bool
    sentence: str


def minutes(ended: Sequence[Ended], length: float) -> list[list[float]]:
    """Return the latencies of whoever was served, by the parts of the run in which they were sent; seconds."""
    parts: list[list[float]] = [[] for _ in range(max((int(one.sent / length) + 1 for one in ended), default=0))]
    for one in ended:
        if one.code == "OK":
            parts[int(one.sent / length)].append(one.seconds)
    return [part for part in parts if part]


def verdicts(ended: Sequence[Ended], looks: Sequence[Look], length: float, first: float) -> list[Verdict]:
    """Judge a run. `length`: seconds of a part whose median counts; `first`: when memory has settled."""
    errors = [one.code for one in ended if one.error]
    medians = [statistics.median(part) for part in minutes(ended, length)]
    whole = statistics.median([one.seconds for one in ended if one.code == "OK"] or [0.0])
    rise, chance = trend.slope(medians) * (len(medians) - 1), trend.rises(medians)
    settled = [each.memory for each in looks if each.at >= first] or [looks[-1].memory]
    more = max(settled) - settled[0]
    return [
        Verdict(not errors, f"{len(errors)} errors of {len(ended)} requests {sorted(set(errors)) or ''}"),
        Verdict(
            rise <= MORE_LATENCY * whole or chance > CHANCE,
            f"medians of {len(medians)} parts rise by {1e3 * rise:.1f} ms (Theil-Sen) of {1e3 * whole:.0f} ms, and "
            f"would by chance with p = {chance:.2f} (Mann-Kendall); bad is more than {MORE_LATENCY:g} of it, p to "
            f"{CHANCE:g}",
        ),
        Verdict(more <= MORE_MEMORY, f"memory from {first:g} s on: {more:+.1f} MB; bad is more than {MORE_MEMORY:g}"),
    ]


def write(path: Path, records: Sequence[Any], kind: type) -> None:
    """Write dataclasses of one kind as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(kind))
        writer.writerows(tuple(f"{v:.4f}" if isinstance(v, float) else v for v in astuple(each)) for each in records)


def plot(path: Path, ended: Sequence[Ended], looks: Sequence[Look], length: float) -> None:
    """Draw latency, memory, threads and descriptors over the run."""
    parts = [sorted(part) for part in minutes(ended, length)]
    at = [(index + 0.5) * length / 60 for index in range(len(parts))]
    over = [each.at / 60 for each in looks]
    lines = {
        "median": (at, [1e3 * statistics.median(part) for part in parts]),
        "p99": (at, [1e3 * part[int(0.99 * (len(part) - 1))] for part in parts]),
    }
    counts = {"threads": (over, [e.threads for e in looks]), "descriptors": (over, [e.descriptors for e in looks])}
    panels = [
        Panel(f"latency, {LOAD:g} of the capacity, {len(ended)} requests", "minutes", "ms", lines),
        Panel("memory of the server", "minutes", "MB", {"resident": (over, [each.memory for each in looks])}),
        Panel("threads and descriptors", "minutes", "", counts),
    ]
    draw(path, panels)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hours", type=float, default=SECONDS / 3600, help="of the run (default: ten minutes)")
    parser.add_argument("--warm", type=float, default=60.0, help="seconds of the capacity's run (default 60)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "soak", help="folder of every request's row")
    parser.add_argument("--dry", action="store_true", help="print, and keep neither summary nor plot")
    options = parser.parse_args(argv)
    seconds, served = 3600 * options.hours, ",".join(f"{width}x{height}" for width, height in SIZES)
    length, first = min(60.0, seconds / 10), min(FIRST, seconds / 2)
    with server_process(ROOT / "demo" / "small-things", words=("server",), flags=("--sizes", served)) as (line, _, pid):
        address = re.findall(r"gRPC (\S+),", line)[0]
        capacity, ended, looks = asyncio.run(soak(address, pid, options.warm, seconds))
    write(options.out / "requests.csv", ended, Ended)
    write(options.out / "process.csv", looks, Look)
    lines = verdicts(ended, looks, length, first)
    for each in lines:
        print(f"{'ok ' if each.good else 'BAD'} {each.sentence}", flush=True)
    if not options.dry:
        shape = f"mix of 1 to 20 steps, {LOAD:g} of the capacity, {seconds / 60:g} min"
        rows = Rows("soak-cpu", ("openvino", "grpcio", "numpy"))
        rows.add("capacity", "closed loop of the mix", "1/s", [capacity])
        medians = [1e3 * statistics.median(part) for part in minutes(ended, length)]
        rows.add("median latency of a minute", shape, "ms", medians)
        rows.add("median latency, slope", shape, "ms/min", [trend.slope(medians)])
        rows.add("median latency, chance of the rise", shape, "p", [trend.rises(medians)])
        rows.add("errors", shape, "requests", [float(sum(one.error for one in ended))])
        rows.add("requests", shape, "requests", [float(len(ended))])
        settled = [each.memory for each in looks if each.at >= first]
        rows.add("memory, after minute two, most over first", shape, "MB", [max(settled) - settled[0]])
        rows.add("threads, last look", shape, "threads", [float(looks[-1].threads)])
        rows.add("descriptors, last look", shape, "descriptors", [float(looks[-1].descriptors)])
        plot(ROOT / "docs" / "soak.png", ended, looks, length)
    return 0 if all(each.good for each in lines) else 1


if __name__ == "__main__":
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    sys.exit(main())
