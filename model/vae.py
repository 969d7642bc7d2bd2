"""The autoencoder between pictures and latents (Kingma and Welling 2014; Rombach et al. 2022, appendix G).

Both halves speak the UNet's latents: scaled to about unit variance. The scaling is done inside.
"""

from __future__ import annotations

from torch import Tensor, nn

from model.blocks import Downsample, Resnet, Upsample
from model.ops import PLAIN, Ops
from model.transformer import Attention, to_picture, to_tokens
from pipeline.spec import VaeSpec

_EPS = 1e-6  # of every normalisation; no config has a key for it


class VaeDecoder(nn.Module):
    """Latents to pictures: the checkpoint's `decoder` and `post_quant_conv`."""

    def __init__(self, spec: VaeSpec, ops: Ops = PLAIN) -> None:
        super().__init__()
        self.spec, self.ops = spec, ops
        latents = spec.latent_channels
        self.post_quant_conv = nn.Conv2d(latents, latents, 1) if spec.post_quant_conv else None
        self.decoder = _Decoder(spec, ops)

    def forward(self, latents: Tensor) -> Tensor:
        """Scaled latents [n, C, h, w] -> pictures [n, 3, H, W] in about [-1, 1], not clamped."""
        x = latents / self.spec.scaling_factor + self.spec.shift_factor
        if self.post_quant_conv is not None:
            x = self.ops.conv(x, self.post_quant_conv)
        return self.decoder(x)


class VaeEncoder(nn.Module):
    """Pictures to latents: the checkpoint's `encoder` and `quant_conv`."""

    def __init__(self, spec: VaeSpec, ops: Ops = PLAIN) -> None:
        super().__init__()
        self.spec, self.ops = spec, ops
        both = 2 * spec.latent_channels
        self.encoder = _Encoder(spec, ops)
        self.quant_conv = nn.Conv2d(both, both, 1) if spec.quant_conv else None

    def forward(self, image: Tensor) -> Tensor:
        """Pictures [n, 3, H, W] in [-1, 1] -> the mean of their latents, scaled: [n, C, h, w]."""
        return self.scaled(self.distribution(image)[0])

    def moments(self, image: Tensor) -> Tensor:
        """Pictures [n, 3, H, W] in [-1, 1] -> what the checkpoint calls moments, mean then log-variance: [n, 2C, h, w].

        As the last convolution gives them: neither scaled nor clamped.
        """
        x = self.encoder(image)
        return x if self.quant_conv is None else self.ops.conv(x, self.quant_conv)

    def distribution(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [n, 3, H, W] in [-1, 1] -> mean and log-variance of the latents, not scaled: each [n, C, h, w].

        The log-variance is clamped to [-30, 20], as in training.
        """
        mean, logvar = self.moments(image).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def scaled(self, latents: Tensor) -> Tensor:
        """The autoencoder's own latents -> those that the UNet takes."""
        return (latents - self.spec.shift_factor) * self.spec.scaling_factor


class VaeMoments(VaeEncoder):
    """The encoder as its graph computes it: `forward` gives the moments."""

    def forward(self, image: Tensor) -> Tensor:
        return self.moments(image)


class _Decoder(nn.Module):
    def __init__(self, spec: VaeSpec, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        first, last = spec.channels[0], spec.channels[-1]
        self.conv_in = nn.Conv2d(spec.latent_channels, last, 3, padding=1)
        self.mid_block = _Mid(spec, ops)
        self.up_blocks = nn.ModuleList()
        width = last
        for i in reversed(range(len(spec.channels))):
            double = Upsample(spec.channels[i], ops) if i else None
            self.up_blocks.append(_Up(spec, ops, width, spec.channels[i], double))
            width = spec.channels[i]
        self.conv_norm_out = nn.GroupNorm(spec.groups, first, eps=_EPS)
        self.conv_out = nn.Conv2d(first, spec.image_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.ops.conv(x, self.conv_in))  # [n, channels[-1], h, w]
        for block in self.up_blocks:
            x = block(x)
        # [n, channels[0], H, W]
        return self.ops.conv(self.ops.group_norm(x, self.conv_norm_out, silu=True), self.conv_out)


class _Encoder(nn.Module):
    def __init__(self, spec: VaeSpec, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        first, last = spec.channels[0], spec.channels[-1]
        self.conv_in = nn.Conv2d(spec.image_channels, first, 3, padding=1)
        self.down_blocks = nn.ModuleList()
        width = first
        for i, channels in enumerate(spec.channels):
            is_last = i + 1 == len(spec.channels)
            halve = None if is_last else Downsample(channels, ops, symmetric=False)
            self.down_blocks.append(_Down(spec, ops, width, channels, halve))
            width = channels
        self.mid_block = _Mid(spec, ops)
        self.conv_norm_out = nn.GroupNorm(spec.groups, last, eps=_EPS)
        self.conv_out = nn.Conv2d(last, 2 * spec.latent_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.ops.conv(image, self.conv_in)  # [n, channels[0], H, W]
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)  # [n, channels[-1], h, w]
        return self.ops.conv(self.ops.group_norm(x, self.conv_norm_out, silu=True), self.conv_out)


class _Up(nn.Module):
    def __init__(self, spec: VaeSpec, ops: Ops, inside: int, outside: int, double: Upsample | None) -> None:
        super().__init__()
        # One layer more than on the way down.
        self.resnets = _resnets(spec, ops, inside, outside, spec.layers + 1)
        self.upsamplers = nn.ModuleList([double] if double else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class _Down(nn.Module):
    def __init__(self, spec: VaeSpec, ops: Ops, inside: int, outside: int, halve: Downsample | None) -> None:
        super().__init__()
        self.resnets = _resnets(spec, ops, inside, outside, spec.layers)
        self.downsamplers = nn.ModuleList([halve] if halve else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class _Mid(nn.Module):
    """Two resnets, and between them, if the config says so, every position attends to every other."""

    def __init__(self, spec: VaeSpec, ops: Ops) -> None:
        super().__init__()
        channels = spec.channels[-1]
        self.attentions = nn.ModuleList([_PositionAttention(spec, ops)] if spec.mid_attention else [])
        self.resnets = _resnets(spec, ops, channels, channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class _PositionAttention(Attention):
    """Single-head self-attention over the positions of a picture."""

    def __init__(self, spec: VaeSpec, ops: Ops) -> None:
        super().__init__(spec.channels[-1], spec.channels[-1], 1, ops, bias=True)
        self.group_norm = nn.GroupNorm(spec.groups, spec.channels[-1], eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        y = to_tokens(self.ops.group_norm(x, self.group_norm))  # [n, h w, c]
        return to_picture(self.to_itself(y, residual=to_tokens(x)), like=x)


def _resnets(spec: VaeSpec, ops: Ops, inside: int, outside: int, count: int) -> nn.ModuleList:
    widths = [inside] + [outside] * (count - 1)
    return nn.ModuleList(
        Resnet(width, outside, time_width=None, groups=spec.groups, eps=_EPS, ops=ops) for width in widths
    )
