"""Fifty swaps of the served model under load: `python -m benchmarks.swaps [--swaps 50]`.

A process serves the demo model, and from then on two models in turn: that one, and a copy whose UNet has another bias.
Four clients draw without a pause meanwhile, of six seeds; one more watches health. Every picture is compared with what
its model draws alone, in this process. Counted are failed requests, pictures of other bits, statuses of health but
SERVING, seconds a swap and a request, and what the process holds after each swap. Exit code 1 where a request failed, a
picture differs or health changed.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import math
import re
import shutil
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image as PILImage

from benchmarks.memory import memory_of
from benchmarks.rows import Rows
from benchmarks.serving import ROOT, server_process
from engines.choice import Choice
from engines.generate import generate
from engines.model import load
from latentd import AsyncClient, ServerError
from latentd.events import Event, Queued
from latentd.v1 import admin_pb2 as pb
from latentd.v1.admin_pb2_grpc import AdminStub
from pipeline.arrays import Pixels
from pipeline.checkpoint.opened import open_checkpoint
from server.access.key import digest_of, new_token

DEMO = ROOT / "demo" / "small-things"
OTHER = "other-things"
CLIENTS, SEEDS, STEPS = 4, range(6), 8
PROMPT = "a red apple, color style"
SETTLED = 10  # swaps, after which memory is compared


@dataclass
class Record:
    """Holds what a run has seen."""

    pictures: list[tuple[str, int, bytes]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    swaps: list[float] = field(default_factory=list)
    drains: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)  # MB, after each swap


def other_model(folder: Path) -> Path:
    """Copy the demo model, and move one bias of its UNet."""
    copy = folder / OTHER
    shutil.copytree(DEMO, copy)
    (path,) = (copy / "unet").glob("*.safetensors")
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    begin, end = json.loads(data[8 : 8 + length])["conv_out.bias"]["data_offsets"]
    at = slice(8 + length + begin, 8 + length + end)
    moved = np.frombuffer(bytes(data[at]), np.float16) + np.float16(0.125)
    data[at] = moved.tobytes()
    path.write_bytes(data)
    return copy


def alone(model: Path) -> dict[int, Pixels]:
    """Draw each seed with nobody beside it."""
    loaded = load(open_checkpoint(model), Choice())
    return {seed: generate(loaded, PROMPT, seed=seed, steps=STEPS) for seed in SEEDS}


async def _draw(client: AsyncClient, number: int, over: asyncio.Event, record: Record) -> None:
    while not over.is_set():
        seed, start = SEEDS[number % len(SEEDS)], time.monotonic()
        models: list[str] = []

        def note(event: Event, models: list[str] = models) -> None:
            if isinstance(event, Queued):
                models.append(event.model)

        try:
            (picture,) = await client.generate(PROMPT, seed=seed, steps=STEPS, on_event=note, timeout=60)
            record.pictures.append((models[0], seed, picture.data))
        except ServerError as error:
            record.failures.append(f"{error.code.name}: {error.message}")
        record.waits.append(time.monotonic() - start)
        number += 1


async def _watch(channel: grpc.aio.Channel, record: Record) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    async for answer in stub.Watch(health_pb2.HealthCheckRequest()):
        record.statuses.append(answer.status)


async def _run(address: str, pid: int, token: str, swaps: int, seconds: float) -> Record:
    record, over = Record(), asyncio.Event()
    key = (("authorization", f"Bearer {token}"),)
    async with AsyncClient(address, key=token) as client, grpc.aio.insecure_channel(address) as channel:
        stub: Any = AdminStub(channel)
        work = [asyncio.create_task(_draw(client, number, over, record)) for number in range(CLIENTS)]
        watching = asyncio.create_task(_watch(channel, record))
        end, until = 0.0, time.monotonic() + seconds
        for number in range(swaps):
            if end > until:
                break
            start, serves = time.monotonic(), 0.0
            model = (OTHER, DEMO.name)[number % 2]
            async for stage in stub.Swap(pb.SwapRequest(model=model), metadata=key):
                serves = time.monotonic() if stage.stage == pb.STAGE_DRAINING else serves
            end = time.monotonic()
            record.swaps.append(end - start)
            record.drains.append(end - serves)
            record.memory.append(memory_of(pid).anonymous)
            held, answers = record.memory[-1], len(record.waits)
            print(f"swap {number + 1}: {end - start:.1f} s, {held:.0f} MB, {answers} answers", flush=True)
        over.set()
        await asyncio.gather(*work)
        watching.cancel()
    return record


def main(argv: Sequence[str] | None = None) -> int:
    """Swap and count; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.swaps", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--swaps", type=int, default=50, metavar="N")
    parser.add_argument("--seconds", type=float, default=math.inf, metavar="S", help="begin no swap after so many")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        models = Path(scratch) / "models"
        shutil.copytree(DEMO, models / DEMO.name)
        other = other_model(models)
        expected = {path.name: alone(path) for path in (DEMO, other)}
        token = new_token()
        keys = Path(scratch) / "keys.yaml"
        entry = {"name": "op", "digest": f"sha256:{digest_of(token)}", "admin": True}
        keys.write_text(yaml.safe_dump({"keys": [entry]}))
        flags = ("--keys", str(keys), "--admin", "on", "--admin-models", str(models), "--http-port", "off")
        with server_process(models / DEMO.name, words=("server",), flags=flags) as (line, _, pid):
            address = re.findall(r"gRPC (\S+?),", line)[0]
            record = asyncio.run(_run(address, pid, token, options.swaps, options.seconds))
    different = [
        (name, seed)
        for name, seed, data in record.pictures
        if not np.array_equal(np.asarray(PILImage.open(io.BytesIO(data))), expected[name][seed])
    ]
    for failure in record.failures[:5]:
        print(failure, file=sys.stderr)
    rows = Rows("swaps-cpu", ("openvino", "grpcio"))
    shape = f"{len(record.swaps)} swaps of the demo model and a copy of it; {CLIENTS} clients, {STEPS} steps"
    drawn = {name: sum(each == name for each, _, _ in record.pictures) for name in expected}
    rows.add("requests", shape, "", [float(len(record.waits))])
    rows.add("requests failed", shape, "", [float(len(record.failures))])
    for name, count in drawn.items():
        rows.add(f"pictures of {name}", shape, "", [float(count)])
    rows.add("pictures of other bits than alone", shape, "", [float(len(different))])
    rows.add("health but SERVING", shape, "", [float(sum(each != 1 for each in record.statuses))])
    rows.add("a swap", shape, "s", record.swaps)
    rows.add("the old model's end, once it is old", shape, "s", record.drains)
    rows.add("a request", shape, "s", record.waits)
    rows.add("the longest request", shape, "s", [max(record.waits)])
    early, late = record.memory[:SETTLED], record.memory[-SETTLED:]
    rows.add(f"held after each of the first {SETTLED}", shape, "MB", early)
    rows.add(f"held after each of the last {SETTLED}", shape, "MB", late)
    bad = bool(record.failures or different or any(each != 1 for each in record.statuses))
    print(f"memory: {statistics.median(late) - statistics.median(early):+.1f} MB from the first ten to the last ten")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
