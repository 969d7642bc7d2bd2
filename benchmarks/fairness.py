"""One caller's flood and another one's short requests: `python -m benchmarks.fairness [--base CLONE | --keys]`.

A process of its own serves the embedded model on IPv4 and IPv6. From 127.0.0.1 comes a request of 8 pictures of 150
steps, from [::1] requests of 4 steps one after another, each another prompt: alone, beside the flood at equal priority,
and at a higher one. Then the same work again from one address, which is first come first served, for the time of the
whole. With --base another clone is measured in turn. A quiet machine of two cores takes under three minutes.

With --keys both come from one address, each with a key, and the short requests with keys of weight 1, 2 and 4 in turn:
what they take over their bound, which is their idle time, the flood's part of the steps by the weight, and one full
step. Exit code 1 where the median of a weight is above it. The same in exact numbers, where time is one, is in
tests/server/batching/test_fairness.py.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import re
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import yaml

from benchmarks.load import counters, measured
from benchmarks.rows import Figures, Rows
from benchmarks.serving import IN_FLIGHT, ROOT, server_process
from engines.cpu.stepper import HostStepper
from engines.model import load
from engines.seat import Sitting
from latentd import AsyncClient
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.noise import standard_normal
from pipeline.samplers import table
from server.access.key import digest_of, new_token

MODEL = ROOT / "demo" / "small-things"
FLOOD, SHORT = 150, 4  # steps
ALONE, BESIDE = 10, 6  # short requests
WEIGHTS = (1.0, 2.0, 4.0)
_PAUSES = 50


class Callers:
    """Sends the flood from one address and short requests from another, each with a key where there are any."""

    def __init__(self, port: int, metrics: str, keys: tuple[str, str] | None = None) -> None:
        self._flood = f"127.0.0.1:{port}", keys and keys[0]
        self._other = (self._flood[0], keys[1]) if keys else (f"[::1]:{port}", None)
        self._metrics, self._key = metrics, keys and keys[0]
        self._numbers = itertools.count()

    async def short(self, client: AsyncClient, priority: int = 0) -> float:
        """Return the seconds of one short request."""
        number, start = next(self._numbers), time.monotonic()
        await client.generate(f"red apple number {number}", seed=number, steps=SHORT, priority=priority)
        return time.monotonic() - start

    async def alone(self) -> list[float]:
        """Return the seconds of short requests with nobody beside them."""
        async with _client(*self._other) as client:
            return [await self.short(client) for _ in range(ALONE + 2)][2:]

    async def beside(self, *, one_caller: bool, count: int) -> tuple[list[float], list[float], float, float]:
        """Run the flood and so many short requests at equal priority, then at a higher one.

        Returns the seconds of each, of a full step, and of the whole. The first come from another address unless it is
        `one_caller`, whose priorities are all equal too: that is first come first served.
        """
        async with _client(*self._flood) as flood, _client(*(self._flood if one_caller else self._other)) as other:
            start = time.monotonic()
            flooding = asyncio.create_task(flood.generate("a blue cat", seed=1, steps=FLOOD, images=IN_FLIGHT))
            await asyncio.sleep(0.5)  # all eight sit
            with measured(self._metrics, self._key) as grew:
                await asyncio.sleep(1.5)
            full = grew["step_seconds_sum"] / grew["steps_total"]
            equal, higher = [], []
            if one_caller:
                waits = [asyncio.create_task(self.short(other)) for _ in range(2 * count)]
                equal = list(await asyncio.gather(*waits))
            else:
                for _ in range(count):
                    equal.append(await self.short(other))
                    higher.append(await self.short(other, priority=1))
            await flooding
            return equal, higher, full, time.monotonic() - start


def _client(address: str, key: str | None) -> AsyncClient:
    return AsyncClient(address, key=key)


async def measure(whose: str, callers: Callers, metrics: str, figures: Figures) -> None:
    """Take one turn against one server; a figure to each row."""
    shape = f"{IN_FLIGHT} x {FLOOD} steps from one caller, {SHORT} steps from another"

    def note(what: str, unit: str, *values: float) -> None:
        figures[f"{what}, {whose}", shape, unit].extend(values)

    idle = await callers.alone()
    middle = sorted(idle)[len(idle) // 2]
    # A server without shares lets the short ones wait for the whole flood: one of each priority is enough to see.
    count = BESIDE if "pauses_total" in counters(metrics) else 1
    with measured(metrics) as grew:
        equal, higher, full, whole = await callers.beside(one_caller=False, count=count)
    share = 2 * SHORT * full / (2 * IN_FLIGHT)  # what the flood's rows take beside it
    note("idle", "ms", *(1e3 * took for took in idle))
    note("full step", "ms", 1e3 * full)
    for name, times, bound in (("equal", equal, middle + share + full), ("higher", higher, middle + 2 * full)):
        note(f"{name} priority", "ms", *(1e3 * took for took in times))
        note(f"{name} priority over idle", "ratio", *(took / middle for took in times))
        note(f"{name} priority over its bound", "ratio", *(took / bound for took in times))
    if "pauses_total" in grew:
        note("pauses", "pictures", grew["pauses_total"])
    *_, served = await callers.beside(one_caller=True, count=count)
    note("whole", "s", whole)
    note("whole over first come first served", "ratio", whole / served)


async def measure_keys(port: int, metrics: str, tokens: dict[float, str], figures: Figures) -> list[float]:
    """Take one turn with keys from one address: one that floods, and one of each weight beside it.

    Returns what the short requests of each weight took over their bound, the median.
    """
    ratios = []
    for weight in WEIGHTS:
        shape = f"{IN_FLIGHT} x {FLOOD} steps of a key of weight 1, {SHORT} steps of one of weight {weight:g}"
        callers = Callers(port, metrics, (tokens[0.0], tokens[weight]))
        idle = statistics.median(await callers.alone())
        equal, _, full, _ = await callers.beside(one_caller=False, count=BESIDE)
        bound = idle + 2 * SHORT * full / (2 * IN_FLIGHT) / weight + full
        figures["keys: idle", shape, "ms"].append(1e3 * idle)
        figures["keys: beside the flood", shape, "ms"].extend(1e3 * took for took in equal)
        figures["keys: over its bound", shape, "ratio"].extend(took / bound for took in equal)
        ratios.append(statistics.median(equal) / bound)
    return ratios


def pause_over_step() -> list[float]:
    """Return the seconds of a pause and a resumption over those of a full step, in this process."""
    model = load(open_checkpoint(MODEL))
    default = model.spec.defaults
    stepper = HostStepper(model.backend.denoiser(default.width, default.height, rows=2 * IN_FLIGHT), IN_FLIGHT)
    run = table(model.spec.schedule, default.sampler, FLOOD)
    noise = standard_normal(1, model.spec.latent_shape(default.width, default.height), draws=1 + run.draws)
    context = model.backend.encode(model.tokenizer.encode("a blue cat").ids)
    sitting = Sitting(run, noise, context, context, default.guidance)
    for seat in range(IN_FLIGHT):
        stepper.sit(seat, sitting)
    ratios = []
    for _ in range(_PAUSES):
        start = time.perf_counter()
        stepper.step(range(IN_FLIGHT))
        stepped = time.perf_counter()
        reached = stepper.reached(0)
        state = stepper.pause(0).get()
        stepper.sit(0, Sitting(run, noise, context, context, default.guidance, start=reached, state=state))
        ratios.append((time.perf_counter() - stepped) / (stepped - start))
    return ratios


def by_keys(turns: int, *, keep: bool) -> int:
    """Measure keys beside a flood; returns the exit status."""
    tokens = {weight: new_token() for weight in (0.0, *WEIGHTS)}  # 0: the flood's
    entries = [
        {"name": f"k{number}", "digest": f"sha256:{digest_of(token)}", "weight": weight or 1.0, "priority": 1}
        for number, (weight, token) in enumerate(tokens.items())
    ]
    figures: Figures = defaultdict(list)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder, "keys.yaml")
        keys.write_text(yaml.safe_dump({"keys": entries}))
        environment = {**os.environ, "LATENTD_KEYS": str(keys), "LATENTD_QUEUE_SECONDS": "86400"}
        for _ in range(turns):
            with server_process(MODEL, environment, words=("server",)) as (line, _, _):
                port, metrics = _ports(line)
                ratios.append(asyncio.run(measure_keys(port, metrics, tokens, figures)))
    Rows("fairness-cpu", ("openvino", "grpcio", "numpy"), keep=keep).add_all(figures)
    return int(any(statistics.median(each) > 1 for each in zip(*ratios, strict=True)))


def _ports(line: str) -> tuple[int, str]:
    """Return gRPC's port and the metrics' address, of the line that a server prints."""
    found = re.search(r"gRPC \S+:(\d+), metrics http://\S+:(\d+)/metrics", line)
    assert found, line
    return int(found[1]), f"http://127.0.0.1:{found[2]}/metrics"


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.fairness", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--base", type=Path, help="a clone to measure in turn with this one")
    parser.add_argument("--dry", action="store_true", help="print, and keep no rows")
    parser.add_argument("--keys", action="store_true", help="two keys of one address, by weights")
    options = parser.parse_args()
    if options.keys:
        return by_keys(options.turns, keep=not options.dry)
    folders = {"this": ROOT, **({"base": options.base} if options.base else {})}
    # First come first served waits for all of the flood, which a busy machine takes more than a minute for.
    ours = {"LATENTD_HOST": "::", "LATENTD_PRIORITY_CALLERS": "::1", "LATENTD_QUEUE_SECONDS": "86400"}
    environment = {**os.environ, **ours}
    figures: Figures = defaultdict(list)
    for _ in range(options.turns):
        for whose, folder in folders.items():
            with server_process(MODEL, environment, folder, ("server",)) as (line, _, _):
                port, metrics = _ports(line)
                asyncio.run(measure(whose, Callers(port, metrics), metrics, figures))
    figures["pause and resume over a full step, this", f"one of {IN_FLIGHT} seats", "ratio"] = pause_over_step()
    Rows("fairness-cpu", ("openvino", "grpcio", "numpy"), keep=not options.dry).add_all(figures)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    sys.exit(main())
