"""Continuous batching against batching of whole requests: `python -m benchmarks.batchers`.

The same engine in this process, without a door, in turn: latentd's device thread with its seats, which lives as long as
the engine, as in a server, and three that take whole requests: one at a time in order of arrival; up to eight of those
that wait and have as many steps as the first; the first eight that wait, whatever their steps, until the longest is
done. The last is spared what usual ones waste: who is done is not stepped any more, its picture only waits for the
others. For all of them another thread reads and checks each request when it comes. Each has the same arrivals, Poisson,
of jobs of 4, 20, 30 or 50 steps at random, or of 20 steps alone, at 50, 70 and 90% of the best batcher's rate with a
queue that never empties.

A queue that never empties is one of more jobs than are counted: what is done of all of them when the last one begins,
in steps, over the time until then. What happens after that is no queue any more: who steps the shortest first steps
long ones at the end, alone, and nobody waits for what sharing would have saved.

With jobs of 20 steps alone the last two do the same, so the last is left out there: the better of two runs of one thing
is luck, and they differed by 15%. Everything is done in rounds for the same reason, each with arrivals of its own and
another batcher first. A rate is the median of the rounds, a p99 that of all their jobs; of a round of up to 50 jobs
it is that of the slowest.

Longer than 300 lines: orders, policies and figures are one comparison, and are read together.
"""

from __future__ import annotations

import argparse
import itertools
import operator
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.plots import Panel, draw
from benchmarks.rows import Rows
from benchmarks.serving import IN_FLIGHT, ROOT
from engines.cpu.stepper import HostStepper
from engines.model import Model, load
from engines.seat import Sitting
from pipeline.arrays import to_pixels
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.noise import standard_normal
from pipeline.size import Size, parse_size
from server.batching.admission import Admission
from server.device.loop import Device
from server.device.pictures import encode
from server.events import Event, Started, Step
from server.job import Job
from server.limits import Limits
from server.mailbox import is_last
from server.metrics import Metrics
from server.request import ImageRequest
from server.wish import Wish

MIXED, UNIFORM, SHORT = (4, 20, 30, 50), (20,), 4
LOADS = (0.5, 0.7, 0.9)
OURS = "seats"


@dataclass
class Order:
    """Holds a picture that is asked for at `at`, and when it was begun, each step was done, and it was there.

    All in seconds from the begin.
    """

    number: int
    at: float
    steps: int
    begun: float = 0.0
    stepped: list[float] = field(default_factory=list)
    ended: float = 0.0

    @property
    def prompt(self) -> str:
        return f"red apple number {self.number}, color style"


def arrivals(steps: Sequence[int], rate: float, count: int, seed: int) -> list[Order]:
    """Draw so many orders, at `rate` a second; all of them at once where that is 0."""
    draw = random.Random(seed)
    gaps = (draw.expovariate(rate) if rate else 0.0 for _ in range(count))
    return [Order(number, at, draw.choice(steps)) for number, at in enumerate(itertools.accumulate(gaps))]


Choose = Callable[[list[Order]], list[Order]]  # of those who wait, the next batch


def one_at_a_time(waiting: list[Order]) -> list[Order]:
    return waiting[:1]


def equal_steps(waiting: list[Order]) -> list[Order]:
    return [order for order in waiting if order.steps == waiting[0].steps][:IN_FLIGHT]


def anything_together(waiting: list[Order]) -> list[Order]:
    return waiting[:IN_FLIGHT]


BATCHERS: dict[str, Choose] = {
    "one at a time": one_at_a_time,
    "equal steps together": equal_steps,
    "anything together": anything_together,
}


@dataclass
class Engine:
    """Holds a model, a stepper for the batchers and a device for the seats; one policy at a time uses it."""

    model: Model
    size: Size  # of all pictures
    stepper: HostStepper = field(init=False)
    device: Device = field(init=False)

    def __post_init__(self) -> None:
        self._negative = self.model.backend.encode(self.model.tokenizer.encode("").ids)
        self.stepper = HostStepper(self.model.backend.denoiser(*self.size, rows=2 * IN_FLIGHT), IN_FLIGHT)
        self.device = Device(
            self.model,
            sizes=[self.size],
            seats=IN_FLIGHT,
            admission=Admission(queue_jobs=10**9, queue_seconds=1e9),
            metrics=Metrics("batchers"),
            workers=2,
            died=lambda: None,
        )

    def __enter__(self) -> Engine:
        self.device.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.device.stop()

    def _hand_over(self, orders: list[Order], begun: float, take: Callable[[list[tuple[Order, Wish]]], object]) -> None:
        """Have each order read and checked when it comes, as a server does, and taken by a policy's own thread."""
        for at, together in itertools.groupby(orders, key=operator.attrgetter("at")):
            time.sleep(max(0.0, begun + at - time.monotonic()))
            requests = [(o, ImageRequest(prompt=o.prompt, seed=o.number, steps=o.steps)) for o in together]
            take([(order, Wish.of(request, self.model, [self.size], Limits())) for order, request in requests])

    def batches(self, orders: list[Order], choose: Choose) -> None:
        """Make whole batches, one after the other, of those who have come by then."""
        begun, came = time.monotonic(), threading.Condition()
        wishes: dict[int, Wish] = {}
        waiting: list[Order] = []
        closed = threading.Event()  # nobody comes any more

        def take(those: list[tuple[Order, Wish]]) -> None:
            with came:
                wishes.update((order.number, wish) for order, wish in those)
                waiting.extend(order for order, _ in those)
                came.notify()

        def make() -> None:
            while True:
                with came:
                    came.wait_for(lambda: waiting or closed.is_set())
                    if not waiting:
                        return
                    batch = choose(waiting)
                    waiting[:] = [order for order in waiting if order not in batch]
                self._make([(order, wishes[order.number]) for order in batch], begun)
                for order in batch:
                    order.ended = time.monotonic() - begun

        with ThreadPoolExecutor(1) as pool:
            made = pool.submit(make)
            try:
                self._hand_over(orders, begun, take)
            finally:
                with came:
                    closed.set()
                    came.notify()
            made.result()

    def _make(self, batch: list[tuple[Order, Wish]], begun: float) -> None:
        spec, backend = self.model.spec, self.model.backend
        for seat, (order, wish) in enumerate(batch):
            order.begun = time.monotonic() - begun
            context = backend.encode(wish.prompt.ids[0])
            noise = standard_normal(wish.seed, spec.latent_shape(*self.size), draws=1 + wish.table.draws)
            self.stepper.sit(seat, Sitting(wish.table, noise, context, self._negative, wish.guidance))
        while live := [seat for seat in range(len(batch)) if not self.stepper.finished(seat)]:
            self.stepper.step(live)
            now = time.monotonic() - begun
            for seat in live:
                batch[seat][0].stepped.append(now)
        for seat in range(len(batch)):
            encode(to_pixels(backend.decode(self.stepper.latents(seat))), "png")

    def seats(self, orders: list[Order]) -> None:
        """Hand the orders to the device. Errors: those of Device.submit."""
        begun, boxes = time.monotonic(), list[_Box]()

        def take(those: list[tuple[Order, Wish]]) -> None:
            for order, wish in those:
                boxes.append(_Box(order, begun))
                self.device.submit(Job(str(order.number), wish, boxes[-1], time.monotonic()))  # type: ignore[arg-type]

        self._hand_over(orders, begun, take)
        for box in boxes:
            box.over.wait()


class _Box:
    """Stands for a mailbox: notes when a job was begun, each of its steps was done, and it ended."""

    def __init__(self, order: Order, begun: float) -> None:
        self.over, self._order, self._begun = threading.Event(), order, begun

    def post(self, event: Event) -> None:
        now = time.monotonic() - self._begun
        if isinstance(event, Step):
            stepped = self._order.stepped
            stepped += [now] * (event.step - len(stepped))  # of several at once the last is told
        elif isinstance(event, Started):
            self._order.begun = now
        elif is_last(event):
            self._order.ended = now
            self.over.set()


def p99(orders: Sequence[Order]) -> float:
    """Return the 0.99 quantile of the orders' times, seconds."""
    times = sorted(order.ended - order.at for order in orders)
    return times[round(0.99 * (len(times) - 1))] if times else 0.0


def sustained(orders: Sequence[Order]) -> float:
    """Return how many orders were made a second while there was a queue: until the last one was begun.

    Of those under way then the part that is done is counted, in steps; a file is as much as a step. All orders until
    all are there, where so few came that nobody waited.
    """
    if len(orders) <= IN_FLIGHT:
        return len(orders) / max(order.ended for order in orders)
    end = max(order.begun for order in orders)
    done = (sum(step <= end for step in order.stepped) + (order.ended <= end) for order in orders)
    return sum(part / (order.steps + 1) for part, order in zip(done, orders, strict=True)) / end


Policies = dict[str, Callable[[list[Order]], None]]


def measure(
    policies: Policies, steps: Sequence[int], count: int, rate: float, rounds: int
) -> dict[str, list[list[Order]]]:
    """Run each policy over the same arrivals, so many rounds; returns each round's orders as they ended."""
    ended: dict[str, list[list[Order]]] = {name: [] for name in policies}
    for turn in range(rounds):
        names = list(policies)
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            orders = arrivals(steps, rate, count, seed=5 + turn)
            policies[name](orders)
            ended[name].append(orders)
    return ended


def best(values: dict[str, float], better: Callable[..., str]) -> float:
    """Return the best of the batchers of whole requests: `better` is min or max."""
    return values[better((name for name in values if name != OURS), key=values.__getitem__)]


def by_rounds(ended: dict[str, list[list[Order]]], tails: dict[str, float], wanted: Sequence[int]) -> list[float]:
    """Return each round's p99 over that of the batcher whose p99 of all rounds is the best."""
    other = min((name for name in tails if name != OURS), key=tails.__getitem__)
    each = {name: [p99([o for o in one if o.steps in wanted]) for one in ended[name]] for name in (OURS, other)}
    return [ours / theirs for ours, theirs in zip(each[OURS], each[other], strict=True) if theirs]


def compare(engine: Engine, only: str | None, jobs: int, rounds: int, rows: Rows) -> dict[str, dict[str, list[float]]]:
    """Measure jobs of one kind, or of both, and note rows; returns the p99 at each load, by title and policy."""
    policies: Policies = {OURS: engine.seats}
    policies |= {
        name: lambda orders, choose=choose: engine.batches(orders, choose) for name, choose in BATCHERS.items()
    }
    shown: dict[str, dict[str, list[float]]] = {}
    measure(policies, MIXED, min(8, jobs), 0.0, rounds=1)  # warm
    for kind, steps in (("mixed", MIXED), ("uniform", UNIFORM)):
        if only not in (None, kind):
            continue
        width, height = engine.size
        shape = f"{kind}: {width}x{height}, {' '.join(map(str, steps))} steps, {rounds} x {jobs} jobs"
        apart = {name: run for name, run in policies.items() if len(steps) > 1 or name != "anything together"}
        ended = measure(apart, steps, jobs, 0.0, rounds)
        rates = {name: [sustained(one) for one in ran] for name, ran in ended.items()}
        for name, each in rates.items():
            rows.add(f"sustained rate, {name}", shape, "1/s", each)
        middle = {name: statistics.median(each) for name, each in rates.items()}
        rows.add("sustained rate over the best", shape, "ratio", [middle[OURS] / best(middle, max)])
        for part in LOADS:
            ended = measure(apart, steps, jobs, part * best(middle, max), rounds)
            at = f"{shape}, load {part:g}"
            for which, wanted in (("all", steps), *((("4-step", (SHORT,)),) if SHORT in steps else ())):
                asked = {name: [o for one in ran for o in one if o.steps in wanted] for name, ran in ended.items()}
                tails = {name: p99(orders) for name, orders in asked.items()}
                for name, tail in tails.items():
                    rows.add(f"p99 of {which} jobs, {name}", at, "s", [tail])
                    shown.setdefault(f"{kind} load, {which} jobs", {}).setdefault(name, []).append(tail)
                rows.add(f"p99 of {which} jobs over the best", at, "ratio", [tails[OURS] / best(tails, min)])
                each_round = by_rounds(ended, tails, wanted)
                rows.add(f"p99 of {which} jobs over the best, by rounds", at, "ratio", each_round)
    return shown


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.batchers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=80, help="of each run (default 80)")
    parser.add_argument("--rounds", type=int, default=3, help="of everything (default 3)")
    parser.add_argument("--kind", choices=("mixed", "uniform"), help="of jobs; without it both, and a plot in docs")
    parser.add_argument(
        "--size",
        type=parse_size,
        metavar="WIDTHxHEIGHT",
        help="of the pictures; without it the model's own, and a plot in docs",
    )
    parser.add_argument("--dry", action="store_true", help="print, and keep neither rows nor plot")
    options = parser.parse_args(argv)
    for name in ("jobs", "rounds"):
        if (given := getattr(options, name)) < 1:
            parser.error(f"--{name} is {given}; it must be at least 1")
    model = load(open_checkpoint(ROOT / "demo" / "small-things"))
    default, multiple = model.spec.defaults, model.spec.size_multiple
    size = options.size or (default.width, default.height)
    if any(side % multiple or side < 2 * multiple for side in size):
        parser.error(f"--size is {size[0]}x{size[1]}; both must be multiples of {multiple}, at least {2 * multiple}")
    rows = Rows("batchers-cpu", ("openvino", "numpy"), keep=not options.dry)
    with Engine(model, size) as engine:
        shown = compare(engine, options.kind, options.jobs, options.rounds, rows)
    if not (options.dry or options.kind or options.size):
        lines = {title: {name: (LOADS, tails) for name, tails in each.items()} for title, each in shown.items()}
        panels = [Panel(f"p99, {title}", "load", "s", each) for title, each in lines.items()]
        draw(Path(ROOT / "docs" / "batchers.png"), panels)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    sys.exit(main())
