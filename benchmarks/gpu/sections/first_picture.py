"""Last stage of gpu-first: one bucket of SD 1.5, captured and replayed, and a picture of random weights as a PNG."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu.frame.report import Case, Report
from benchmarks.gpu.frame.timing import by_events
from benchmarks.gpu.sections import company
from benchmarks.gpu.subjects.lab import Lab, Request, apart
from benchmarks.gpu.subjects.networks import our_kernels, ours, vae
from benchmarks.gpu.subjects.operations import step_floor

_REPLAYS = 20


def cases(report: Report) -> Iterator[Case]:
    yield Case("SD 1.5 step", partial(_step, report, False))
    yield Case("SD 1.5 step, cuDNN measured", partial(_step, report, True))


def _step(report: Report, measure: bool) -> None:
    """Step a guided request, whose latents become the picture."""
    steps = 2 if report.dry else 20
    lab = Lab(report, "SD 1.5", 1, buckets=(2,), measure=measure)
    request = Request("dpmpp_2m", steps, 7.5, 0)
    latents = lab.alone(request)
    again = lab.alone(request)
    report.expect(bool(np.isfinite(latents).all()), "latents", "1 request", "finite", float(np.abs(latents).max()))
    near = apart(again, latents)
    note = "dB of a second run; 999: equal"
    report.expect(near >= company.LEAST_AFTER_A_RUN, "latents", "1 request", "again", near, note)
    lab.sit(0, request)
    lab.stepper.step([0])
    with lab.stream.here():
        seconds = by_events(lab.stepper._replays[lab.stepper._live], least=_REPLAYS, most=_REPLAYS)
    flops, floor = step_floor(lab.spec, 2, *report.ceilings(), copies=lab.copies)
    report.time("SD 1.5 step", "1 requests", "measured" if measure else "replay", seconds, flops=flops, floor=floor)
    if not measure:
        _picture(report, latents)


def _picture(report: Report, latents: NDArray[np.float32]) -> None:
    x = torch.from_numpy(latents)[None].to(report.device, report.dtype)
    decoded = vae(report, ops=ours(report))(x.contiguous(memory_format=torch.channels_last))
    pixels, flags = our_kernels(report).to_uint8(decoded)
    levels = float(pixels.float().std())
    report.expect(not bool(flags.any()) and levels > 0, "picture", "512x512", "ours", levels, "standard deviation")
    for path in report.files:
        path.with_name(f"{path.stem}-first.png").write_bytes(png(pixels[0].cpu().numpy()))


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Write uint8 [h, w, 3] as a PNG file (RFC 2083), with nothing but the standard library."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)  # each with filter 0
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
