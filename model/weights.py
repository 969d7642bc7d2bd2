"""Strict loading: every key and every shape of a network is in the checkpoint, and nothing else is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from model.clip import ClipText
from model.ops import PLAIN, Ops
from model.unet import Unet
from model.vae import VaeDecoder, VaeEncoder, VaeMoments
from pipeline.checkpoint.parts import known_name, weight_files
from pipeline.errors import CheckpointError
from pipeline.spec import Spec

_Net = TypeVar("_Net", bound=nn.Module)
Shape = tuple[int, ...]
Build = Callable[[], _Net]

# Prefixes of the tensors in a VAE's file that belong to the other half.
_ENCODER, _DECODER = ("encoder.", "quant_conv."), ("decoder.", "post_quant_conv.")


def load_text(spec: Spec, checkpoint: Path, dtype: torch.dtype = torch.float32, ops: Ops = PLAIN) -> ClipText:
    """The text tower, in evaluation mode, without gradients, on the CPU. Errors of all five: CheckpointError."""
    return _load(lambda: ClipText(spec.text, ops), checkpoint, "text_encoder", dtype)


def load_unet(spec: Spec, checkpoint: Path, dtype: torch.dtype = torch.float32, ops: Ops = PLAIN) -> Unet:
    return _load(lambda: Unet(spec.unet, ops), checkpoint, "unet", dtype)


def load_vae_decoder(spec: Spec, checkpoint: Path, dtype: torch.dtype = torch.float32, ops: Ops = PLAIN) -> VaeDecoder:
    return _load(lambda: VaeDecoder(spec.vae, ops), checkpoint, "vae", dtype, others=_ENCODER)


def load_vae_encoder(spec: Spec, checkpoint: Path, dtype: torch.dtype = torch.float32, ops: Ops = PLAIN) -> VaeEncoder:
    return _load(lambda: VaeEncoder(spec.vae, ops), checkpoint, "vae", dtype, others=_DECODER)


def load_vae_moments(spec: Spec, checkpoint: Path) -> VaeMoments:
    return _load(lambda: VaeMoments(spec.vae), checkpoint, "vae", torch.float32, others=_DECODER)


def check_weights(spec: Spec, checkpoint: Path) -> None:
    """Do the files hold the tensors of all four networks, and nothing else? From their headers, before any is read.

    Errors: CheckpointError.
    """
    _fit(empty(lambda: ClipText(spec.text)), checkpoint, "text_encoder")
    _fit(empty(lambda: Unet(spec.unet)), checkpoint, "unet")
    _fit(empty(lambda: VaeDecoder(spec.vae)), checkpoint, "vae", _ENCODER)
    _fit(empty(lambda: VaeEncoder(spec.vae)), checkpoint, "vae", _DECODER)


def _load(build: Build[_Net], checkpoint: Path, part: str, dtype: torch.dtype, others: tuple[str, ...] = ()) -> _Net:
    """`others` are the prefixes of tensors in the same file that belong to another network."""
    net = empty(build)
    weights: dict[str, Tensor] = {}
    for path, names in _fit(net, checkpoint, part, others).items():
        with _reading(path) as file:
            weights |= {name: file.get_tensor(key).reshape(shape).to(dtype) for name, key, shape in names}
    net.load_state_dict(weights, strict=True, assign=True)
    return net.eval().requires_grad_(False)


def empty(build: Build[_Net]) -> _Net:
    """Build a network of shapes only, on torch's meta device: no weight is initialised, none has memory."""
    with torch.device("meta"):
        net = build()
    assert not list(net.buffers()), "a buffer would need its own values"
    return net


def _fit(
    net: nn.Module, checkpoint: Path, part: str, others: tuple[str, ...] = ()
) -> dict[Path, list[tuple[str, str, Shape]]]:
    """By file: each tensor of `net`, what the file calls it, and the network's shape of it."""
    wanted = {name: tuple(parameter.shape) for name, parameter in net.named_parameters()}
    found: dict[str, Path] = {}
    unknown: list[str] = []
    shapes: list[str] = []
    files = weight_files(checkpoint, part)
    told: dict[Path, list[tuple[str, str, Shape]]] = {path: [] for path in files}
    for path in files:
        for key, shape, dtype in _listed(path):
            name = known_name(part, key)
            if name is None or name.startswith(others or ("\0",)):
                continue
            if name not in wanted:
                unknown.append(name)
                continue
            if name in found:
                where = path if path == found[name] else f"{found[name]} and {path}"
                raise CheckpointError(f"{where}: the tensor {name} is there twice")
            found[name] = path
            if not dtype.startswith(("F", "BF")):
                raise CheckpointError(f"{path}: {name} has dtype {dtype}; weights must be floating point")
            # Old VAEs have their attention's projections as 1x1 convolutions.
            square = part == "vae" and len(shape) == 4 and len(wanted[name]) == 2 and shape[2:] == (1, 1)
            if (shape[:2] if square else shape) != wanted[name]:
                shapes.append(f"{name} has shape {list(shape)}, its config says {list(wanted[name])}")
            told[path].append((name, key, wanted[name]))
    missing = [name for name in wanted if name not in found]
    faults = [
        f"{len(some)} {what} ({', '.join(some[:3])}{', ...' if len(some) > 3 else ''})"
        for what, some in (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        if some
    ]
    if faults:
        where = files[0] if len(files) == 1 else checkpoint / part
        raise CheckpointError(f"{where} does not fit its config: of {len(wanted)} tensors, {'; '.join(faults)}")
    return told


def _listed(path: Path) -> list[tuple[str, Shape, str]]:
    """Name, shape and type of each tensor of a file."""
    with _reading(path) as file:
        slices = ((key, file.get_slice(key)) for key in file.keys())  # noqa: SIM118 (a safe_open is no mapping)
        return [(key, tuple(part.get_shape()), part.get_dtype()) for key, part in slices]


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None
