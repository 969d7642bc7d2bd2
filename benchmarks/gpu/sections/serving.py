"""Pictures through the real server, in a process of its own, with random weights of SD 1.5; then the bare loop.

Latency and pictures a second with 1, 4, 8 and 16 requests in flight: 30 steps, guidance 7.5, PNG as the server does.
The bare loop does the same work on the same backend with nothing around it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.frame import ahead
from benchmarks.gpu.frame.here import needed
from benchmarks.gpu.frame.report import Case, Report
from benchmarks.gpu.subjects.networks import SCHEDULE, whole_spec
from engines.seat import Sitting

_ROOT = Path(__file__).parents[3]
_START_SECONDS = 200.0  # thirteen graphs are captured, and libraries choose algorithms for each


def cases(report: Report) -> Iterator[Case]:
    yield ahead.case(report, "networks")
    with contextlib.ExitStack() as stack:
        run = _Run(report, stack)
        for n in (2,) if report.dry else (16, 1, 4, 8):
            yield Case(f"server {n}", partial(run.server, n))
        yield Case("bare loop", run.bare)


class _Run:
    def __init__(self, report: Report, stack: contextlib.ExitStack) -> None:
        self._report, self._stack = report, stack
        self._address, self._pid, self._folder = "", 0, Path()
        self._per_second: dict[int, float] = {}

    def _checkpoint(self) -> Path:
        if not self._folder.name:
            from benchmarks.gpu.subjects.served import write_checkpoint

            needed("safetensors.torch")
            self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory())) / "random-sd15"
            write_checkpoint(self._report, self._folder)
        return self._folder

    def _started(self) -> str:
        """Return the server's address; starts it the first time."""
        if self._address:
            return self._address
        for module in ("server.app", "latentd", "engines.cuda.backend"):
            needed(module)
        folder, start = self._checkpoint(), time.monotonic()
        command = [sys.executable, "-u", "-m", "benchmarks.gpu.subjects.served", str(folder)]
        command += ["--dry-run", "--seats", "2"] if self._report.dry else ["--seats", "16"]
        process = self._stack.enter_context(subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True))
        self._stack.callback(process.terminate)
        lines: queue.Queue[str] = queue.Queue()
        assert process.stdout
        threading.Thread(target=lambda: [lines.put(line) for line in process.stdout or ()], daemon=True).start()
        while not self._address:
            if process.poll() is not None or time.monotonic() - start > _START_SECONDS:
                raise RuntimeError(f"the server did not start (exit code {process.poll()})")
            with contextlib.suppress(queue.Empty):
                line = lines.get(timeout=0.2)
                self._address = line.split()[1] if line.startswith("serving ") else ""
        self._pid = process.pid
        self._report.row("start", "SD 1.5, 16 seats", "server", "s", [time.monotonic() - start], note="to SERVING")
        return self._address

    def server(self, n: int) -> None:
        address, report = self._started(), self._report
        pictures = 2 if report.dry else max(4, 4 * n)
        asyncio.run(self._flight(address, n, n))
        before, start = _cpu_seconds(self._pid), time.perf_counter()
        latencies = asyncio.run(self._flight(address, n, pictures))
        took, busy = time.perf_counter() - start, _cpu_seconds(self._pid) - before
        self._per_second[n] = pictures / took
        case = f"{n} in flight"
        report.row("throughput", case, "server", "images/s", [pictures / took], note=f"{pictures} pictures")
        report.row("latency", case, "server", "ms", [1e3 * value for value in latencies])
        report.row("host", case, "server", "cores", [busy / took], note="CPU use of the server's process")
        peak = next(line for line in Path(f"/proc/{self._pid}/status").read_text().splitlines() if "VmHWM" in line)
        report.row("host", case, "server", "MB", [int(peak.split()[1]) / 1e3], note="peak resident memory")

    async def _flight(self, address: str, n: int, pictures: int) -> list[float]:
        """Time each picture, in seconds, with `n` requests under way all the time."""
        client, todo, latencies = needed("latentd", "AsyncClient")(address), iter(range(pictures)), []
        steps = 2 if self._report.dry else 30

        async def one_after_another() -> None:
            for picture in todo:
                start = time.perf_counter()
                # Another prompt each time: nothing is remembered.
                prompt = f"red apple number {picture} of {pictures} at {start}"
                await client.generate(prompt, seed=picture, steps=steps, guidance=7.5, sampler="dpmpp_2m")
                latencies.append(time.perf_counter() - start)

        try:
            await asyncio.gather(*(one_after_another() for _ in range(n)))
        finally:
            await client.close()
        return latencies

    def bare(self) -> None:
        """Time as many seats as the server has, kept full; compared with the server where that was measured."""
        from benchmarks.gpu.subjects.served import random_model
        from pipeline.noise import standard_normal
        from pipeline.samplers import table

        encode = needed("server.device.pictures", "encode")
        report, folder = self._report, self._checkpoint()
        self._address, seats, steps = "", 2 if report.dry else 16, 2 if report.dry else 30
        model, spec = random_model(report, folder), whole_spec(report)
        backend: Any = model.backend
        side = spec.defaults.width
        stepper, run = backend.stepper(side, side, seats, steps=max(steps, 2)), table(SCHEDULE, "dpmpp_2m", steps)
        negative, shape = backend.encode(model.tokenizer.encode("").ids), spec.latent_shape(side, side)

        def draw(pictures: int, pool: ThreadPoolExecutor) -> None:
            waiting, live, decoding = list(range(pictures)), set(), []
            while waiting or live or decoding:
                for seat in set(range(seats)) - live if waiting else ():
                    if waiting:
                        context = backend.encode(model.tokenizer.encode(f"red apple number {waiting[0]}").ids)
                        stepper.sit(seat, Sitting(run, standard_normal(waiting.pop(0), shape), context, negative, 7.5))
                        live.add(seat)
                if live:
                    stepper.step(sorted(live))
                for seat in [seat for seat in live if stepper.finished(seat)]:
                    decoding.append(backend.picture(stepper.pending_latents(seat)))
                    stepper.leave(seat)
                    live.remove(seat)
                while decoding and (not live or decoding[0].ready()):
                    pool.submit(encode, decoding.pop(0).get(), "png")

        pictures = 2 if report.dry else 64
        with ThreadPoolExecutor(4) as pool:
            draw(seats, pool)
        start = time.perf_counter()
        with ThreadPoolExecutor(4) as pool:
            draw(pictures, pool)
        rate = pictures / (time.perf_counter() - start)
        report.row("throughput", f"{seats} seats", "bare loop", "images/s", [rate], note=f"{pictures} pictures")
        if seats in self._per_second:
            report.row("ratio", f"{seats} in flight", "server", "x", [self._per_second[seats] / rate])


def _cpu_seconds(pid: int) -> float:
    """Return the user and system time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
