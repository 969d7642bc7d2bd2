"""The recipe: all that decides what a run makes, in one YAML file. A key that nothing reads is refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.samplers import SAMPLERS
from training.errors import TrainingError

KINDS = ("drawn", "folder", "shapes")
_LARGEST = 1 << 20  # bytes of a recipe


def _limited(default: Any, least: float, most: float) -> Any:
    return field(default=default, metadata={"least": least, "most": most})


def _one_of(default: str, *choices: str) -> Any:
    return field(default=default, metadata={"choices": choices})


@dataclass(frozen=True)
class DataRecipe:
    """Says which pictures there are. What only drawn pictures have is ignored by none: it is refused for a folder."""

    kind: str = _one_of("folder", *KINDS)
    folder: str | None = None  # of pictures with captions, or of what `make demo-data` wrote
    side: int = _limited(64, 8, 1024)  # pixels
    styles: tuple[str, ...] = ("color", "ink")
    plain: float = _limited(0.5, 0, 1)  # of drawn pictures: the share that stands on white
    composed: float = _limited(0.25, 0, 1)  # of drawn pictures: the share with two or three things
    # Of drawn pictures of one thing: the share, in what the denoiser and the adapter read, whose thing keeps its place.
    settled: float = _limited(0.0, 0, 1)
    unstyled: float = _limited(0.08, 0, 1)  # of captions: the share that names no style
    held_pairs: float = _limited(0.05, 0, 0.5)  # of (thing, style) pairs: the share that training never sees
    vocabulary: int = _limited(2560, 514, 49408)  # entries of the tokenizer


@dataclass(frozen=True)
class TextRecipe:
    width: int = _limited(192, 8, 4096)
    layers: int = _limited(2, 1, 48)
    heads: int = _limited(6, 1, 64)
    tokens: int = _limited(32, 4, 256)


@dataclass(frozen=True)
class VisionRecipe:
    width: int = _limited(128, 8, 4096)
    layers: int = _limited(4, 1, 48)
    heads: int = _limited(4, 1, 64)
    patch: int = _limited(8, 1, 64)
    projection: int = _limited(128, 4, 4096)


@dataclass(frozen=True)
class VaeRecipe:
    channels: tuple[int, ...] = (32, 64, 128)  # each block but the last halves the side
    layers: int = _limited(1, 1, 8)
    groups: int = _limited(16, 1, 256)
    latent_channels: int = _limited(4, 1, 64)


@dataclass(frozen=True)
class UnetRecipe:
    channels: tuple[int, ...] = (64, 128, 128)
    attention: tuple[bool, ...] = (False, True, True)  # a block each, outermost first
    layers: int = _limited(1, 1, 8)
    heads: int = _limited(4, 1, 64)
    groups: int = _limited(32, 1, 256)


@dataclass(frozen=True)
class PhaseRecipe:
    """Says how one network is trained: the rate rises over `warmup` steps and falls by a cosine to zero."""

    steps: int = _limited(1000, 1, 100_000_000)
    batch: int = _limited(32, 1, 4096)  # pictures a step, of all processes together
    rate: float = _limited(8e-4, 0, 1)
    warmup: int = _limited(100, 0, 1_000_000)
    # "muon": matrices by Muon, the rest by AdamW (training/optimizer.py). Muon's own products are in bfloat16 where the
    # processor multiplies it, whatever `bfloat16` says of the network's.
    optimizer: str = _one_of("adamw", "adamw", "muon")
    decay: float = _limited(0.01, 0, 1)  # a step takes rate x decay off each weight
    average: float = _limited(0.998, 0, 0.99999)  # of the weights that are kept, a step; 0: none
    clip: float = _limited(1.0, 0, 1e6)  # longest gradient
    bfloat16: bool = False  # autocast, where the device has instructions for it; else float32
    save_every: int = _limited(500, 1, 100_000_000)  # steps from one checkpoint to the next
    sheet_every: int = _limited(2000, 1, 100_000_000)
    log_every: int = _limited(20, 1, 1_000_000)


@dataclass(frozen=True)
class AutoencoderRecipe(PhaseRecipe):
    kl: float = _limited(1e-6, 0, 1)
    edges: float = _limited(0.1, 0, 10)  # weight of the error of differences between neighbours


@dataclass(frozen=True)
class DenoiserRecipe(PhaseRecipe):
    caption_dropout: float = _limited(0.1, 0, 1)
    bank: int = _limited(0, 0, 100_000_000)  # pictures encoded ahead; 0: each drawn afresh, a folder's each once


@dataclass(frozen=True)
class AdapterRecipe(PhaseRecipe):
    tokens: int = _limited(4, 1, 64)
    caption_dropout: float = _limited(0.1, 0, 1)
    style_dropout: float = _limited(0.1, 0, 1)


@dataclass(frozen=True)
class PhasesRecipe:
    contrastive: PhaseRecipe = PhaseRecipe()
    autoencoder: AutoencoderRecipe = AutoencoderRecipe()
    denoiser: DenoiserRecipe = DenoiserRecipe()
    adapter: AdapterRecipe = AdapterRecipe()
    classifier: PhaseRecipe = PhaseRecipe()


@dataclass(frozen=True)
class EvaluateRecipe:
    """Says what is drawn to see how good the model is, and the defaults that it is served with."""

    steps: int = _limited(12, 1, 150)
    guidance: float = _limited(3.0, 0, 30)
    sampler: str = "dpmpp_2m"
    prompts: int = _limited(200, 1, 10_000)  # of one thing
    composed: int = _limited(100, 0, 10_000)
    styled: int = _limited(50, 0, 10_000)  # prompts with a style picture, for each of four
    sheet: tuple[str, ...] = ()  # prompts to look at


@dataclass(frozen=True)
class Recipe:
    name: str = "model"
    seed: int = _limited(0, 0, 2**31 - 1)
    threads: int = _limited(2, 1, 256)  # of the CPU: another number rounds otherwise
    device: str = _one_of("cpu", "cpu", "cuda")
    half: bool = True  # is the checkpoint written in float16?
    data: DataRecipe = DataRecipe()
    text: TextRecipe = TextRecipe()
    vision: VisionRecipe = VisionRecipe()
    vae: VaeRecipe = VaeRecipe()
    unet: UnetRecipe = UnetRecipe()
    phases: PhasesRecipe = PhasesRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()

    @property
    def digest(self) -> str:
        """Return 16 hex digits that differ where other weights would come out; judging changes none."""
        values = {key: value for key, value in dataclasses.asdict(self).items() if key != "evaluate"}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def read_recipe(path: Path) -> Recipe:
    """Read a recipe. Errors: TrainingError naming the file, the key, its value and the limit."""
    try:
        if path.stat().st_size > _LARGEST:
            raise TrainingError(f"{path} has {path.stat().st_size} bytes; a recipe has at most {_LARGEST}")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrainingError(f"the recipe {path} is not there") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainingError(f"the recipe {path} cannot be read: {error}") from None
    try:
        recipe = _section(Recipe, {} if values is None else values, "")
        check(recipe)
    except TrainingError as error:
        raise TrainingError(f"{path}: {error}") from None
    return recipe


def check(recipe: Recipe) -> None:
    """Compare what must fit together. Errors: TrainingError."""
    vae, unet, data = recipe.vae, recipe.unet, recipe.data
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", recipe.name):
        raise TrainingError(f"name is {recipe.name!r:.80}; it names a folder: letters, digits, '.', '_' and '-'")
    unit = 2 ** (len(vae.channels) - 1) * 2 ** (len(unet.channels) - 1)
    if data.side % unit:
        raise TrainingError(f"data.side is {data.side}; with these blocks it must be a multiple of {unit}")
    if data.side % recipe.vision.patch:
        raise TrainingError(f"vision.patch is {recipe.vision.patch}; data.side {data.side} must be a multiple of it")
    for name, part in (("text", recipe.text), ("vision", recipe.vision)):
        if part.width % part.heads:
            raise TrainingError(f"{name}.width is {part.width}; it must be a multiple of {name}.heads {part.heads}")
    for name, net in (("vae", vae), ("unet", unet)):
        if not net.channels or any(width < 1 or width % net.groups for width in net.channels):
            raise TrainingError(f"{name}.channels is {list(net.channels)}; each must be a multiple of {net.groups}")
    if len(unet.attention) != len(unet.channels):
        raise TrainingError(f"unet.attention has {len(unet.attention)} entries; unet.channels {len(unet.channels)}")
    if any(width % unet.heads for width in unet.channels) or unet.channels[0] % 2:
        raise TrainingError(f"unet.channels is {list(unet.channels)}; each must be a multiple of unet.heads, and even")
    if recipe.evaluate.sampler not in SAMPLERS:
        raise TrainingError(
            f"evaluate.sampler is {recipe.evaluate.sampler!r:.60}; it must be one of {', '.join(SAMPLERS)}"
        )
    if data.kind != "shapes" and not data.folder:
        raise TrainingError(f"data.folder is missing; data.kind {data.kind} needs it")


def _section(kind: type, values: Any, where: str) -> Any:
    """Fill a dataclass from a mapping."""
    name = where or "the recipe"
    if not isinstance(values, dict):
        raise TrainingError(f"{name} is {values!r:.60}; it must be keys and values")
    fields, hints = {one.name: one for one in dataclasses.fields(kind)}, typing.get_type_hints(kind)
    for key in values:
        if key not in fields:
            raise TrainingError(f"{name} has no key {str(key)[:60]!r}; there are: {', '.join(fields)}")
    return kind(
        **{key: _value(hints[key], value, f"{where}{'.' if where else ''}{key}", fields[key].metadata)
           for key, value in values.items()}
    )  # fmt: skip


def _value(kind: Any, value: Any, name: str, limits: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        return _section(typing.cast(type, kind), value, name)
    if typing.get_origin(kind) is types.UnionType:
        return None if value is None else _value(typing.get_args(kind)[0], value, name, limits)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list) or len(value) > 1000:
            raise TrainingError(f"{name} is {value!r:.60}; it must be a list")
        return tuple(_value(typing.get_args(kind)[0], one, f"{name}[{i}]", limits) for i, one in enumerate(value))
    if kind is float and type(value) is str:  # YAML takes 8e-4 for a text, as it has no dot
        try:
            value = float(value)
        except ValueError:
            raise TrainingError(f"{name} is {value!r:.60}; it must be a number") from None
    if type(value) not in ((int, float) if kind is float else (kind,)):
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        raise TrainingError(f"{name} is {value!r:.60}; it must be {words[kind]}")
    if "choices" in limits and value not in limits["choices"]:
        raise TrainingError(f"{name} is {value!r:.60}; it must be one of {', '.join(limits['choices'])}")
    if "least" in limits and not limits["least"] <= value <= limits["most"]:
        raise TrainingError(f"{name} is {value:g}; it must be {limits['least']:g} to {limits['most']:g}")
    return kind(value)
