"""What looks like SDXL and is not is refused by name, in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.checkpoint.opened import open_checkpoint
from pipeline.errors import CheckpointError
from pipeline.spec import read_spec
from tests.support.sdxl import change, write_configs

ONE = torch.ones(1)
UNET = "model.diffusion_model."
TEXTS = ("conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model.")
# Of each kind of file the tensors by which it is told.
XL = {
    f"{UNET}label_emb.0.0.weight": torch.ones(8, 8),
    f"{UNET}input_blocks.0.0.weight": torch.ones(8, 4, 3, 3),
    f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.ones(8, 12),
    "first_stage_model.encoder.conv_in.weight": ONE,
    f"{TEXTS[0]}embeddings.token_embedding.weight": torch.ones(2, 4),
    f"{TEXTS[1]}token_embedding.weight": torch.ones(2, 8),
}


def without(prefix: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in XL.items() if not name.startswith(prefix)}


def test_the_end_of_a_text_is_the_highest_number_by_either_name(tmp_path: Path) -> None:
    """As published, 2 stands for it; what newer programs save names it. It is one network, and has one graph."""
    write_configs(tmp_path)
    specs = []
    for end in (2, 49407, 49406):
        change(tmp_path, "text_encoder_2/config.json", eos_token_id=end)
        specs.append(read_spec(tmp_path))
    assert specs[0] == specs[1] != specs[2]


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (without(TEXTS[0]) | without(TEXTS[1]) | {"edm_mean": ONE}, "Playground v2.5, which is sampled as EDM is"),
        (XL | {"edm_vpred.sigma_max": ONE}, "CosXL, which is sampled as EDM is"),
        (
            {k: t for k, t in without(TEXTS[0]).items() if TEXTS[1] not in k}
            | {"conditioner.embedders.0.model.token_embedding.weight": ONE},
            "an SDXL refiner, or",
        ),
        (without(TEXTS[0]), "an SDXL checkpoint without its first text encoder"),
        (without("first_stage_model."), "a checkpoint without its VAE"),
        (XL | {f"{UNET}input_blocks.0.0.weight": torch.ones(8, 8, 3, 3)}, "an instruct-pix2pix model"),
        (
            XL | {f"{TEXTS[1]}token_embedding.weight": torch.ones(2, 9)},
            "takes a context 12 wide, but its two text encoders are 4 and 9 wide",
        ),
    ],
    ids=["Playground", "CosXL", "refiner", "one text", "no VAE", "pix2pix", "another UNet's texts"],
)
def test_single_files(tmp_path: Path, tensors: dict[str, torch.Tensor], words: str) -> None:
    file = tmp_path / "xl.safetensors"
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(file)
    assert str(file) in str(caught.value) and words in str(caught.value)
    assert "\n" not in str(caught.value)


INDEX, UNET_CONFIG, SECOND = "model_index.json", "unet/config.json", "text_encoder_2/config.json"


@pytest.mark.parametrize(
    ("file", "keys", "words"),
    [
        (INDEX, {"text_encoder": [None, None]}, "text_encoder is [null, null]; that is the SDXL refiner"),
        (INDEX, {"_class_name": "StableDiffusionXLInstructPix2PixPipeline"}, "latentd does"),
        (INDEX, {"_class_name": "StableDiffusionPipeline"}, 'addition_embed_type is "text_time"'),
        (INDEX, {"text_encoder_3": ["transformers", "T5EncoderModel"]}, "text_encoder_3 is"),
        (INDEX, {"force_zeros_for_empty_prompt": "yes"}, "force_zeros_for_empty_prompt"),
        (UNET_CONFIG, {"projection_class_embeddings_input_dim": 128 + 5 * 32}, "that is the SDXL refiner's"),
        (UNET_CONFIG, {"projection_class_embeddings_input_dim": 300}, "a text of 128 numbers and 6 of 32 make 320"),
        (UNET_CONFIG, {"addition_time_embed_dim": 31}, "addition_time_embed_dim is 31; it must be even"),
        (UNET_CONFIG, {"addition_embed_type": "image"}, 'addition_embed_type is "image"'),
        (UNET_CONFIG, {"cross_attention_dim": 128}, "the text encoders' hidden_size is together 192"),
        (UNET_CONFIG, {"transformer_layers_per_block": [1, [1, 2], 3]}, "transformer_layers_per_block"),
        (SECOND, {"architectures": ["CLIPTextModel"]}, 'latentd does only ["CLIPTextModelWithProjection"]'),
        (SECOND, {"max_position_embeddings": 64}, "max_position_embeddings is 64; the contexts lie side by side"),
        (SECOND, {"projection_dim": 64}, "a text of 64 numbers"),
    ],
)
def test_folders(tmp_path: Path, file: str, keys: dict[str, Any], words: str) -> None:
    write_configs(tmp_path)
    read_spec(tmp_path)
    change(tmp_path, file, **keys)
    with pytest.raises(CheckpointError) as caught:
        read_spec(tmp_path)
    assert words in str(caught.value), str(caught.value)


def test_a_folder_without_its_second_text_encoder(tmp_path: Path) -> None:
    write_configs(tmp_path)
    (tmp_path / SECOND).unlink()
    with pytest.raises(CheckpointError, match=r"text_encoder_2/config\.json is missing"):
        read_spec(tmp_path)
