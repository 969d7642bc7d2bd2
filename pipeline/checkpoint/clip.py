"""A CLIP folder, opened: a style adapter's image encoder, or a judge with both towers.

Both are as transformers saves them: config.json and model.safetensors (or shards) at the top; a judge has its
tokenizer's files and preprocessor_config.json beside them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint.networks import read_text
from pipeline.checkpoint.parts import files_of
from pipeline.checkpoint.weights import Weights, named_tensors
from pipeline.config import Config
from pipeline.errors import CheckpointError
from pipeline.networks import ClipSpec, VisionSpec
from pipeline.source import Folder

JUDGE = "judge"  # where a checkpoint may have one
PREPROCESSOR = "preprocessor_config.json"
_VISION = ["CLIPVisionModelWithProjection"]
_BOTH = ["CLIPModel"]
_LEGACY_END = 2  # transformers before 4.31 wrote so, whatever the vocabulary: see Clip.end


@dataclass(frozen=True)
class Sight:
    """Describes how a picture becomes what a vision tower sees: normalised by CLIP's own mean and deviation."""

    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # of R, G, B in 0..1
    deviation: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Clip:
    path: Path  # the folder
    source: Folder
    spec: ClipSpec
    weights: Weights  # parts "vision", and of a judge "text_encoder" and "head"
    sight: Sight
    end: int | None = None  # the token where a text's embedding stands; None: the highest number of a text


class TokenizerFolder(Folder):
    """Reads a folder that is a tokenizer's as if it lay in a checkpoint."""

    def place(self, name: str) -> Path:
        return self.path / name.removeprefix("tokenizer/")

    def holds(self, name: str) -> bool:
        return super().holds(name.removeprefix("tokenizer/"))

    def read(self, name: str, largest: int) -> bytes:
        return super().read(name.removeprefix("tokenizer/"), largest)


def open_encoder(folder: Path) -> Clip:
    """Read configs and headers of an image encoder: a CLIPVisionModelWithProjection, or a CLIPModel's vision tower.

    Errors: CheckpointError.
    """
    config, source = _config(folder, (_VISION, _BOTH), "a style's encoder")
    section = config if config.get("vision_config") is None else config.section("vision_config")
    spec = ClipSpec(read_vision(section, config.integer("projection_dim", 512)))
    return Clip(folder, source, spec, _weights(folder, ("vision",)), _sight(source, spec.vision))


def open_judge(folder: Path, remark: Callable[[str], None]) -> Clip:
    """Read configs and headers of a CLIPModel with both towers, their projections and its tokenizer.

    `remark`: see read_spec. Errors: CheckpointError.
    """
    config, source = _config(folder, (_BOTH,), "a judge")
    vision, text = config.section("vision_config"), config.section("text_config")
    for key in ("vision_config_dict", "text_config_dict"):
        # transformers before 4.31 wrote the sizes twice, and reads these first
        for name in (twice := config.section(key)):
            if name in twice and twice.get(name) != (vision if key[0] == "v" else text).get(name):
                raise twice.refusal(name, f"{key.removesuffix('_dict')} says otherwise")
    spec = ClipSpec(read_vision(vision, config.integer("projection_dim", 512)), read_text(text, remark))
    end = text.integer("eos_token_id", 49407, least=0, most=1 << 20)
    weights = _weights(folder, ("vision", "text_encoder", "head"))
    return Clip(folder, source, spec, weights, _sight(source, spec.vision), None if end == _LEGACY_END else end)


def _config(folder: Path, classes: tuple[list[str], ...], what: str) -> tuple[Config, Folder]:
    wanted = f"give the folder of a {' or '.join(name for (name,) in classes)}, as transformers saves one"
    source, named = Folder(folder), f"{what.removeprefix('a ')} {folder}"
    if not os.path.lexists(folder):
        raise CheckpointError(f"{named} is not there; {wanted}")
    if not os.path.isdir(folder):
        raise CheckpointError(f"{named} is no folder; {wanted}")
    if source.holds("model_index.json"):
        raise CheckpointError(f"{named} is a whole model in diffusers' layout, which draws pictures; {wanted}")
    if not source.holds("config.json"):
        raise CheckpointError(f"{named} has no config.json; {wanted}")
    config = Config(source, "config.json")
    if config.get("architectures") not in classes:
        raise config.refusal("architectures", f"{what} is a {' or '.join(name for (name,) in classes)}")
    return config, source


def read_vision(config: Config, projection: int) -> VisionSpec:
    """Read a vision tower's config; absent keys mean what they mean in transformers' CLIPVisionConfig."""
    config.require({"model_type": "clip_vision_model", "num_channels": 3})
    heads, width = config.integer("num_attention_heads", 12), config.integer("hidden_size", 768)
    side, patch = config.integer("image_size", 224, most=1024), config.integer("patch_size", 32)
    if width % heads:
        raise CheckpointError(f"{config.path}: hidden_size {width} is not a multiple of num_attention_heads {heads}")
    if side % patch:
        raise CheckpointError(f"{config.path}: image_size {side} is not a multiple of patch_size {patch}")
    return VisionSpec(
        side=side,
        patch=patch,
        width=width,
        hidden=config.integer("intermediate_size", 3072),
        layers=config.integer("num_hidden_layers", 12, most=256),
        heads=heads,
        activation=config.one_of("hidden_act", ("quick_gelu", "gelu"), "quick_gelu"),
        eps=config.number("layer_norm_eps", 1e-5, least=0, most=1),
        projection=projection,
    )


def _sight(source: Folder, vision: VisionSpec) -> Sight:
    """Read the preprocessor's config, where there is one: CLIP's steps at the tower's size, and no others."""
    if not source.holds(PREPROCESSOR):
        return Sight()
    config = Config(source, PREPROCESSOR)
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    config.require({**{step: True for step in steps}, "resample": 3})
    for key, names in (("size", ("shortest_edge",)), ("crop_size", ("height", "width"))):
        value = config.get(key)
        if value not in (None, vision.side, {name: vision.side for name in names}):
            raise config.refusal(key, f"the tower sees pictures of {vision.side}x{vision.side}")
    if abs(config.number("rescale_factor", 1 / 255) - 1 / 255) > 1e-7:
        raise config.refusal("rescale_factor", "latentd does only 1/255")
    return Sight(_three(config, "image_mean", Sight.mean), _three(config, "image_std", Sight.deviation))


def _three(config: Config, key: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
    values = config.get(key)
    if values is None:
        return default
    if not isinstance(values, list) or len(values) != 3 or not all(type(v) is float and 0 < v <= 1 for v in values):
        raise config.refusal(key, "it must be three numbers above 0, up to 1")
    red, green, blue = values
    return red, green, blue


def _weights(folder: Path, parts: tuple[str, ...]) -> Weights:
    files = files_of(folder, "model")
    where = files[0] if len(files) == 1 else folder
    return Weights({part: named_tensors(part, files) for part in parts}, dict.fromkeys(parts, where))
