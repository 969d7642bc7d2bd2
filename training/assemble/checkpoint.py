"""Assembles a run's networks to a checkpoint: diffusers' layout, with a style adapter, and a judge whose image tower is
the adapter's encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.clip import ClipText
from model.unet import Unet
from model.vae import VaeDecoder, VaeEncoder
from pipeline.checkpoint.clip import JUDGE, PREPROCESSOR, Sight
from training.assemble import configs
from training.data.drawn import DrawnPictures
from training.data.sample import Pictures
from training.files import write, write_json, write_tensors
from training.networks import SCHEDULE, text_spec, unet_spec, vae_spec, vision_spec
from training.phases.adapter import Adapter
from training.phases.contrastive import Towers
from training.recipe import Recipe


@dataclass(frozen=True)
class Trained:
    """Holds what the phases left."""

    towers: Towers
    encoder: VaeEncoder
    decoder: VaeDecoder
    scale: float
    text: ClipText
    unet: Unet
    adapter: Adapter


def assemble(
    folder: Path, recipe: Recipe, trained: Trained, tokenizer: Mapping[str, bytes], pictures: Pictures
) -> None:
    """Write the checkpoint. Errors: TrainingError."""
    text, vision, vae = text_spec(recipe), vision_spec(recipe), vae_spec(recipe)
    evaluate = recipe.evaluate
    write_json(folder / "model_index.json", configs.model_index())
    settings = {"steps": evaluate.steps, "guidance": evaluate.guidance, "sampler": evaluate.sampler}
    write_json(folder / "latentd.json", settings)
    write_json(folder / "scheduler/scheduler_config.json", configs.schedule_config(SCHEDULE))
    write_json(folder / "text_encoder/config.json", configs.text_config(text, vision.projection))
    write_json(folder / "unet/config.json", configs.unet_config(unet_spec(recipe)))
    write_json(folder / "vae/config.json", configs.vae_config(vae, recipe.data.side))
    if isinstance(pictures, DrawnPictures):
        held = sorted(f"{thing}, {style}" for thing, style in pictures.held_pairs)
        write_json(folder / "concepts.json", {"things": pictures.things, "styles": pictures.styles, "held out": held})
    for name, data in tokenizer.items():
        write(folder / "tokenizer" / name, data)
        write(folder / JUDGE / name, data)

    def tensors(path: str, weights: Mapping[str, Tensor]) -> None:
        kind = torch.float16 if recipe.half else torch.float32
        write_tensors(folder / path, {name: value.to(kind) for name, value in weights.items()})

    # ClipText's names begin with `text_model.`, as published checkpoints have them.
    tensors("text_encoder/model.safetensors", trained.text.state_dict())
    tensors("unet/diffusion_pytorch_model.safetensors", trained.unet.state_dict())
    both = scaled_inside(trained.encoder, trained.decoder, trained.scale)
    tensors("vae/diffusion_pytorch_model.safetensors", both)

    towers = trained.towers
    head = {"text_projection.weight": towers.text_projection.weight, "logit_scale": towers.logit_scale}
    tensors(f"{JUDGE}/model.safetensors", {**towers.text.state_dict(), **towers.vision.state_dict(), **head})
    write_json(folder / JUDGE / "config.json", configs.clip_config(text, vision))
    sight = Sight()
    write_json(folder / JUDGE / PREPROCESSOR, configs.preprocessor_config(vision, sight.mean, sight.deviation))
    tensors(f"ip_adapter/ip-adapter_{recipe.name}.safetensors", adapter_tensors(trained.adapter))


def scaled_inside(encoder: VaeEncoder, decoder: VaeDecoder, scale: float) -> dict[str, Tensor]:
    """Return the weights of both halves, whose 1x1 convolutions do what is left to scale.

    So `scaling_factor` is 1 in every checkpoint: it is part of a graph, and all runs of one shape have the same graphs.
    """
    weights, channels = encoder.state_dict() | decoder.state_dict(), decoder.spec.latent_channels
    weight, bias = weights["quant_conv.weight"].clone(), weights["quant_conv.bias"].clone()
    weight[:channels] *= scale
    bias[:channels] *= scale
    bias[channels:] += 2 * math.log(scale)  # of log-variances
    inverse = weights["post_quant_conv.weight"] / scale
    return weights | {"quant_conv.weight": weight, "quant_conv.bias": bias, "post_quant_conv.weight": inverse}


def adapter_tensors(adapter: Adapter) -> dict[str, Tensor]:
    """Return an adapter's weights under the published names, which count self-attentions too."""
    tensors = {f"image_proj.{name}": value for name, value in adapter.projection.state_dict().items()}
    for i, (path, _) in enumerate(adapter.unet.spec.text_layers):
        for kind in "kv":
            weight = adapter.unet.get_parameter(f"{path}.to_{kind}_ip.weight")
            tensors[f"ip_adapter.{2 * i + 1}.to_{kind}_ip.weight"] = weight
    return tensors
