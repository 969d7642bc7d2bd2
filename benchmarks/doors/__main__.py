"""What each door costs: `python -m benchmarks.doors`, under three minutes.

One server in this process, asked in turn: by Service.submit and its events, without a door; through gRPC; through
OpenAI's API, AUTOMATIC1111's and the page's stream. One request at a time, so a door's overhead is its median less that
of no door, with its client's cost in it: the client runs on the same event loop. The same at 64x64 and 12 steps, of the
embedded model, and at 512x512 and one step of a UNet and a decoder that are an addition each, where the answer is a
picture of 700 KB and nearly all that there is to do is the door's. Beside them, in turn with them, stand calls of gRPC
and uvicorn alone that are answered with nothing, or with as many bytes: no door can cost less than its library.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from benchmarks.doors.floors import FLOORS, floors
from benchmarks.doors.http import Http
from benchmarks.doors.tiny import Tiny
from benchmarks.rows import Rows, percentiles
from engines.model import Model, load
from latentd import AsyncClient
from latentd.channel import channel_options
from latentd.v1 import images_pb2 as pb
from latentd.v1.images_pb2_grpc import ImagesStub
from pipeline.checkpoint.opened import open_checkpoint
from server.app import Server
from server.mailbox import collect
from server.request import ImageRequest
from server.settings import Settings

DEMO = Path(__file__).parents[2] / "demo" / "small-things"
PROMPT = "red apple, color style"
JSON = {"prompt": PROMPT, "seed": 7}
Way = Callable[[], Awaitable[int]]  # draws; returns the bytes of what arrived


async def measure(model: Model, size: tuple[int, int], steps: int, seconds: float) -> dict[str, list[float]]:
    """Return the milliseconds of each way's requests, drawn in turn for so many seconds."""
    settings = Settings(model=model.checkpoint.path, http_port=0, grpc_port=0, metrics_port=0, seats=1, sizes=(size,))
    server = Server(settings)
    await server.open()
    await server.load(lambda _: model)
    address = f"127.0.0.1:{server.grpc_port}"
    client, http = AsyncClient(address), Http(server.http_port or 0)
    channel = grpc.aio.insecure_channel(address, options=channel_options(address))
    label = model.spec.defaults.sampler

    async def no_door() -> int:
        request = ImageRequest(prompt=PROMPT, seed=7, steps=steps, sampler=label, progress=False)
        accepted = await server.service.submit(request, "bench", None)
        images, _ = await collect(server.service.events(accepted.job))
        return len(images[0].data)

    async def streamed() -> int:
        (picture,) = await client.generate(PROMPT, seed=7, steps=steps, sampler=label)
        return len(picture.data)

    stub: Any = ImagesStub(channel)

    async def blocking() -> int:
        request = pb.GenerateRequest(prompt=PROMPT, seed=7, steps=steps, sampler=label)
        (picture,) = (await stub.GenerateBlocking(request)).images
        return len(picture.data)

    ours = {**JSON, "steps": steps, "sampler": label}
    ways: dict[str, Way] = {
        "no door": no_door,
        "gRPC": streamed,
        "gRPC, at once": blocking,
        "OpenAI": lambda: http.post("/v1/images/generations", ours),
        "A1111": lambda: http.post("/sdapi/v1/txt2img", {**JSON, "steps": steps, "sampler_name": label}),
        "page": lambda: http.post("/api/generate", ours),
    }
    try:
        sizes = {name: await way() for name, way in ways.items()}  # and warm
        async with floors(sizes["no door"], sizes["OpenAI"]) as more:
            ways |= more
            times: dict[str, list[float]] = {way: [] for way in ways}
            for way in more.values():
                await way()
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                for name, way in ways.items():
                    start = time.perf_counter()
                    await way()
                    times[name].append(1e3 * (time.perf_counter() - start))
    finally:
        http.close()
        await client.close()
        await channel.close()
        await server.close(0)
    return times


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.doors", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="of each of the two measurements (default 60)")
    parser.add_argument("--dry", action="store_true", help="print, and keep no rows")
    options = parser.parse_args()
    model = load(open_checkpoint(DEMO))
    tiny = dataclasses.replace(model, backend=Tiny(model))
    rows = Rows("doors-cpu", ("openvino", "grpcio", "fastapi", "uvicorn"), keep=not options.dry)
    for subject, size, steps in ((model, (64, 64), model.spec.defaults.steps), (tiny, (512, 512), 1)):
        times = asyncio.run(measure(subject, size, steps, options.seconds))
        shape = f"{subject.backend.name} {size[0]}x{size[1]} {steps} steps, one request at a time"
        bare = percentiles(times["no door"])[1]
        for way, each in times.items():
            rows.add(f"{'call' if way in FLOORS else 'request'}, {way}", shape, "ms", each)
        for way, each in times.items():
            if way != "no door" and way not in FLOORS:
                pairs = list(zip(each, times["no door"], strict=True))
                rows.add(f"overhead, {way}", shape, "ms", [door - none for door, none in pairs])
                rows.add(f"overhead, {way}, of no door", shape, "ratio", [door / bare for door in each])
    return 0


if __name__ == "__main__":
    sys.exit(main())
