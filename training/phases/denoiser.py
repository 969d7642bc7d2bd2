"""The denoiser (Ho et al. 2020; Rombach et al. 2022, section 3.3), and the text encoder, which is trained along."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from model.clip import ClipText
from model.vae import VaeDecoder, VaeEncoder
from pipeline.schedule import alphas_cumprod
from training.batches import Context, pixels_of
from training.draw import Drawing, draw
from training.draws import generator
from training.networks import SCHEDULE, new_unet
from training.phases.bank import Bank
from training.sheet import pictures_of, sheet

_SHOWN = 24


class Noising:
    """Mixes latents and noise at any step at once, and knows what the network is to say of the mixture."""

    def __init__(self, device: torch.device) -> None:
        kept = torch.from_numpy(alphas_cumprod(SCHEDULE).astype(np.float32)).to(device)
        self.signal, self.noise = kept.sqrt(), (1 - kept).sqrt()

    def __call__(self, latents: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Latents, noise [n, C, h, w], timesteps [n] -> the mixture and its velocity.

        x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e (Ho et al. 2020, eq. 4); v = sqrt(a_t) e - sqrt(1 - a_t) x_0 (Salimans
        & Ho 2022, appendix D).
        """
        signal, share = (part[t][:, None, None, None] for part in (self.signal, self.noise))
        return signal * latents + share * noise, signal * noise - share * latents


class Denoiser:
    name = "denoiser"

    def __init__(self, context: Context, text: ClipText, vae: tuple[VaeEncoder, VaeDecoder], scale: float) -> None:
        """Begin with the contrastive text encoder, and the autoencoder that stays as it is."""
        self.context, self.recipe = context, context.recipe.phases.denoiser
        self.text, self.unet = text, new_unet(context.recipe)
        self.net = nn.ModuleDict({"text": self.text, "unet": self.unet}).to(context.device)
        self.encoder, self.decoder = vae
        self.scale, self.noising = scale, Noising(context.device)
        # A folder's pictures are always the same, so that each needs to be encoded once.
        self._banked = self.recipe.bank or context.pictures.count or 0
        self._bank: Bank | None = None  # filled when the first batch is read

    def read(self, step: int) -> tuple[Tensor, Tensor]:
        """Return pictures, or latents where there is a bank, and tokens."""
        if self._banked:
            if self._bank is None:
                self._bank = Bank(self.context, self.encoder, self.scale, self._banked)
            latents, captions = self._bank.read(self.name, step, self.recipe.batch)
        else:
            samples = self.context.samples(self.name, step, self.recipe.batch)
            latents, captions = pixels_of(samples), [sample.caption for sample in samples]
        random = generator(self.context.recipe.seed, f"{self.name} captions", step)
        places = self.context.processes.share(self.recipe.batch)
        dropped = (torch.rand(self.recipe.batch, generator=random) < self.recipe.caption_dropout)[
            places.start : places.stop
        ]
        kept = ["" if gone else caption for caption, gone in zip(captions, dropped.tolist(), strict=True)]
        return latents, self.context.captions(kept)

    def losses(self, batch: tuple[Tensor, Tensor], step: int) -> dict[str, Tensor]:
        latents, ids = (part.to(self.context.device) for part in batch)
        context = self.context
        if not self._banked:
            latents = encoded(self.encoder, latents, self.scale)
        random = generator(context.recipe.seed, self.name, step)
        shape = (self.recipe.batch, *latents.shape[1:])
        noise = context.share(torch.randn(shape, generator=random))
        t = context.share(torch.randint(SCHEDULE.train_steps, (self.recipe.batch,), generator=random))
        mixture, velocity = self.noising(latents, noise, t)
        with context.autocast(self.recipe.bfloat16):
            predicted = self.unet(mixture, t.float(), self.text(ids)[0]).float()
        each = (predicted - velocity).square().mean(dim=(1, 2, 3))
        late = t > SCHEDULE.train_steps // 2
        # The noisy half sets shapes, the other one details; each is worth a curve. A share without one of them has 0.
        halves = {"noisy": _mean(each.detach(), late), "clear": _mean(each.detach(), ~late)}
        return {"loss": each.mean(), **halves}

    def sheet(self) -> Image.Image:
        samples = [self.context.pictures.held(self.name, i) for i in range(_SHOWN)]
        captions = list(self.context.recipe.evaluate.sheet[:_SHOWN]) or [sample.caption for sample in samples]
        drawing = Drawing.of(self.context.recipe.evaluate, 0)
        drawn = draw(self.unet, self.text, self.decoder, self.scale, self.context.captions, captions, drawing)
        return sheet(pictures_of(drawn), 8, captions)


@torch.no_grad()
def encoded(encoder: VaeEncoder, pixels: Tensor, scale: float) -> Tensor:
    """Return scaled latents, the means of their distributions."""
    return encoder.distribution(pixels)[0] * scale


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    return (values * chosen).sum() / chosen.sum().clamp(min=1)
