"""A single file as a checkpoint: other names for the same bytes, and configs that its shapes tell.

Nothing is computed, copied or written. A tensor of the networks is a range of the file: renamed, reshaped, or one of
the three parts of a fused projection.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from pipeline.checkpoint.header import BYTES, StoredTensor, read_header
from pipeline.checkpoint.parts import SECOND
from pipeline.checkpoint.single_file import check_single_file, own_settings, settings_path
from pipeline.checkpoint.single_file.configs import configs
from pipeline.checkpoint.single_file.keys import HEAD, is_weight, names, renamed
from pipeline.checkpoint.single_file.kinds import HEADED, UNET, VAE, recognise
from pipeline.checkpoint.single_file.layout import Place, Shapes, text_layout, unet_layout, vae_layout
from pipeline.checkpoint.single_file.marks import MARKERS, trained
from pipeline.checkpoint.weights import Weights
from pipeline.clip_vocabulary import tokenizer_files
from pipeline.errors import CheckpointError
from pipeline.source import InMemory

log = logging.getLogger("latentd.checkpoint")


def read_single_file(path: Path, prediction: str = "auto") -> tuple[InMemory, Weights]:
    """Return what a folder in diffusers' layout would hold: the small files, and where the weights lie.

    `prediction`, where it is not "auto", wins over what the settings beside the file say, and that over what the file
    says itself. Errors: CheckpointError for a file that is no Stable Diffusion 1.x, 2.x or XL model, or
    that does not say what it predicts.
    """
    check_single_file(path)
    tensors, metadata = read_header(path)
    family, prefixes = recognise(path, tensors)
    settings = own_settings(path)
    beside, zero_snr = settings.pop("prediction", None), settings.pop("rescale_betas_zero_snr", None)
    said = trained(
        path,
        family,
        tensors,
        metadata,
        prediction=beside if prediction == "auto" else prediction,
        zero_snr=zero_snr,
        settings=settings_path(path).name,
    )
    unet, vae = (Shapes(path, tensors, prefix) for prefix in (UNET, VAE))
    unet_is, vae_is, families = unet_layout(unet), vae_layout(vae), (family, HEADED)[: len(prefixes)]
    texts = [Shapes(path, tensors, prefix) for prefix in prefixes]
    texts_are = [text_layout(text, whose) for text, whose in zip(texts, families, strict=True)]
    files = configs(path, family, unet_is, vae_is, texts_are, said)
    if settings:
        files["latentd.json"] = settings
    parts = {
        "text_encoder": {},
        "unet": _pieces(unet, "unet", unet_is.places()),
        "vae": _pieces(vae, "vae", vae_is.places()),
    }
    for text, text_is, whose, prefix in zip(texts, texts_are, families, ("", f"{SECOND}."), strict=False):
        pieces = _pieces(text, whose.clip, text_is.places(), unused=f"transformer.resblocks.{text_is.layers}.")
        parts["text_encoder"] |= {prefix + name: tensor for name, tensor in pieces.items()}
    zero = ", zero terminal SNR" * said.zero_snr
    log.info("%s: %s, prediction %s%s", path.name, family.name, said.prediction, zero)
    known = UNET, VAE, *prefixes, *MARKERS
    if others := Counter(name.split(".")[0] for name in tensors if not name.startswith(known)):
        listed = ", ".join(f"{name} ({n})" for name, n in others.most_common(8))
        log.info("%s: left out, no weights of the model: %s", path.name, listed)
    small: dict[str, bytes] = {}
    for folder, whose, text_is in zip(("tokenizer", "tokenizer_2"), families, texts_are, strict=False):
        words = tokenizer_files(pad=whose.pad, tokens=text_is.tokens)
        small |= {f"{folder}/{name}": data for name, data in words.items()}
    small |= {name: json.dumps(values).encode() for name, values in files.items()}
    return InMemory(path, small), Weights(parts, dict.fromkeys(parts, path))


def _pieces(shapes: Shapes, network: str, layout: Iterable[Place], unused: str = "\0") -> dict[str, StoredTensor]:
    """Return the tensors of a network by its own names; what begins with `unused` is left out.

    Errors: CheckpointError for a tensor of no known name or no known type, and for two of one name.
    """
    table = names(network, layout)
    pieces: dict[str, StoredTensor] = {}
    unknown = []
    for name, tensor in shapes.tensors.items():
        if name.startswith(unused) or not is_weight(name, table):
            continue
        new = renamed(name, table)
        if tensor.dtype not in BYTES:
            raise CheckpointError(
                f"{shapes.path}: {shapes.prefix}{name} is stored as {tensor.dtype}; latentd takes {', '.join(BYTES)}"
            )
        if not new or (len(new) > 1 and (not tensor.shape or tensor.shape[0] % len(new))):
            unknown.append(shapes.prefix + name)
            continue
        shape, length = tensor.shape, tensor.length // len(new)
        if len(new) > 1:  # fused, row under row
            rows, *rest = shape
            shape = (rows // len(new), *rest)
        for number, piece in enumerate(new):
            if piece in pieces:
                raise CheckpointError(f"{shapes.path}: the tensor {piece} is there twice, once as {name}")
            offset = tensor.offset + number * length
            turned = name == HEAD
            sides = shape[::-1] if turned else shape
            pieces[piece] = replace(tensor, shape=sides, offset=offset, length=length, turned=turned)
    if unknown:
        raise CheckpointError(
            f"{shapes.path} has {len(unknown)} tensors that its kind of model has not: {', '.join(unknown[:3])}"
            f"{', ...' if len(unknown) > 3 else ''}"
        )
    return pieces
