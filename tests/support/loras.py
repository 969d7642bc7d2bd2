"""LoRA files with random numbers, under the names that are published."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from pipeline.loras.layers import text_layers, unet_layers
from pipeline.spec import Spec
from tests.support.original import unet_name

Tensors = dict[str, NDArray[np.generic]]

_SECOND = "text_encoder_2."


def tensors_of(
    spec: Spec,
    rank: int = 4,
    *,
    style: str = "kohya",
    alpha: float | None = None,
    seed: int = 0,
    text: bool = True,
    only: str = "",
    size: float = 0.35,
    dtype: type = np.float16,
) -> Tensors:
    """Make the tensors of a LoRA for a model. `style`: whose names; `only`: of layers whose path holds this.

    `size`: of what is added, where a layer's input is of order one. Style "processor" has only attentions, "original"
    is kohya's with the original code's names of the UNet's blocks.
    """
    chance, tensors = np.random.default_rng(seed), dict[str, NDArray[np.generic]]()
    parts = [("unet.", unet_layers(spec.unet)), ("text_encoder.", text_layers(spec.text, spec.text_2) if text else {})]
    for part, layers in parts:
        for path, (out, into) in layers.items():
            prefix, own = (_SECOND, path.removeprefix(_SECOND)) if path.startswith(_SECOND) else (part, path)
            if only not in path or (style == "processor" and ".to_" not in path and "self_attn" not in path):
                continue
            sides = (1, 1) if "proj_in" in path or "proj_out" in path else ()
            sides = () if spec.unet.linear_projection else sides
            down = chance.standard_normal((rank, into, *sides)) * into**-0.5
            up = chance.standard_normal((out, rank, *sides)) * size * rank**-0.5
            name, (a, b) = _named(style, prefix, own, spec)
            tensors[name + a], tensors[name + b] = down.astype(dtype), up.astype(dtype)
            if alpha is not None:
                tensors[f"{name}.alpha"] = np.array(alpha, dtype)
    return tensors


def _named(style: str, prefix: str, path: str, spec: Spec) -> tuple[str, tuple[str, str]]:
    match style:
        case "kohya" | "original":
            if style == "original" and prefix == "unet.":
                path = unet_name(f"{path}.weight", spec.unet.layers[0]).removesuffix(".weight")
            first = "lora_te1_" if spec.text_2 else "lora_te_"
            start = {"unet.": "lora_unet_", "text_encoder.": first, _SECOND: "lora_te2_"}[prefix]
            return start + path.replace(".", "_"), (".lora_down.weight", ".lora_up.weight")
        case "peft":
            return prefix + path, (".lora_A.weight", ".lora_B.weight")
        case "diffusers":
            middle = ".lora" if prefix == "unet." else ".lora_linear_layer"
            return prefix + path, (f"{middle}.down.weight", f"{middle}.up.weight")
        case _:
            ends = ("_lora.down.weight", "_lora.up.weight")
            attention, _, kind = path.removesuffix(".0").rpartition(".")
            if prefix != "unet.":
                return f"{prefix}{attention}.to_{kind.removesuffix('_proj')}", ends
            return f"{prefix}{attention}.processor.{kind}", ends


def configured(rank: int, alphas: Mapping[str, int]) -> dict[str, object]:
    """PEFT's configuration, as diffusers keeps it beside the tensors: each network has its own alpha."""
    layers = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
    text = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    words: dict[str, object] = {}
    for part, alpha in alphas.items():
        targets = layers if part == "unet" else text
        words |= {
            f"{part}.{key}": value for key, value in {"r": rank, "lora_alpha": alpha, "target_modules": targets}.items()
        }
    return {"lora_adapter_metadata": words}


def drawn_by(pipe: Any, folder: Path, loras: Sequence[tuple[str, float]], **asked: Any) -> NDArray[np.uint8]:
    """The picture of diffusers' pipeline with LoRAs of a folder, which are taken out of it again."""
    for name, _ in loras:
        pipe.load_lora_weights(folder, weight_name=f"{name}.safetensors", adapter_name=name)
    if loras:
        pipe.set_adapters([name for name, _ in loras], [weight for _, weight in loras])
    try:
        generator = torch.Generator().manual_seed(asked["seed"])
        options = {"num_inference_steps": asked["steps"], "guidance_scale": asked["guidance"], "generator": generator}
        (picture,) = pipe(asked["prompt"], negative_prompt=asked["negative_prompt"], output_type="np", **options).images
    finally:
        pipe.unload_lora_weights()
    return (picture * 255).round().astype(np.uint8)


def write(path: Path, tensors: Tensors, metadata: Mapping[str, object] | None = None) -> Path:
    """Write a file, beside its place first: whoever reads it meanwhile sees one or the other."""
    beside = path.with_suffix(".writing")
    words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()}
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, beside, words or None)
    return beside.replace(path)
