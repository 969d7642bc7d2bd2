"""Makes what the networks are run on to see their ranges: real token ids, encoded pictures, noised latents.

Nothing is random but the noise, whose seed is fixed, and no picture is read: gradients, hard edges at full
saturation, and noise are encoded by the checkpoint's own VAE, which gives latents of the scale that it was trained
to. They are then noised as far as the first, a middle and the last timestep of training are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engines.artifact.opened import Artifact
from engines.tensorrt.types.graph_run import Feeds, run_graph
from graphs import ports
from pipeline.arrays import F32
from pipeline.conditions.sizes import AS_IT_IS
from pipeline.noise import standard_normal
from pipeline.schedule import alphas_cumprod
from pipeline.source import Folder
from pipeline.tokenizer import tokenizer_of

PROMPTS = ("", "a photo of a red apple on a wooden table, highly detailed, soft light")  # unguided and guided
_SEED = 20
_CHECKS = 8  # pixels a side
# Convolutions and norms see a neighbourhood or a mean, logits one pair of positions: ranges hardly depend on the size,
# and a quarter of 512x512 pixels takes less than a quarter of the minutes.
_LARGEST_SIDE = 256


def samples(artifact: Artifact, network: str) -> list[Feeds]:
    """Make inputs of `network`, one row each, for pictures of `sampled_side`."""
    return {"text_encoder": _texts, "vae_encoder": _pictures, "vae_decoder": _latents, "unet": _steps}[network](
        artifact
    )


def sampled_side(artifact: Artifact) -> int:
    """Return the side in pixels at which the checkpoint was trained, but no more than _LARGEST_SIDE."""
    spec = artifact.spec
    side = min(spec.unet.sample_size * spec.vae.factor, _LARGEST_SIDE)
    return max(side // spec.size_multiple, 1) * spec.size_multiple


def _texts(artifact: Artifact) -> list[Feeds]:
    tokenizer = tokenizer_of(Folder(artifact.folder), artifact.spec)
    return [{"ids": tokenizer.encode(prompt).ids[None].astype(np.int64)} for prompt in PROMPTS]


def _pictures(artifact: Artifact) -> list[Feeds]:
    """Draw pictures [1, 3, H, W] in -1..1."""
    side, channels = sampled_side(artifact), artifact.spec.vae.image_channels
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    smooth = np.stack([np.broadcast_to(ramp[:, None] if i % 2 else ramp, (side, side)) for i in range(channels)])
    checks = (np.arange(side) // _CHECKS)[:, None] + np.arange(side) // _CHECKS
    edges = np.stack([np.where((checks + i) % 2, 1.0, -1.0) for i in range(channels)]).astype(np.float32)
    noise = np.clip(standard_normal(_SEED, (channels, side, side))[0], -1, 1)
    return [{"picture": np.ascontiguousarray(picture[None])} for picture in (smooth, edges, noise)]


def _latents(artifact: Artifact) -> list[Feeds]:
    """Make latents of encoded pictures, and latents as wild as noise."""
    clean = _encode(artifact)
    return [{"latents": x} for x in (*clean, standard_normal(_SEED + 1, clean[0].shape[1:]))]


def _steps(artifact: Artifact) -> list[Feeds]:
    spec = artifact.spec
    texts = _texts(artifact)
    unguided, guided = _run(artifact, "text_encoder", texts, "context")
    pooled = _run(artifact, "text_encoder", texts[1:], "pooled")[0] if spec.unet.pooled_width else None
    side = sampled_side(artifact)
    smooth, edges, wild = _encode(artifact)
    kept = alphas_cumprod(spec.schedule)
    last = len(kept) - 1
    feeds = []
    plan = ((last, smooth, guided), (last, wild, unguided), (last // 2, edges, guided), (0, edges, unguided))
    for i, (timestep, clean, context) in enumerate(plan):
        share = float(kept[timestep])
        noise = standard_normal(_SEED + 2 + i, clean.shape[1:])
        x = (np.sqrt(share) * clean + np.sqrt(1 - share) * noise).astype(np.float32)
        values = {
            "sample": np.concatenate([x, _beside(clean)], axis=1) if spec.inpaints else x,
            "timestep": np.array([timestep], np.float32),
            "context": context,
            "guidance": np.array([7.5], np.float32),
        }
        if pooled is not None:
            values |= {"pooled": pooled, "sizes": AS_IT_IS.numbers(side, side)[None]}
        feeds.append({port.name: values[port.name] for port in ports.inputs("unet", spec)})
    return feeds


def _beside(clean: F32) -> F32:
    """Return what an inpainting UNet sees beside x: a mask, whose upper half is redrawn, and latents [1, C, h, w]."""
    mask = np.zeros_like(clean[:, :1])
    mask[:, :, : mask.shape[2] // 2] = 1
    return np.concatenate([mask, clean], axis=1)


def _encode(artifact: Artifact) -> list[F32]:
    vae = artifact.spec.vae
    shift, scale = np.float32(vae.shift_factor), np.float32(vae.scaling_factor)
    moments = _run(artifact, "vae_encoder", _pictures(artifact), "moments")  # [1, 2C, h, w], the mean first
    return [(m[:, : vae.latent_channels] - shift) * scale for m in moments]


def _run(artifact: Artifact, network: str, feeds: list[Feeds], output: str) -> list[F32]:
    path: Path = artifact.graph(network)
    return [got[output] for got in run_graph(path.read_bytes(), path.parent, feeds)]
