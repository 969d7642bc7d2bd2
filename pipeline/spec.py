"""The spec: every shape, constant and default of a model, read from its checkpoint's own configs.

The layout is the one diffusers writes: `model_index.json` and a folder with a JSON config for each of
text_encoder, unet, vae, scheduler and tokenizer. What a config asks for and latentd does not do is
refused by name here, at load, rather than found in a wrong picture.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.checkpoint.index import read_index
from pipeline.checkpoint.networks import LARGEST_SIDE, read_second_text, read_text, read_unet, read_vae
from pipeline.checkpoint.sampling import read_sampling
from pipeline.checkpoint.settings import SETTINGS, check_settings
from pipeline.config import Config
from pipeline.errors import CheckpointError, InvalidRequest
from pipeline.networks import TextSpec, UnetSpec, VaeSpec
from pipeline.samplers import SAMPLERS, table
from pipeline.schedule import ScheduleSpec
from pipeline.source import Source, source_of

__all__ = ["Defaults", "ScheduleSpec", "Spec", "TextSpec", "UnetSpec", "VaeSpec", "read_spec"]

log = logging.getLogger("latentd.checkpoint")


@dataclass(frozen=True)
class Defaults:
    """Holds the values that absent request fields mean."""

    steps: int
    guidance: float
    sampler: str
    width: int  # pixels
    height: int


@dataclass(frozen=True)
class Spec:
    text: TextSpec
    unet: UnetSpec
    vae: VaeSpec
    schedule: ScheduleSpec
    defaults: Defaults
    text_2: TextSpec | None = None  # SDXL's second tower: its context lies beside the first one's
    wide_decoder: bool = False  # SDXL: its VAE's decoder may pass float16's range
    zero_negative: bool = False  # SDXL: an empty negative prompt is a context of zeros, and is not encoded

    @property
    def skips(self) -> int:
        """Count the last layers that a request may leave out of the text encoder, of both where there are two."""
        return min(text.skips for text in (self.text, self.text_2) if text is not None)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Return [channels, h, w] of the latents of a picture of `width` x `height` pixels."""
        return self.vae.latent_channels, height // self.vae.factor, width // self.vae.factor

    @property
    def inpaints(self) -> bool:
        """Return whether the UNet sees a mask and a masked picture beside x, as the inpainting models' do."""
        return self.unet.in_channels > self.vae.latent_channels

    @property
    def size_multiple(self) -> int:
        """Return the pixels that a side is a multiple of: the UNet halves a latent once a block but the last."""
        return self.vae.factor * 2 ** (len(self.unet.channels) - 1)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_spec(checkpoint: Path | Source, remark: Callable[[str], None] = log.warning) -> Spec:
    """Read the spec of a checkpoint from its configs.

    `remark` is told what is read otherwise than it stands there, a sentence each, naming file and key. By default that
    goes to the log: a spec is read wherever a model is loaded, by callers that have nobody else to tell, and who
    serves a model reads the log.
    Errors: CheckpointError, naming the file and the key, for anything missing, malformed or not done here.
    """
    source = source_of(checkpoint)
    index = read_index(source, remark)
    text, text_2 = read_text(Config(source, "text_encoder/config.json"), remark), None
    if index.two_texts:
        text = replace(text, penultimate=True)
        text_2 = read_second_text(Config(source, "text_encoder_2/config.json"), text)
    unet = read_unet(Config(source, "unet/config.json"), remark, text_2)
    vae_config = Config(source, "vae/config.json")
    vae = read_vae(vae_config)
    settings = Config(source, SETTINGS) if source.holds(SETTINGS) else None
    chosen = settings.get("sampler") if settings else None
    sampling = read_sampling(source, index, chosen if isinstance(chosen, str) else None, remark)
    width = text.width + (text_2.width if text_2 else 0)
    if unet.context_width != width:
        whose = "text encoders' hidden_size is together" if text_2 else "text encoder's hidden_size"
        raise CheckpointError(
            f"{source.path}: the UNet's cross_attention_dim is {unet.context_width}, "
            f"the {whose} {width}; they must be equal"
        )
    latent = vae.latent_channels
    if unet.in_channels not in (latent, 2 * latent + 1) or unet.out_channels != latent:
        raise CheckpointError(
            f"{source.path}: the UNet has in_channels {unet.in_channels} and out_channels {unet.out_channels}, "
            f"the VAE latent_channels {latent}; all must be equal, or in_channels {2 * latent + 1} for inpainting"
        )
    side = unet.sample_size * vae.factor
    defaults = Defaults(steps=25, guidance=5.0 if text_2 else 7.5, sampler=sampling.sampler, width=side, height=side)
    if index.distilled or sampling.distilled:  # diffusers' latent-consistency pipeline has these
        defaults = replace(defaults, steps=4, guidance=8.5 if unet.guidance_width else 1.0)
    wide = index.two_texts and vae_config.flag("force_upcast", True)
    spec = Spec(text, unet, vae, sampling.schedule, defaults, text_2, wide, index.zero_negative)
    if settings is not None:
        spec = replace(spec, defaults=_defaults(settings, spec))
    try:
        table(spec.schedule, spec.defaults.sampler, spec.defaults.steps)
    except InvalidRequest as error:  # every request that names no sampler would fail with this
        raise CheckpointError(f"{source.path}: its own defaults cannot be drawn: {error}") from None
    return spec


def _defaults(settings: Config, spec: Spec) -> Defaults:
    """Read a model's own answers in `latentd.json`; what it leaves out stays as in `spec`."""
    check_settings(settings)
    for key in ("prediction", "rescale_betas_zero_snr"):
        # It tells a single file's schedule, and has no say over a folder's.
        if settings.get(key) not in (None, getattr(spec.schedule, key)):
            raise settings.refusal(key, "the scheduler's config says otherwise")
    default, multiple = spec.defaults, spec.size_multiple
    chosen = Defaults(
        steps=settings.integer("steps", default.steps, most=150),
        guidance=settings.number("guidance", default.guidance, least=0, most=30),
        sampler=settings.one_of("sampler", SAMPLERS, default.sampler),
        width=settings.integer("width", default.width, most=max(LARGEST_SIDE, default.width)),
        height=settings.integer("height", default.height, most=max(LARGEST_SIDE, default.height)),
    )
    for key in ("width", "height"):
        if settings.get(key) is not None and getattr(chosen, key) % multiple:
            raise settings.refusal(key, f"a side must be a multiple of {multiple}")
    return chosen
