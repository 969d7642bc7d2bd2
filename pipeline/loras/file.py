"""A LoRA's file, opened: what it adds to which layers of a model, or a sentence why it cannot.

Nothing is mapped: a file may be replaced, cut short or written to at any time, so its numbers are read into memory
when they are wanted, after a look whether it is still the file whose header was read.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.arrays import F32
from pipeline.checkpoint.header import BYTES, StoredTensor, read_header
from pipeline.errors import CheckpointError
from pipeline.files import parse_json
from pipeline.loras.layers import RANKS, SECOND, Layers
from pipeline.loras.names import ALPHA, DOWN, UP, Names, is_of_convolution, is_of_second, other_kind

_LARGEST = 2 << 30  # bytes of a file; one of rank 128 for every layer of SDXL has 0.9 billion
_BASES = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL", 4096: "SD 3"}  # by the width of the text that it attends to
_ATTENDING = ("attn2_to_k", "attn2.to_k", "attn2.processor.to_k")
_ONLY_TEXT = re.compile(r"lora_te_.*_(q|k|v)_proj\.lora_down")  # kohya's name of a model's only text encoder
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_METADATA = "lora_adapter_metadata"  # PEFT's configuration, where diffusers saves it

Identity = tuple[int, int, int, int]  # device, inode, size, and when it was last changed in any way


class Pair(NamedTuple):
    """Holds where a layer's two matrices lie, and what divides by the rank to scale them."""

    down: StoredTensor  # A: [rank, in] or [rank, in, 1, 1]
    up: StoredTensor  # B: [out, rank] or [out, rank, 1, 1]
    alpha: StoredTensor | float | None  # None: the rank

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def sides(self) -> tuple[int, int]:
        """Return the numbers that come out of the layer and go in."""
        return self.up.shape[0], self.down.shape[1]


class Added(NamedTuple):
    """Holds what a file adds to a layer: B A, where B has been multiplied by alpha / rank."""

    part: str
    layer: str
    a: F32  # [rank, in]
    b: F32  # [out, rank]


@dataclass(frozen=True)
class LoraFile:
    name: str
    path: Path
    base: str  # the family of models that it is for
    identity: Identity
    pairs: dict[tuple[str, str], Pair]  # by part and layer

    @property
    def size(self) -> int:
        """Count the file's bytes."""
        return self.identity[2]

    @property
    def rank(self) -> int:
        """Return the largest rank of a layer."""
        return max(pair.rank for pair in self.pairs.values())

    @property
    def of_text(self) -> bool:
        """Return whether it adds to the text encoder."""
        return any(part == "text_encoder" for part, _ in self.pairs)

    def read(self) -> Iterator[Added]:
        """Read the numbers of each layer. Errors: CheckpointError for what is not finite, or another file by now."""
        descriptor = _opened(self.name, self.path)
        try:
            self._check(descriptor)
            for (part, layer), pair in self.pairs.items():
                a, b = (self._matrix(descriptor, tensor, layer) for tensor in (pair.down, pair.up))
                alpha = pair.alpha
                if isinstance(alpha, StoredTensor):
                    alpha = float(self._matrix(descriptor, alpha, layer)[0, 0])
                if alpha is not None:
                    b = b * np.float32(alpha / pair.rank)
                if not np.isfinite(b).all():
                    raise CheckpointError(f"LoRA {self.name}: its numbers for {layer} overflow")
                yield Added(part, layer, a, b)
            self._check(descriptor)
        finally:
            os.close(descriptor)

    def _check(self, descriptor: int) -> None:
        if identity_of(os.fstat(descriptor)) != self.identity:
            raise CheckpointError(f"LoRA {self.name} was replaced or written to while it was used; ask again")

    def _matrix(self, descriptor: int, tensor: StoredTensor, layer: str) -> F32:
        """Return a tensor in float32, of two sides. Errors: CheckpointError."""
        data = os.pread(descriptor, tensor.length, tensor.offset)
        if len(data) < tensor.length:
            raise CheckpointError(f"LoRA {self.name} became shorter while it was read")
        stored = np.frombuffer(data, _NUMPY[tensor.dtype])
        if tensor.dtype == "BF16":  # the upper half of a float32
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        matrix = stored.astype(np.float32, copy=False).reshape(tensor.shape[0] if tensor.shape else 1, -1)
        if not np.isfinite(matrix).all():
            raise CheckpointError(f"LoRA {self.name} has numbers for {layer} that are NaN or infinite")
        return matrix


def open_lora(name: str, path: Path, names: Names, layers: dict[str, Layers], model: str) -> LoraFile:
    """Read the header of a file, and compare it with a model: `layers` by part, `model` is what errors call it.

    Errors: CheckpointError, one sentence with the LoRA's name.
    """
    descriptor = _opened(name, path)
    try:
        identity = identity_of(os.fstat(descriptor))
    finally:
        os.close(descriptor)
    if identity[2] > _LARGEST:
        raise CheckpointError(f"LoRA {name} has {identity[2]} bytes; latentd reads at most {_LARGEST}")
    try:
        tensors, metadata = read_header(path)
        if identity_of(os.stat(path)) != identity:
            raise FileNotFoundError
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(path), f"LoRA {name}")) from None
    except OSError:
        raise CheckpointError(f"LoRA {name} was replaced while it was read; ask again") from None
    if not tensors:
        raise CheckpointError(f"LoRA {name} has no tensors")
    for key in tensors:
        if (kind := other_kind(key)) is not None:
            raise CheckpointError(f"LoRA {name} looks like {kind}: {key[:80]}; latentd reads plain LoRAs")
    base, alphas = _base(tensors), _alphas(name, metadata)
    found: dict[tuple[str, str], dict[str, StoredTensor]] = {}
    for key, tensor in tensors.items():
        if (place := names.place(key)) is None:
            if is_of_second(key) and not names.two_texts:
                raise CheckpointError(
                    f"LoRA {name} is for a model with several text encoders (SDXL, SD 3); {model} has one: {key[:80]}"
                )
            raise CheckpointError(_unknown(name, key, base, model))
        entry = found.setdefault((place.part, place.layer), {})
        if place.which in entry:
            raise CheckpointError(f"LoRA {name} adds to {place.layer} twice")
        entry[place.which] = tensor
    pairs = {}
    for (part, layer), entry in found.items():
        alpha = alphas(part, layer) if ALPHA not in entry else entry[ALPHA]
        pairs[part, layer] = _pair(name, layer, entry, alpha, layers[part][layer], base, model)
    return LoraFile(name, path, base, identity, pairs)


def identity_of(status: os.stat_result) -> Identity:
    """Return what tells one file from another, and from itself after somebody has written to it."""
    return status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns


def _opened(name: str, path: Path) -> int:
    """Open a regular file that is no link. Errors: CheckpointError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"LoRA {name} cannot be read: {error.strerror}") from None
    if not os.path.isfile(f"/proc/self/fd/{descriptor}"):
        os.close(descriptor)
        raise CheckpointError(f"LoRA {name} is no regular file")
    return descriptor


def _pair(
    name: str,
    layer: str,
    entry: dict[str, StoredTensor],
    alpha: StoredTensor | float | None,
    shape: tuple[int, int],
    base: str,
    model: str,
) -> Pair:
    """Check the tensors of a layer, which has `shape` [out, in]. Errors: CheckpointError."""
    for which, what in ((DOWN, "down (A)"), (UP, "up (B)")):
        if which not in entry:
            raise CheckpointError(f"LoRA {name} lacks the {what} matrix of {layer}")
    for tensor in entry.values():
        if tensor.dtype not in BYTES:
            raise CheckpointError(
                f"LoRA {name}: {layer} is stored as {tensor.dtype[:16]}; latentd takes {', '.join(BYTES)}"
            )
    down, up = entry[DOWN], entry[UP]
    sides = [tensor.shape[:2] for tensor in (down, up) if tensor.shape[2:] in ((), (1, 1)) and len(tensor.shape) > 1]
    if len(sides) != 2 or (sides[1][0], sides[0][1]) != shape or sides[0][0] != sides[1][1]:
        other = f" (it looks like one for {base})" if base else ""
        raise CheckpointError(
            f"LoRA {name} is not for {model}: for {layer} it has {list(down.shape)} and {list(up.shape)}; the layer "
            f"takes {shape[1]} numbers and gives {shape[0]}{other}"
        )
    rank = down.shape[0]
    if not 1 <= rank <= RANKS[-1]:
        raise CheckpointError(f"LoRA {name} has rank {rank} for {layer}; latentd takes 1 to {RANKS[-1]}")
    if isinstance(alpha, StoredTensor) and int(np.prod(alpha.shape)) != 1:
        raise CheckpointError(f"LoRA {name}: alpha of {layer} is no single number")
    return Pair(down, up, alpha)


def _unknown(name: str, key: str, base: str, model: str) -> str:
    """Say why a tensor fits no layer."""
    if is_of_convolution(key):
        return (
            f"LoRA {name} adds to layers outside of the transformers (a LoCon): {key[:80]}; latentd adds to the "
            f"linear layers and 1x1 convolutions of transformers and text encoders"
        )
    known = f", and looks like one for {base}" if base else ""
    return f"LoRA {name} has a tensor for which {model} has no layer{known}: {key[:80]}"


def _base(tensors: dict[str, StoredTensor]) -> str:
    """Tell the family by the width of the text that most layers attend to; "" where that is nobody's.

    Of the families whose UNet is read here SDXL alone has a second text encoder.
    """
    widths = Counter(
        tensor.shape[1] for key, tensor in tensors.items() if len(tensor.shape) >= 2 and _is_down_of_text(key)
    )
    base = _BASES.get(widths.most_common(1)[0][0], "") if widths else ""
    return base or ("SDXL" if any(is_of_second(key) for key in tensors) else "")


def _is_down_of_text(key: str) -> bool:
    if _ONLY_TEXT.match(key):
        return True
    return any(part in key for part in _ATTENDING) and ("down" in key.rsplit("to_k", 1)[1] or "lora_A" in key)


def _alphas(name: str, metadata: dict[str, str]) -> Any:
    """Return a function from part and layer to the alpha that PEFT's configuration has; None where there is none.

    Errors: CheckpointError for a configuration that scales otherwise.
    """
    if _METADATA not in metadata:
        return lambda part, layer: None
    try:
        config = parse_json(metadata[_METADATA].encode())
        if not isinstance(config, dict):
            raise ValueError
        folders = ("unet", "text_encoder", SECOND.removesuffix("."))
        for part in folders:
            for flag in ("use_rslora", "use_dora"):
                if config.get(f"{part}.{flag}"):
                    raise CheckpointError(f"LoRA {name} has {flag}; latentd reads plain LoRAs")

        # Of each part the patterns, ends of layers' paths, each with its place: PEFT takes the first that fits.
        patterns = {
            part: {
                pattern: (place, float(value))
                for place, (pattern, value) in enumerate((config.get(f"{part}.alpha_pattern") or {}).items())
            }
            for part in folders
        }
        whole = {part: value for part in folders if (value := config.get(f"{part}.lora_alpha")) is not None}
        whole = {part: float(value) for part, value in whole.items()}

        def alpha(part: str, layer: str) -> float | None:
            part = SECOND.removesuffix(".") if layer.startswith(SECOND) else part
            names = layer.split(".")
            ends = (".".join(names[first:]) for first in range(len(names)))
            fitting = [patterns[part][end] for end in ends if end in patterns[part]]
            return min(fitting)[1] if fitting else whole.get(part)

        return alpha
    except (ValueError, TypeError, AttributeError, RecursionError, json.JSONDecodeError):
        raise CheckpointError(f"LoRA {name}: its {_METADATA} cannot be read") from None
