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
from pipeline.checkpoint.single_file import check_single_file, own_settings, settings_path
from pipeline.checkpoint.single_file.configs import configs
from pipeline.checkpoint.single_file.keys import is_weight, names, renamed
from pipeline.checkpoint.single_file.kinds import UNET, VAE, recognise
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
    says itself. Errors: CheckpointError for a file that is not a Stable Diffusion 1.x or 2.x model, or that does not
    say what it predicts.
    """
    check_single_file(path)
    tensors, metadata = read_header(path)
    family, text_prefix = recognise(path, tensors)
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
    unet, vae, text = (Shapes(path, tensors, prefix) for prefix in (UNET, VAE, text_prefix))
    unet_is, vae_is, text_is = unet_layout(unet), vae_layout(vae), text_layout(text, family)
    files = configs(path, family, unet_is, vae_is, text_is, said)
    if settings:
        files["latentd.json"] = settings
    parts = {
        "text_encoder": _pieces(text, family.clip, text_is.places(), unused=f"transformer.resblocks.{text_is.layers}."),
        "unet": _pieces(unet, "unet", unet_is.places()),
        "vae": _pieces(vae, "vae", vae_is.places()),
    }
    zero = ", zero terminal SNR" * said.zero_snr
    log.info("%s: %s, prediction %s%s", path.name, family.name, said.prediction, zero)
    known = UNET, VAE, text_prefix, *MARKERS
    if others := Counter(name.split(".")[0] for name in tensors if not name.startswith(known)):
        listed = ", ".join(f"{name} ({n})" for name, n in others.most_common(8))
        log.info("%s: left out, no weights of the model: %s", path.name, listed)
    words = tokenizer_files(pad=family.pad, tokens=text_is.tokens)
    small = {f"tokenizer/{name}": data for name, data in words.items()}
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
        if name.startswith(unused) or not is_weight(name):
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
            pieces[piece] = replace(tensor, shape=shape, offset=offset, length=length)
    if unknown:
        raise CheckpointError(
            f"{shapes.path} has {len(unknown)} tensors that its kind of model has not: {', '.join(unknown[:3])}"
            f"{', ...' if len(unknown) > 3 else ''}"
        )
    return pieces
