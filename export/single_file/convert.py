"""A single file to a checkpoint folder: other names, the same bytes.

Nothing is computed and no torch is needed. Bytes are copied from file to file a few megabytes at a time, so memory
does not grow with the model.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from engines import disk
from engines.artifact import MANIFEST
from export.leftovers import sweep
from pipeline.checkpoint.finite import check_finite
from pipeline.checkpoint.header import BYTES, StoredTensor, read_header
from pipeline.checkpoint.parts import STEMS
from pipeline.checkpoint.single_file import check_single_file, own_settings, settings_path
from pipeline.checkpoint.single_file.configs import configs
from pipeline.checkpoint.single_file.keys import is_weight, names, renamed
from pipeline.checkpoint.single_file.kinds import UNET, VAE, recognise
from pipeline.checkpoint.single_file.layout import Place, Shapes, text_layout, unet_layout, vae_layout
from pipeline.checkpoint.single_file.marks import MARKERS, trained
from pipeline.clip_vocabulary import tokenizer_files
from pipeline.errors import CheckpointError, LatentdError

_CHUNK = 8 << 20  # bytes in memory at once


@dataclass(frozen=True)
class _Piece:
    """A tensor of the folder, and where its bytes are in the single file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int
    original: str  # its name in the single file

    def stored(self, path: Path) -> StoredTensor:
        return StoredTensor(path, self.dtype, self.shape, self.offset, self.length)


def convert(path: Path, out: Path, prediction: str = "auto", say: Callable[[str], None] = print) -> Path:
    """Write the checkpoint of the single file `path` into the folder `out`, and return `out`.

    `prediction`, where it is not "auto", wins over what the settings beside the file say, and that over what the file
    tells itself. Errors: CheckpointError for a file that is not a Stable Diffusion 1.x or 2.x model, that does not
    tell its prediction, or holds NaN or infinite weights; DiskError where the folder cannot be written.
    """
    check_single_file(path)
    tensors, metadata = read_header(path)
    family, text_prefix = recognise(path, tensors)
    own = own_settings(path)
    beside, zero_snr = own.pop("prediction", None), own.pop("rescale_betas_zero_snr", None)
    said = trained(
        path,
        family,
        tensors,
        metadata,
        prediction=beside if prediction == "auto" else prediction,
        zero_snr=zero_snr,
        settings=settings_path(path).name,
    )
    unet, vae, text = (Shapes(path, tensors, prefix) for prefix in (UNET, VAE, text_prefix))
    unet_is, vae_is, text_is = unet_layout(unet), vae_layout(vae), text_layout(text, family)
    folder = configs(path, family, unet_is, vae_is, text_is, said)
    parts = {
        "text_encoder": _pieces(text, family.clip, text_is.places(), unused=f"transformer.resblocks.{text_is.layers}."),
        "unet": _pieces(unet, "unet", unet_is.places()),
        "vae": _pieces(vae, "vae", vae_is.places()),
    }
    say(f"{path.name}: {family.name}, prediction {said.prediction}{', zero terminal SNR' * said.zero_snr}")
    if others := Counter(
        name.split(".")[0] for name in tensors if not name.startswith((UNET, VAE, text_prefix, *MARKERS))
    ):
        say("left out, no weights of the model: " + ", ".join(f"{name} ({n})" for name, n in others.most_common(8)))
    if own:
        folder["latentd.json"] = own
    check_finite((piece.original, piece.stored(path)) for pieces in parts.values() for piece in pieces)
    disk.make(out)
    for name in (MANIFEST, "model_index.json"):  # without them, what an interruption leaves is no checkpoint
        disk.remove(out / name)
    weights = {part: f"{part}/{STEMS[part]}.safetensors" for part in parts}
    for name in ("latentd.json", *weights.values()):
        disk.remove(out / name)  # of another model, or half of one
    words = tokenizer_files(pad=family.pad, tokens=text_is.tokens)
    sweep(out, (*weights.values(), *(f"tokenizer/{name}" for name in words), *folder))
    for part, pieces in parts.items():
        _write_weights(path, out / weights[part], pieces)
    disk.make(out / "tokenizer")
    for name, data in words.items():
        disk.write_whole(out / "tokenizer" / name, data)
    for name, values in sorted(folder.items(), key=lambda item: item[0] == "model_index.json"):
        disk.make((out / name).parent)
        disk.write_whole(out / name, (json.dumps(values, indent=2) + "\n").encode())
    say(f"converted to {out}")
    return out


def _pieces(shapes: Shapes, network: str, layout: Iterable[Place], unused: str = "\0") -> list[_Piece]:
    """What of a network goes into the folder; names that begin with `unused` do not.

    Errors: CheckpointError for a tensor of no known name or no known type.
    """
    table = names(network, layout)
    pieces, unknown = [], []
    for name, tensor in shapes.tensors.items():
        if name.startswith(unused) or not is_weight(name):
            continue
        new = renamed(name, table)
        if tensor.dtype not in BYTES:
            raise CheckpointError(
                f"{shapes.path}: {shapes.prefix}{name} is stored as {tensor.dtype}; latentd reads {', '.join(BYTES)}"
            )
        if not new or (len(new) > 1 and (not tensor.shape or tensor.shape[0] % len(new))):
            unknown.append(shapes.prefix + name)
            continue
        shape, length = tensor.shape, tensor.length // len(new)
        if len(new) > 1:
            rows, *rest = shape
            shape = (rows // len(new), *rest)
        elif network == "vae" and ".attentions." in new[0] and shape[2:] == (1, 1):
            shape = shape[:2]  # the original has 1x1 convolutions there: the same bytes
        places = (tensor.offset + i * length for i in range(len(new)))
        pieces += [
            _Piece(own, tensor.dtype, shape, place, length, shapes.prefix + name)
            for own, place in zip(new, places, strict=True)
        ]
    if unknown:
        raise CheckpointError(
            f"{shapes.path} has {len(unknown)} tensors that its kind of model has not: {', '.join(unknown[:3])}"
            f"{', ...' if len(unknown) > 3 else ''}"
        )
    return pieces


def _write_weights(source: Path, target: Path, pieces: list[_Piece]) -> None:
    """A safetensors file, whole or not at all. Wide types first, as the format's own library keeps them aligned."""
    pieces = sorted(pieces, key=lambda piece: (-BYTES[piece.dtype], piece.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for piece in pieces:
        header[piece.name] = {"dtype": piece.dtype, "shape": piece.shape, "data_offsets": [at, at + piece.length]}
        at += piece.length
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    disk.make(target.parent)
    temporary = target.with_name(f".new-{target.name}-{os.getpid()}")
    try:
        with source.open("rb") as reading, temporary.open("wb") as writing:
            disk.before("write", temporary)
            writing.write(struct.pack("<Q", len(text)) + text)
            for piece in pieces:
                _copy(reading, writing, piece.offset, piece.length)
            disk.before("half", temporary)
            writing.flush()
            disk.before("sync", temporary)
            os.fsync(writing.fileno())
        disk.replace(temporary, target)
    except OSError as error:
        raise disk.DiskError(f"convert {source} to", target, error, 8 + len(text) + at) from None
    finally:
        with contextlib.suppress(LatentdError):
            disk.remove(temporary)


def _copy(reading: BinaryIO, writing: BinaryIO, offset: int, length: int) -> None:
    reading.seek(offset)
    while length:
        data = reading.read(min(_CHUNK, length))
        if not data:
            raise OSError("the file became shorter while it was read")
        writing.write(data)
        length -= len(data)
