"""Two servers behind Envoy, under load: `python -m benchmarks.machines [--kills 50] [--rolling 5] [--at-once]`.

One of them is killed with SIGKILL, in turn, and started again; then both are stopped and started in turn, as a deploy
does. The next one goes when Envoy leads calls to the last one again; with --at-once as soon as that one serves, whether
Envoy knows it or not. Unary calls, by gRPC and over HTTP, are to see nothing of it, and streams are to end at once.
Envoy is the real one, with deploy/envoy.yaml. Exit status 1 where a call failed that must not.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from benchmarks.machines.balancer import Balancer, balanced, until
from benchmarks.machines.callers import End, Stream, unary_load
from benchmarks.machines.fleet import ROOT, Machine, fleet
from benchmarks.rows import Rows

_STREAMS = 4  # at each kill; those of the server that lives are cancelled afterwards
_MEANT = {"UNAVAILABLE", "INTERNAL"}


def killed(
    machines: list[Machine], balancer: Balancer, turn: int, *, at_once: bool = False
) -> tuple[list[End], list[float]]:
    """Kill a server below streams and start it again; returns the streams' ends, and seconds from the kill to each.

    It waits until the balancer knows of the start, unless `at_once`.
    """
    streams = [Stream(balancer.address, seed, steps=150) for seed in range(_STREAMS)]
    for stream in streams:
        stream.begun.wait()
    victim, start = machines[turn % len(machines)], time.monotonic()
    victim.kill()
    steps = [len(stream.steps) + 1 for stream in streams]  # a step may have been on its way
    until(lambda: all(one.over or len(one.steps) > seen for one, seen in zip(streams, steps, strict=True)))
    broken = [stream.end() for stream in streams if stream.over]
    for stream in streams:
        stream.cancel()
    victim.start()
    if not at_once:
        balancer.wait(len(machines))
    return [end for end in broken if end.code != "OK"], [end.at - start for end in broken if end.code != "OK"]


def restarted(machines: list[Machine], balancer: Balancer, *, at_once: bool = False) -> list[int]:
    """Stop each server and start it again, one after the other; returns their exit statuses.

    The next one is stopped when the balancer knows of the last one's start, and so that it had stopped; if `at_once`,
    as soon as the last one serves.
    """
    statuses = []
    for machine in machines:
        statuses.append(machine.stop())
        if not at_once:
            balancer.wait(len(machines) - 1)
        machine.start()
        if not at_once:
            balancer.wait(len(machines))
    return statuses


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.machines", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--rolling", type=int, default=5, help="restarts of all servers, one after the other")
    parser.add_argument("--callers", type=int, default=6)
    parser.add_argument("--steps", type=int, default=4, help="of a unary request")
    parser.add_argument("--at-once", action="store_true", help="wait for the servers alone, and not for Envoy to know")
    parser.add_argument("--model", type=Path, default=ROOT / "demo" / "small-things")
    parser.add_argument("--dry", action="store_true", help="print, and keep no rows")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end, too
    rows = Rows("machines-cpu", ("openvino", "grpcio"), keep=not options.dry)
    good = True
    with fleet(options.model.resolve(), 2) as machines, balanced(machines) as balancer:
        balancer.wait(2)
        shape = f"2 servers of {options.model.name}, {options.callers} callers, {options.steps} steps"
        shape += ", the next at once" if options.at_once else ""
        with unary_load(balancer.address, balancer.http, options.callers, steps=options.steps) as ends:
            streams: list[End] = []
            seconds: list[float] = []
            for turn in range(options.kills):
                some, took = killed(machines, balancer, turn, at_once=options.at_once)
                streams, seconds = streams + some, seconds + took
        good &= _unary(rows, f"{options.kills} kills", shape, ends)
        if streams:
            print(Counter((end.code, end.sentence) for end in streams))
            good &= {end.code for end in streams} <= _MEANT and max(seconds) < 1
            rows.add("kill: a stream on that server, until its end", shape, "s", seconds)
            rows.add("kill: the same, the slowest", shape, "s", [max(seconds)])
        with unary_load(balancer.address, balancer.http, options.callers, steps=options.steps) as ends:
            statuses: list[int] = []
            for _ in range(options.rolling):
                statuses += restarted(machines, balancer, at_once=options.at_once)
        good &= _unary(rows, f"{options.rolling} rolling restarts", shape, ends) and not any(statuses)
    return 0 if good else 1


def _unary(rows: Rows, when: str, shape: str, ends: list[End]) -> bool:
    """Add the rows of unary calls; returns whether none failed and each seed had one picture."""
    failed = [end for end in ends if end.code != "OK"]
    for (code, sentence), count in Counter((end.code, end.sentence) for end in failed).items():
        print(f"{count} calls ended {code}: {sentence}")
    pictures = {(end.seed, end.picture) for end in ends if end.picture}
    seeds = {seed for seed, _ in pictures}
    rows.add(f"{when}: unary calls", shape, "calls", [len(ends)])
    rows.add(f"{when}: of them failed", shape, "calls", [len(failed)])
    rows.add(f"{when}: seeds whose pictures differed", shape, "seeds", [len(pictures) - len(seeds)])
    return not failed and len(pictures) == len(seeds)


if __name__ == "__main__":
    sys.exit(main())
