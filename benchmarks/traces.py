"""What traces cost: `python -m benchmarks.traces [--turns 5] [--steps 4]`.

Two servers of the embedded model, one with `--otlp` and one without, in turn: each draws the same pictures, eight in
flight, and what the one takes of the processor for a picture is set over what the other takes. So is the rate. The
collector is in this process; it reads what comes, and answers. Few steps are the dear case: a trace of a request has as
many spans whatever it draws.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.rows import Rows
from benchmarks.serving import IN_FLIGHT, ROOT, server_process
from latentd import AsyncClient

MODEL = ROOT / "demo" / "small-things"
PICTURES = 64  # of a turn
_TICK = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traces", description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    given = parser.parse_args()
    rows = Rows("traces-cpu", ("openvino", "grpcio", "opentelemetry-sdk"))
    with (
        collector() as (url, taken),
        server_process(MODEL) as (off, _, off_pid),
        server_process(MODEL, flags=("--otlp", url)) as (on, _, on_pid),
    ):
        times: list[float] = []
        rates: list[float] = []
        for turn in range(given.turns + 1):
            without = drawn(address(off), off_pid, given.steps, turn)
            with_traces = drawn(address(on), on_pid, given.steps, turn)
            if turn:  # the first one warms up
                times.append(with_traces[0] / without[0])
                rates.append(with_traces[1] / without[1])
        shape = f"64x64, {given.steps} steps, {IN_FLIGHT} in flight"
        rows.add("processor time a picture, traced", shape, "over untraced", times)
        rows.add("pictures a second, traced", shape, "over untraced", rates)
    assert taken, "the collector has had nothing: that was no measurement"


def address(line: str) -> str:
    return re.findall(r"gRPC (\S+),", line)[0]


def drawn(server: str, pid: int, steps: int, turn: int) -> tuple[float, float]:
    """Have pictures drawn; returns the server's processor seconds for a picture, and pictures a second."""
    before, start = processor(pid), time.monotonic()
    asyncio.run(_draw(server, steps, turn))
    return (processor(pid) - before) / PICTURES, PICTURES / (time.monotonic() - start)


async def _draw(server: str, steps: int, turn: int) -> None:
    places = asyncio.Semaphore(IN_FLIGHT)
    async with AsyncClient(server) as client:

        async def one(picture: int) -> None:
            async with places:
                await client.generate(f"red apple number {turn} {picture}", steps=steps, seed=picture)

        await asyncio.gather(*map(one, range(PICTURES)))


def processor(pid: int) -> float:
    """Return the processor seconds of a process so far: utime and stime of its stat (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


@contextlib.contextmanager
def collector() -> Iterator[tuple[str, list[int]]]:
    """Take whatever is sent; yields the URL, and the bytes of each request that came."""
    taken: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            taken.append(len(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}", taken
        finally:
            listening.shutdown()


if __name__ == "__main__":
    main()
