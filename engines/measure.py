"""How long engines take where they can run: the median and the 80th percentile of a call, kept for the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engines import apart, devices
from engines.artifact import Artifact, open_artifact
from engines.model import load

_SECONDS, _LEAST, _MOST = 0.5, 5, 200  # of a measurement; its least and most calls

Step = dict[str, float]  # "median" and "p80", in seconds; "calls"
Steps = dict[str, Step]  # by name: "text_encoder", "unet 64x64, 2 rows", "vae_decoder 64x64"


def name_of(network: str, size: tuple[int, int] | None = None, rows: int | None = None) -> str:
    return network + (f" {size[0]}x{size[1]}" if size else "") + (f", {rows} rows" if rows else "")


def steps_of(
    artifact: Artifact,
    backend: str,
    precision: str,
    sizes: Sequence[tuple[int, int]],
    rows: Sequence[int],
    say: Callable[[str], None],
) -> Steps:
    """Measured in a process of its own, or remembered. Errors: ApartError."""
    what = {"what": "steps", "artifact": artifact.digest, "backend": backend, "precision": precision}
    what |= {"sizes": [list(size) for size in sizes], "rows": list(rows)}
    device = devices.this_cpu()
    steps: Steps | None = devices.recall(device, what)
    if steps is None:
        say("measuring")
        job = {**what, "folder": str(artifact.folder)}
        steps = apart.run("engines.measure:measure", job, say)
        assert steps is not None
        devices.remember(device, what, steps)
    return steps


def measure(job: dict[str, Any], say: Callable[[str], None]) -> Steps:
    """The child's part: one encoded prompt, steps of each number of rows, one decoded picture."""
    artifact = open_artifact(Path(job["folder"]))
    backend = load(artifact, job["backend"], job["precision"]).backend
    spec = artifact.spec
    ids = np.zeros(spec.text.tokens, np.int64)
    steps = {name_of("text_encoder"): _times(lambda: backend.encode(ids))}
    for width, height in job["sizes"]:
        for rows in job["rows"]:
            denoiser = backend.denoiser(width, height, rows)
            denoiser.samples[:], denoiser.contexts[:], denoiser.timesteps[:] = 0.1, 0.1, 500
            steps[name_of("unet", (width, height), rows)] = _times(lambda d=denoiser, n=rows: d.run(range(n)))
        latents = np.full(spec.latent_shape(width, height), 0.1, np.float32)
        steps[name_of("vae_decoder", (width, height))] = _times(lambda x=latents: backend.decode(x))
    return steps


def _times(call: Callable[[], object]) -> Step:
    call()  # the first one has buffers to make
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < _LEAST or (len(taken) < _MOST and time.perf_counter() - begin < _SECONDS):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    median, p80 = np.percentile(taken, [50, 80])
    return {"median": float(f"{median:.4g}"), "p80": float(f"{p80:.4g}"), "calls": len(taken)}


def told(step: Step) -> str:
    return f"{_milliseconds(step['median'])} ({_milliseconds(step['p80'])})"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"
