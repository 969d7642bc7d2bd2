"""The graphs that ship: what each network computes, without its weights, one file a network and architecture.

A graph is named by the part of the spec that shapes it, so every checkpoint of one architecture finds the same file
(README.md lists them). Its weights are inputs, whose names tell them from the true ones (wire.py).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipeline.networks import ClipSpec
from pipeline.spec import Spec

# Each network of a checkpoint, and the part of it that holds its weights.
_PARTS = {"text_encoder": "text_encoder", "unet": "unet", "vae_decoder": "vae", "vae_encoder": "vae"}
NETWORKS = tuple(_PARTS)
# Those of a CLIP folder (pipeline/checkpoint/clip.py), likewise: its text tower is a text encoder like any other.
_TOWERS = {"text_encoder": "text_encoder", "vision_tower": "vision"}
TOWERS = tuple(_TOWERS)


def part_of(network: str) -> str:
    """Return the part of a checkpoint or a CLIP folder with the weights of one of NETWORKS or TOWERS."""
    return {**_PARTS, **_TOWERS}[network]


def name_of(network: str, spec: Spec | ClipSpec) -> str:
    """Return the file name of `network`'s graph: specs that shape the network alike have the same."""
    text = json.dumps(_shaping(network, spec), sort_keys=True, separators=(",", ":"))
    return f"{network}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.onnx"


def shipped(network: str, spec: Spec | ClipSpec) -> Path | None:
    """Return the shipped graph of `network`; None where `spec` is of an architecture that has none."""
    path = Path(__file__).with_name(name_of(network, spec))
    return path if path.is_file() else None


def _shaping(network: str, spec: Spec | ClipSpec) -> dict[str, Any]:
    """Return the fields that shape a graph, without those at their default.

    So a field that is added to the spec later renames no graph: its default means what was done before.
    """
    field = {"text_encoder": "text"}.get(part_of(network), part_of(network))
    shaping = _changed(getattr(spec, field))
    if field == "text" and isinstance(spec, Spec) and spec.text_2 is not None:  # both towers are one network
        shaping["second"] = _changed(spec.text_2)
    return shaping


def _changed(part: Any) -> dict[str, Any]:
    values = {field.name: (getattr(part, field.name), field.default) for field in fields(part)}
    values.pop("sample_size", None)  # the size that a UNet was trained at: a graph takes every size
    return {name: value for name, (value, default) in values.items() if value != default}
