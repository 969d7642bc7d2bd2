"""A checkpoint of SD 1.5's full shape with random weights, as a folder in diffusers' layout or as one single file.

Also of SDXL's, as a folder. Names and shapes come from the shipped graphs, the rest from the configs as published:
neither torch nor a download is needed. A picture of it is noise, and takes what a picture of the true one takes.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import graphs
from graphs import wire
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.checkpoint.parts import SECOND, STEMS
from pipeline.checkpoint.single_file import keys
from pipeline.checkpoint.single_file.layout import UnetLayout, VaeLayout
from pipeline.clip_vocabulary import tokenizer_files
from pipeline.source import Folder
from pipeline.spec import read_spec

Shape = tuple[int, ...]
Array = NDArray[np.floating[Any]]

MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # of graphs/configs.json
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
_CLASSES = {
    "text_encoder": ("transformers", "CLIPTextModel"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "scheduler": ("diffusers", "DDIMScheduler"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
}
_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
# What the parts are called in a single file, and which rows of keys.TABLE are theirs.
_PREFIXES = {
    "text_encoder": "cond_stage_model.transformer.",
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
}
_DTYPES = {"float16": "F16", "float32": "F32"}


def write_folder(folder: Path, dtype: str, model: str = MODEL) -> Path:
    """Write the folder with weights of `dtype`, "float16" or "float32"; what lay there is deleted first.

    `model`: of graphs/configs.json.
    """
    shutil.rmtree(folder, ignore_errors=True)
    write_small_files(folder, model)
    for part, shapes in _shapes(folder).items():
        tensors = [(name, shape, _random(part, name, shape, dtype)) for name, shape in shapes.items()]
        second = [each for each in tensors if each[0].startswith(f"{SECOND}.")]
        if second:
            renamed = [(name.removeprefix(f"{SECOND}."), *rest) for name, *rest in second]
            write_safetensors(folder / SECOND / f"{STEMS[part]}.safetensors", dtype, renamed)  # type: ignore[arg-type]
            tensors = [each for each in tensors if each not in second]
        write_safetensors(folder / part / f"{STEMS[part]}.safetensors", dtype, tensors)
    return folder


def write_small_files(folder: Path, model: str = MODEL) -> None:
    """Write the folder without its weights: configs as published, and tokenizers."""
    for name, data in _small_files(model).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def write_single_file(path: Path, folder: Path) -> Path:
    """Write the weights of such a folder as one file, under the names of the original training code."""
    weights = open_checkpoint(folder).weights
    tensors: list[tuple[str, Shape, Callable[[], Array]]] = []
    dtypes = set()
    for part, names in _originals(folder).items():
        for name, tensor in weights.tensors(part).items():
            original, shape = _original(name, names), tensor.shape
            if "attn_1" in original and len(shape) == 2:  # 1x1 convolutions, in the old autoencoder
                shape = (*shape, 1, 1)
            tensors.append((_PREFIXES[part] + original, shape, _stored(weights, part, name)))
            dtypes.add(tensor.dtype)
    (dtype,) = (name for name, short in _DTYPES.items() if {short} == dtypes)
    write_safetensors(path, dtype, tensors)
    return path


def write_safetensors(path: Path, dtype: str, tensors: Iterable[tuple[str, Shape, Callable[[], Array]]]) -> None:
    """Write each tensor, made when its turn comes: the largest alone is in memory."""
    tensors, header, at = list(tensors), {}, 0
    for name, shape, _ in tensors:
        end = at + math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, values in tensors:
            file.write(np.ascontiguousarray(values()).data)


def _small_files(model: str) -> dict[str, bytes]:
    published = json.loads(Path(graphs.__file__).with_name("configs.json").read_bytes())
    texts, unet, vae = published["models"][model]
    configs: dict[str, dict[str, Any]] = {
        "unet/config.json": published["unet"][unet],
        "vae/config.json": published["vae"][vae],
    }
    for part, text in zip(("text_encoder", SECOND), texts.split(" and "), strict=False):
        configs[f"{part}/config.json"] = published["text_encoder"][text]
    configs["scheduler/scheduler_config.json"] = {"_class_name": _CLASSES["scheduler"][1], **_SCHEDULE}
    configs["model_index.json"] = {"_class_name": "StableDiffusionPipeline", **_CLASSES}
    tokenizers = {"tokenizer": "<|endoftext|>"}
    if f"{SECOND}/config.json" in configs:
        headed = "CLIPTextModelWithProjection"
        configs[f"{SECOND}/config.json"] = {**configs[f"{SECOND}/config.json"], "architectures": [headed]}
        more = {SECOND: ("transformers", headed), "tokenizer_2": _CLASSES["tokenizer"]}
        configs["model_index.json"] |= {"_class_name": "StableDiffusionXLPipeline", **more}
        tokenizers["tokenizer_2"] = "!"
    small = {name: json.dumps(values, indent=2).encode() for name, values in configs.items()}
    for folder, pad in tokenizers.items():
        small |= {f"{folder}/{name}": data for name, data in tokenizer_files(pad=pad, tokens=77).items()}
    return small


def _shapes(folder: Path) -> dict[str, dict[str, Shape]]:
    """Return names and shapes of each part's tensors: those of all graphs that take their weights from it."""
    spec, shapes = read_spec(Folder(folder)), dict[str, dict[str, Shape]]()
    for network in graphs.NETWORKS:
        path = graphs.shipped(network, spec)
        assert path is not None, f"no graph of {network} ships for {folder}"
        shapes.setdefault(graphs.part_of(network), {}).update(wire.weights(path.read_bytes()))
    return shapes


def _random(part: str, name: str, shape: Shape, dtype: str) -> Callable[[], Array]:
    """Draw numbers so that inputs of order one give outputs of order one, as model/random.py does, but without torch.

    Matrices keep the variance of what they multiply (He et al. 2015); norms and biases are near their neutral values.
    """

    def draw() -> Array:
        rng = np.random.Generator(np.random.SFC64(zlib.crc32(f"{part}.{name}".encode())))
        values = rng.standard_normal(shape, np.float32)
        if name.endswith(".bias"):
            values *= 0.1
        elif len(shape) == 1:
            values = 1 + 0.1 * values
        elif "embedding.weight" not in name:
            values *= math.prod(shape[1:]) ** -0.5
        return values.astype(dtype)

    return draw


def _stored(weights: Any, part: str, name: str) -> Callable[[], Array]:
    return lambda: weights.array(part, name, weights.tensors(part)[name].shape)


def _originals(folder: Path) -> dict[str, keys.Names]:
    """Return each part's table with its sides exchanged: our module to the original module, and so within."""
    spec = read_spec(Folder(folder))
    unet, vae = spec.unet, spec.vae
    unet_is = UnetLayout(
        in_channels=unet.in_channels,
        out_channels=unet.out_channels,
        channels=unet.channels,
        layers=unet.layers,
        attends_down=unet.attention_down,
        attends_up=unet.attention_up,
        depth=unet.transformer_layers,
        context_width=unet.context_width,
        linear=unet.linear_projection,
        guidance_width=None,
    )
    vae_is = VaeLayout(vae.image_channels, vae.latent_channels, vae.channels, vae.layers, True, True, True)
    tables = {
        "text_encoder": {"text_model": ("text_model", {})},  # some files lack the prefix, the published ones have it
        "unet": keys.names("unet", unet_is.places()),
        "vae": keys.names("vae", vae_is.places()),
    }
    return {
        part: {ours: (theirs, {b: a for a, b in inside.items()}) for theirs, (ours, inside) in table.items()}
        for part, table in tables.items()
    }


def _original(name: str, names: keys.Names) -> str:
    (original,) = keys.renamed(name, names)
    return original
