"""The conditional UNet of latent diffusion (Ho et al. 2020, appendix B; Rombach et al. 2022).

`forward` is the whole network. It is also three calls, so that a stepper can keep what a step repeats:
`context_kv` depends on the text alone (once a request), `time_shifts` on the timestep alone (a table), and
`denoise` is the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.blocks import Downsample, Resnet, Upsample
from model.embeddings import guidance_embedding, timestep_embedding
from model.evaluation import Evaluation
from model.ops import PLAIN, Ops, spread
from model.transformer import Attention, SpatialTransformer
from pipeline.conditions.sizes import SIZES
from pipeline.spec import UnetSpec


class Unet(nn.Module):
    def __init__(self, spec: UnetSpec, ops: Ops = PLAIN) -> None:
        super().__init__()
        self.spec, self.ops = spec, ops
        first = spec.channels[0]
        time_width = 4 * first
        self.conv_in = nn.Conv2d(spec.in_channels, first, 3, padding=1)
        self.time_embedding = nn.ModuleDict(
            {"linear_1": nn.Linear(first, time_width), "linear_2": nn.Linear(time_width, time_width)}
        )
        if spec.guidance_width:
            self.time_embedding["cond_proj"] = nn.Linear(spec.guidance_width, first, bias=False)
        if spec.size_width:
            given = spec.pooled_width + SIZES * spec.size_width
            self.add_embedding = nn.ModuleDict(
                {"linear_1": nn.Linear(given, time_width), "linear_2": nn.Linear(time_width, time_width)}
            )
        # Registered in the order of execution: shifts and (k, v) are handed out in that order.
        self.down_blocks = nn.ModuleList()
        self.mid_block = _Mid(spec, ops) if spec.middle else None
        self.up_blocks = nn.ModuleList()
        width, skips = first, [first]
        for i, channels in enumerate(spec.channels):
            is_last = i + 1 == len(spec.channels)
            inputs = [width] + [channels] * (spec.layers[i] - 1)
            halve = None if is_last else Downsample(channels, ops, symmetric=True)
            self.down_blocks.append(_Down(spec, ops, i, inputs, attends=spec.attention_down[i], downsample=halve))
            skips += [channels] * (spec.layers[i] + (not is_last))
            width = channels
        for position, i in enumerate(reversed(range(len(spec.channels)))):
            channels = spec.channels[i]
            inputs = [width] + [channels] * spec.layers[i]
            inputs = [wide + skips.pop() for wide in inputs]
            double = None if i == 0 else Upsample(channels, ops)
            self.up_blocks.append(_Up(spec, ops, i, inputs, attends=spec.attention_up[position], upsample=double))
            width = channels
        assert not skips and width == first, f"{len(skips)} skips left over"
        self.conv_norm_out = nn.GroupNorm(spec.groups, first, eps=spec.eps)
        self.conv_out = nn.Conv2d(first, spec.out_channels, 3, padding=1)

        blocks = (self.down_blocks, self.mid_block, self.up_blocks)
        ordered = [m for block in blocks if block is not None for m in block.modules()]
        self._time_projections = [m.time_emb_proj for m in ordered if isinstance(m, Resnet) and m.time_emb_proj]
        cross = [m.get_submodule("attn2") for m in ordered if hasattr(m, "attn2")]
        self._cross_attentions = [m for m in cross if isinstance(m, Attention)]

    def attended(self) -> Iterator[tuple[Resnet, SpatialTransformer]]:
        """Yield each transformer, behind the resnet whose result it alone is given: no skip holds that."""
        for block in self.modules():
            if isinstance(block, _Mid) or (isinstance(block, _Block) and block.attends):
                for resnet, transformer in zip(block.resnets, block.attentions, strict=False):  # the middle's first
                    assert isinstance(resnet, Resnet) and isinstance(transformer, SpatialTransformer)
                    yield resnet, transformer

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        context: Tensor,
        guidance: Tensor | None = None,
        style: Tensor | None = None,
        style_weight: Tensor | None = None,
        pooled: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> Tensor:
        """latents [n, C, h, w], timestep [n] float32 in training steps, context [n, T, D] -> [n, C, h, w].

        guidance [n] float32 is for a network that was distilled with it (`guidance_width`), and only for one; style
        [n, style_tokens, D] and style_weight [n] for one with a style adapter; pooled [n, pooled_width] and sizes
        [n, 6] for SDXL's. By position an input that the network does not take is left out, as in its graph
        (graphs/ports.py).

        Rows are independent of each other. The result is what the model was trained to predict: noise or velocity.
        h and w are multiples of 2 to the number of blocks minus one.
        """
        values = [value for value in (guidance, style, style_weight, pooled, sizes) if value is not None]
        given = dict(zip(self.spec.conditions, values, strict=True))
        time = self.embedded_time(timestep, given.get("guidance"))
        if self.spec.size_width:
            time = time + self.embedded_text(given["pooled"], given["sizes"])
        shifts = self.shifts(time)
        return self.denoise(latents, shifts, self.context_kv(context, given.get("style"), given.get("style_weight")))

    def time_shifts(self, timestep: Tensor, guidance: Tensor | None = None) -> list[Tensor]:
        """Return what the time adds to each resnet's channels, in order: timestep [n] float32 -> [n, channels] each.

        Of a network whose text has a part in it (SDXL) `shifts` gives them, of the sum of the two methods below.
        """
        return self.shifts(self.embedded_time(timestep, guidance))

    def shifts(self, embedded: Tensor) -> list[Tensor]:
        """Return what is added to each resnet's channels: [n, 4 channels[0]] -> [n, channels] each."""
        return self.ops.linears(F.silu(embedded), self._time_projections)

    def embedded_text(self, pooled: Tensor, sizes: Tensor) -> Tensor:
        """Return what a text and its picture's sizes add to the time: [n, pooled_width], [n, 6] -> [n, 4 channels[0]].

        Podell et al. 2023, 2.2: each of the six numbers is embedded as a timestep is, and all stand behind the text.
        """
        spec = self.spec
        first, second = self.add_embedding.children()
        assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
        waves = timestep_embedding(sizes.flatten(), spec.size_width, spec.flip_sin_to_cos, spec.freq_shift)
        both = torch.cat(
            (pooled.to(first.weight.dtype), waves.to(first.weight.dtype).unflatten(0, (-1, SIZES)).flatten(1)), 1
        )
        return self.ops.linear(F.silu(self.ops.linear(both, first)), second)

    def embedded_time(self, timestep: Tensor, guidance: Tensor | None = None) -> Tensor:
        """Return the time before it is projected for each resnet: timestep [n] float32 -> [n, 4 channels[0]]."""
        spec = self.spec
        wave = timestep_embedding(timestep, spec.channels[0], spec.flip_sin_to_cos, spec.freq_shift)
        assert (guidance is None) == (not spec.guidance_width)
        first, second, *conditions = self.time_embedding.children()
        if guidance is not None:
            (condition,) = conditions
            assert isinstance(condition, nn.Linear)
            wave = wave + self.ops.linear(
                guidance_embedding(guidance, spec.guidance_width).to(condition.weight.dtype), condition
            )
        assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
        x = F.silu(self.ops.linear(wave.to(first.weight.dtype), first))  # [n, 4 channels[0]]
        return self.ops.linear(x, second)

    def context_kv(
        self, context: Tensor, style: Tensor | None = None, style_weight: Tensor | None = None
    ) -> list[Tensor]:
        """Project what each cross-attention attends to, in order: the context [n, T, D] to k, v, each [n, T, width].

        With a style adapter each k, v is followed by those of the picture's tokens `style` [n, style_tokens, D], the
        values times `style_weight` [n] (Ye et al. 2023, eq. 5: the weight of the second attention's result).
        """
        linears = [linear for a in self._cross_attentions for linear in (a.to_k, a.to_v)]
        kept = self.ops.linears(context, linears) if linears else []
        if not self.spec.style_tokens or not linears:
            return kept
        assert style is not None and style_weight is not None
        both = self.ops.linears(style, [linear for a in self._cross_attentions for linear in a.of_style])
        weight, pairs = style_weight.to(style.dtype)[:, None, None], []
        for i in range(0, len(kept), 2):
            pairs += [kept[i], kept[i + 1], both[i], both[i + 1] * weight]
        return pairs

    def denoise(
        self, latents: Tensor, time_shifts: Sequence[Tensor], context_kv: Sequence[Tensor], copies: int = 1
    ) -> Tensor:
        """Evaluate latents [n, C, h, w] with what the two methods above gave for n `copies` rows: [n copies, C, h, w].

        Row i of the latents stands for rows i copies to (i + 1) copies - 1, which also share their timestep: a guided
        picture's two rows. They are computed once until the first cross-attention. Of two rows of SD 1.5 at 512x512
        that spares half of the first convolution, a resnet, and up to its query the first transformer: 42 of 1,600
        GFLOP, 2.6% (counted), most of it one of the five self-attentions over 64 x 64 positions.
        """
        evaluation = Evaluation(time_shifts, context_kv, copies, styled=self.spec.style_tokens > 0)
        x = self.ops.conv(latents, self.conv_in)  # [n, channels[0], h, w]
        evaluation.keep(x)
        for block in self.down_blocks:
            x = block(x, evaluation)
        if self.mid_block is not None:
            x = self.mid_block(x, evaluation)  # [n copies, channels[-1], h / 2^(blocks-1), ..]
        for block in self.up_blocks:
            x = block(x, evaluation)
        x = self.ops.conv(self.ops.group_norm(x, self.conv_norm_out, silu=True), self.conv_out)
        return spread(x, evaluation.copies)  # where nothing attended to the text


class _Block(nn.Module):
    """Resnets, each followed by a spatial transformer where the block attends. `index` counts from outermost."""

    def __init__(self, spec: UnetSpec, ops: Ops, index: int, inputs: Sequence[int], *, attends: bool) -> None:
        super().__init__()
        channels = spec.channels[index]
        shape = {"groups": spec.groups, "ops": ops}
        self.ops, self.attends = ops, attends
        if attends:
            self.attentions = nn.ModuleList(
                SpatialTransformer(
                    channels,
                    spec.context_width,
                    heads=spec.heads[index],
                    layers=spec.transformer_layers[index],
                    linear=spec.linear_projection,
                    styled=spec.style_tokens > 0,
                    **shape,
                )
                for _ in range(len(inputs))
            )
        self.resnets = nn.ModuleList(
            Resnet(width, channels, time_width=4 * spec.channels[0], eps=spec.eps, **shape) for width in inputs
        )

    def layer(self, i: int, x: Tensor, evaluation: Evaluation) -> Tensor:
        x = self.resnets[i](x, evaluation.shift())
        return self.attentions[i](x, evaluation.text) if self.attends else x


class _Down(_Block):
    """A block on the way down: what each layer, and the downsampling, gives is kept."""

    def __init__(
        self,
        spec: UnetSpec,
        ops: Ops,
        index: int,
        inputs: Sequence[int],
        *,
        attends: bool,
        downsample: Downsample | None,
    ) -> None:
        super().__init__(spec, ops, index, inputs, attends=attends)
        self.downsamplers = nn.ModuleList([downsample] if downsample else [])

    def forward(self, x: Tensor, evaluation: Evaluation) -> Tensor:
        for i in range(len(self.resnets)):
            x = self.layer(i, x, evaluation)
            evaluation.keep(x)
        for downsample in self.downsamplers:
            x = downsample(x)  # [n, c, h / 2, w / 2]
            evaluation.keep(x)
        return x


class _Mid(nn.Module):
    def __init__(self, spec: UnetSpec, ops: Ops) -> None:
        super().__init__()
        channels = spec.channels[-1]
        resnet = {"time_width": 4 * spec.channels[0], "groups": spec.groups, "eps": spec.eps, "ops": ops}
        transformer = SpatialTransformer(
            channels,
            spec.context_width,
            heads=spec.heads[-1],
            layers=spec.transformer_layers[-1],
            linear=spec.linear_projection,
            styled=spec.style_tokens > 0,
            groups=spec.groups,
            ops=ops,
        )
        self.attentions = nn.ModuleList([transformer])
        self.resnets = nn.ModuleList(Resnet(channels, channels, **resnet) for _ in range(2))

    def forward(self, x: Tensor, evaluation: Evaluation) -> Tensor:
        x = self.resnets[0](x, evaluation.shift())
        x = self.attentions[0](x, evaluation.text)
        return self.resnets[1](x, evaluation.shift())


class _Up(_Block):
    """A block on the way up: each layer takes what the layers on the way down kept, last first."""

    def __init__(
        self, spec: UnetSpec, ops: Ops, index: int, inputs: Sequence[int], *, attends: bool, upsample: Upsample | None
    ) -> None:
        super().__init__(spec, ops, index, inputs, attends=attends)
        self.upsamplers = nn.ModuleList([upsample] if upsample else [])

    def forward(self, x: Tensor, evaluation: Evaluation) -> Tensor:
        for i in range(len(self.resnets)):
            x = evaluation.joined(x, self.ops)  # [n, c + c of the skip, h, w]
            x = self.layer(i, x, evaluation)
        for upsample in self.upsamplers:
            x = upsample(x)  # [n, c, 2h, 2w]
        return x
