"""The configs of a checkpoint, as diffusers and transformers write them, from the recipe's specs."""

from __future__ import annotations

from typing import Any

from pipeline.networks import TextSpec, UnetSpec, VaeSpec, VisionSpec
from pipeline.schedule import ScheduleSpec

Config = dict[str, Any]
_VERSION = "0.42.1"  # of diffusers, whose keys these are


def model_index() -> Config:
    absent = ("feature_extractor", "image_encoder", "safety_checker")
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": _VERSION,
        **{name: [None, None] for name in absent},
        "requires_safety_checker": False,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def text_config(spec: TextSpec, projection: int) -> Config:
    """Say the end and padding tokens: transformers' own defaults are of CLIP's 49,408."""
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": spec.vocab_size,
        "bos_token_id": spec.vocab_size - 2,
        "eos_token_id": spec.vocab_size - 1,
        "pad_token_id": spec.vocab_size - 1,
        "max_position_embeddings": spec.tokens,
        "hidden_size": spec.width,
        "intermediate_size": spec.hidden,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "hidden_act": spec.activation,
        "layer_norm_eps": spec.eps,
        "projection_dim": projection,
        "attention_dropout": 0.0,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
    }


def vision_config(spec: VisionSpec) -> Config:
    return {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "image_size": spec.side,
        "patch_size": spec.patch,
        "num_channels": 3,
        "hidden_size": spec.width,
        "intermediate_size": spec.hidden,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "hidden_act": spec.activation,
        "layer_norm_eps": spec.eps,
        "projection_dim": spec.projection,
        "attention_dropout": 0.0,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
    }


def clip_config(text: TextSpec, vision: VisionSpec) -> Config:
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": vision.projection,
        "logit_scale_init_value": 2.6592,
        "initializer_factor": 1.0,
        "text_config": text_config(text, vision.projection),
        "vision_config": vision_config(vision),
    }


def preprocessor_config(spec: VisionSpec, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Config:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": spec.side},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": spec.side, "width": spec.side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(deviation),
        "do_convert_rgb": True,
    }


def unet_config(spec: UnetSpec) -> Config:
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": _VERSION,
        "act_fn": "silu",
        "attention_head_dim": spec.heads[0],  # the number of heads, in diffusers' words
        "block_out_channels": list(spec.channels),
        "center_input_sample": False,
        "cross_attention_dim": spec.context_width,
        "down_block_types": ["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in spec.attention_down],
        "downsample_padding": 1,
        "dropout": 0.0,
        "flip_sin_to_cos": spec.flip_sin_to_cos,
        "freq_shift": int(spec.freq_shift),
        "in_channels": spec.in_channels,
        "layers_per_block": spec.layers[0],
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_eps": spec.eps,
        "norm_num_groups": spec.groups,
        "only_cross_attention": False,
        "out_channels": spec.out_channels,
        "sample_size": spec.sample_size,
        "transformer_layers_per_block": 1,
        "up_block_types": ["CrossAttnUpBlock2D" if each else "UpBlock2D" for each in spec.attention_up],
        "use_linear_projection": spec.linear_projection,
    }


def vae_config(spec: VaeSpec, side: int) -> Config:
    blocks = len(spec.channels)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": _VERSION,
        "act_fn": "silu",
        "block_out_channels": list(spec.channels),
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "force_upcast": True,
        "in_channels": spec.image_channels,
        "latent_channels": spec.latent_channels,
        "layers_per_block": spec.layers,
        "mid_block_add_attention": spec.mid_attention,
        "norm_num_groups": spec.groups,
        "out_channels": spec.image_channels,
        "sample_size": side,
        "scaling_factor": spec.scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "use_post_quant_conv": spec.post_quant_conv,
        "use_quant_conv": spec.quant_conv,
    }


def schedule_config(spec: ScheduleSpec) -> Config:
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": _VERSION,
        "beta_end": spec.beta_end,
        "beta_schedule": spec.beta_schedule,
        "beta_start": spec.beta_start,
        "clip_sample": False,
        "num_train_timesteps": spec.train_steps,
        "prediction_type": spec.prediction,
        "rescale_betas_zero_snr": spec.rescale_betas_zero_snr,
        "set_alpha_to_one": spec.set_alpha_to_one,
        "steps_offset": spec.steps_offset,
        "thresholding": False,
        "timestep_spacing": spec.spacing,
        "trained_betas": None,
    }
