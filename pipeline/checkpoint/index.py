"""model_index.json: which of diffusers' pipelines a folder was saved from, and the classes of its parts.

A class is what a config's fields mean, so one that latentd does not do is refused by its name before a size or a tensor
of it is found missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.config import Config
from pipeline.source import Source

INDEX = "model_index.json"

# Their networks are a text-to-image model's; that they also take a picture, or few steps, is a request's business.
_PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionInpaintPipelineLegacy",
)
_XL = (
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
)
_DISTILLED = ("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline")
# The same networks again, led differently on their way: what is drawn is StableDiffusionPipeline's picture.
_LED = (
    "SemanticStableDiffusionPipeline",
    "StableDiffusionAttendAndExcitePipeline",
    "StableDiffusionKDiffusionPipeline",
    "StableDiffusionLongPromptWeightingPipeline",
    "StableDiffusionPAGPipeline",
    "StableDiffusionPAGImg2ImgPipeline",
    "StableDiffusionPanoramaPipeline",
    "StableDiffusionPipelineSafe",
    "StableDiffusionSAGPipeline",
)
_XL_LED = ("StableDiffusionXLPAGPipeline", "StableDiffusionXLPAGImg2ImgPipeline")
_PARTS = {
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
}
_SECOND = {"text_encoder_2": ("CLIPTextModelWithProjection",), "tokenizer_2": _PARTS["tokenizer"]}
# Beside the picture: latentd runs none of them, whether they are named or null.
_BESIDE = ("feature_extractor", "image_encoder", "safety_checker")


@dataclass(frozen=True)
class Index:
    """Says what a folder claims to be."""

    scheduler: str | None  # diffusers' class, which decides the defaults of its config
    distilled: bool  # to few steps, by its pipeline's class
    two_texts: bool = False  # SDXL, which has two text encoders
    zero_negative: bool = False  # an empty negative prompt is zeros


def read_index(source: Source, remark: Callable[[str], None]) -> Index:
    """Read the index. Errors: CheckpointError, naming the class, for a pipeline or a part that latentd does not do."""
    config = Config(source, INDEX)
    pipeline = config.get("_class_name")
    if pipeline not in (*_PIPELINES, *_XL, *_DISTILLED, *_LED, *_XL_LED):
        raise config.refusal("_class_name", f"latentd does {_PIPELINES[0]}, {_XL[0]}, {_DISTILLED[0]} and kin")
    two = pipeline in (*_XL, *_XL_LED)
    if pipeline in (*_LED, *_XL_LED):
        plain = _XL[0] if two else _PIPELINES[0]
        remark(f"{config.path}: latentd draws a {pipeline} as a {plain}, without what it adds")
    parts = _PARTS | _SECOND if two else _PARTS
    if two and config.holds("text_encoder") and _class(config, "text_encoder") is None:
        raise config.refusal(
            "text_encoder", "that is the SDXL refiner, which latentd does not do; serve the base model"
        )
    for part, classes in parts.items():
        if config.holds(part) and _class(config, part) not in classes:
            raise config.refusal(part, f"latentd does {', '.join(classes)}")
    for key in config:
        if key not in (*parts, *_BESIDE, "scheduler") and _class(config, key) is not None:
            raise config.refusal(key, f"latentd does pipelines of {', '.join(parts)} and scheduler alone")
    zeros = two and config.flag("force_zeros_for_empty_prompt", True)
    return Index(_class(config, "scheduler"), pipeline in _DISTILLED, two, zeros)


def check_class(config: Config, key: str, classes: tuple[str, ...]) -> None:
    """Check a part's class. Errors: CheckpointError where its own config names one that is not in `classes`."""
    if config.get(key) is not None:
        config.one_of(key, classes, "")


def _class(config: Config, key: str) -> str | None:
    """Return the class of a part, which stands there as [library, class]."""
    value = config.get(key)
    named = isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)
    return value[1] if named else None
