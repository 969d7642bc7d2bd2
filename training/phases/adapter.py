"""The style adapter: a second attention, to a picture's tokens, beside that to the text (Ye et al. 2023, IP-Adapter).

The denoiser stays as it is. A caption here names no style, so that only the picture can say which one is wanted.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor, nn

from model.clip import ClipText, ClipVision
from model.unet import Unet
from model.vae import VaeDecoder, VaeEncoder
from training.batches import Context, pixels_of
from training.draw import Drawing, draw
from training.draws import generator
from training.networks import SCHEDULE, seeded, unet_spec
from training.ops import TRAINING
from training.phases.contrastive import as_seen
from training.phases.denoiser import Noising, encoded
from training.sheet import pictures_of, sheet

_SHOWN = 16


class StyleProjection(nn.Module):
    """A picture's embedding to tokens: a linear layer, and a norm of each token."""

    def __init__(self, embedding: int, tokens: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(embedding, tokens * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, embeddings: Tensor) -> Tensor:
        """[n, embedding] -> [n, tokens, width]."""
        tokens = self.proj(embeddings)
        return self.norm(tokens.unflatten(-1, (-1, self.norm.normalized_shape[0])))


class Adapter:
    name = "adapter"

    def __init__(
        self, context: Context, unet: Unet, text: ClipText, vision: ClipVision, vae: tuple[VaeEncoder, VaeDecoder],
        scale: float,
    ) -> None:  # fmt: skip
        recipe = context.recipe
        self.context, self.recipe = context, recipe.phases.adapter
        self.text, self.vision, self.scale = text, vision, scale
        self.encoder, self.decoder = vae
        self.noising = Noising(context.device)
        self.unet = styled_unet(context, unet, self.recipe.tokens)
        seeded(recipe, "adapter")
        self.projection = StyleProjection(recipe.vision.projection, self.recipe.tokens, recipe.text.width)
        names = [path for path, _ in self.unet.spec.text_layers]
        layers = [self.unet.get_submodule(path) for path in names]
        # In the order in which the published files number them, which is not that of execution.
        linears = [layer.get_submodule(f"to_{kind}_ip") for layer in layers for kind in "kv"]
        self.net = nn.ModuleDict({"image_proj": self.projection, "ip_adapter": nn.ModuleList(linears)})
        self.net.to(context.device).requires_grad_(True)

    def read(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        context, batch = self.context, self.recipe.batch
        share = context.processes.share(batch)
        samples = context.samples(self.name, step, batch)
        companions = [context.pictures.companion(self.name, step * batch + i) for i in share]
        random = generator(context.recipe.seed, f"{self.name} dropout", step)
        wordless, styleless = (
            (torch.rand(batch, generator=random) < chance)[share.start : share.stop]
            for chance in (self.recipe.caption_dropout, self.recipe.style_dropout)
        )
        captions = ["" if no else one.unstyled for one, no in zip(samples, wordless.tolist(), strict=True)]
        return pixels_of(samples), context.captions(captions), pixels_of(companions), ~styleless

    def losses(self, batch: tuple[Tensor, Tensor, Tensor, Tensor], step: int) -> dict[str, Tensor]:
        pixels, ids, companions, styled = (part.to(self.context.device) for part in batch)
        random = generator(self.context.recipe.seed, self.name, step)
        with torch.no_grad():
            latents = encoded(self.encoder, pixels, self.scale)
            seen = self.text(ids)[0]
            embeddings = self.vision(as_seen(companions)) * styled[:, None]
        shape = (self.recipe.batch, *latents.shape[1:])
        noise = self.context.share(torch.randn(shape, generator=random))
        t = self.context.share(torch.randint(SCHEDULE.train_steps, (self.recipe.batch,), generator=random))
        mixture, velocity = self.noising(latents, noise, t)
        with self.context.autocast(self.recipe.bfloat16):
            style = self.projection(embeddings)
            weight = torch.ones(len(ids), device=ids.device)
            predicted = self.unet(mixture, t.float(), seen, style=style, style_weight=weight).float()
        return {"loss": (predicted - velocity).square().mean()}

    @torch.no_grad()
    def sheet(self) -> Image.Image:
        """Show style pictures above, and below each a prompt in its style."""
        pictures = self.context.pictures
        samples = [pictures.held(self.name, i) for i in range(_SHOWN)]
        companions = [pictures.companion(f"{self.name} sheet", i) for i in range(_SHOWN)]
        pixels = pixels_of(companions).to(self.context.device)
        tokens = self.projection(self.vision(as_seen(pixels)))
        empty = self.projection(tokens.new_zeros(1, self.context.recipe.vision.projection))[0]
        drawn = draw(
            self.unet, self.text, self.decoder, self.scale, self.context.captions,
            [sample.unstyled for sample in samples], Drawing.of(self.context.recipe.evaluate, 0), (tokens, empty),
        )  # fmt: skip
        captions = ["style"] * _SHOWN + [sample.unstyled for sample in samples]
        return sheet([*pictures_of(pixels), *pictures_of(drawn)], _SHOWN, captions)


def styled_unet(context: Context, unet: Unet, tokens: int) -> Unet:
    """Return a frozen copy of the UNet with the second attention, which begins as the one to the text."""
    styled = Unet(unet_spec(context.recipe, tokens), TRAINING).to(context.device)
    weights = unet.state_dict()
    for path, _ in styled.spec.text_layers:
        for kind in "kv":
            weights[f"{path}.to_{kind}_ip.weight"] = weights[f"{path}.to_{kind}.weight"].clone()
    styled.load_state_dict(weights, strict=True)
    return styled.requires_grad_(False)
