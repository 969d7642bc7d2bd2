"""A server under more than it can do: `python -m benchmarks.load [--base CLONE]` (make load).

A process of its own serves the embedded model. First a closed loop of 16 requests in flight is its peak. Then, 3 and 10
times that: open-loop Poisson arrivals of 12-step requests, every prompt another one, each with a deadline of twice what
its steps take in full seats (2 s where nothing else runs on the two cores that this was written on). Before each a
control run: the closed loop again, beside the same surplus as requests that are invalid, so that what the load
generator and refusing as such cost these two cores is in both. With --base another clone is measured in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import re
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from benchmarks.rows import Figures, Rows
from benchmarks.serving import IN_FLIGHT, ROOT, server_process
from latentd.v1 import images_pb2 as pb
from latentd.v1.images_pb2_grpc import ImagesStub

STEPS = 12
DEADLINE = 2 * STEPS  # full steps
IN_LOOP = 2 * IN_FLIGHT  # as many wait as sit: no seat is ever empty
FACTORS = (3, 10)
_LEAST = 0.01  # pictures a second, of a machine that stood still


@dataclass
class Outcome:
    """Notes the end of one request, at monotonic seconds."""

    sent: float
    ended: float = 0.0
    admitted: bool = False
    steps: int = 0  # done, as far as the client heard
    delivered: bool = False
    refusal: str = ""  # what the server, or gRPC, said of a failure


class Load:
    """Sends requests to one server, each another prompt."""

    def __init__(self, stub: ImagesStub) -> None:
        self._stub = stub
        self._numbers = itertools.count()

    async def one(self, *, timeout: float | None = None, steps: int = STEPS) -> Outcome:
        number = next(self._numbers)
        request = pb.GenerateRequest(prompt=f"red apple number {number}, color style", seed=number, steps=steps)
        outcome = Outcome(time.monotonic())
        try:
            async for event in self._stub.Generate(request, timeout=timeout):  # pyright: ignore
                outcome.admitted = True
                outcome.steps = event.step.step or outcome.steps
                outcome.delivered = outcome.delivered or event.HasField("image")
        except grpc.aio.AioRpcError as error:
            outcome.refusal = f"{error.code().name}: {error.details()}"
        outcome.ended = time.monotonic()
        if outcome.delivered:
            outcome.steps = steps
        return outcome

    async def loop(self, seconds: float) -> list[Outcome]:
        """A closed loop."""
        end, outcomes = time.monotonic() + seconds, []

        async def one_after_another() -> None:
            while time.monotonic() < end:
                outcomes.append(await self.one())

        await asyncio.gather(*(one_after_another() for _ in range(IN_LOOP)))
        return outcomes

    async def arrivals(self, rate: float, seconds: float, send: Callable[[], Awaitable[Outcome]]) -> list[Outcome]:
        """An open loop: Poisson arrivals at so many a second, whatever becomes of them."""
        draw, tasks = random.Random(13), []
        begun = due = time.monotonic()
        while due < begun + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.ensure_future(send()))
            due += draw.expovariate(rate)
        return list(await asyncio.gather(*tasks))


def rate_of(outcomes: list[Outcome], begun: float, seconds: float, filling: float) -> float:
    """Pictures a second, once seats and queue have been `filling` for so many seconds."""
    first, last = begun + filling, begun + seconds
    return sum(1 for one in outcomes if one.delivered and first < one.ended <= last) / (last - first)


def p95(values: list[float]) -> float:
    return sorted(values)[round(0.95 * (len(values) - 1))] if values else 0.0


def counters(metrics: str, key: str | None = None) -> dict[str, float]:
    """The server's sums and counts, by name without the prefix. `key`: where it wants one."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    with urllib.request.urlopen(urllib.request.Request(metrics, headers=headers), timeout=10) as page:
        lines = page.read().decode().splitlines()
    found = (re.fullmatch(r'latentd_(\w+)\{model="[^"]*"\} (\S+)', line) for line in lines)
    return {match[1]: float(match[2]) for match in found if match}


@contextlib.asynccontextmanager
async def load_of(address: str) -> AsyncIterator[Load]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield Load(ImagesStub(channel))


@contextlib.contextmanager
def measured(metrics: str, key: str | None = None) -> Iterator[dict[str, float]]:
    """Give the growth of the server's counters, once the block is over."""
    grew: dict[str, float] = {}
    before = counters(metrics, key)
    yield grew
    grew.update({name: value - before.get(name, 0.0) for name, value in counters(metrics, key).items()})


async def measure(whose: str, address: str, metrics: str, seconds: float, figures: Figures) -> None:
    """One turn against one server; a figure to each row."""

    def note(what: str, shape: str, unit: str, value: float) -> None:
        figures[f"{what}, {whose}", shape, unit].append(value)

    async with load_of(address) as load:
        await load.loop(3.0)  # warm
        begun = time.monotonic()
        with measured(metrics) as grew:
            outcomes = await load.loop(seconds)
        step = grew["step_seconds_sum"] / grew["steps_total"]
        deadline = DEADLINE * step
        peak = rate_of(outcomes, begun, seconds, deadline)
        if not peak:
            raise SystemExit(
                f"{DEADLINE} steps, the deadline, take {deadline:.1f} s here, and no picture came after them in "
                f"{seconds:g} s: run longer (--seconds), or when this machine is less busy"
            )
        shape = f"closed loop, {IN_LOOP} in flight, {STEPS} steps"
        note("peak", shape, "1/s", peak)
        note("full step", shape, "ms", 1e3 * step)
        note("deadline", shape, "s", deadline)
        for factor in FACTORS:
            shape = f"{factor} x peak, {STEPS} steps, deadline {DEADLINE} full steps, {seconds:g} s"
            begun = time.monotonic()
            controlled, _ = await asyncio.gather(
                load.loop(seconds), load.arrivals((factor - 1) * peak, seconds, lambda: load.one(steps=1001))
            )
            control = rate_of(controlled, begun, seconds, deadline)
            begun = time.monotonic()
            with measured(metrics) as grew:
                outcomes = await load.arrivals(factor * peak, seconds, lambda: load.one(timeout=deadline))
                await asyncio.sleep(0.5)  # the last ones leave their seats
            goodput = rate_of(outcomes, begun, seconds, deadline)
            admitted = [one for one in outcomes if one.admitted]
            refused = [one.ended - one.sent for one in outcomes if not one.admitted]
            seen = sum(one.steps for one in admitted)
            note("goodput", shape, "1/s", goodput)
            note("goodput over peak", shape, "ratio", goodput / max(peak, _LEAST))
            note("goodput of the control run", shape, "1/s", control)
            note("goodput over control run", shape, "ratio", goodput / max(control, _LEAST))
            note(
                "seat-steps delivered, as clients saw",
                shape,
                "ratio",
                sum(one.steps for one in admitted if one.delivered) / max(1, seen),
            )
            if "seat_steps_total" in grew:
                share = grew["seat_steps_delivered_total"] / max(1.0, grew["seat_steps_total"])
                note("seat-steps delivered", shape, "ratio", share)
                note("seats in a step", shape, "seats", grew["seat_steps_total"] / max(1.0, grew["steps_total"]))
            note(
                "late of the admitted",
                shape,
                "ratio",
                sum(1 for one in admitted if not one.delivered) / max(1, len(admitted)),
            )
            note("refusals p95", shape, "ms", 1e3 * p95(refused))
            note("refusals p95 over full step", shape, "ratio", p95(refused) / step)


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.load", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each run (default 60)")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--base", type=Path, help="a clone to measure in turn with this one")
    parser.add_argument("--dry", action="store_true", help="print, and keep no rows")
    options = parser.parse_args()
    folders = {"this": ROOT, **({"base": options.base} if options.base else {})}
    figures: Figures = defaultdict(list)
    for _ in range(options.turns):
        for whose, folder in folders.items():
            with server_process(ROOT / "demo" / "small-things", folder=folder, words=("server",)) as (line, _, _):
                address, metrics = re.findall(r"gRPC (\S+), metrics (\S+)", line)[0]
                asyncio.run(measure(whose, address, metrics, options.seconds, figures))
    Rows("load-cpu", ("openvino", "grpcio", "numpy"), keep=not options.dry).add_all(figures)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    sys.exit(main())
