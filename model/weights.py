"""Strict loading: every key and every shape of a network is in the checkpoint, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from model.clip import ClipText
from model.files import known_name, weight_files
from model.ops import PLAIN, Ops
from model.unet import Unet
from model.vae import VaeDecoder, VaeEncoder
from pipeline.errors import CheckpointError
from pipeline.spec import Spec

_Net = TypeVar("_Net", bound=nn.Module)


def load_text(spec: Spec, checkpoint: Path, dtype: torch.dtype = torch.float32, ops: Ops = PLAIN) -> ClipText:
    """The text tower, in evaluation mode, without gradients, on the CPU. Errors of all four: CheckpointError."""
    return _load(lambda: ClipText(spec.text, ops), checkpoint, "text_encoder", dtype)


def load_unet(spec: Spec, checkpoint: Path, dtype: torch.dtype = torch.float32, ops: Ops = PLAIN) -> Unet:
    return _load(lambda: Unet(spec.unet, ops), checkpoint, "unet", dtype)


def load_vae_decoder(spec: Spec, checkpoint: Path, dtype: torch.dtype = torch.float32, ops: Ops = PLAIN) -> VaeDecoder:
    return _load(lambda: VaeDecoder(spec.vae, ops), checkpoint, "vae", dtype, others=("encoder.", "quant_conv."))


def load_vae_encoder(spec: Spec, checkpoint: Path, dtype: torch.dtype = torch.float32, ops: Ops = PLAIN) -> VaeEncoder:
    return _load(lambda: VaeEncoder(spec.vae, ops), checkpoint, "vae", dtype, others=("decoder.", "post_quant_conv."))


def _load(
    build: Callable[[], _Net], checkpoint: Path, part: str, dtype: torch.dtype, others: tuple[str, ...] = ()
) -> _Net:
    """`others` are the prefixes of tensors in the same file that belong to another network."""
    with torch.device("meta"):  # shapes only: the weights come from the file, not through an initialisation
        net = build()
    wanted = {name: parameter.shape for name, parameter in net.named_parameters()}
    assert not list(net.buffers()), "a buffer would need its own values"
    weights: dict[str, Tensor] = {}
    unknown: list[str] = []
    files = weight_files(checkpoint, part)
    for path in files:
        for name, tensor in _read(path, part, skip=others):
            if name not in wanted:
                unknown.append(name)
                continue
            if part == "vae" and tensor.ndim == 4 and len(wanted[name]) == 2 and tensor.shape[2:] == (1, 1):
                tensor = tensor[..., 0, 0]  # old VAEs have their attention's projections as 1x1 convolutions
            if not tensor.is_floating_point():
                raise CheckpointError(f"{path}: {name} has dtype {tensor.dtype}; weights must be floating point")
            weights[name] = tensor.to(dtype)
    missing = [name for name in wanted if name not in weights]
    shapes = [
        f"{name} has shape {list(weights[name].shape)}, its config says {list(shape)}"
        for name, shape in wanted.items()
        if name in weights and weights[name].shape != shape
    ]
    faults = [
        f"{len(found)} {what} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
        for what, found in (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        if found
    ]
    if faults:
        where = files[0] if len(files) == 1 else checkpoint / part
        raise CheckpointError(f"{where} does not fit its config: of {len(wanted)} tensors, {'; '.join(faults)}")
    net.load_state_dict(weights, strict=True, assign=True)
    return net.eval().requires_grad_(False)


def _read(path: Path, part: str, skip: tuple[str, ...]) -> Iterable[tuple[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (a safe_open is no mapping)
                name = known_name(part, key)
                if name is not None and not name.startswith(skip or ("\0",)):
                    yield name, file.get_tensor(key)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing, though the index beside it names it") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None
