"""A classifier of drawn pictures, trained apart from all that it is to judge: which things, and in which style.

It sees every pair of thing and style, also those that the denoiser never sees, since it is to tell whether they were
drawn right.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from training.batches import Context, pixels_of
from training.data.drawn import DrawnPictures
from training.draws import generator, permuted
from training.networks import seeded

_CHANNELS = (32, 64, 128, 192)
_NOISIEST = 0.15  # of pictures in -1..1: what a network draws is never as clean as what Pillow draws


class Net(nn.Module):
    """Convolutions that halve the side, with a residual one at each, and a layer for each question."""

    def __init__(self, things: int, styles: int) -> None:
        super().__init__()
        blocks, width = [], 3
        for channels in _CHANNELS:
            blocks += [nn.Conv2d(width, channels, 3, stride=2, padding=1), nn.GroupNorm(8, channels), nn.SiLU()]
            blocks.append(_Residual(channels))
            width = channels
        self.blocks = nn.Sequential(*blocks)
        self.things, self.styles = nn.Linear(2 * width, things), nn.Linear(2 * width, styles)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [n, 3, side, side] in -1..1 -> logits of the things and of the styles."""
        x = self.blocks(pixels)
        seen = torch.cat((x.mean(dim=(2, 3)), x.amax(dim=(2, 3))), dim=1)
        return self.things(seen), self.styles(seen)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(8, channels), nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.silu(self.norm(x)))


class Classifier:
    name = "classifier"

    def __init__(self, context: Context) -> None:
        assert isinstance(context.pictures, DrawnPictures)
        self.context, self.recipe, self.pictures = context, context.recipe.phases.classifier, context.pictures
        seeded(context.recipe, self.name)
        self.net = Net(len(self.pictures.things), len(self.pictures.styles)).to(context.device)

    def read(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return pictures, what is on them as shares [n, things], and their styles [n]."""
        pictures, seed, batch = self.pictures, self.context.recipe.seed, self.recipe.batch
        things, styles = pictures.things, pictures.styles
        samples = []
        for place in self.context.processes.share(batch):
            index = step * batch + place
            if index % 2:
                samples.append(pictures.sample(self.name, index))
            else:
                pair = permuted(seed, "classifier pairs", index // 2, len(things) * len(styles))
                thing, style = things[pair // len(styles)], styles[pair % len(styles)]
                samples.append(pictures.single("classifier pairs", index, thing, style))
        numbers = {thing: i for i, thing in enumerate(things)}
        shares = torch.zeros(len(samples), len(things))
        for row, sample in enumerate(samples):
            shares[row, [numbers[thing] for thing in sample.things]] = 1 / len(sample.things)
        return pixels_of(samples), shares, torch.tensor([styles.index(sample.style) for sample in samples])

    def losses(self, batch: tuple[Tensor, Tensor, Tensor], step: int) -> dict[str, Tensor]:
        pixels, shares, styles = batch
        random = generator(self.context.recipe.seed, self.name, step)
        whole = (self.recipe.batch, *pixels.shape[1:])
        loud = torch.rand(self.recipe.batch, 1, 1, 1, generator=random) * _NOISIEST
        noise = self.context.share(loud * torch.randn(whole, generator=random))
        device = self.context.device
        with self.context.autocast(self.recipe.bfloat16):
            of_things, of_styles = self.net(pixels.to(device) + noise)
        of_things = of_things.float()
        things = F.cross_entropy(of_things, shares.to(device))
        style = F.cross_entropy(of_styles.float(), styles.to(device))
        right = shares.to(device).gather(1, of_things.argmax(dim=1)[:, None]).gt(0).float().mean()
        return {"loss": things + 0.2 * style, "things": things, "style": style, "right": right}

    def sheet(self) -> Image.Image | None:
        return None
