"""What each door costs: `python -m benchmarks.doors`, under three minutes.

One server in this process, asked in turn: by Service.submit and its events, without a door; through gRPC; through
OpenAI's API, AUTOMATIC1111's and the page's stream. One request at a time, so a door's overhead is its median less that
of no door, with its client's cost in it: the client runs on the same event loop. The same at 64x64 and 12 steps, of the
embedded model, and at 512x512 and one step of a UNet and a decoder that are an addition each, where the answer is a
picture of 700 KB and nearly all that there is to do is the door's.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.rows import Rows, percentiles
from engines.cpu.host import HostBackend
from engines.model import Model, load
from latentd import AsyncClient
from pipeline.arrays import F32
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.conditions.style import Style
from server.app import Server
from server.request import ImageRequest
from server.service import collect
from server.settings import Settings

DEMO = Path(__file__).parent.parent / "demo" / "small-things"
PROMPT = "red apple, color style"
JSON = {"prompt": PROMPT, "seed": 7}
Way = Callable[[], Awaitable[int]]  # draws; returns the bytes of what arrived


class Tiny(HostBackend):
    """Stands where a model's networks would be, with next to nothing to compute; its pictures do not compress."""

    name, precision, makes_beside = "tiny", "f32", False

    def __init__(self, model: Model) -> None:
        self.spec = model.spec
        self._encoder = model.backend
        self._grain: F32 | None = None

    def encode(self, ids: NDArray[np.int64], skip: int = 0) -> F32:
        return self._encoder.encode(ids, skip)

    def denoiser(self, width: int, height: int, rows: int, chunks: int = 1) -> TinyUnet:
        text = self.spec.text
        return TinyUnet(rows, self.spec.latent_shape(width, height), (chunks * text.tokens, text.width))

    def decode(self, latents: F32) -> F32:
        factor = self.spec.vae.factor
        picture = latents[:3].repeat(factor, axis=1).repeat(factor, axis=2)
        if self._grain is None:
            self._grain = np.random.default_rng(0).random(picture.shape, np.float32) - np.float32(0.5)
        return np.clip(picture + self._grain, -1, 1)

    def moments(self, picture: F32) -> F32:
        raise NotImplementedError


class TinyUnet:
    def __init__(self, rows: int, shape: Sequence[int], context: Sequence[int]) -> None:
        self.samples, self.outputs = np.zeros((rows, *shape), np.float32), np.zeros((rows, *shape), np.float32)
        self.timesteps, self.guidance = np.zeros(rows, np.float32), np.zeros(rows, np.float32)
        self.contexts = np.zeros((rows, *context), np.float32)

    def put_style(self, row: int, style: Style | None, which: int) -> None:
        assert style is None, "the model has no style adapter"

    def run(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.outputs[row] = self.samples[row] + np.float32(0.1)


class Http:
    """Keeps one connection, as a client's pool does, and does no more with an answer than read it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: dict[str, Any]) -> int:
        """Return the bytes of the answer. Raises SystemExit for one that is an error."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 24)
        reader, writer = self._streams
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if not answer.startswith("http/1.1 200 "):
            raise SystemExit(answer)
        if "transfer-encoding: chunked" not in answer:
            return len(await reader.readexactly(int(answer.partition("content-length: ")[2].split("\r\n")[0])))
        size = 0
        while part := int(await reader.readline(), 16):
            size += len(await reader.readexactly(part + 2)) - 2
        await reader.readexactly(2)
        return size

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


async def measure(model: Model, size: tuple[int, int], steps: int, seconds: float) -> dict[str, list[float]]:
    """Return the milliseconds of each way's requests, drawn in turn for so many seconds."""
    settings = Settings(model=model.checkpoint.path, http_port=0, grpc_port=0, metrics_port=0, seats=1, sizes=(size,))
    server = Server(settings)
    await server.open()
    await server.load(lambda _: model)
    client, http = AsyncClient(f"127.0.0.1:{server.grpc_port}"), Http(server.http_port or 0)
    label = model.spec.defaults.sampler

    async def no_door() -> int:
        request = ImageRequest(prompt=PROMPT, seed=7, steps=steps, sampler=label)
        accepted = await server.service.submit(request, "bench", None)
        images, _ = await collect(server.service.events(accepted.job))
        return len(images[0].data)

    async def grpc() -> int:
        (picture,) = await client.generate(PROMPT, seed=7, steps=steps, sampler=label)
        return len(picture.data)

    ours = {**JSON, "steps": steps, "sampler": label}
    ways: dict[str, Way] = {
        "no door": no_door,
        "gRPC": grpc,
        "OpenAI": lambda: http.post("/v1/images/generations", ours),
        "A1111": lambda: http.post("/sdapi/v1/txt2img", {**JSON, "steps": steps, "sampler_name": label}),
        "page": lambda: http.post("/api/generate", ours),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    try:
        for way in ways.values():
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
        await server.close(0)
    return times


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.doors", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="of each of the two measurements (default 60)")
    options = parser.parse_args()
    model = load(open_checkpoint(DEMO))
    tiny = dataclasses.replace(model, backend=Tiny(model))
    rows = Rows("doors-cpu", ("openvino", "grpcio", "fastapi", "uvicorn"))
    for subject, size, steps in ((model, (64, 64), model.spec.defaults.steps), (tiny, (512, 512), 1)):
        times = asyncio.run(measure(subject, size, steps, options.seconds))
        shape = f"{subject.backend.name} {size[0]}x{size[1]} {steps} steps, one request at a time"
        bare = percentiles(times["no door"])[1]
        for way, each in times.items():
            rows.add(f"request, {way}", shape, "ms", each)
        for way, each in times.items():
            if way != "no door":
                pairs = list(zip(each, times["no door"], strict=True))
                rows.add(f"overhead, {way}", shape, "ms", [door - none for door, none in pairs])
                rows.add(f"overhead, {way}, of no door", shape, "ratio", [door / bare for door in each])
    return 0


if __name__ == "__main__":
    sys.exit(main())
