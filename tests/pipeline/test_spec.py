"""The spec: what a checkpoint's configs say, and what is refused by file and key."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import CheckpointError
from pipeline.spec import Defaults, read_spec
from tests.support.checkpoints import make_checkpoint

DEMO = Path(__file__).parents[2] / "demo" / "small-things"
INDEX = "model_index.json"
TEXT = "text_encoder/config.json"
UNET = "unet/config.json"
VAE = "vae/config.json"
SCHEDULE = "scheduler/scheduler_config.json"
OWN = "latentd.json"
CONFIGS = [INDEX, TEXT, UNET, VAE, SCHEDULE]

ABSENT = object()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("made"))


@pytest.fixture
def checkpoint(made: Path, tmp_path: Path) -> Path:
    """The configs alone: a spec reads no weights."""
    for name in (*CONFIGS, OWN):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(made / name, tmp_path / name)
    return tmp_path


def change(checkpoint: Path, name: str, **values: object) -> None:
    config = json.loads((checkpoint / name).read_text()) | values
    (checkpoint / name).write_text(json.dumps({k: v for k, v in config.items() if v is not ABSENT}))


def refusal(checkpoint: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_spec(checkpoint)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    assert not any(word in message for word in ("None", "True", "False")), "JSON has other words"
    return message


def test_a_tiny_checkpoint(checkpoint: Path) -> None:
    spec = read_spec(checkpoint)
    assert (spec.text.tokens, spec.text.width, spec.text.hidden, spec.text.layers, spec.text.heads) == (
        16,
        48,
        80,
        2,
        3,
    )
    assert (spec.text.activation, spec.text.eps) == ("quick_gelu", 3e-5)
    assert spec.unet.channels == (32, 64) and spec.unet.layers == (1, 1) and spec.unet.heads == (4, 4)
    assert spec.unet.attention_down == (True, False) and spec.unet.attention_up == (False, True)
    assert (spec.unet.in_channels, spec.unet.out_channels, spec.unet.groups, spec.unet.eps) == (3, 3, 8, 2e-5)
    assert (spec.unet.context_width, spec.unet.linear_projection) == (48, False)
    assert (spec.vae.latent_channels, spec.vae.factor, spec.vae.scaling_factor) == (3, 2, 0.31)
    assert spec.vae.shift_factor == 0 and spec.vae.quant_conv and spec.vae.post_quant_conv and spec.vae.mid_attention
    assert (spec.schedule.train_steps, spec.schedule.beta_schedule) == (800, "scaled_linear")
    assert (spec.schedule.prediction, spec.schedule.spacing, spec.schedule.steps_offset) == ("epsilon", "leading", 1)
    assert spec.defaults == Defaults(steps=4, guidance=3.0, sampler="ddim", width=24, height=24)
    assert spec.size_multiple == 4 and spec.latent_shape(24, 32) == (3, 16, 12)
    assert json.loads(json.dumps(spec.to_json()))["unet"]["channels"] == [32, 64]


def test_another_one(tmp_path: Path) -> None:
    spec = read_spec(make_checkpoint(tmp_path, kind="sd2"))
    assert spec.unet.heads == (2, 5, 3) and spec.unet.layers == (2, 1, 2) and spec.unet.transformer_layers == (1, 2, 1)
    assert spec.unet.linear_projection and not spec.unet.flip_sin_to_cos and spec.unet.freq_shift == 1
    assert spec.vae.factor == 4 and spec.size_multiple == 16 and spec.latent_shape(96, 64) == (8, 16, 24)
    assert spec.vae.shift_factor == 0.2 and not spec.vae.quant_conv and not spec.vae.post_quant_conv
    assert (spec.schedule.prediction, spec.schedule.spacing) == ("v_prediction", "trailing")
    assert spec.defaults == Defaults(steps=25, guidance=7.5, sampler="ddim", width=64, height=64)


def test_the_demo_checkpoint() -> None:
    spec = read_spec(DEMO)
    assert spec.text.tokens == 32 and spec.vae.factor == 4 and spec.latent_shape(64, 64) == (4, 16, 16)
    assert spec.defaults == Defaults(steps=12, guidance=1.75, sampler="dpmpp_2m", width=64, height=64)


def test_absent_and_null_mean_the_defaults_of_diffusers(checkpoint: Path) -> None:
    for value in (ABSENT, None):
        change(
            checkpoint,
            SCHEDULE,
            **dict.fromkeys(("timestep_spacing", "prediction_type", "steps_offset", "beta_schedule"), value),
            clip_sample=value,
        )
        change(checkpoint, VAE, shift_factor=value, down_block_types=value, act_fn=value)
        spec = read_spec(checkpoint)
        assert spec.schedule.spacing is None, "each of diffusers' samplers has its own"
        assert spec.schedule.prediction == "epsilon" and spec.schedule.beta_schedule == "linear"
        assert spec.schedule.steps_offset == 1, "diffusers' pipeline sets it"
        assert spec.vae.shift_factor == 0


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (UNET, {"block_out_channels": [32.0, 64.0], "sample_size": 12.0, "norm_num_groups": 8.0}),
        (UNET, {"sample_size": [12, 12], "cross_attention_dim": [48, 48], "layers_per_block": [1, 1]}),
        (UNET, {"attention_head_dim": [4, 4], "conv_in_kernel": 3.0, "only_cross_attention": [False, False]}),
        (UNET, {"mid_block_only_cross_attention": False, "mid_block_scale_factor": 1.0, "dropout": 0.0}),
        (SCHEDULE, {"num_train_timesteps": 800.0, "steps_offset": 1.0}),
        (VAE, {"latent_channels": 3.0, "block_out_channels": [16.0, 24]}),
        (TEXT, {"hidden_size": 48.0, "architectures": ["CLIPTextModelWithProjection"]}),
        (OWN, {"steps": 4.0, "guidance": 3, "prediction": "epsilon", "rescale_betas_zero_snr": False}),
    ],
)
def test_equal_values_written_another_way(checkpoint: Path, name: str, changes: dict[str, Any]) -> None:
    spec = read_spec(checkpoint)
    change(checkpoint, name, **changes)
    assert read_spec(checkpoint) == spec


@pytest.mark.parametrize(
    ("keys", "heads"),
    [
        ({"attention_head_dim": 4}, (4, 4)),
        ({"attention_head_dim": [2, 8]}, (2, 8)),
        ({"attention_head_dim": ABSENT}, (8, 8)),
        ({"attention_head_dim": 4, "num_attention_heads": None}, (4, 4)),
        ({"attention_head_dim": 4, "num_attention_heads": [2, 16]}, (2, 16)),
        ({"attention_head_dim": ABSENT, "num_attention_heads": 2}, (2, 2)),
    ],
)
def test_diffusers_calls_the_number_of_heads_their_dimension(
    checkpoint: Path, keys: dict[str, Any], heads: tuple[int, ...]
) -> None:
    change(checkpoint, UNET, **keys)
    assert read_spec(checkpoint).unet.heads == heads


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        (INDEX, "_class_name", "StableDiffusion3Pipeline"),
        (INDEX, "_class_name", ABSENT),
        (SCHEDULE, "clip_sample", "yes"),
        (SCHEDULE, "thresholding", True),
        (SCHEDULE, "predict_epsilon", False),
        (SCHEDULE, "rescale_betas_zero_snr", 1),
        (SCHEDULE, "timestep_type", "continuous"),
        (SCHEDULE, "interpolation_type", "log_linear"),
        (SCHEDULE, "use_flow_sigmas", True),
        (SCHEDULE, "original_inference_steps", 100),
        (SCHEDULE, "timestep_scaling", 1.0),
        (SCHEDULE, "trained_betas", [0.1, 0.2]),
        (SCHEDULE, "prediction_type", "flow_prediction"),
        (SCHEDULE, "prediction_type", 7),
        (SCHEDULE, "beta_schedule", "sigmoid"),
        (SCHEDULE, "timestep_spacing", "karras"),
        (SCHEDULE, "beta_start", "0.1"),
        (SCHEDULE, "beta_end", float("nan")),
        (SCHEDULE, "beta_end", float("inf")),
        (SCHEDULE, "beta_end", True),
        (SCHEDULE, "beta_end", 0.0001),  # below beta_start
        (SCHEDULE, "beta_end", 1.5),
        (SCHEDULE, "beta_end", 0.9),  # no signal is left after 800 steps of it, in float32
        (SCHEDULE, "num_train_timesteps", 0),
        (SCHEDULE, "steps_offset", -1),
        (SCHEDULE, "set_alpha_to_one", "false"),
        (UNET, "down_block_types", ["AttnDownBlock2D", "DownBlock2D"]),
        (UNET, "down_block_types", ["DownBlock2D"]),
        (UNET, "down_block_types", ABSENT),
        (UNET, "up_block_types", ["UpBlock2D", "SimpleCrossAttnUpBlock2D"]),
        (UNET, "up_block_types", "UpBlock2D"),
        (UNET, "mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
        (UNET, "class_embed_type", "timestep"),
        (UNET, "num_class_embeds", 10),
        (UNET, "addition_embed_type", "text_time"),
        (UNET, "time_cond_proj_dim", 257),
        (UNET, "time_cond_proj_dim", 2),
        (UNET, "time_embedding_type", "fourier"),
        (UNET, "act_fn", "gelu"),
        (UNET, "only_cross_attention", True),
        (UNET, "dual_cross_attention", True),
        (UNET, "cross_attention_dim", [48, 96]),
        (UNET, "_class_name", "UNet2DModel"),
        (UNET, "block_out_channels", []),
        (UNET, "block_out_channels", [32, True]),
        (UNET, "block_out_channels", [32.5, 64.0]),
        (UNET, "block_out_channels", "32"),
        (UNET, "freq_shift", [1]),
        (UNET, "layers_per_block", [1, 0]),
        (UNET, "layers_per_block", [1, 1, 1]),
        (UNET, "transformer_layers_per_block", -1),
        (UNET, "use_linear_projection", 1),
        (UNET, "sample_size", ABSENT),
        (UNET, "sample_size", [12, 16]),
        (UNET, "sample_size", 13),  # cannot be halved
        (VAE, "down_block_types", ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]),
        (VAE, "up_block_types", ["UpDecoderBlock2D"]),
        (VAE, "block_out_channels", [16, 25]),
        (VAE, "act_fn", "relu"),
        (VAE, "_class_name", "AutoencoderTiny"),
        (VAE, "latents_mean", [0.1, 0.2, 0.3]),
        (VAE, "in_channels", 1),
        (VAE, "out_channels", 4),
        (VAE, "scaling_factor", 0),
        (VAE, "use_quant_conv", "yes"),
        (TEXT, "hidden_act", "relu"),
        (TEXT, "max_position_embeddings", 2),
        (TEXT, "vocab_size", 0),
        (TEXT, "architectures", ["RobertaSeriesModelWithTransformation"]),
        (TEXT, "architectures", "CLIPTextModel"),
        (TEXT, "model_type", "clip"),
        (TEXT, "use_attention_mask", True),
        (TEXT, "num_hidden_layers", 0),
        (TEXT, "layer_norm_eps", -1e-5),
        (OWN, "sampler", "euler_b"),
        (OWN, "guidence", 4.0),
        (OWN, "negative_prompt", "blurry"),
        (OWN, "prediction", "v_prediction"),  # of an epsilon model
        (OWN, "sampler", 3),
        (OWN, "guidance", -1),
        (OWN, "guidance", float("nan")),
        (OWN, "steps", 0),
        (OWN, "steps", 2.5),
        (OWN, "width", 26),
        (OWN, "height", 2),
    ],
)
def test_a_refusal_names_file_key_and_value(checkpoint: Path, name: str, key: str, value: object) -> None:
    change(checkpoint, name, **{key: value})
    shown = "missing" if value is ABSENT else json.dumps(value)
    assert f"{checkpoint / name}: {key} is {shown}; " in refusal(checkpoint)


def test_one_example_in_full(checkpoint: Path) -> None:
    change(checkpoint, SCHEDULE, thresholding=True)
    assert refusal(checkpoint) == f"{checkpoint / SCHEDULE}: thresholding is true; latentd does only false"
    change(checkpoint, SCHEDULE, thresholding=ABSENT, trained_betas=[1])
    assert refusal(checkpoint) == f"{checkpoint / SCHEDULE}: trained_betas is [1]; latentd does only null"


def test_a_long_value_is_cut(checkpoint: Path) -> None:
    change(checkpoint, SCHEDULE, trained_betas=[0.1] * 1000)
    assert "0.1, 0.1,...; latentd does only null" in refusal(checkpoint)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (UNET, {"cross_attention_dim": 64}, ["cross_attention_dim is 64", "hidden_size 48"]),
        (
            UNET,
            {"in_channels": 9},
            ["in_channels 9", "out_channels 3", "latent_channels 3", "in_channels 7 for inpainting"],
        ),
        (UNET, {"out_channels": 6}, ["in_channels 3", "out_channels 6"]),
        (VAE, {"latent_channels": 4}, ["in_channels 3", "latent_channels 4", "in_channels 9 for inpainting"]),
        (TEXT, {"hidden_size": 40}, ["hidden_size 40", "num_attention_heads 3"]),
        (UNET, {"block_out_channels": [36, 64]}, ["36 channels", "8 groups"]),
        (UNET, {"attention_head_dim": 7}, ["32 channels", "7 heads"]),
        (UNET, {"block_out_channels": [33, 64], "norm_num_groups": 1, "attention_head_dim": 1}, ["must be even"]),
        (UNET, {"freq_shift": 16}, ["block_out_channels", "twice freq_shift 16"]),
    ],
)
def test_numbers_that_do_not_fit_together(
    checkpoint: Path, name: str, changes: dict[str, Any], words: list[str]
) -> None:
    change(checkpoint, name, **changes)
    message = refusal(checkpoint)
    assert all(word in message for word in (str(checkpoint), *words)), message


@pytest.mark.parametrize(
    ("changes", "own", "words"),
    [
        ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, {}, "starts at a timestep without signal"),
        ({"num_train_timesteps": 20}, {"sampler": "euler", "steps": 21}, "20 timesteps have no room for them"),
        ({"prediction_type": "sample"}, {"sampler": "pndm"}, "sampler pndm combines predictions of noise or v"),
        ({}, {"sampler": "lcm", "steps": 51}, "sampler lcm takes 1 to 50"),
    ],
)
def test_defaults_that_cannot_be_drawn(
    checkpoint: Path, changes: dict[str, Any], own: dict[str, Any], words: str
) -> None:
    """Rather at load than with every request that leaves them out."""
    change(checkpoint, SCHEDULE, **changes)
    change(checkpoint, OWN, **own)
    message = refusal(checkpoint)
    assert message.startswith(f"{checkpoint}: its own defaults cannot be drawn: ") and words in message


@pytest.mark.parametrize("name", CONFIGS)
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    assert f"{checkpoint / name} is missing" in refusal(checkpoint)


def test_only_latentds_own_file_may_be_missing(checkpoint: Path) -> None:
    (checkpoint / OWN).unlink()
    assert read_spec(checkpoint).defaults == Defaults(25, 7.5, "ddim", 24, 24)


@pytest.mark.parametrize("name", [*CONFIGS, OWN])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as JSON"),
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe\x00", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b"[]", "must hold a JSON object, not a list"),
        (b"null", "must hold a JSON object, not null"),
        (b"true", "must hold a JSON object, not a boolean"),
        (b'"x"', "must hold a JSON object, not a string"),
        (b"{" + b" " * (1 << 20) + b"}", "bytes; latentd reads at most 1048576"),
    ],
)
def test_a_malformed_file_is_named(checkpoint: Path, name: str, content: bytes, words: str) -> None:
    (checkpoint / name).write_bytes(content)
    message = refusal(checkpoint)
    assert message.startswith(str(checkpoint / name)) and words in message


def test_a_folder_in_a_files_place(checkpoint: Path) -> None:
    (checkpoint / UNET).unlink()
    (checkpoint / UNET).mkdir()
    assert str(checkpoint / UNET) in refusal(checkpoint)
