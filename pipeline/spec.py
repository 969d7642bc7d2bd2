"""The spec: every shape, constant and default of a model, read from its checkpoint's own configs.

The layout is the one diffusers writes: `model_index.json` and a folder with a JSON config for each of
text_encoder, unet, vae, scheduler and tokenizer. What a config asks for and latentd does not do is
refused by name here, at load, rather than found in a wrong picture.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.errors import CheckpointError
from pipeline.samplers import DISTILLED_STEPS, SAMPLERS
from pipeline.schedule import ScheduleSpec, alphas_cumprod
from pipeline.source import Source, source_of

# The most that is read: networks of 1e9 layers would fill the memory before any weight is missed.
_BLOCKS = 6  # SD has 4; each but the last halves the side
_LAYERS = 32  # a block, of either kind; SDXL has 10
_SIDE = 4096  # latent positions, and pixels of a default size


@dataclass(frozen=True)
class TextSpec:
    """A CLIP text tower (Radford et al. 2021, 2.4)."""

    vocab_size: int
    tokens: int  # context length, start and end marks included
    width: int
    hidden: int  # of the MLP
    layers: int
    heads: int
    activation: str  # "quick_gelu" or "gelu"
    eps: float

    @property
    def skips(self) -> int:
        """How many of the last layers a request may leave out (clip_skip)."""
        return min(self.layers - 1, 11)


@dataclass(frozen=True)
class UnetSpec:
    """A conditional UNet (Rombach et al. 2022). Tuples have one entry a block, outermost first."""

    in_channels: int
    out_channels: int
    sample_size: int  # the latent's side that it was trained at
    channels: tuple[int, ...]
    layers: tuple[int, ...]
    attention_down: tuple[bool, ...]  # has the block cross-attention?
    attention_up: tuple[bool, ...]  # innermost first, as the checkpoint counts them
    heads: tuple[int, ...]
    transformer_layers: tuple[int, ...]
    context_width: int
    linear_projection: bool  # SD 2: proj_in/out are Linear, not 1x1 convolutions
    groups: int
    eps: float
    flip_sin_to_cos: bool
    freq_shift: float
    guidance_width: int = 0  # LCM: the guidance is one more input, embedded in so many numbers; 0: it is not


@dataclass(frozen=True)
class VaeSpec:
    """An AutoencoderKL. Tuples have one entry a block, outermost (full size) first."""

    image_channels: int
    latent_channels: int
    channels: tuple[int, ...]
    layers: int
    groups: int
    scaling_factor: float
    shift_factor: float
    quant_conv: bool
    post_quant_conv: bool
    mid_attention: bool

    @property
    def factor(self) -> int:
        """Pixels a latent position: every block but the last halves the side."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class Defaults:
    """What an absent request field means."""

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

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """[channels, h, w] of the latents of a picture of `width` x `height` pixels."""
        return self.vae.latent_channels, height // self.vae.factor, width // self.vae.factor

    @property
    def size_multiple(self) -> int:
        """A picture's sides are multiples of this: the UNet halves a latent once a block but the last."""
        return self.vae.factor * 2 ** (len(self.unet.channels) - 1)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_spec(checkpoint: Path | Source) -> Spec:
    """Read the spec of a checkpoint from its configs.

    Errors: CheckpointError, naming the file and the key, for anything missing, malformed or not done here.
    """
    source = source_of(checkpoint)
    Config(source, "model_index.json").one_of("_class_name", ("StableDiffusionPipeline",), default="")
    text = _text(Config(source, "text_encoder/config.json"))
    unet = _unet(Config(source, "unet/config.json"))
    vae = _vae(Config(source, "vae/config.json"))
    schedule = _schedule(Config(source, "scheduler/scheduler_config.json"))
    if unet.context_width != text.width:
        raise CheckpointError(
            f"{source.path}: the UNet's cross_attention_dim is {unet.context_width}, "
            f"the text encoder's hidden_size {text.width}; they must be equal"
        )
    if not unet.in_channels == unet.out_channels == vae.latent_channels:
        raise CheckpointError(
            f"{source.path}: the UNet has in_channels {unet.in_channels} and out_channels {unet.out_channels}, "
            f"the VAE latent_channels {vae.latent_channels}; they must be equal"
        )
    side = unet.sample_size * vae.factor
    defaults = Defaults(steps=25, guidance=7.5, sampler="dpmpp_2m", width=side, height=side)
    spec = Spec(text, unet, vae, schedule, defaults)
    if not source.holds("latentd.json"):
        return spec
    return replace(spec, defaults=_defaults(Config(source, "latentd.json"), spec))


def _text(config: Config) -> TextSpec:
    heads, width = config.integer("num_attention_heads"), config.integer("hidden_size")
    if width % heads:
        raise CheckpointError(f"{config.path}: hidden_size {width} is not a multiple of num_attention_heads {heads}")
    return TextSpec(
        vocab_size=config.integer("vocab_size", most=1 << 20),
        tokens=config.integer("max_position_embeddings", least=3, most=4096),
        width=width,
        hidden=config.integer("intermediate_size"),
        layers=config.integer("num_hidden_layers", most=256),
        heads=heads,
        activation=config.one_of("hidden_act", ("quick_gelu", "gelu"), "quick_gelu"),
        eps=config.number("layer_norm_eps", 1e-5, least=0, most=1),
    )


_UNET_FIXED = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}


def _unet(config: Config) -> UnetSpec:
    config.require(_UNET_FIXED)
    channels = config.integers("block_out_channels", longest=_BLOCKS)
    blocks = len(channels)
    groups = config.integer("norm_num_groups", 32)
    # diffusers' `attention_head_dim` is the number of heads wherever `num_attention_heads` is absent.
    heads_key = "num_attention_heads" if config.get("num_attention_heads") else "attention_head_dim"
    heads = config.integers(heads_key, blocks, default=8)
    for width, head_count in zip(channels, heads, strict=True):
        if width % groups or width % head_count:
            raise CheckpointError(
                f"{config.path}: {width} channels do not divide into {groups} groups and {head_count} heads"
            )
    sample_size, unit = config.integer("sample_size", most=_SIDE), 2 ** (blocks - 1)
    if sample_size % unit:
        raise config.refusal("sample_size", f"{blocks} blocks halve only multiples of {unit} to whole sides")
    shift = config.number("freq_shift", 0)
    if channels[0] % 2 or channels[0] <= 2 * shift:
        # Half of the timestep's embedding are sines, half cosines, over width / 2 - freq_shift frequencies.
        raise config.refusal("block_out_channels", f"the first must be even, and more than twice freq_shift {shift:g}")
    guidance_width = config.integer("time_cond_proj_dim", 0, least=0)
    if guidance_width % 2 or guidance_width == 2:
        raise config.refusal("time_cond_proj_dim", "it must be even and at least 4: half sines, half cosines")
    return UnetSpec(
        in_channels=config.integer("in_channels", 4),
        out_channels=config.integer("out_channels", 4),
        sample_size=sample_size,
        channels=channels,
        layers=config.integers("layers_per_block", blocks, default=2, most=_LAYERS),
        attention_down=_attention(config, "down_block_types", "CrossAttnDownBlock2D", "DownBlock2D", blocks),
        attention_up=_attention(config, "up_block_types", "CrossAttnUpBlock2D", "UpBlock2D", blocks),
        heads=heads,
        transformer_layers=config.integers("transformer_layers_per_block", blocks, default=1, most=_LAYERS),
        context_width=config.integer("cross_attention_dim", 1280),
        linear_projection=config.flag("use_linear_projection", False),
        groups=groups,
        eps=config.number("norm_eps", 1e-5, least=0, most=1),
        flip_sin_to_cos=config.flag("flip_sin_to_cos", True),
        freq_shift=shift,
        guidance_width=guidance_width,
    )


def _attention(config: Config, key: str, cross: str, plain: str, blocks: int) -> tuple[bool, ...]:
    types = config.get(key)
    if not isinstance(types, list) or len(types) != blocks or not all(t in (cross, plain) for t in types):
        raise config.refusal(key, f"latentd does {blocks} of {cross} and {plain}")
    return tuple(t == cross for t in types)


def _vae(config: Config) -> VaeSpec:
    channels = config.integers("block_out_channels", longest=_BLOCKS)
    groups = config.integer("norm_num_groups", 32)
    for key, name in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if config.get(key) not in (None, [name] * len(channels)):
            raise config.refusal(key, f"latentd does {len(channels)} of {name}")
    if any(width % groups for width in channels):
        raise config.refusal("block_out_channels", f"each must be a multiple of norm_num_groups {groups}")
    config.require({"act_fn": "silu", "in_channels": 3, "out_channels": 3, "latents_mean": None, "latents_std": None})
    return VaeSpec(
        image_channels=3,
        latent_channels=config.integer("latent_channels", 4),
        channels=channels,
        layers=config.integer("layers_per_block", 1, most=_LAYERS),
        groups=groups,
        scaling_factor=config.number("scaling_factor", 0.18215, least=1e-6),
        shift_factor=config.number("shift_factor", 0.0),
        quant_conv=config.flag("use_quant_conv", True),
        post_quant_conv=config.flag("use_post_quant_conv", True),
        mid_attention=config.flag("mid_block_add_attention", True),
    )


_SCHEDULE_FIXED = {
    "clip_sample": False,
    "interpolation_type": "linear",
    "original_inference_steps": DISTILLED_STEPS,
    "thresholding": False,
    "timestep_scaling": 10.0,
    "timestep_type": "discrete",
    "trained_betas": None,
    "use_flow_sigmas": False,
}


def _schedule(config: Config) -> ScheduleSpec:
    # What is not linear in the sampler's memory, or not implemented yet, is refused by name.
    config.require(_SCHEDULE_FIXED)
    spacings = ("leading", "trailing", "linspace")
    spec = ScheduleSpec(
        train_steps=config.integer("num_train_timesteps", 1000, most=10_000),
        beta_start=config.number("beta_start"),
        beta_end=config.number("beta_end"),
        beta_schedule=config.one_of("beta_schedule", ("scaled_linear", "linear", "squaredcos_cap_v2"), "linear"),
        prediction=config.one_of("prediction_type", ("epsilon", "v_prediction", "sample"), "epsilon"),
        spacing=config.one_of("timestep_spacing", spacings, "") if config.get("timestep_spacing") is not None else None,
        steps_offset=config.integer("steps_offset", 0, least=0),
        set_alpha_to_one=config.flag("set_alpha_to_one", True),
        rescale_betas_zero_snr=config.flag("rescale_betas_zero_snr", False),
    )
    if not 0 < spec.beta_start <= spec.beta_end < 1:
        raise config.refusal("beta_end", f"0 < beta_start {spec.beta_start:g} <= beta_end < 1 must hold")
    kept = alphas_cumprod(replace(spec, rescale_betas_zero_snr=False))
    if not (kept[0] < 1 and kept[-1] > 0):
        raise config.refusal(
            "beta_end", f"{spec.train_steps} timesteps would start without noise or end without signal"
        )
    return spec


def _defaults(own: Config, spec: Spec) -> Defaults:
    """A model's own answers in `latentd.json`; what it leaves out stays as in `spec`."""
    default, multiple = spec.defaults, spec.size_multiple
    chosen = Defaults(
        steps=own.integer("steps", default.steps, most=150),
        guidance=own.number("guidance", default.guidance, least=0, most=30),
        sampler=own.one_of("sampler", SAMPLERS, default.sampler),
        width=own.integer("width", default.width, most=max(_SIDE, default.width)),
        height=own.integer("height", default.height, most=max(_SIDE, default.height)),
    )
    for key in ("width", "height"):
        if own.get(key) is not None and getattr(chosen, key) % multiple:
            raise own.refusal(key, f"a side must be a multiple of {multiple}")
    return chosen
