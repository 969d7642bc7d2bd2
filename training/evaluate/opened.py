"""A finished checkpoint in torch, read from its files: what is judged is what is served, with its rounding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from model.clip import ClipText, ClipVision
from model.unet import Unet
from model.vae import VaeDecoder, VaeEncoder
from model.weights import load_text, load_unet, load_vae_decoder, load_vae_encoder, load_vision
from pipeline.checkpoint.adapter import adapter_in, encoder_in, projection_of, with_adapter
from pipeline.checkpoint.clip import JUDGE, open_encoder, open_judge
from pipeline.checkpoint.opened import Checkpoint, open_checkpoint
from pipeline.conditions.style import Projection
from pipeline.errors import CheckpointError
from training.batches import Captions
from training.draw import Drawing, draw
from training.phases.contrastive import as_seen


@dataclass(frozen=True)
class OpenedModel:
    checkpoint: Checkpoint
    text: ClipText
    unet: Unet
    encoder: VaeEncoder
    decoder: VaeDecoder
    captions: Captions

    def draw(self, prompts: list[str], drawing: Drawing) -> Tensor:
        """Draw a picture for every prompt, [n, 3, side, side]."""
        return draw(self.unet, self.text, self.decoder, 1.0, self.captions, prompts, drawing)


def open_model(folder: Path) -> OpenedModel:
    """Open a checkpoint. Errors: CheckpointError."""
    checkpoint = open_checkpoint(folder)
    spec, weights = checkpoint.spec, checkpoint.weights
    if not isinstance(text := load_text(spec, weights), ClipText):
        raise CheckpointError(f"{folder} has two text encoders, as SDXL has; this judges models with one")
    return OpenedModel(
        checkpoint,
        text,
        load_unet(spec, weights),
        load_vae_encoder(spec, weights),
        load_vae_decoder(spec, weights),
        Captions(checkpoint.path, spec.text),
    )


class OpenedJudge:
    """Both towers of a checkpoint's judge."""

    def __init__(self, model: OpenedModel) -> None:
        """Open `judge/`. Errors: CheckpointError."""
        clip = open_judge(model.checkpoint.path / JUDGE, lambda remark: None)
        assert clip.spec.text is not None
        width = clip.spec.text.width
        projection = clip.weights.float32("head", "text_projection.weight", (clip.spec.vision.projection, width))
        self._projection, self._captions = torch.from_numpy(projection.copy()), model.captions
        self._text, self._vision = load_text(clip.spec, clip.weights), load_vision(clip.spec, clip.weights)

    @torch.no_grad()
    def scores(self, pictures: Tensor, texts: list[str]) -> Tensor:
        """Return the cosine of each picture and its text, [n] (Hessel et al. 2021, without their factor)."""
        ids = self._captions(texts)
        context = self._text(ids)[0][torch.arange(len(ids)), self._captions.ends(ids)]
        return F.cosine_similarity(context @ self._projection.T, self._vision(as_seen(pictures.clamp(-1, 1))))


class OpenedStyles:
    """A checkpoint's style adapter, and the encoder of its pictures."""

    def __init__(self, model: OpenedModel) -> None:
        """Open `ip_adapter/` and its image encoder. Errors: CheckpointError."""
        file, place = adapter_in(model.checkpoint.path), encoder_in(model.checkpoint.path)
        assert file is not None and place is not None
        styled, encoder = with_adapter(model.checkpoint, file), open_encoder(place)
        self._unet, self._model = load_unet(styled.spec, styled.weights), model
        self._vision: ClipVision = load_vision(encoder.spec, encoder.weights)
        self._projection: Projection = projection_of(styled)

    @torch.no_grad()
    def draw(self, prompts: list[str], pictures: Tensor, drawing: Drawing) -> Tensor:
        """Draw a picture for every prompt in the style of the picture [n, 3, side, side] beside it."""
        embeddings = self._vision(as_seen(pictures)).numpy()
        tokens = torch.stack([torch.from_numpy(self._projection(each)) for each in embeddings])
        empty = torch.from_numpy(self._projection(embeddings[0] * 0))
        model = self._model
        return draw(self._unet, model.text, model.decoder, 1.0, model.captions, prompts, drawing, (tokens, empty))
