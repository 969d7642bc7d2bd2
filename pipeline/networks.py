"""What shapes the three networks: every size and switch that their layers are built from."""

from __future__ import annotations

from dataclasses import dataclass


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

    @property
    def skips(self) -> int:
        """Count the last layers that a request may leave out (clip_skip)."""
        return min(self.layers - 1, 11)


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
