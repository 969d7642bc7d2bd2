"""The step through the Triton kernels in Triton's interpreter: run by tests/engines/cuda/test_triton.py, in a process.

The interpreter is chosen by an environment variable that triton reads when it is imported.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from engines.cuda.backend import CudaBackend
from engines.cuda.kernels import plain_kernels, triton_kernels
from engines.seat import Sitting
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.conditions.mask import Inpaint
from pipeline.noise import standard_normal
from pipeline.samplers import table

# Of max|x|, in float32: sums in another order, through two evaluations.
CLOSE = 2e-5


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    checkpoint = open_checkpoint(folder)
    spec = checkpoint.spec
    text, shape = spec.text, spec.latent_shape(spec.defaults.width, spec.defaults.height)
    contexts = np.random.default_rng(1).standard_normal((2, text.tokens, text.width)).astype(np.float32)
    mask = np.linspace(0, 1, shape[1] * shape[2], dtype=np.float32).reshape(shape[1:])
    inpaint = Inpaint(mask, standard_normal(7, shape)[0])
    latents, pixels = {}, {}
    for name, kernels in (("plain", plain_kernels()), ("triton", triton_kernels())):
        backend = CudaBackend(checkpoint, "f32", pixels="fast", device="cpu", kernels=kernels)
        stepper = backend.stepper(spec.defaults.width, spec.defaults.height, 2, steps=2)
        for seat, (sampler, guidance) in enumerate((("euler_a", 4.0), ("dpmpp_2m", 1.0))):
            run = table(spec.schedule, sampler, 2)
            noise = standard_normal(seat, shape, draws=1 + run.draws)
            negative = contexts[1] if guidance > 1 else None
            stepper.sit(seat, Sitting(run, noise, contexts[0], negative, guidance, inpaint=inpaint if seat else None))
        for _ in range(2):
            stepper.step([0, 1])
        latents[name] = np.stack([stepper.latents(seat) for seat in (0, 1)])
        made = backend.picture(stepper.pending_latents(0)).get()
        assert made is not None
        pixels[name] = made.astype(int)
    error = float(np.abs(latents["triton"] - latents["plain"]).max() / np.abs(latents["plain"]).max())
    steps = int(np.abs(pixels["triton"] - pixels["plain"]).max())
    print(f"latents {error:.1e} of {CLOSE:.0e}, pixels {steps} of 1 level")
    assert error < CLOSE and steps <= 1 and pixels["plain"].std() > 5


if __name__ == "__main__":
    main(Path(sys.argv[1]))
