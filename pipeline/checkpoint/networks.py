"""The configs of the three networks. What one asks for and latentd does not do is refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from pipeline.checkpoint.index import check_class
from pipeline.conditions.sizes import SIZES
from pipeline.config import Config
from pipeline.errors import CheckpointError
from pipeline.networks import TextSpec, UnetSpec, VaeSpec

# The most that is read: networks of 1e9 layers would fill the memory before any weight is missed.
_BLOCKS = 6  # SD has 4; each but the last halves the side
_LAYERS = 32  # a block, of either kind; SDXL has 10
LARGEST_SIDE = 4096  # latent positions, and pixels of a default size

_LEGACY_END = 2  # transformers before 4.31 wrote so, whatever the vocabulary: see TextSpec.end

_TEXTS = (["CLIPTextModel"], ["CLIPTextModelWithProjection"])


def read_text(config: Config, remark: Callable[[str], None]) -> TextSpec:
    """Read the text encoder's config; absent keys mean what they mean in transformers' CLIPTextConfig."""
    classes = config.get("architectures")
    if classes not in (None, [], *_TEXTS):
        raise config.refusal("architectures", f"latentd does {' and '.join(name for (name,) in _TEXTS)}")
    if classes == ["CLIPTextModelWithProjection"]:
        remark(f"{config.path}: the text encoder's projection is left out, as no text-to-image model looks at it")
    config.require({"model_type": "clip_text_model", "use_attention_mask": False})
    heads, width = config.integer("num_attention_heads", 8), config.integer("hidden_size", 512)
    if width % heads:
        raise CheckpointError(f"{config.path}: hidden_size {width} is not a multiple of num_attention_heads {heads}")
    return TextSpec(
        vocab_size=config.integer("vocab_size", 49408, most=1 << 20),
        tokens=config.integer("max_position_embeddings", 77, least=3, most=4096),
        width=width,
        hidden=config.integer("intermediate_size", 2048),
        layers=config.integer("num_hidden_layers", 12, most=256),
        heads=heads,
        activation=config.one_of("hidden_act", ("quick_gelu", "gelu"), "quick_gelu"),
        eps=config.number("layer_norm_eps", 1e-5, least=0, most=1),
    )


def read_second_text(config: Config, first: TextSpec) -> TextSpec:
    """Read the config of SDXL's second text encoder, a CLIPTextModelWithProjection, which stands beside `first`."""
    config.require({"architectures": ["CLIPTextModelWithProjection"]})
    text = read_text(config, lambda _: None)
    if text.tokens != first.tokens:
        raise config.refusal(
            "max_position_embeddings", f"the contexts lie side by side, and the first text encoder's is {first.tokens}"
        )
    end = config.integer("eos_token_id", 49407, least=0, most=1 << 20)
    highest = end in (_LEGACY_END, text.vocab_size - 1)  # the vocabulary's last, unless a tokenizer has more
    return replace(
        text,
        penultimate=True,
        projection=config.integer("projection_dim", 512),
        end=None if highest else end,
    )


_UNET_FIXED = {
    "act_fn": "silu",
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
    "mid_block_only_cross_attention": False,
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


def read_unet(config: Config, remark: Callable[[str], None], second: TextSpec | None = None) -> UnetSpec:
    """Read the UNet's config; `second` is SDXL's other text encoder, whose embedding of a text the UNet takes too."""
    check_class(config, "_class_name", ("UNet2DConditionModel",))
    config.require(_UNET_FIXED | {"addition_embed_type": "text_time" if second else None})
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
    sample_size, unit = _sample_size(config, remark), 2 ** (blocks - 1)
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
        context_width=config.same("cross_attention_dim", blocks, 1280),
        linear_projection=config.flag("use_linear_projection", False),
        groups=groups,
        eps=config.number("norm_eps", 1e-5, least=0, most=1),
        flip_sin_to_cos=config.flag("flip_sin_to_cos", True),
        freq_shift=shift,
        guidance_width=guidance_width,
        # Absent it is the usual one; a null says that there is none.
        middle=config.get("mid_block_type") is not None or not config.holds("mid_block_type"),
        pooled_width=second.projection if second else 0,
        size_width=_size_width(config, second.projection, shift) if second else 0,
    )


def _size_width(config: Config, pooled: int, shift: float) -> int:
    """Return how many numbers embed each of SDXL's six. Errors: CheckpointError, which knows the refiner's five."""
    key = "projection_class_embeddings_input_dim"
    width, whole = config.integer("addition_time_embed_dim", 0, least=0), config.integer(key, 0, least=0)
    if width % 2 or width <= 2 * shift or not width:
        raise config.refusal("addition_time_embed_dim", f"it must be even, and more than twice freq_shift {shift:g}")
    if whole == pooled + (SIZES - 1) * width:
        raise config.refusal(key, "that is the SDXL refiner's, which latentd does not do; serve the base model")
    if whole != pooled + SIZES * width:
        raise config.refusal(key, f"a text of {pooled} numbers and {SIZES} of {width} make {pooled + SIZES * width}")
    return width


def _sample_size(config: Config, remark: Callable[[str], None]) -> int:
    """Return the latent's side: 64 where a config of before 0.9.0 has less, as diffusers' pipeline takes it.

    Stable Diffusion 1.1 to 1.4 were published with 32, and trained at 64.
    """
    side = config.same("sample_size", 2, most=LARGEST_SIDE)
    is_list = isinstance(config.get("sample_size"), list)
    version = re.match(r"(\d+)\.(\d+)", str(config.get("_diffusers_version")))
    if side < 64 and version and (int(version[1]), int(version[2])) < (0, 9) and not is_list:
        remark(f"{config.path}: sample_size is {side} in a config of diffusers {version[0]}; 64 is taken, as it does")
        return 64
    return side


def _attention(config: Config, key: str, cross: str, plain: str, blocks: int) -> tuple[bool, ...]:
    types = config.get(key)
    if not isinstance(types, list) or len(types) != blocks or not all(t in (cross, plain) for t in types):
        raise config.refusal(key, f"latentd does {blocks} of {cross} and {plain}")
    return tuple(t == cross for t in types)


def read_vae(config: Config) -> VaeSpec:
    check_class(config, "_class_name", ("AutoencoderKL",))
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
