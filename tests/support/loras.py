"""LoRA files with random numbers, under the names that are published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from pipeline.loras.layers import Layers, text_layers, unet_layers
from pipeline.spec import Spec

Tensors = dict[str, NDArray[np.generic]]

_PREFIXES = {
    "kohya": ("lora_unet_", "lora_te_"),
    "peft": ("unet.", "text_encoder."),
    "diffusers": ("unet.", "text_encoder."),
    "processor": ("unet.", "text_encoder."),
}


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

    `size`: of what is added, where a layer's input is of order one. Style "processor" has only attentions.
    """
    chance, tensors = np.random.default_rng(seed), dict[str, NDArray[np.generic]]()
    parts: list[Layers] = [unet_layers(spec.unet), text_layers(spec.text) if text else {}]
    for prefix, layers in zip(_PREFIXES[style], parts, strict=True):
        for path, (out, into) in layers.items():
            if only not in path or (style == "processor" and (".to_" not in path or prefix != "unet.")):
                continue
            sides = (1, 1) if "proj_in" in path or "proj_out" in path else ()
            sides = () if spec.unet.linear_projection else sides
            down = chance.standard_normal((rank, into, *sides)) * into**-0.5
            up = chance.standard_normal((out, rank, *sides)) * size * rank**-0.5
            name, (a, b) = _named(style, prefix, path)
            tensors[name + a], tensors[name + b] = down.astype(dtype), up.astype(dtype)
            if alpha is not None:
                tensors[f"{name}.alpha"] = np.array(alpha, dtype)
    return tensors


def _named(style: str, prefix: str, path: str) -> tuple[str, tuple[str, str]]:
    match style:
        case "kohya":
            return prefix + path.replace(".", "_"), (".lora_down.weight", ".lora_up.weight")
        case "peft":
            return prefix + path, (".lora_A.weight", ".lora_B.weight")
        case "diffusers":
            middle = ".lora_linear_layer" if prefix == "text_encoder." else ".lora"
            return prefix + path, (f"{middle}.down.weight", f"{middle}.up.weight")
        case _:
            attention, _, kind = path.rpartition(".")
            attention, kind = (attention.rpartition(".")[0], "to_out") if kind == "0" else (attention, kind)
            return f"{prefix}{attention}.processor.{kind}", ("_lora.down.weight", "_lora.up.weight")


def write(path: Path, tensors: Tensors, metadata: Mapping[str, object] | None = None) -> Path:
    """Write a file, beside its place first: whoever reads it meanwhile sees one or the other."""
    beside = path.with_suffix(".writing")
    words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()}
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, beside, words or None)
    return beside.replace(path)
