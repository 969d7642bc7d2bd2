"""What the tensors of published LoRA files are called: kohya's names, diffusers' and PEFT's, and older ones.

Every name is a layer's and an ending. The layers' names are made from the model's own, so that what fits no layer of
the model is no name here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.loras.layers import SECOND, Layers
from pipeline.networks import UnetSpec

DOWN, UP, ALPHA = "A", "B", "alpha"

# Endings of a tensor's name, and what each is.
_ENDINGS = {
    ".lora_down.weight": DOWN,  # kohya
    ".lora_up.weight": UP,
    ".lora_A.weight": DOWN,  # PEFT
    ".lora_B.weight": UP,
    ".lora.down.weight": DOWN,  # diffusers, before PEFT
    ".lora.up.weight": UP,
    ".lora_linear_layer.down.weight": DOWN,
    ".lora_linear_layer.up.weight": UP,
    "_lora.down.weight": DOWN,  # of an attention's processor, the oldest
    "_lora.up.weight": UP,
    ".alpha": ALPHA,
}
# What says by a part of a name that a file is of another kind.
_OTHER_KINDS = {
    r"\.hada_": "a LoHa (Hadamard products)",
    r"\.lokr_": "a LoKr (Kronecker products)",
    r"dora_scale|lora_magnitude_vector|\.weight_magnitude": "a DoRA (it scales columns too)",
    r"\.lora_mid\.": "a LoCon in Tucker's form",
    r"\.oft_|\.oft_blocks|\.boft_": "an OFT",
    r"\.(diff|diff_b|set_weight)$": "a difference of whole weights",
    r"(^|\.)(ia3_|on_input)": "an IA3",
    r"^lora_transformer_|^transformer\.|^lora_unet_(double|single)_": "a LoRA of a diffusion transformer (Flux, SD 3)",
    r"^lora_te3_|^text_encoder_3\.": "a LoRA of a model with several text encoders (SD 3)",
    r"^base_model\.model\.": "a LoRA as PEFT alone saves it, whose alpha lies in another file",
    r"^(model\.diffusion_model|cond_stage_model|first_stage_model)\.": "a checkpoint",
    r"^(emb_params|string_to_param|clip_[lg])": "a textual inversion",
}
_OF_SECOND = re.compile(r"^lora_te2_|^text_encoder_2\.")
_OF_CONVOLUTIONS = re.compile(
    r"resnets|downsamplers|upsamplers|conv[_.]|time_emb|(in|out|emb)_layers_|(in|out)put_blocks_\d+_0|_skip_|unet_out_"
)


class Place(NamedTuple):
    """Says where a tensor belongs."""

    part: str  # "unet" or "text_encoder"
    layer: str
    which: str  # DOWN, UP or ALPHA


class Names:
    """Knows every name that a LoRA of one model may use."""

    def __init__(self, unet: UnetSpec, unet_layers: Layers, text_layers: Layers) -> None:
        self._layers: dict[str, tuple[str, str]] = {}
        for layer in unet_layers:
            for name in (layer, *_original(layer, unet)):
                self._layers[f"lora_unet_{name.replace('.', '_')}"] = ("unet", layer)
            self._layers[f"unet.{layer}"] = ("unet", layer)
            attention, _, kind = layer.rpartition(".to_")
            if attention:  # ..attn1.processor.to_out_lora.down.weight
                self._layers[f"unet.{attention}.processor.to_{kind.removesuffix('.0')}"] = ("unet", layer)
        self.two_texts = any(layer.startswith(SECOND) for layer in text_layers)
        for layer in text_layers:
            if layer.startswith(SECOND):
                folder, prefixes = SECOND, ["lora_te2_"]
            else:  # SDXL's first one has the shapes of SD 1.x's only one, for which kohya's files have another name
                folder, prefixes = "text_encoder.", ["lora_te1_", *["lora_te_"] * (not self.two_texts)]
            inner = layer.removeprefix(SECOND)
            if kind := re.search(r"(?<=\.self_attn\.)\w+(?=_proj$)", inner):  # as a processor's, the oldest
                self._layers[f"{folder}{inner[: kind.start()]}to_{kind[0]}"] = ("text_encoder", layer)
            for name in (inner, inner.removeprefix("text_model.")):
                self._layers[folder + name] = ("text_encoder", layer)
                for prefix in prefixes:
                    self._layers[prefix + name.replace(".", "_")] = ("text_encoder", layer)

    def place(self, name: str) -> Place | None:
        """Return where a tensor belongs; None where that is no layer that a LoRA may add to here."""
        for ending, which in _ENDINGS.items():
            if name.endswith(ending) and (layer := self._layers.get(name.removesuffix(ending))) is not None:
                return Place(*layer, which)
        return None


def other_kind(name: str) -> str | None:
    """Say what kind of file, which is not read here, has a tensor of this name; None where the name says nothing."""
    return next((kind for pattern, kind in _OTHER_KINDS.items() if re.search(pattern, name)), None)


def is_of_second(name: str) -> bool:
    """Return whether the name is that of a second text encoder's layer."""
    return _OF_SECOND.search(name) is not None


def is_of_convolution(name: str) -> bool:
    """Return whether the name is that of a layer outside of the transformers: a LoCon adds to those too."""
    return _OF_CONVOLUTIONS.search(name) is not None


def _original(layer: str, unet: UnetSpec) -> Iterator[str]:
    """Yield what the original code calls a layer of the UNet: kohya's files for SDXL have such names."""
    where, _, rest = layer.partition(".attentions.")
    number, _, inside = rest.partition(".")
    if where == "mid_block":
        yield f"middle_block.1.{inside}"
        return
    side, _, block = where.partition(".")
    block, number = int(block), int(number)
    if side == "down_blocks":  # behind conv_in; each block but the last ends in a layer that halves
        yield f"input_blocks.{1 + sum(unet.layers[:block]) + block + number}.1.{inside}"
    else:
        before = list(reversed(unet.layers))[:block]
        yield f"output_blocks.{sum(before) + len(before) + number}.1.{inside}"
