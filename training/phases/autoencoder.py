"""The autoencoder (Rombach et al. 2022, section 3.1, with the small KL term), and the scale of its latents."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from model.vae import VaeDecoder, VaeEncoder
from training.batches import Context, in_batches, pixels_of
from training.draws import generator
from training.networks import new_vae
from training.sheet import pictures_of, sheet

_MEASURED = 1024  # pictures whose latents are measured
_AT_ONCE = 64


class Autoencoder:
    name = "autoencoder"

    def __init__(self, context: Context) -> None:
        self.context, self.recipe = context, context.recipe.phases.autoencoder
        self.encoder, self.decoder = new_vae(context.recipe)
        self.net = nn.ModuleDict({"encoder": self.encoder, "decoder": self.decoder}).to(context.device)

    def read(self, step: int) -> Tensor:
        return pixels_of(self.context.samples(self.name, step, self.recipe.batch))

    def losses(self, batch: Tensor, step: int) -> dict[str, Tensor]:
        pixels, recipe = batch.to(self.context.device), self.recipe
        with self.context.autocast(recipe.bfloat16):
            mean, logvar = self.encoder.distribution(pixels)
            mean, logvar = mean.float(), logvar.float()
            whole = (recipe.batch, *mean.shape[1:])
            noise = self.context.share(
                torch.randn(whole, generator=generator(self.context.recipe.seed, self.name, step))
            )
            drawn = self.decoder(mean + (0.5 * logvar).exp() * noise).float()
        error = F.mse_loss(drawn, pixels)
        # A blurred edge costs a mean square little, and the eye much: the differences of neighbours are compared too.
        edges = F.l1_loss(drawn.diff(dim=2), pixels.diff(dim=2)) + F.l1_loss(drawn.diff(dim=3), pixels.diff(dim=3))
        # KL divergence from a unit normal (Kingma & Welling 2014, appendix B), a latent.
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = error + recipe.edges * edges + recipe.kl * kl
        psnr = -10 * torch.log10(error.detach() / 4)
        return {"loss": loss, "error": error, "edges": edges, "kl": kl, "psnr": psnr}

    @torch.no_grad()
    def sheet(self) -> Image.Image:
        pixels = pixels_of([self.context.pictures.held(self.name, i) for i in range(16)]).to(self.context.device)
        drawn = self.decoder(self.encoder.distribution(pixels)[0])
        return sheet([*pictures_of(pixels), *pictures_of(drawn)], 16)


@torch.no_grad()
def whiten(encoder: VaeEncoder, decoder: VaeDecoder, context: Context) -> float:
    """Give every latent channel mean 0 and deviation 1 inside the 1x1 convolutions; return what is left to scale.

    The pictures do not change: post_quant_conv undoes what quant_conv does. The scale is 1 / deviation over other
    pictures than those that were whitened with, as in Rombach et al. 2022, appendix G, for all channels at once.
    """
    latents = latents_of(encoder, context, "whitening", _MEASURED)
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3)).clamp(min=1e-3)
    into, out, channels = encoder.quant_conv, decoder.post_quant_conv, len(mean)
    assert into is not None and out is not None and into.bias is not None and out.bias is not None
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= deviation[None, :, None, None]
    into.weight[:channels] /= deviation[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / deviation
    into.bias[channels:] -= 2 * deviation.log()  # log-variances shrink with what they belong to
    return 1 / float(latents_of(encoder, context, "scale", _MEASURED).std())


@torch.no_grad()
def latents_of(encoder: VaeEncoder, context: Context, purpose: str, count: int) -> Tensor:
    """Return the latents of so many pictures, not scaled."""

    def some(rows: range) -> Tensor:
        pixels = pixels_of([context.pictures.sample(purpose, i) for i in rows])
        return encoder.distribution(pixels.to(context.device))[0]

    return in_batches(count, _AT_ONCE, some)
