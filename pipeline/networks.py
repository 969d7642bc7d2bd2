"""What shapes the networks: every size and switch that their layers are built from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class TextSpec:
    """Describes a CLIP text tower (Radford et al. 2021, 2.4)."""

    vocab_size: int
    tokens: int  # context length, start and end marks included
    width: int
    hidden: int  # of the MLP
    layers: int
    heads: int
    activation: str  # "quick_gelu" or "gelu"
    eps: float
    penultimate: bool = False  # SDXL: the context is what the last layer but one gives, not normalised
    projection: int = (
        0  # width of a whole text's embedding, which SDXL's second tower gives beside the context; 0: none
    )
    end: int | None = None  # the token where that stands; None: the highest number of a text
    adapted: bool = False  # does each row bring a LoRA's matrices? (pipeline/loras)

    @property
    def skips(self) -> int:
        """Count the last layers that a request may leave out (clip_skip)."""
        return max(0, min(self.layers - 1 - self.penultimate, 11))


@dataclass(frozen=True)
class VisionSpec:
    """Describes a CLIP vision tower (Dosovitskiy et al. 2021; Radford et al. 2021, 2.4) and its projection."""

    side: int  # pixels of the square picture that it sees
    patch: int  # pixels a side
    width: int
    hidden: int  # of the MLP
    layers: int
    heads: int
    activation: str  # "quick_gelu" or "gelu"
    eps: float
    projection: int  # width of an embedding


@dataclass(frozen=True)
class ClipSpec:
    """Describes what was read of a CLIP folder: its vision tower, and its text tower where that is wanted."""

    vision: VisionSpec
    text: TextSpec | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class UnetSpec:
    """Describes a conditional UNet (Rombach et al. 2022). Tuples have one entry a block, outermost first."""

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
    middle: bool = True  # is there a block between the way down and the way up? The smallest BK-SDM has none
    style_tokens: int = 0  # of a picture that every attention to the text sees beside it (IP-Adapter); 0: none
    adapted: bool = False  # does each row bring a LoRA's matrices? (pipeline/loras)
    pooled_width: int = 0  # SDXL: the whole text's embedding is one more input, of so many numbers; 0: it is not
    size_width: int = 0  # SDXL: so are six numbers (pipeline/conditions/sizes.py), each embedded in so many

    @property
    def conditions(self) -> tuple[str, ...]:
        """Return the names of the inputs that this network has beyond latents, timestep and context, in order."""
        named = {
            "guidance": self.guidance_width,
            "style": self.style_tokens,
            "style_weight": self.style_tokens,
            "pooled": self.pooled_width,
            "sizes": self.size_width,
        }
        return tuple(name for name, width in named.items() if width)

    @property
    def text_layers(self) -> list[tuple[str, int]]:
        """Return path and width of each layer that attends to the text, in diffusers' order: down, up, middle."""
        layers, blocks = [], len(self.channels)
        for i in range(blocks):
            if self.attention_down[i]:
                layers += [(f"down_blocks.{i}.attentions.{j}", i) for j in range(self.layers[i])]
        for position, i in enumerate(reversed(range(blocks))):
            if self.attention_up[position]:
                layers += [(f"up_blocks.{position}.attentions.{j}", i) for j in range(self.layers[i] + 1)]
        if self.middle:
            layers.append(("mid_block.attentions.0", blocks - 1))
        return [
            (f"{path}.transformer_blocks.{k}.attn2", self.channels[i])
            for path, i in layers
            for k in range(self.transformer_layers[i])
        ]


@dataclass(frozen=True)
class VaeSpec:
    """Describes an AutoencoderKL. Tuples have one entry a block, outermost (full size) first."""

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
        """Return the pixels a side of one latent position: every block but the last halves the side."""
        return 2 ** (len(self.channels) - 1)
