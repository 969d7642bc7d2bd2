"""SD 1.5's and SD 2.1's topology at a fifth of the width: every sampler draws diffusers' latents and pictures.

The first has its UNet in shards and its VAE under old names, the second its weights as they come; single files are
converted bit for bit into such folders (tests/export/test_single_file.py).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from engines.artifact import Artifact
from engines.backend import F32, to_pixels
from engines.check import psnr
from engines.generate import latents_of
from engines.model import Model, load
from export.artifact import export
from pipeline.samplers import SAMPLERS
from tests.checkpoints import make_checkpoint
from tests.pipeline.trajectories import THEIRS

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

PROMPT, NEGATIVE = "a red apple", "the blue cat"
STEPS, GUIDANCE, SEED = 20, 4.0, 11
WIDE = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
UNET = {
    "block_out_channels": [64, 128, 256, 256],
    "down_block_types": WIDE,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 8,
    "transformer_layers_per_block": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
}
VAE = {
    "block_out_channels": [32, 64, 96, 96],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "sample_size": 64,
}
TOPOLOGIES: dict[str, dict[str, Any]] = {
    "sd1": {
        "kind": "sd1",
        "unet": {**UNET, "attention_head_dim": 8, "cross_attention_dim": 160, "use_linear_projection": False},
        "text": {"hidden_size": 160, "intermediate_size": 640, "num_attention_heads": 2, "num_hidden_layers": 3},
    },
    "sd2": {
        "kind": "sd2",
        "unet": {**UNET, "attention_head_dim": [1, 2, 4, 4], "cross_attention_dim": 192, "use_linear_projection": True},
        "text": {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3, "num_hidden_layers": 4},
    },
}


@pytest.fixture(scope="module", params=TOPOLOGIES)
def topology(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    kind: str = request.param
    folder = make_checkpoint(tmp_path_factory.mktemp(kind) / kind, vae=VAE, **TOPOLOGIES[kind])
    if kind == "sd1":
        _in_two_shards(folder / "unet" / "diffusion_pytorch_model.safetensors")
        _under_old_names(folder / "vae" / "diffusion_pytorch_model.safetensors")
    return export(folder, say=lambda line: None)


@pytest.fixture(scope="module")
def pipe(topology: Artifact) -> Any:
    made: Any = StableDiffusionPipeline.from_pretrained(
        topology.folder, safety_checker=None, dtype=torch.float32, requires_safety_checker=False
    )
    made.set_progress_bar_config(disable=True)
    made.checkpoints_own = made.scheduler.config
    return made


@pytest.fixture(scope="module")
def models(topology: Artifact) -> dict[str, Model]:
    return {name: load(topology, name, "f32", threads=1) for name in ("torch", "onnxruntime")}


@pytest.fixture(scope="module")
def drawn(models: dict[str, Model]) -> Callable[..., F32]:
    """Latents of a backend and a sampler, drawn once: a sampler's are its neighbour's counter-example."""

    @functools.cache
    def draw(backend: str, sampler: str, seed: int = SEED) -> F32:
        options = {"seed": seed, "steps": STEPS, "guidance": GUIDANCE, "sampler": sampler}
        return latents_of(models[backend], PROMPT, NEGATIVE, **options)

    return draw


def _in_two_shards(path: Path) -> None:
    tensors = load_file(path)
    names = sorted(tensors)
    shards = {f"{path.stem}-0000{i}-of-00002.safetensors": names[i - 1 :: 2] for i in (1, 2)}
    for shard, own in shards.items():
        save_file({name: tensors[name] for name in own}, path.with_name(shard))
    index = {"metadata": {}, "weight_map": {name: shard for shard, own in shards.items() for name in own}}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(index))
    path.unlink()


def _under_old_names(path: Path) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in load_file(path).items():
        for new, was in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{was}.")
        renamed[name] = tensor
    assert any("proj_attn" in name for name in renamed)
    save_file(renamed, path)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_latents_and_picture_are_diffusers(
    sampler: str, pipe: Any, models: dict[str, Model], drawn: Callable[..., F32]
) -> None:
    scheduler, switches = THEIRS[sampler]
    pipe.scheduler = scheduler.from_config(pipe.checkpoints_own, **switches)
    with torch.inference_mode():
        latents = pipe(
            PROMPT,
            negative_prompt=NEGATIVE,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
        ).images
        config = pipe.vae.config
        decoded = pipe.vae.decode(latents / config.scaling_factor + (config.shift_factor or 0)).sample
    wanted, picture = latents[0].numpy(), to_pixels(decoded[0].numpy())
    assert picture.std() > 20, "flat"

    for name, model in models.items():
        got = drawn(name, sampler)
        error = float(np.abs(got - wanted).max() / np.abs(wanted).max())
        assert error < 1e-3, f"{name}: {error:.1e}"
        assert psnr(to_pixels(model.backend.decode(got)), picture) >= 45, name
    names = list(SAMPLERS)
    others = [drawn("torch", names[(names.index(sampler) + 1) % len(names)])]
    if sampler == names[0]:
        others.append(drawn("torch", sampler, SEED + 1))
    for other in others:
        assert np.abs(other - wanted).max() / np.abs(wanted).max() > 1e-3, "the check must be able to fail"
