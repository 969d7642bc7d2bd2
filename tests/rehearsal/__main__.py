"""python -m tests.rehearsal serve NAME PIXELS PRECISION SEATS | section NAME: for tests/rehearsal/test_*.py.

`serve`: the backend torch at the size of SD 1.5 or 2.1, from its weights to pixels. `section`: one of gpu-check's.
"""

from __future__ import annotations

import dataclasses
import sys
import time
import types
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from tests.rehearsal import card


def serve(name: str, pixels: str, precision: str, seats: int) -> None:
    from benchmarks.gpu import networks
    from benchmarks.gpu.check import Check
    from engines.cuda import CudaBackend
    from model import weights
    from model.clip import ClipText
    from model.unet import Unet
    from model.vae import VaeDecoder
    from pipeline.samplers import table

    check = Check("serve", torch.device("cuda"), torch.float16, [], {}, float("inf"))
    spec = networks.whole_spec(check, name)
    if name == "SD 2.1":
        spec = dataclasses.replace(spec, text=dataclasses.replace(spec.text, heads=16, layers=23))
    loads: Any = weights  # files hold numbers, which these tensors have not
    loads.load_text = lambda spec, folder: ClipText(spec.text)
    loads.load_unet = lambda spec, folder, dtype, ops: Unet(spec.unet, ops).to(dtype)
    loads.load_vae_decoder = lambda spec, folder, dtype, ops: VaeDecoder(spec.vae, ops).to(dtype)
    artifact: Any = types.SimpleNamespace(spec=spec, folder=None)
    backend = CudaBackend(artifact, precision, pixels=pixels)
    context = backend.encode(np.zeros(spec.text.tokens, np.int64))
    assert context.shape == (spec.text.tokens, spec.text.width)
    shape, noisy = spec.latent_shape(512, 512), table(spec.schedule, "dpmpp_2m_sde", 4)
    noise = np.zeros((1 + noisy.draws, *shape), np.float32)
    for chunks in (1, 2):
        stepper, text = backend.stepper(512, 512, seats, chunks), np.concatenate([context] * chunks)
        stepper.sit(0, noisy, noise, text, text, 7.5)
        stepper.sit(seats - 1, noisy, noise, text, None, 1.0)
        stepper.step([0, seats - 1], predict=[0])
        stepper.step([0])
        assert stepper.pending_prediction(0).get().shape == shape
        latents = stepper.pending_latents(seats - 1)
        stepper.leave(seats - 1)
        assert latents.tensor.device.type == "cuda"
        pixels_made = backend.picture(latents).get()
        assert pixels_made is None, "the stand-in reads ones, so the decoder's flag says: not a number"
    denoiser = backend.denoiser(512, 512, 2)
    denoiser.run([0, 1])
    assert denoiser.outputs.shape == (2, *shape)


# Of the stand-in: torch.compile wants a genuine card, and how many numbers are not zero nobody knows.
LIMITS = (
    "Torch not compiled with CUDA enabled",
    "Found no NVIDIA driver",
    "DynamicOutputShapeException",
    "Legacy CUDA profiling",
)


def section(name: str) -> int:
    from benchmarks.gpu.check import Check, read_rows
    from benchmarks.gpu.child import run

    with TemporaryDirectory() as scratch:
        stamp = {"device": card.NAME, "torch": torch.__version__, "triton": "", "cuda": "", "date": ""}
        file = Path(scratch, "rows.csv")
        check = Check(name, torch.device("cuda"), torch.float16, [file], stamp, time.monotonic() + 1000)
        code = run(check, Path(scratch, "state"))
        failed = [row["note"] for row in read_rows(file) if row["status"] == "failed"]
    return code or any(not any(limit in note for limit in LIMITS) for note in failed)


def main() -> int:
    what, *arguments = sys.argv[1:]
    card.insert()
    with card.Fake(), torch.no_grad():
        if what == "section":
            return int(section(arguments[0]))
        name, pixels, precision, seats = arguments
        serve(name, pixels, precision, int(seats))
    for kernel, variants in sorted(card.launched.items()):
        print(f"{kernel}: {len(variants)} variants")
    return 0


if __name__ == "__main__":
    sys.exit(main())
