"""What runs the networks: the protocol of a backend, and what every backend shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import LatentdError
from pipeline.spec import Spec

F32 = NDArray[np.float32]


class BackendError(LatentdError):
    """A backend that cannot be had or built here; the message says what to install or run."""

    code = "FAILED_PRECONDITION"


class DeviceError(LatentdError):
    """The device failed while it served. Live requests fail and the process ends: its supervisor restarts it."""

    code = "UNAVAILABLE"


class Denoiser(Protocol):
    """The UNet over fixed buffers, one latent size. Whoever steps writes rows in place, then runs them."""

    samples: F32  # [rows, C, h, w], written by the stepper
    timesteps: F32  # [rows]
    contexts: F32  # [rows, chunks * tokens, width]
    guidance: F32  # [rows], of a UNet that takes it (LCM); of no effect on others
    outputs: F32  # [rows, C, h, w], valid for the rows of the last run

    def run(self, rows: Sequence[int]) -> None:
        """outputs[r] = UNet(samples[r], timesteps[r], contexts[r]) for each r of `rows`; the others are left alone.

        A row's output depends on that row alone, bit for bit: this is what "same pixels in any company" rests on.
        """
        ...


class Backend(Protocol):
    """Engines of one model on one device. Used by one thread at a time."""

    name: str
    precision: str  # "f32", "bf16", ...
    spec: Spec

    def encode(self, ids: NDArray[np.int64], skip: int = 0) -> F32:
        """Token ids [tokens] to context [tokens, width], without the text encoder's last `skip` layers."""
        ...

    def denoiser(self, width: int, height: int, rows: int, chunks: int = 1) -> Denoiser:
        """A UNet for pictures of `width` x `height` pixels and prompts of `chunks` times the encoder's length.

        Its buffers have `rows` rows.
        """
        ...

    def decode(self, latents: F32) -> F32:
        """Latents [C, h, w], as the UNet makes them, to a picture [3, H, W] in about -1..1."""
        ...


def to_pixels(picture: F32) -> NDArray[np.uint8]:
    """[3, H, W] in -1..1 to uint8 [H, W, 3], rounded half to even as diffusers does."""
    unit = np.clip(picture * np.float32(0.5) + np.float32(0.5), 0, 1)
    return np.ascontiguousarray((unit * np.float32(255)).round().astype(np.uint8).transpose(1, 2, 0))
