"""The spec: every shape, constant and default of a model, read from its checkpoint's own configs.

The layout is the one diffusers writes: `model_index.json` and a folder with a JSON config for each of
text_encoder, unet, vae, scheduler and tokenizer. What a config asks for and latentd does not do is
refused by name here, at load, rather than found in a wrong picture.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError


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
class ScheduleSpec:
    """The training schedule, and how inference steps are spread over it."""

    train_steps: int
    beta_start: float
    beta_end: float
    beta_schedule: str  # "scaled_linear" or "linear"
    prediction: str  # "epsilon" or "v_prediction"
    spacing: str  # "leading", "trailing" or "linspace"
    steps_offset: int
    set_alpha_to_one: bool


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


def read_spec(checkpoint: Path) -> Spec:
    """The spec of a checkpoint folder.

    Errors: CheckpointError, naming the file and the key, for anything missing, malformed or not done here.
    """
    index = _read_json(checkpoint, "model_index.json")
    kind = index.get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise CheckpointError(
            f"{checkpoint / 'model_index.json'}: _class_name is {kind!r}; latentd serves StableDiffusionPipeline"
        )
    text = _text(_Config(checkpoint, "text_encoder/config.json"))
    unet = _unet(_Config(checkpoint, "unet/config.json"))
    vae = _vae(_Config(checkpoint, "vae/config.json"))
    schedule = _schedule(_Config(checkpoint, "scheduler/scheduler_config.json"))
    if unet.context_width != text.width:
        raise CheckpointError(
            f"{checkpoint}: the UNet's cross_attention_dim is {unet.context_width}, "
            f"the text encoder's hidden_size {text.width}; they must be equal"
        )
    if not unet.in_channels == unet.out_channels == vae.latent_channels:
        raise CheckpointError(
            f"{checkpoint}: the UNet takes {unet.in_channels} channels and gives {unet.out_channels}, "
            f"the VAE has {vae.latent_channels} latent channels; they must be equal"
        )
    side = unet.sample_size * vae.factor
    return Spec(text, unet, vae, schedule, _defaults(checkpoint, side))


class _Config:
    """One JSON config: typed reads whose errors name the file and the key."""

    def __init__(self, checkpoint: Path, name: str) -> None:
        self.path = checkpoint / name
        self._values = _read_json(checkpoint, name)

    def get(self, key: str, default: Any) -> Any:
        value = self._values.get(key, default)
        return default if value is None else value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"{self.path}: {key} must be a number, not {value!r}")
        return float(value)

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise CheckpointError(f"{self.path}: {key} must be an integer of at least {least}, not {value!r}")
        return value

    def integers(self, key: str, length: int | None = None, default: int | None = None) -> tuple[int, ...]:
        """A list of integers, or one integer that stands for `length` equal ones."""
        value = self.get(key, default)
        values = [value] * length if isinstance(value, int) and length else value
        if (
            not isinstance(values, list)
            or not values
            or (length and len(values) != length)
            or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values)
        ):
            raise CheckpointError(f"{self.path}: {key} must be {length or 'some'} positive integers, not {value!r}")
        return tuple(values)

    def one_of(self, key: str, choices: tuple[str, ...], default: str) -> str:
        value = self.get(key, default)
        if value not in choices:
            raise CheckpointError(f"{self.path}: {key} is {value!r}; latentd does {', '.join(choices)}")
        return value

    def require(self, fixed: dict[str, Any]) -> None:
        """Each key is absent, null, or has the one value that latentd implements."""
        for key, wanted in fixed.items():
            value = self._values.get(key)
            if value is not None and value != wanted:
                raise CheckpointError(
                    f"{self.path}: {key} is {json.dumps(value)}; latentd does only {json.dumps(wanted)}"
                )


def _read_json(checkpoint: Path, name: str) -> dict[str, Any]:
    path = checkpoint / name
    try:
        if path.stat().st_size > 1 << 20:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes; a config has at most {1 << 20}")
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; a checkpoint is a folder in diffusers' layout") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(values).__name__}")
    return values


def _text(config: _Config) -> TextSpec:
    heads, width = config.integer("num_attention_heads"), config.integer("hidden_size")
    if width % heads:
        raise CheckpointError(f"{config.path}: hidden_size {width} is not a multiple of num_attention_heads {heads}")
    return TextSpec(
        vocab_size=config.integer("vocab_size"),
        tokens=config.integer("max_position_embeddings", least=3),
        width=width,
        hidden=config.integer("intermediate_size"),
        layers=config.integer("num_hidden_layers"),
        heads=heads,
        activation=config.one_of("hidden_act", ("quick_gelu", "gelu"), "quick_gelu"),
        eps=config.number("layer_norm_eps", 1e-5),
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
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}


def _unet(config: _Config) -> UnetSpec:
    config.require(_UNET_FIXED)
    channels = config.integers("block_out_channels")
    blocks = len(channels)
    groups = config.integer("norm_num_groups", 32)
    # diffusers' `attention_head_dim` is the number of heads wherever `num_attention_heads` is absent.
    heads_key = "num_attention_heads" if config.get("num_attention_heads", None) else "attention_head_dim"
    heads = config.integers(heads_key, blocks, default=8)
    for width, head_count in zip(channels, heads, strict=True):
        if width % groups or width % head_count:
            raise CheckpointError(
                f"{config.path}: {width} channels do not divide into {groups} groups and {head_count} heads"
            )
    return UnetSpec(
        in_channels=config.integer("in_channels", 4),
        out_channels=config.integer("out_channels", 4),
        sample_size=config.integer("sample_size"),
        channels=channels,
        layers=config.integers("layers_per_block", blocks, default=2),
        attention_down=_attention(config, "down_block_types", "CrossAttnDownBlock2D", "DownBlock2D", blocks),
        attention_up=_attention(config, "up_block_types", "CrossAttnUpBlock2D", "UpBlock2D", blocks),
        heads=heads,
        transformer_layers=config.integers("transformer_layers_per_block", blocks, default=1),
        context_width=config.integer("cross_attention_dim", 1280),
        linear_projection=bool(config.get("use_linear_projection", False)),
        groups=groups,
        eps=config.number("norm_eps", 1e-5),
        flip_sin_to_cos=bool(config.get("flip_sin_to_cos", True)),
        freq_shift=config.number("freq_shift", 0),
    )


def _attention(config: _Config, key: str, cross: str, plain: str, blocks: int) -> tuple[bool, ...]:
    types = config.get(key, None)
    if not isinstance(types, list) or len(types) != blocks or not all(t in (cross, plain) for t in types):
        raise CheckpointError(f"{config.path}: {key} must be {blocks} of {cross} and {plain}, not {types!r}")
    return tuple(t == cross for t in types)


def _vae(config: _Config) -> VaeSpec:
    channels = config.integers("block_out_channels")
    groups = config.integer("norm_num_groups", 32)
    for key, name in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if config.get(key, [name] * len(channels)) != [name] * len(channels):
            raise CheckpointError(f"{config.path}: {key} must be {len(channels)} of {name}")
    if any(width % groups for width in channels):
        raise CheckpointError(f"{config.path}: block_out_channels {channels} are not multiples of {groups} groups")
    config.require({"act_fn": "silu", "latents_mean": None, "latents_std": None})
    return VaeSpec(
        image_channels=config.integer("in_channels", 3),
        latent_channels=config.integer("latent_channels", 4),
        channels=channels,
        layers=config.integer("layers_per_block", 1),
        groups=groups,
        scaling_factor=config.number("scaling_factor", 0.18215),
        shift_factor=config.number("shift_factor", 0.0),
        quant_conv=bool(config.get("use_quant_conv", True)),
        post_quant_conv=bool(config.get("use_post_quant_conv", True)),
        mid_attention=bool(config.get("mid_block_add_attention", True)),
    )


def _schedule(config: _Config) -> ScheduleSpec:
    # What is not linear in the sampler's memory, or not implemented yet, is refused by name.
    config.require(
        {"clip_sample": False, "thresholding": False, "trained_betas": None, "rescale_betas_zero_snr": False}
    )
    return ScheduleSpec(
        train_steps=config.integer("num_train_timesteps", 1000),
        beta_start=config.number("beta_start"),
        beta_end=config.number("beta_end"),
        beta_schedule=config.one_of("beta_schedule", ("scaled_linear", "linear"), "linear"),
        prediction=config.one_of("prediction_type", ("epsilon", "v_prediction"), "epsilon"),
        spacing=config.one_of("timestep_spacing", ("leading", "trailing", "linspace"), "leading"),
        steps_offset=config.integer("steps_offset", 0, least=0),
        set_alpha_to_one=bool(config.get("set_alpha_to_one", True)),
    )


def _defaults(checkpoint: Path, side: int) -> Defaults:
    """`latentd.json` beside model_index.json, if it is there; else the numbers that SD was published with."""
    own = _Config(checkpoint, "latentd.json") if (checkpoint / "latentd.json").exists() else None
    if own is None:
        return Defaults(steps=25, guidance=7.5, sampler="dpmpp_2m", width=side, height=side)
    return Defaults(
        steps=own.integer("steps", 25),
        guidance=own.number("guidance", 7.5),
        sampler=str(own.get("sampler", "dpmpp_2m")),
        width=own.integer("width", side),
        height=own.integer("height", side),
    )
