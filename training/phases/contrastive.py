"""Contrastive pre-training of two small towers (Radford et al. 2021, 2.3 and figure 3).

They give the text encoder its start, judge pictures, and see the pictures that a style is taken from.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from model.clip import ClipText, ClipVision
from pipeline.checkpoint.clip import Sight
from training.batches import Context, pixels_of
from training.networks import new_text, new_vision, seeded

_HOTTEST = math.log(100)  # the scale is kept below this (Radford et al. 2021, 2.5)
_SIGHT = Sight()


class Towers(nn.Module):
    """Both towers with their projections. Parameter names are those of transformers' CLIPModel, once flattened."""

    def __init__(self, text: ClipText, vision: ClipVision, projection: int) -> None:
        super().__init__()
        self.text, self.vision = text, vision
        width = text.text_model.final_layer_norm.normalized_shape[0]
        self.text_projection = nn.Linear(width, projection, bias=False)
        nn.init.normal_(self.text_projection.weight, std=width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def of_pictures(self, pixels: Tensor) -> Tensor:
        """Pictures [n, 3, side, side] in -1..1 -> embeddings [n, projection], of any length."""
        return self.vision(as_seen(pixels))

    def of_texts(self, ids: Tensor, ends: Tensor) -> Tensor:
        """Tokens [n, tokens] -> embeddings [n, projection], of any length: each its end mark's, which sees all."""
        context = self.text(ids)[0]
        return self.text_projection(context[torch.arange(len(ids), device=ids.device), ends])


def as_seen(pixels: Tensor) -> Tensor:
    """Normalise pictures in -1..1 as CLIP does."""
    mean, deviation = (pixels.new_tensor(three)[:, None, None] for three in (_SIGHT.mean, _SIGHT.deviation))
    return ((pixels + 1) / 2 - mean) / deviation


def new_towers(context: Context) -> Towers:
    text, vision = new_text(context.recipe), new_vision(context.recipe)
    seeded(context.recipe, "towers")
    return Towers(text, vision, context.recipe.vision.projection).to(context.device)


def info_nce(pictures: Tensor, texts: Tensor, scale: Tensor, context: Context) -> Tensor:
    """Return the symmetric cross-entropy (Radford et al. 2021, figure 3) of this process's rows and columns."""
    processes = context.processes
    pictures, texts = F.normalize(pictures, dim=-1), F.normalize(texts, dim=-1)
    every_picture, every_text = processes.gathered(pictures), processes.gathered(texts)
    first = processes.rank * len(pictures)
    place = torch.arange(first, first + len(pictures), device=pictures.device)
    hot = scale.clamp(max=_HOTTEST).exp()
    return (
        F.cross_entropy(hot * pictures @ every_text.T, place) + F.cross_entropy(hot * texts @ every_picture.T, place)
    ) / 2


class Contrastive:
    name = "contrastive"

    def __init__(self, context: Context) -> None:
        self.context, self.recipe = context, context.recipe.phases.contrastive
        self.net = new_towers(context)

    def read(self, step: int) -> tuple[Tensor, Tensor]:
        samples = self.context.samples(self.name, step, self.recipe.batch)
        return pixels_of(samples), self.context.captions([sample.caption for sample in samples])

    def losses(self, batch: tuple[Tensor, Tensor], step: int) -> dict[str, Tensor]:
        pixels, ids = (part.to(self.context.device) for part in batch)
        with self.context.autocast(self.recipe.bfloat16):
            pictures = self.net.of_pictures(pixels)
            texts = self.net.of_texts(ids, self.context.captions.ends(ids))
        pictures, texts = pictures.float(), texts.float()
        loss = info_nce(pictures, texts, self.net.logit_scale, self.context)
        with torch.no_grad():
            nearest = (F.normalize(pictures, dim=-1) @ F.normalize(texts, dim=-1).T).argmax(dim=1)
            right = (nearest == torch.arange(len(nearest), device=nearest.device)).float().mean()
        return {"loss": loss, "right": right, "scale": self.net.logit_scale.exp()}

    def sheet(self) -> Image.Image | None:
        return None
