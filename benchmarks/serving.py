"""The server against itself without a server: `python -m benchmarks.serving` (make bench).

Start-up and peak memory of `latentd serve`; then pictures a second through gRPC over a bare loop in this process
that does the same work (encode, steps, decode, PNG) on the same engines, eight in flight, in turn, five times. The
client's own cost is in the figure: it runs on the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.memory import memory_of
from benchmarks.rows import Rows
from engines.cpu.stepper import HostStepper
from engines.model import Model, load
from engines.seat import Sitting
from latentd import AsyncClient
from pipeline.arrays import to_pixels
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.noise import standard_normal
from pipeline.samplers import table
from server.device.pictures import encode

ROOT = Path(__file__).parent.parent
IN_FLIGHT = 8
WORDS = ("latentd", "serve")


@dataclass(frozen=True)
class Work:
    """Holds the pictures to make; every prompt is another one, so that nothing is remembered."""

    model: Path
    pictures: int

    def prompt(self, turn: int, picture: int) -> str:
        return f"red apple number {turn} {picture}, color style"


@contextlib.contextmanager
def server(
    model: Path,
    environment: dict[str, str] | None = None,
    folder: Path = ROOT,
    words: tuple[str, ...] = WORDS,
    flags: tuple[str, ...] = (),
) -> Iterator[tuple[str, float, int]]:
    """Start a server process; yields its address, seconds from its start to SERVING, its process id.

    `folder` is the clone that serves, `words` what begins its command there, `flags` more of its settings.
    """
    with server_process(model, environment, folder, words, flags) as (line, seconds, pid):
        yield re.findall(r"gRPC (\S+),", line)[0], seconds, pid


@contextlib.contextmanager
def server_process(
    model: Path,
    environment: dict[str, str] | None = None,
    folder: Path = ROOT,
    words: tuple[str, ...] = WORDS,
    flags: tuple[str, ...] = (),
    before: tuple[str, ...] = (),
) -> Iterator[tuple[str, float, int]]:
    """Start a server as `server` does; give the whole line that it prints, which has the address of its metrics too.

    `flags` are more of its settings, `before` a command that runs the server's.
    """
    start = time.monotonic()
    command = [*before, sys.executable, "-m", *words, "--model", str(model), "--grpc-port", "0", "--metrics-port", "0"]
    command += ["--seats", str(IN_FLIGHT), *flags]
    # Old clones do not know the setting.
    environment = {**(os.environ if environment is None else environment), "LATENTD_HTTP_PORT": "0"}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()  # printed once health says SERVING
            if " gRPC " not in line:
                raise SystemExit(f"the server did not start: {' '.join(command)}")
            yield line, time.monotonic() - start, process.pid
        finally:
            process.terminate()
            process.wait()


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of all its threads, so far."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


async def through_grpc(address: str, work: Work, turn: int) -> float:
    """Return the pictures a second, with IN_FLIGHT requests under way."""
    client = AsyncClient(address)
    todo = iter(range(work.pictures))

    async def one_after_another() -> None:
        for picture in todo:
            await client.generate(work.prompt(turn, picture), seed=picture)

    start = time.perf_counter()
    try:
        await asyncio.gather(*(one_after_another() for _ in range(IN_FLIGHT)))
        return work.pictures / (time.perf_counter() - start)
    finally:
        await client.close()


class BareLoop:
    """Draws with the same engines and stepper and nothing around them: no protocol, no events, no threads."""

    def __init__(self, model: Model) -> None:
        self._model = model
        default = model.spec.defaults
        self._size = default.width, default.height
        self._stepper = HostStepper(model.backend.denoiser(*self._size, rows=2 * IN_FLIGHT), IN_FLIGHT)

    def run(self, work: Work, turn: int) -> float:
        """Return the pictures a second; a seat is given on as soon as its picture is done, as the server does."""
        spec, backend, tokenizer, stepper = self._model.spec, self._model.backend, self._model.tokenizer, self._stepper
        default = spec.defaults
        run = table(spec.schedule, default.sampler, default.steps)
        negative = backend.encode(tokenizer.encode("").ids)
        waiting, live = list(range(work.pictures)), set()
        start = time.perf_counter()
        while waiting or live:
            for seat in set(range(IN_FLIGHT)) - live:
                if waiting:
                    picture = waiting.pop(0)
                    context = backend.encode(tokenizer.encode(work.prompt(turn, picture)).ids)
                    noise = standard_normal(picture, spec.latent_shape(*self._size), draws=1 + run.draws)
                    stepper.sit(seat, Sitting(run, noise, context, negative, default.guidance))
                    live.add(seat)
            stepper.step(sorted(live))
            for seat in [seat for seat in live if stepper.finished(seat)]:
                encode(to_pixels(backend.decode(stepper.latents(seat))), "png")
                live.remove(seat)
        return work.pictures / (time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.serving", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, default=ROOT / "demo" / "small-things")
    parser.add_argument("--pictures", type=int, default=64, help="of one turn (default 64)")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    work = Work(options.model, options.pictures)

    model = load(open_checkpoint(options.model))
    default, backend = model.spec.defaults, model.backend
    rows = Rows("serving-cpu", ("openvino", "grpcio", "numpy"))
    shape = (
        f"{model.id} {default.width}x{default.height} {default.steps} steps {default.sampler} guidance "
        f"{default.guidance:g} {backend.name} {backend.precision}"
    )
    with server(options.model):  # brings its files into memory
        pass
    starts, peaks = [], []
    for _ in range(options.turns):
        with server(options.model) as (address, seconds, pid):
            starts.append(seconds)
            asyncio.run(through_grpc(address, Work(options.model, 2 * IN_FLIGHT), -1))
            peaks.append(memory_of(pid).peak)
    rows.add("start to SERVING", shape, "s", starts)
    rows.add("peak memory after 16 pictures", shape, "MB", peaks)

    bare = BareLoop(model)
    served, alone = [], []
    cpu: dict[str, list[float]] = {"server": [], "client": [], "bare loop": []}
    with server(options.model) as (address, _, pid):
        asyncio.run(through_grpc(address, work, -1))
        bare.run(work, -1)
        for turn in range(options.turns):
            theirs, ours = cpu_seconds(pid), time.process_time()
            served.append(asyncio.run(through_grpc(address, work, turn)))
            cpu["server"].append(cpu_seconds(pid) - theirs)
            cpu["client"].append(time.process_time() - ours)
            ours = time.process_time()
            alone.append(bare.run(work, turn))
            cpu["bare loop"].append(time.process_time() - ours)
    rows.add("pictures through gRPC", f"{shape}, {IN_FLIGHT} in flight", "1/s", served)
    rows.add("pictures of the bare loop", f"{shape}, {IN_FLIGHT} seats", "1/s", alone)
    ratios = [a / b for a, b in zip(served, alone, strict=True)]
    rows.add("gRPC over bare loop", f"{shape}, {IN_FLIGHT} in flight", "ratio", ratios)
    for whose, seconds in cpu.items():
        each = [1e3 * value / work.pictures for value in seconds]
        rows.add(f"CPU time a picture, {whose}", f"{shape}, {IN_FLIGHT} in flight", "ms", each)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    sys.exit(main())
