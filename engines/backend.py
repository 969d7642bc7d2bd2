"""What runs the networks: the protocol of a backend, and what every backend shares."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from engines.seat import Sitting
from pipeline.arrays import F32, Pixels
from pipeline.conditions.style import Style
from pipeline.conditions.text import Encoded
from pipeline.loras.lora import Lora
from pipeline.spec import Spec

_Value = TypeVar("_Value")
_Given = TypeVar("_Given", covariant=True)


class Denoiser(Protocol):
    """The UNet over fixed buffers, one latent size. Whoever steps writes rows in place, then runs them."""

    samples: F32  # [rows, C, h, w], written by the stepper; of a UNet that inpaints [rows, 2C + 1, h, w]
    timesteps: F32  # [rows]
    contexts: F32  # [rows, chunks * tokens, width]
    guidance: F32  # [rows], of a UNet that takes it (LCM); of no effect on others
    outputs: F32  # [rows, C, h, w], valid for the rows of the last run

    def put(self, row: int, inputs: Mapping[str, F32]) -> None:
        """Give a row what else its UNet takes, by the names of its inputs (graphs/ports.py): a row of each, no more."""
        ...

    def put_style(self, row: int, style: Style | None, which: int) -> None:
        """Give a row the tokens of a style and its weight: `which` of a picture's rows it is, 0 or 1. None: no style.

        Only a model with a style adapter takes one.
        """
        ...

    def put_lora(self, row: int, lora: Lora | None) -> None:
        """Give a row a LoRA, of the rank that the denoiser was made for. None: zeros.

        Only a model that takes LoRAs is given one.
        """
        ...

    def run(self, rows: Sequence[int]) -> None:
        """outputs[r] = UNet(samples[r], timesteps[r], contexts[r]) for each r of `rows`; the others are left alone.

        A row's output depends on that row alone, bit for bit: this is what "same pixels in any company" rests on.
        """
        ...


class Pending(Protocol[_Given]):
    """A result that a device may still be computing. Any thread may call `get` and `ready`."""

    def ready(self) -> bool:
        """Return whether `get` would return at once."""
        ...

    def get(self) -> _Given:
        """Wait for the result, and return it."""
        ...


@dataclass(frozen=True)
class Ready(Generic[_Value]):
    """A result that is there already, as a CPU's always are."""

    value: _Value

    def ready(self) -> bool:
        return True

    def get(self) -> _Value:
        return self.value


class Stepper(Protocol):
    """The seats of one lane, and one evaluation over whoever sits. Tables, noise and contexts come from the host."""

    seats: int

    def sit(self, seat: int, sitting: Sitting) -> None:
        """Give a seat that nobody has to a picture of the lane's size and length of prompt."""
        ...

    def leave(self, seat: int) -> None: ...

    def pause(self, seat: int) -> Pending[F32]:
        """Empty a seat; returns S, [5, C, h, w]: all that its picture needs to go on, bit for bit, in any seat.

        For that its sitting gets it as `state`, and what `reached` said before as `start`.
        """
        ...

    def step(self, seats: Sequence[int], predict: Collection[int] = ()) -> None:
        """Begin one evaluation of each of `seats`, all of them unfinished; x0 is kept for those also in `predict`.

        On a CPU it is over when this returns; on a GPU it is then under way, with at most one more before it.
        """
        ...

    def reached(self, seat: int) -> int:
        """Return how many evaluations of the seat's table are done or under way."""
        ...

    def finished(self, seat: int) -> bool:
        """Return whether all evaluations of the seat's table are done or under way."""
        ...

    def pending_latents(self, seat: int) -> Pending[F32]:
        """Return x of a seat, [C, h, w]: a copy, so that the seat may be given to another picture."""
        ...

    def pending_prediction(self, seat: int) -> Pending[F32]:
        """Return x0 after the seat's last step that had it in `predict`, [C, h, w]: a copy."""
        ...


class Backend(Protocol):
    """The engines of one model on one device. One thread at a time uses them, but for what `makes_beside` allows."""

    name: str
    precision: str  # "f32", "bf16", ...
    pixels: str  # "exact", or "fast" where a row's last bits may depend on its company
    spec: Spec
    # May one other thread call `stepper` while this one encodes, steps and decodes? Only for a size that has a stepper
    # already: what a backend measures once a size would otherwise be measured beside steps that disturb it.
    makes_beside: bool
    lora_dtype: str  # "float32", or "bfloat16" (as uint16): what the LoRAs of a denoiser's rows come in

    def encode_text(self, ids: NDArray[np.int64], skip: int = 0, lora: Lora | None = None) -> Encoded:
        """Encode token ids [tokens], or for two text encoders [2, tokens].

        The context is without the last `skip` layers; the embedding of the whole text is always of all. `lora`: what
        is added to the text encoder's other layers, of a model that takes LoRAs.
        """
        ...

    def encode(self, ids: NDArray[np.int64], skip: int = 0) -> F32:
        """Return the context of `encode_text`, [tokens, width]."""
        ...

    def denoiser(self, width: int, height: int, rows: int, chunks: int = 1, rank: int = 0) -> Denoiser:
        """Make a UNet for pictures of `width` x `height` pixels and prompts of `chunks` times the encoder's length.

        Its buffers have `rows` rows. `rank`: of the LoRAs that it can be given; 0: the least that is run.
        """
        ...

    def together(self, width: int, height: int, rows: int, chunks: int = 1, rank: int = 0) -> Denoiser:
        """Make a denoiser whose rows are one engine's batch where the device has batches, whatever `pixels` says."""
        ...

    def decode(self, latents: F32) -> F32:
        """Decode latents [C, h, w], as the UNet makes them, to a picture [3, H, W] in about -1..1."""
        ...

    def moments(self, picture: F32) -> F32:
        """Encode a picture [3, H, W] in -1..1 to the VAE's posterior [2C, h, w]: mean, then log-variance, unscaled.

        Any thread may call it, also beside steps and decodes. Its engine is made at the first call.
        """
        ...

    def stepper(self, width: int, height: int, seats: int, chunks: int = 1, steps: int = 150, rank: int = 0) -> Stepper:
        """Make seats for pictures of this size, prompts of `chunks` times the encoder's length and up to `steps` steps.

        `rank`: as for `denoiser`.
        This is how a backend steps: on the host over its `denoiser` (engines/cpu/host.py), or all on its device.
        """
        ...

    def row_seconds(self, width: int, height: int, chunks: int, rank: int = 0) -> float | None:
        """Return the seconds that one row of an existing stepper takes; None where making it has not shown them.

        Where there is a number, the engines of this size have been run once: nothing is left to warm up.
        """
        ...

    def picture(self, latents: Pending[F32]) -> Pending[Pixels | None]:
        """Decode a stepper's latents to pixels; None where the latents, or the picture, are not numbers."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return what else the backend's bits depend on, beside the weights and the precision, as JSON values."""
        ...

    def identities(self, width: int, height: int) -> dict[str, dict[str, Any]]:
        """Return what the store knows of the engines that pictures of this size use; none are kept where it is empty.

        The keys are "text_encoder", "vae_decoder" and "unet", or for several UNets "unet of 2 rows" and so on.
        """
        ...

    def device_key(self) -> str:
        """Return the name under which engines/cache/devices.py keeps what is measured here."""
        ...
