"""The one mapping table: what original Stable Diffusion calls its tensors, and what diffusers does.

The original names are those of CompVis' and Stability's training code (a flat list of blocks in the UNet) and, for
SD 2's text encoder, of OpenCLIP. A row holds where numbers stand in braces; a layout says which numbers there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

Inside = Mapping[str, str]  # the names within a module that differ, each without its ".weight" or ".bias"
Place = Mapping[str, int]
Names = dict[str, tuple[str, Inside]]

_SAME: Inside = {}
_RESNET: Inside = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_VAE_RESNET: Inside = {"nin_shortcut": "conv_shortcut"}
_VAE_ATTENTION: Inside = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_OPENCLIP_LAYER: Inside = {
    "ln_1": "layer_norm1",
    "attn.in_proj_weight": "self_attn.{qkv}_proj.weight",  # three matrices in one, row under row
    "attn.in_proj_bias": "self_attn.{qkv}_proj.bias",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}

TABLE: dict[str, tuple[tuple[str, str, Inside], ...]] = {
    "unet": (
        ("time_embed.0", "time_embedding.linear_1", _SAME),
        ("time_embed.2", "time_embedding.linear_2", _SAME),
        ("time_embed.cond_proj", "time_embedding.cond_proj", _SAME),  # LCM's guidance embedding
        ("label_emb.0.0", "add_embedding.linear_1", _SAME),  # SDXL's text and sizes
        ("label_emb.0.2", "add_embedding.linear_2", _SAME),
        ("input_blocks.0.0", "conv_in", _SAME),
        ("input_blocks.{down}.0", "down_blocks.{level}.resnets.{layer}", _RESNET),
        ("input_blocks.{down}.1", "down_blocks.{level}.attentions.{layer}", _SAME),
        ("input_blocks.{halve}.0.op", "down_blocks.{level}.downsamplers.0.conv", _SAME),
        ("middle_block.0", "mid_block.resnets.0", _RESNET),
        ("middle_block.1", "mid_block.attentions.0", _SAME),
        ("middle_block.2", "mid_block.resnets.1", _RESNET),
        ("output_blocks.{up}.0", "up_blocks.{turned}.resnets.{layer}", _RESNET),
        ("output_blocks.{up}.1", "up_blocks.{turned}.attentions.{layer}", _SAME),
        ("output_blocks.{double}.{last}.conv", "up_blocks.{turned}.upsamplers.0.conv", _SAME),
        ("out.0", "conv_norm_out", _SAME),
        ("out.2", "conv_out", _SAME),
    ),
    "vae": (
        ("quant_conv", "quant_conv", _SAME),
        ("post_quant_conv", "post_quant_conv", _SAME),
        ("{half}.conv_in", "{half}.conv_in", _SAME),
        ("encoder.down.{level}.block.{layer}", "encoder.down_blocks.{level}.resnets.{layer}", _VAE_RESNET),
        ("encoder.down.{level}.downsample.conv", "encoder.down_blocks.{level}.downsamplers.0.conv", _SAME),
        ("{half}.mid.block_1", "{half}.mid_block.resnets.0", _VAE_RESNET),
        ("{half}.mid.attn_1", "{half}.mid_block.attentions.0", _VAE_ATTENTION),
        ("{half}.mid.block_2", "{half}.mid_block.resnets.1", _VAE_RESNET),
        ("decoder.up.{level}.block.{layer}", "decoder.up_blocks.{turned}.resnets.{layer}", _VAE_RESNET),
        ("decoder.up.{level}.upsample.conv", "decoder.up_blocks.{turned}.upsamplers.0.conv", _SAME),
        ("{half}.norm_out", "{half}.conv_norm_out", _SAME),
        ("{half}.conv_out", "{half}.conv_out", _SAME),
    ),
    "clip": (
        ("text_model", "text_model", _SAME),
        ("embeddings", "text_model.embeddings", _SAME),  # some files lack the prefix
        ("encoder", "text_model.encoder", _SAME),
        ("final_layer_norm", "text_model.final_layer_norm", _SAME),
    ),
    "openclip": (
        ("token_embedding", "text_model.embeddings.token_embedding", _SAME),
        ("positional_embedding", "text_model.embeddings.position_embedding.weight", _SAME),
        ("transformer.resblocks.{layer}", "text_model.encoder.layers.{layer}", _OPENCLIP_LAYER),
        ("ln_final", "text_model.final_layer_norm", _SAME),
    ),
}

HEAD = "text_projection"  # of OpenCLIP: a matrix that is multiplied from the left, so it lies transposed
TABLE["openclip with its head"] = (*TABLE["openclip"], (HEAD, f"{HEAD}.weight", _SAME))

# Tensors below a network's prefix that are no weights of it: constants, CLIP's heads, what training left.
_NO_WEIGHT = re.compile(r"(.*\.)?(position_ids|attn_mask)|(text_projection|logit_scale|loss|model_ema)(\..*)?")


def names(network: str, places: Iterable[Mapping[str, int | str]]) -> Names:
    """Return a network's table (a key of TABLE), numbers filled in: original module to diffusers' module."""
    places = list(places)
    filled: Names = {}
    for original, ours, inside in TABLE[network]:
        fields = set(re.findall(r"\{(\w+)\}", original + ours))
        for place in [place for place in places if fields <= place.keys()] if fields else [{}]:
            filled[original.format(**place)] = (ours.format(**place), inside)
    return filled


def is_weight(name: str, names: Names) -> bool:
    """Return whether a tensor is a weight, by its original name without its network's prefix."""
    return name in names or not _NO_WEIGHT.fullmatch(name)


def renamed(name: str, names: Names) -> list[str]:
    """Return diffusers' names of a tensor, without its network's prefix: three for a fused one, none if unknown."""
    module, rest = _longest(name, names)
    if module is None:
        return []
    ours, inside = names[module]
    within, ending = _longest(rest, inside)
    if within is not None:
        rest = f"{inside[within]}.{ending}".removesuffix(".")
    whole = f"{ours}.{rest}".removesuffix(".")
    return [whole.format(qkv=letter) for letter in "qkv"] if "{qkv}" in whole else [whole]


def _longest(name: str, known: Mapping[str, object]) -> tuple[str | None, str]:
    """Cut `name` at the dot after the longest start that is in `known`."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        if (start := ".".join(parts[:cut])) in known:
            return start, ".".join(parts[cut:])
    return None, name
