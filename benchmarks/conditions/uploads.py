"""Other requests' p95 beside uploads, over that beside the same messages whose pictures nobody reads.

A control request has the same bytes in a field that no version knows, or is refused for its steps before its picture is
looked at: what the client and the wire cost is in both, and what differs is reading pictures and encoding them.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import random
import struct
import time
import zlib
from collections.abc import AsyncIterator, Callable

import grpc
import grpc.aio
import numpy as np
from PIL import Image

from benchmarks.load import p95
from latentd.v1 import images_pb2 as pb
from latentd.v1.images_pb2_grpc import ImagesStub

CALLERS, STEPS = 4, 4  # of the others, one request after another
GOOD, BAD = 4.0, 20.0  # uploads a second
_SIDE = 1024  # pixels of a good one
_TOO_MANY = 1001  # steps, which are refused before any picture is read
Make = Callable[[], pb.GenerateRequest]
_numbers = itertools.count()


def makes() -> dict[str, tuple[float, Make, Make]]:
    """Return uploads a second, a request with one, and its control, of each kind."""
    good, bad = _photo(), itertools.cycle(_refused())
    return {
        "pictures": (
            GOOD,
            lambda: _request(init_image=good, strength=1.0, steps=1),
            lambda: _with_unknown(_request(steps=1), good),
        ),
        "refused files": (
            BAD,
            lambda: _request(init_image=next(bad), steps=1),
            lambda: _request(init_image=next(bad), steps=_TOO_MANY),
        ),
    }


async def others(address: str, seconds: float, rate: float, make: Make | None) -> tuple[float, dict[str, int]]:
    """Return the p95 of the others' requests in milliseconds, and how the uploads ended, by code."""
    ends: dict[str, int] = {}
    took: list[float] = []
    end = time.monotonic() + seconds
    async with _stub(address) as theirs, _stub(address) as uploads:

        async def one_after_another() -> None:
            while (start := time.monotonic()) < end:
                if (code := await _code(theirs, _request(steps=STEPS))) != "OK":
                    raise SystemExit(f"a request beside uploads ended with {code}")
                took.append(1e3 * (time.monotonic() - start))

        async def upload(request: pb.GenerateRequest) -> None:
            code = await _code(uploads, request)
            ends[code] = ends.get(code, 0) + 1

        async def arrivals(make: Make) -> None:
            due, tasks = time.monotonic(), []
            while due < end:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                tasks.append(asyncio.ensure_future(upload(make())))
                due += 1 / rate
            await asyncio.gather(*tasks)

        await asyncio.gather(
            *(one_after_another() for _ in range(CALLERS)), *([arrivals(make)] if make is not None else [])
        )
    return p95(took), ends


@contextlib.asynccontextmanager
async def _stub(address: str) -> AsyncIterator[ImagesStub]:
    """Give a connection of its own: a large upload holds up no small message."""
    async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield ImagesStub(channel)


async def _code(stub: ImagesStub, request: pb.GenerateRequest) -> str:
    try:
        async for _ in stub.Generate(request):  # pyright: ignore
            pass
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


def _request(**fields: object) -> pb.GenerateRequest:
    """Make a request whose prompt nobody has encoded yet."""
    number = next(_numbers)
    return pb.GenerateRequest(prompt=f"red apple number {number}, color style", seed=number, **fields)  # type: ignore[arg-type]


def _with_unknown(request: pb.GenerateRequest, data: bytes) -> pb.GenerateRequest:
    """Return a message with `data` in field 1000, which parsers keep and nobody reads (protobuf's wire type 2)."""
    length, varint = len(data), bytearray()
    while length > 127:
        varint.append(length & 127 | 128)
        length >>= 7
    varint.append(length)
    return pb.GenerateRequest.FromString(request.SerializeToString() + b"\xc2\x3e" + bytes(varint) + data)


def _photo() -> bytes:
    """Return a PNG that compresses as a photograph does, about 1.5 bytes a pixel."""
    noise = np.random.default_rng(0).normal(0, 3, (_SIDE, _SIDE, 3))
    ramp = np.mgrid[:_SIDE, :_SIDE].sum(0)[..., None] * 255 / (2 * _SIDE)
    return _file(Image.fromarray((ramp + noise).clip(0, 255).astype(np.uint8)), "png")


def _refused() -> list[bytes]:
    """Return files that are damaged in many ways, and made to harm."""
    chance = random.Random(7)
    small = Image.fromarray(np.random.default_rng(1).integers(0, 255, (300, 400, 3), np.uint8))
    files = [_file(small, kind) for kind in ("png", "jpeg", "webp")]
    damaged = [_damaged(files[number % 3], chance) for number in range(60)]
    side = 12_800  # 480 KB that would be 490 MB
    empty = zlib.compress(b"\0" * ((3 * side + 1) * side), 9)
    chunks = _chunk(b"tEXt", b"a\0b") * 30_000
    bombs = [
        _png(side, side, empty),
        _png(2**31 - 1, 2**31 - 1, b""),
        _png(8, 8, b"", _chunk(b"acTL", struct.pack(">II", 10_000, 0))),
        _png(8, 8, b"", chunks),
        files[2][:200],
        b"GIF89a",
    ]
    return [file for pair in zip(damaged, itertools.cycle(bombs), strict=False) for file in pair]


def _damaged(data: bytes, chance: random.Random) -> bytes:
    """Cut a file short, and change a byte of what is left of its header."""
    left = bytearray(data[: chance.randrange(16, len(data) // 2)])
    left[chance.randrange(16)] ^= 1 << chance.randrange(8)
    return bytes(left)


def _file(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width: int, height: int, body: bytes, more: bytes = b"") -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


__all__ = ["BAD", "CALLERS", "GOOD", "STEPS", "makes", "others"]
